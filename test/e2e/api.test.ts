// The public API: handles that dispose of themselves, cancelling, progress.
import assert from "node:assert/strict"
import { generateKeyPairSync, randomBytes } from "node:crypto"
import { once } from "node:events"
import {
  linkSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { pathToFileURL } from "node:url"
import { PassThrough, Readable } from "node:stream"
import { text } from "node:stream/consumers"
import {
  build,
  BuildError,
  encrypt,
  inspect,
  KeyError,
  listMounts,
  open,
  sign,
  TreeError,
  unmount,
  verify,
  type CredentialSource,
  type OnProgress,
} from "../../lib/index.ts"
import { finish, isRoot, packageRoot, runProgram, sifcryptOk, startProgram } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { allProcesses, mountsIn, processesOfGroup, waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"
import { vectorPath } from "../vectors/load.ts"

describe("the API", () => {
  const keys = testKeys()
  const folder = newFolder("api")
  const image = path.join(folder, "image.sif")
  const tree = makeRootTree()
  const credentials: readonly CredentialSource[] = [{ key: { file: keys.privateKey } }]

  before(async () => {
    for (let i = 0; i < 4; i++) writeFileSync(path.join(tree, `random-${i}`), randomBytes(4 << 20))
    const seen: number[] = []
    const result = await build({
      output: image,
      source: tree,
      recipients: [{ key: { file: keys.publicKey } }],
      onProgress: (bytes) => seen.push(bytes),
    })
    assert.equal(result.encrypted, true)
    assert.ok(result.inputBytes > 16 << 20)
    assert.deepEqual(
      seen,
      seen.toSorted((a, b) => a - b),
      "progress only grows",
    )
  })

  /** Nothing of this process serves or runs anything. */
  async function assertQuiet(): Promise<void> {
    await waitFor("the end of the starters", () =>
      allProcesses().every(
        ({ parent, command }) => parent !== process.pid || !command.startsWith("sifcrypt-starter"),
      ),
    )
    assert.deepEqual(mountsIn(folder), [])
  }

  describe("open", () => {
    it("reads, lists and streams", async () => {
      await using opened = await open(image, { unlock: credentials })
      assert.equal(opened.kind, "luks")
      assert.equal((await opened.readFile("/data/hello")).toString(), "hello\n")
      assert.equal(await text(opened.createReadStream("data/hello")), "hello\n")
      assert.ok((await opened.list("/", { recursive: true })).some((entry) => entry.path === "/bin/busybox"))
      assert.equal((await opened.stat("/bin/sh")).target, "busybox")
    })

    it("closes when it is disposed of, and refuses work after it", async () => {
      const opened = await open(image, { unlock: credentials })
      await opened.list()
      await opened[Symbol.asyncDispose]()
      await opened[Symbol.asyncDispose]()
      await assert.rejects(async () => await opened.list())
      await assert.rejects(async () => await opened.exec(["true"], { engine: "userspace" }))
    })

    it("throws errors with a code and a path", async () => {
      await assert.rejects(open(image), (error: unknown) => {
        assert.ok(error instanceof KeyError)
        assert.equal(error.code, "ERR_KEY_MISSING")
        assert.equal(error.path, image)
        return true
      })
      await using opened = await open(image, { unlock: credentials })
      await assert.rejects(opened.readFile("/nothing"), (error: unknown) => {
        assert.ok(error instanceof TreeError)
        assert.equal(error.code, "ERR_TREE_NOT_FOUND")
        return true
      })
    })

    it("looks at the environment only when it is told to", async () => {
      process.env["SIFCRYPT_ENCRYPTION_PEM_PATH"] = keys.privateKey
      try {
        await assert.rejects(open(image), { code: "ERR_KEY_MISSING" })
        await using opened = await open(image, { unlock: [{ environment: process.env }] })
        assert.ok(await opened.list())
      } finally {
        delete process.env["SIFCRYPT_ENCRYPTION_PEM_PATH"]
      }
    })

    it("keeps no file open after a failure", async () => {
      const count = (): number => readdirSync("/proc/self/fd").length
      const before = count()
      for (let i = 0; i < 20; i++) {
        await assert.rejects(open(image, { unlock: [{ key: { file: keys.otherPrivateKey } }] }))
        await assert.rejects(open(keys.publicKey))
        await assert.rejects(build({ output: path.join(folder, "no"), source: keys.publicKey }))
      }
      assert.equal(count(), before)
    })
  })

  describe("inspect", () => {
    it("needs no key", async () => {
      const facts = await inspect(image)
      assert.equal(facts.kind, "luks")
      assert.equal(facts.luks?.cipher, "aes-xts-plain64")
      assert.equal(facts.cryptoMessages, 1)
    })
  })

  describe("mount", () => {
    const target = path.join(folder, "mount")

    before(function () {
      if (!isRoot && !existsSync("/dev/fuse")) skip(this, "needs /dev/fuse")
      mkdirSync(target)
    })

    afterEach(assertQuiet)

    it("A19: lasts as long as its handle", async () => {
      await using opened = await open(image, { unlock: credentials })
      {
        await using mounted = await opened.mount(target, { engine: "userspace" })
        assert.equal(mounted.info.target, target)
        assert.equal(mounted.info.image, image)
        assert.equal(readFileSync(path.join(target, "data", "hello"), "utf8"), "hello\n")
        assert.ok((await listMounts()).some((one) => one.target === target && one.pid === mounted.info.pid))
      }
      assert.deepEqual(readdirSync(target), [])
    })

    it("outlives the image's handle", async () => {
      const opened = await open(image, { unlock: credentials })
      await using mounted = await opened.mount(target, { engine: "userspace" })
      await opened[Symbol.asyncDispose]()
      assert.equal(readFileSync(path.join(target, "data", "hello"), "utf8"), "hello\n")
      await mounted.unmount()
      await mounted.unmount()
      assert.deepEqual(readdirSync(target), [])
    })

    it("A3: goes when the process ends without disposing of it", async () => {
      for (const ending of [
        "process.exit(0)",
        "process.kill(process.pid, 'SIGKILL')",
        "throw new Error('x')",
        "await 0",
      ]) {
        const script = `import { open } from ${JSON.stringify(pathToFileURL(path.join(packageRoot, "dist", "index.js")).href)}
          const image = await open(${JSON.stringify(image)}, { credentials: ${JSON.stringify(credentials)} })
          await image.mount(${JSON.stringify(target)}, { engine: "userspace" })
          ${ending}`
        await runProgram([process.execPath, "--input-type=module", "--eval", script], { as: "self" })
        await waitFor(`the end of the mount after ${ending}`, () => mountsIn(target).length === 0, 5000)
      }
    })

    it("detached stays, until somebody unmounts it", async () => {
      const opened = await open(image, { unlock: credentials })
      await opened.mount(target, { engine: "userspace", detached: true })
      await opened[Symbol.asyncDispose]()
      assert.equal(readFileSync(path.join(target, "data", "hello"), "utf8"), "hello\n")
      await unmount(target)
      await assert.rejects(unmount(target), { code: "ERR_MOUNT_NOT_OURS" })
    })

    it("busy says so, and can be tried again", async () => {
      await using opened = await open(image, { unlock: credentials })
      const mounted = await opened.mount(target, { engine: "userspace" })
      const holder = startProgram(["cat"], { as: "self", cwd: target, stdio: ["pipe", "ignore", "inherit"] })
      await waitFor("its working folder", () => readlinkSync(`/proc/${holder.pid ?? 0}/cwd`) === target)
      await assert.rejects(unmount(target), { code: "ERR_MOUNT_BUSY" })
      holder.stdin?.end()
      await once(holder, "exit")
      await mounted.unmount()
    })
  })

  describe("exec", () => {
    const options = { engine: "userspace" } as const

    afterEach(assertQuiet)

    it("gives streams and an exit code", async () => {
      await using opened = await open(image, { unlock: credentials })
      await using running = await opened.exec(["sh", "-c", "cat; echo err >&2; exit 6"], options)
      running.stdin?.end("input")
      const [out, err, result] = await Promise.all([
        text(running.stdout!),
        text(running.stderr!),
        running.exited,
      ])
      assert.deepEqual([out, err, result.exitCode], ["input", "err\n", 6])
      assert.equal(running.engine, "userspace")
    })

    for (const when of ["before", "after"])
      it(`gives all that the payload wrote, asked for ${when} it has ended`, async () => {
        await using opened = await open(image, { unlock: credentials })
        const script = "cat; head -c 300000 /dev/zero; echo err >&2; exit 6"
        await using running = await opened.exec(["sh", "-c", script], options)
        running.stdin?.end("input")
        if (when === "after") await running.exited
        const { exitCode, stdout, stderr } = await running.output()
        assert.deepEqual([exitCode, stdout.length, stderr.toString()], [6, 300_005, "err\n"])
        assert.equal(await running.output(), await running.output())
        assert.equal(running.kill("SIGTERM"), false)
      })

    it("a handle that was disposed of gives what was written until then, and does nothing more", async () => {
      await using opened = await open(image, { unlock: credentials })
      const running = await opened.exec(["sh", "-c", "echo out; exec sleep 300"], options)
      await new Promise((resolve) => running.stdout?.once("readable", resolve))
      for (let twice = 0; twice < 2; twice++) await running[Symbol.asyncDispose]()
      assert.equal(running.kill("SIGTERM"), false)
      assert.equal((await running.output()).stdout.toString(), "out\n")
      assert.throws(() => running.kill("SIGNONE" as never), { code: "ERR_INVALID_ARG_VALUE" })
      await assert.rejects(opened.exec([]), { code: "ERR_INVALID_ARG_VALUE" })
    })

    it("ends a payload that writes more than is to be kept, and one that takes too long", async () => {
      await using opened = await open(image, { unlock: credentials })
      await using noisy = await opened.exec(["cat", "/dev/zero"], options)
      await assert.rejects(noisy.output({ maxBytes: 1 << 20 }), { code: "ERR_RUN_OUTPUT" })
      await using slow = await opened.exec(["sleep", "300"], { ...options, timeoutMs: 3000 })
      await assert.rejects(slow.exited, { code: "ERR_RUN_TIMEOUT" })
      await assert.rejects(slow.output(), { code: "ERR_RUN_TIMEOUT" })
      const early = opened.exec(["sleep", "300"], { ...options, timeoutMs: 1 })
      await assert.rejects(early, { code: "ERR_RUN_TIMEOUT" }, "before the payload started")
    })

    it("joins the payload's streams with those that are given: streams and descriptors", async () => {
      await using opened = await open(image, { unlock: credentials })
      const file = path.join(folder, "errors")
      const fd = openSync(file, "w")
      const written = new PassThrough()
      await using running = await opened.exec(["sh", "-c", "cat; echo err >&2"], {
        ...options,
        stdio: [Readable.from(["in", "put"]), written, fd],
      })
      assert.deepEqual([running.stdin, running.stdout, running.stderr], [null, null, null])
      assert.equal((await running.exited).exitCode, 0)
      closeSync(fd)
      assert.equal(String(written.read()), "input")
      assert.equal(readFileSync(file, "utf8"), "err\n")
      await assert.rejects(running.output(), { name: "TypeError", code: "ERR_INVALID_ARG_VALUE" })
    })

    it("ends the payload when its handle is disposed of", async () => {
      await using opened = await open(image, { unlock: credentials })
      const started = performance.now()
      {
        await using running = await opened.exec(["sh", "-c", "echo ready; exec sleep 300"], options)
        await new Promise((resolve) => running.stdout?.once("data", resolve))
      }
      assert.ok(performance.now() - started < 10_000)
    })

    it("passes signals on", async () => {
      await using opened = await open(image, { unlock: credentials })
      await using running = await opened.exec(
        ["sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done"],
        options,
      )
      await new Promise((resolve) => running.stdout?.once("data", resolve))
      running.kill("SIGTERM")
      assert.equal((await running.exited).exitCode, 9)
    })

    it("stops by an AbortSignal, before and while it runs", async () => {
      await using opened = await open(image, { unlock: credentials })
      const reason = new Error("enough")
      await assert.rejects(opened.exec(["true"], { ...options, signal: AbortSignal.abort(reason) }), reason)
      const controller = new AbortController()
      const running = await opened.exec(["sleep", "300"], { ...options, signal: controller.signal })
      controller.abort(reason)
      await assert.rejects(running.exited, reason)
    })

    it("S21: gives the payload the descriptors that it is to have, and no secret's or image's", async () => {
      const [given, passphrase] = ["given", "passphrase"].map((name) => path.join(folder, name))
      assert.ok(given !== undefined && passphrase !== undefined)
      writeFileSync(given, "from outside\n")
      const program = `
        import { open } from ${JSON.stringify(pathToFileURL(path.join(packageRoot, "dist", "index.js")).href)}
        const [file, key] = process.argv.slice(1)
        const use = async (unlock, preserveFds, script) => {
          const image = await open(file, { unlock })
          const running = await image.exec(["sh", "-c", script], { engine: "userspace", stdio: "inherit", preserveFds })
          await running.exited
        }
        await use([{ key: { file: key } }], 1, "ls /proc/self/fd; cat <&3")
        await use([{ key: { fd: 4 } }], 2, "true").catch(({ message }) => console.log(message))`
      const [file, key] = [openSync(given, "r"), openSync(keys.privateKey, "r")]
      const child = startProgram(
        [process.execPath, "--input-type=module", "-e", program, "--", image, keys.privateKey],
        { as: "self", cwd: packageRoot, stdio: ["pipe", "pipe", "pipe", file, key] },
      )
      for (const fd of [file, key]) closeSync(fd)
      const result = await finish(child)
      assert.equal(result.stderr, "")
      assert.equal(
        result.text,
        "0\n1\n2\n3\n4\nfrom outside\n--preserve-fds: descriptor 4 was not given to this process\n",
      )
    })

    it("runs several at once", async () => {
      await using opened = await open(image, { unlock: credentials })
      const codes = await Promise.all(
        Array.from({ length: 6 }, async (_, i) => {
          await using running = await opened.exec(["sh", "-c", `exit ${i}`], options)
          return (await running.exited).exitCode
        }),
      )
      assert.deepEqual(codes, [0, 1, 2, 3, 4, 5])
    })
  })

  describe("progress", () => {
    const at = (name: string): string => path.join(folder, `progress-${name}`)
    const { privateKey, publicKey } = generateKeyPairSync("ed25519")
    const recipients = [{ key: { file: keys.publicKey } }]
    const operations: readonly (readonly [string, (onProgress: OnProgress) => Promise<unknown>])[] = [
      ["a build of a folder", (onProgress) => build({ output: at("folder.sif"), source: tree, onProgress })],
      [
        "a build of OCI layers",
        (onProgress) =>
          build({ output: at("oci.sif"), source: `oci:${vectorPath("oci/layout")}`, onProgress }),
      ],
      [
        "a build of a definition of two stages",
        (onProgress) => {
          const stage = (name: string): string =>
            `Bootstrap: localimage\nFrom: ${at("folder.sif")}\nStage: ${name}\n`
          writeFileSync(
            at("definition"),
            `${stage("one")}\n${stage("two")}\n%files from one\n  /data/hello /again\n`,
          )
          return build({ output: at("defined.sif"), source: at("definition"), onProgress })
        },
      ],
      [
        "a build into a folder",
        (onProgress) => build({ output: at("sandbox"), source: at("folder.sif"), sandbox: true, onProgress }),
      ],
      [
        "a build of an image",
        (onProgress) => build({ output: at("again.sif"), source: at("folder.sif"), onProgress }),
      ],
      [
        "encrypt",
        (onProgress) =>
          encrypt({ output: at("locked.sif"), image: at("folder.sif"), recipients, onProgress }),
      ],
      ["sign", (onProgress) => sign(at("folder.sif"), { key: privateKey }, { onProgress })],
      [
        "sign with a hash tree",
        async (onProgress) => {
          const totals = new Set<number | undefined>()
          await sign(
            at("folder.sif"),
            { key: privateKey },
            {
              tree: true,
              onProgress: (done, total) => {
                totals.add(total)
                onProgress(done, total)
              },
            },
          )
          assert.equal(totals.size, 1)
        },
      ],
      ["verify", (onProgress) => verify(at("folder.sif"), { keys: [publicKey], onProgress })],
      [
        "extract",
        async (onProgress) => {
          await using opened = await open(image, { unlock: credentials })
          await opened.extract(at("extracted"), { paths: ["/data", "/bin"], onProgress })
        },
      ],
    ]
    for (const [what, run] of operations)
      it(`of ${what} only grows, and ends with all of it`, async () => {
        const calls: (readonly [number, number | undefined])[] = []
        await run((done, total) => calls.push([done, total]))
        const done = calls.map(([bytes]) => bytes)
        assert.deepEqual(
          done,
          done.toSorted((a, b) => a - b),
        )
        assert.ok(calls.every(([bytes, total]) => total === undefined || bytes <= total))
        const [last, total] = calls.at(-1) ?? assert.fail("it says nothing")
        assert.ok(last > 0)
        assert.equal(last, total)
      })
  })

  it("says how much there is of a folder while it is built", async () => {
    const place = newFolder("totals")
    const source = path.join(place, "tree")
    mkdirSync(path.join(source, "below"), { recursive: true })
    for (const name of ["a", "below/b", "c"]) writeFileSync(path.join(source, name), randomBytes(2 << 20))
    linkSync(path.join(source, "a"), path.join(source, "below", "again"))
    const output = path.join(place, "image.sif")
    const calls: (readonly [number, number | undefined])[] = []
    const compression = { name: "xz", level: 9 } as const
    await build({ output, source, compression, onProgress: (done, total) => calls.push([done, total]) })
    const all = 6 << 20
    assert.deepEqual(calls.at(-1), [all, all])
    assert.ok(
      calls.some(([bytes, total]) => bytes < all && total === all),
      JSON.stringify(calls),
    )
  })

  describe("cancelling", () => {
    it("a build leaves nothing", async () => {
      const place = newFolder("cancelled")
      const output = path.join(place, "image.sif")
      const reason = new Error("enough")
      const common = { output, source: tree, compression: { name: "xz", level: 9 } } as const
      await assert.rejects(build({ ...common, signal: AbortSignal.abort(reason) }), reason)
      for (const afterMs of [1, 30, 100]) {
        const controller = new AbortController()
        const timer = setTimeout(() => {
          controller.abort(reason)
        }, afterMs)
        await assert.rejects(build({ ...common, signal: controller.signal }), reason)
        clearTimeout(timer)
        assert.deepEqual(readdirSync(place), [])
      }
    })

    it("an extraction stops", async () => {
      const source = newFolder("much")
      writeFileSync(path.join(source, "text"), Buffer.alloc(400 << 20, "what compresses well, "))
      const output = path.join(newFolder("much-image"), "image.sif")
      await build({ output, source, compression: { name: "lz4" } })
      await using opened = await open(output)
      const reason = new Error("enough")
      const controller = new AbortController()
      const target = path.join(newFolder("cancelled-extract"), "tree")
      const extraction = opened.extract(target, {
        signal: controller.signal,
        onProgress: () => {
          controller.abort(reason)
        },
      })
      await assert.rejects(extraction, reason)
    })

    it("a list and a read stop", async () => {
      await using opened = await open(image, { unlock: credentials })
      const signal = AbortSignal.abort(new Error("enough"))
      await assert.rejects(opened.list("/", { recursive: true, signal }), /enough/)
      await assert.rejects(opened.readFile("/random-0", { signal }), /enough/)
    })
  })

  it("leaves what exists alone, and says so with a code", async () => {
    await assert.rejects(build({ output: image, source: tree }), (error: unknown) => {
      assert.ok(error instanceof BuildError)
      assert.equal(error.code, "ERR_BUILD_EXISTS")
      return true
    })
  })

  it("A3: a mount and an exec of one process leave nothing when it is killed", async function () {
    if (!isRoot) skip(this, "needs root, to mark all processes that come of a command")
    const group = 74_000
    const target = path.join(folder, "both")
    mkdirSync(target)
    const script = `import { open } from ${JSON.stringify(pathToFileURL(path.join(packageRoot, "dist", "index.js")).href)}
      const image = await open(${JSON.stringify(image)}, { credentials: ${JSON.stringify(credentials)} })
      await image.mount(${JSON.stringify(target)}, { engine: "userspace" })
      await image.exec(["sleep", "300"], { engine: "userspace" })
      process.kill(process.pid, "SIGKILL")`
    await runProgram([process.execPath, "--input-type=module", "--eval", script], { as: "self", group })
    await waitFor(
      "the end of everything",
      () => processesOfGroup(group).length === 0 && mountsIn(target).length === 0,
      5000,
    )
  })

  it("the command says what the API says", async () => {
    const { text: printed } = await sifcryptOk(["info", "--json", image], { as: "self" })
    assert.deepEqual(JSON.parse(printed), JSON.parse(JSON.stringify(await inspect(image))))
  })
})
