// Builds on another machine: sshd on loopback, another user behind it.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { once } from "node:events"
import { chmodSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { inspect, listRecipients, open } from "../../lib/index.ts"
import {
  finish,
  idOf,
  isRoot,
  packageRoot,
  runProgram,
  sifcrypt,
  sifcryptOk,
  startSifcrypt,
  type Result,
} from "../support/cli.ts"
import { arm64Program, emulating, noEmulation } from "../support/foreign.ts"
import { testKeys } from "../support/keys.ts"
import { certificate } from "../support/http-server.ts"
import { makeLayout } from "../support/layout.ts"
import { processesBelow, waitFor } from "../support/processes.ts"
import { Registry } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { startBuilder, type BuilderMachine } from "../support/sshd.ts"
import { makeRootTree } from "../support/trees.ts"
import { vectorPath } from "../vectors/load.ts"

interface Failed {
  readonly error: { readonly code: string; readonly message: string; readonly hint: string | null }
}

/** A program that says what it likes: `frames` are an expression of JavaScript. */
function liar(frames: string, hello = '{ protocol: 1, version: "0.0.1", architectures: ["amd64"] }'): string {
  return `#!/usr/bin/env node
import { readFileSync } from "node:fs"
import { encodeFrame, FrameKind, GREETING } from "${packageRoot}/dist/remote/frames.js"
const say = (message) => encodeFrame(FrameKind.message, Buffer.from(JSON.stringify(message)))
const tree = (bytes) => {
  const frames = []
  for (let at = 0; at < bytes.length; at += 1 << 18)
    frames.push(encodeFrame(FrameKind.data, bytes.subarray(at, at + (1 << 18))))
  return Buffer.concat([...frames, encodeFrame(FrameKind.end)])
}
const built = (size, more) => say({ kind: "built", size, entries: 1, inputBytes: 1, hasOciConfig: false, ...more })
process.stdout.write(Buffer.concat([GREETING, say(${hello}), ...${frames}]))
process.stdin.resume().on("end", () => process.exit())
`
}

/** The builder that there is, or a program that is one, under another architecture. */
function disguise(architecture: string, program = "sifcrypt"): string {
  return `#!/usr/bin/env node
import { spawn } from "node:child_process"
import { encodeFrame, FrameKind, GREETING } from "${packageRoot}/dist/remote/frames.js"
const child = spawn("${program}", ["serve-build"], { stdio: ["inherit", "pipe", "inherit"] })
let start = Buffer.alloc(0)
child.stdout.on("data", function first(chunk) {
  start = Buffer.concat([start, chunk])
  const at = GREETING.length
  if (start.length < at + 5 || start.length < at + 5 + start.readUInt32LE(at)) return
  child.stdout.off("data", first)
  const end = at + 5 + start.readUInt32LE(at)
  const hello = { ...JSON.parse(start.subarray(at + 5, end)), architectures: ["${architecture}"] }
  process.stdout.write(Buffer.concat([GREETING, encodeFrame(FrameKind.message, Buffer.from(JSON.stringify(hello)))]))
  process.stdout.write(start.subarray(end))
  child.stdout.pipe(process.stdout)
})
child.on("close", (code) => process.exit(code))
`
}

describe("build --remote", () => {
  const keys = testKeys()
  const place = newFolder("remote", idOf("user"))
  const at = (name: string): string => path.join(place, name)
  let machine: BuilderMachine

  const define = (name: string, text: string): string => {
    writeFileSync(at(name), text)
    return name
  }
  const run = (args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Result> =>
    sifcrypt(["build", ...args], { as: "user", cwd: place, env, wrapper: machine.wrapper })
  const build = (args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Result> =>
    run(["--remote", machine.remote, ...args], env)
  /** With the ids that the builder has: an ordinary user's is in a user namespace of one. */
  const buildHere = (args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Result> =>
    isRoot ? sifcrypt(["build", ...args], { as: "user", cwd: place, env }) : run(args, env)
  const nothingLeft = async (): Promise<void> => {
    await waitFor("the end there", () => machine.processes().length === 0, 30_000)
    assert.deepEqual(machine.left(), [])
  }

  before(async () => {
    machine = await startBuilder()
    execFileSync("cp", ["-a", makeRootTree(), at("base")])
    mkdirSync(at("files/sub"), { recursive: true })
    writeFileSync(at("files/sub/.wh.odd"), "odd\n")
    writeFileSync(at("files/_under"), "under\n")
    chmodSync(at("files/_under"), 0o750)
    writeFileSync(at("files/größe"), "size\n")
    symlinkSync("../files/_under", at("files/link"))
    if (isRoot) execFileSync("chown", ["-Rh", `${idOf("user")}:${idOf("user")}`, place])
  })
  after(async () => {
    await machine[Symbol.asyncDispose]()
  })

  it("builds there what is defined here, and encrypts it here", async () => {
    define(
      "main.def",
      `Bootstrap: scratch
Stage: one
%files
files/sub/.wh.odd /odd

Bootstrap: localimage
From: base

%files from one
/odd /data/odd
%files
files /data/files
files/gr*
%post
id -u > /made
echo "who: {{ WHO }}" >> /made
env > /environment
echo out
echo err >&2
%environment
export GREETING=hello
%runscript
cat /made
%labels
Author somebody
%appfiles tool
files/_under
`,
    )
    const args = ["--pem-path", keys.publicKey, "--build-arg", "WHO={{ me }}", "main.sif", "main.def"]
    const made = await build(args, { DOCKER_PASSWORD: "hidden", APPTAINER_DOCKER_USERNAME: "hidden" })
    assert.equal(made.status, 0, made.stderr)
    assert.equal(made.text, "out\n")
    assert.match(made.stderr, /^err$/m)
    assert.match(made.stderr, /running %post/)
    await using image = await open(at("main.sif"), { unlock: [{ key: { file: keys.privateKey } }] })
    const read = async (file: string): Promise<string> => (await image.readFile(file)).toString()
    assert.equal(await read("/made"), "0\nwho: {{ me }}\n")
    assert.equal(await read("/data/odd"), "odd\n")
    assert.equal(await read("/data/files/sub/.wh.odd"), "odd\n")
    assert.equal(await read("/data/files/link"), "under\n")
    assert.equal(await read("/files/größe"), "size\n")
    assert.equal(await read("/scif/apps/tool/_under"), "under\n")
    assert.ok(!(await read("/environment")).includes("hidden"))
    const modes = await sifcryptOk(
      ["ls", "-l", "--json", "--pem-path", keys.privateKey, at("main.sif"), "/data/files/_under"],
      { as: "user" },
    )
    assert.equal((JSON.parse(modes.text) as { mode: number }[])[0]?.mode, 0o750)
    const recipients = await listRecipients(at("main.sif"))
    assert.deepEqual(
      recipients.map(({ kind, stale }) => [kind, stale]),
      [["rsa", false]],
    )
    const asked = await sifcryptOk(
      ["inspect", "--json", "--all", "--pem-path", keys.privateKey, "main.sif"],
      {
        as: "user",
        cwd: place,
      },
    )
    assert.ok(asked.text.includes("somebody") && asked.text.includes("cat /made"), asked.text)
    await nothingLeft()
  })

  it("sends neither keys nor passphrases, and what they open goes as it is", async () => {
    // The account's own program; it keeps what it was given.
    const log = path.join(machine.folders[1] ?? "", "seen")
    const program = machine.program("spy", `#!/bin/sh\nenv > ${log}\nexec sifcrypt "$@"\n`)
    define("next.def", "Bootstrap: localimage\nFrom: main.sif\n%post\ncat /made > /again\n")
    const args = ["--remote", machine.remote + program, "--source-pem-path", keys.privateKey, "--json"]
    const made = await run([...args, "-e", "--pbkdf", "pbkdf2:1000", "next.sif", "next.def"], {
      SIFCRYPT_ENCRYPTION_PASSPHRASE: "correct horse",
      HARMLESS: "sent",
    })
    assert.equal(made.status, 0, made.stderr)
    const result = JSON.parse(made.text) as { encrypted: boolean; entries: number; inputBytes: number }
    assert.ok(result.encrypted && result.entries > 20 && result.inputBytes > 100_000, made.text)
    await using image = await open(at("next.sif"), {
      unlock: [{ passphrase: { bytes: Buffer.from("correct horse") } }],
    })
    assert.equal((await image.readFile("/again")).toString(), "0\nwho: {{ me }}\n")
    const seen = readFileSync(log, "utf8")
    assert.ok(seen.includes("HARMLESS=sent") && !seen.includes("horse"), seen)
    execFileSync("rm", [log])
    await nothingLeft()
  })

  it("ends as a build here would", async () => {
    define("bad.def", "Bootstrap: localimage\nFrom: base\n%post\necho before\nexit 7\n")
    define("none.def", `Bootstrap: localimage\nFrom: base\n%files\nfiles/none /x\n`)
    for (const name of ["bad.def", "none.def"]) {
      const [there, here] = await Promise.all([
        build(["--json", "x.sif", name]),
        buildHere(["--json", "x.sif", name]),
      ])
      assert.equal(there.status, here.status, there.stderr)
      assert.equal(there.status, 25)
      assert.deepEqual(JSON.parse(there.text) as Failed, JSON.parse(here.text) as Failed)
    }
    assert.ok(!existsSync(at("x.sif")))
    // And as it would succeed: the same bytes.
    define(
      "same.def",
      "Bootstrap: localimage\nFrom: base\n%files\nfiles /x\n%post\necho x > /y\n%labels\nA b\n",
    )
    const env = { SOURCE_DATE_EPOCH: "1700000000" }
    const made = await Promise.all([
      build(["there.sif", "same.def"], env),
      buildHere(["here.sif", "same.def"], env),
    ])
    assert.deepEqual(
      made.map(({ status, stderr }) => [status, status === 0 ? "" : stderr]),
      [0, 0].map((status) => [status, ""]),
    )
    assert.ok(readFileSync(at("there.sif")).equals(readFileSync(at("here.sif"))))
    await nothingLeft()
  })

  it("has it fetched there what is at a registry, and sends the image that is here", async () => {
    const pair = certificate()
    await using registry = await Registry.start({ tls: pair })
    const name = registry.host.replace("127.0.0.1", "registry.example.test")
    makeLayout(at("layout"), at("base"), { Env: ["FROM=layout"], Cmd: ["/bin/sh"], Labels: { a: "b" } })
    await registry.push(`oci:${at("layout")}`, "base")
    define(
      "fetched.def",
      `Bootstrap: oci\nFrom: layout\nStage: one\n\nBootstrap: docker\nFrom: ${name}/base\n%files from one\n/data/hello /copied\n`,
    )
    define("sent.def", "Bootstrap: oci\nFrom: layout\n%environment\nexport X=y\n")
    // Who asks for it could not fetch it: only the account there knows the certificate.
    const env = { SOURCE_DATE_EPOCH: "1700000000" }
    const known = { ...env, SSL_CERT_FILE: pair.certificate }
    const made = await Promise.all(
      ["fetched", "sent"].flatMap((file) => [
        run(["--remote", machine.limited, `${file}-there.sif`, `${file}.def`], env),
        run([`${file}-here.sif`, `${file}.def`], known),
      ]),
    )
    for (const { status, stderr } of made) assert.equal(status, 0, stderr)
    for (const file of ["fetched", "sent"]) {
      const there = readFileSync(at(`${file}-there.sif`))
      assert.ok(there.equals(readFileSync(at(`${file}-here.sif`))), file)
      assert.ok(there.includes("FROM=layout"), "the configuration of its base")
    }
    // That it is encrypted is looked at here.
    define("plain-base.def", `Bootstrap: docker\nFrom: ${name}/base\n`)
    const args = ["--remote", machine.limited, "--json", "--require-encrypted", "x.sif", "plain-base.def"]
    const { status, text } = await run(args, known)
    assert.equal((JSON.parse(text) as Failed).error.code, "ERR_OCI_PARTIAL")
    assert.equal(status, 21)
    await nothingLeft()
  })

  it("refuses what only this machine can do, before it asks another one", async () => {
    define("setup.def", "Bootstrap: scratch\n%setup\ntouch x\n")
    define("plain.def", "Bootstrap: scratch\n")
    const nobody = ["--remote", "ssh://host.invalid"]
    for (const args of [
      ["x.sif", "setup.def"],
      ["x.sif", "base"],
      ["--sandbox", "x.sif", "plain.def"],
      ["--bind", "/etc", "x.sif", "plain.def"],
      ["--plain-tmp", "x.sif", "plain.def"],
    ]) {
      const { status, text } = await run([...nobody, "--json", ...args])
      assert.equal((JSON.parse(text) as Failed).error.code, "ERR_BUILD_REMOTE_REFUSED", args.join(" "))
      assert.equal(status, 20)
    }
    define("debian.def", "Bootstrap: debootstrap\nOSVersion: bookworm\nMirrorURL: https://mirror.invalid/\n")
    const demand = [...nobody, "--json", "--require-encrypted", "x.sif", "debian.def"]
    assert.equal((JSON.parse((await run(demand)).text) as Failed).error.code, "ERR_SIF_PLAIN")
    for (const remote of ["ssh://-oProxyCommand=touch x", "host", "ssh://host/a b"])
      assert.equal((await run(["--remote", remote, "x.sif", "plain.def"])).status, 20)
  })

  it("says who does not answer, and what he says instead", async () => {
    define("plain.def", "Bootstrap: scratch\n")
    const chatty = machine.program("chatty", "#!/bin/sh\necho 'Welcome to the builder'\n")
    const cases = [
      ["ssh://host.invalid", /could not resolve hostname/i],
      [machine.remote.replace(/:\d+$/, ":1"), /connection refused/i],
      [`${machine.remote}/nonexistent/sifcrypt`, /not found|no such file/i],
      [machine.remote + chatty, /no sifcrypt answers there: what comes begins with "Welcome to the/],
    ] as const
    await Promise.all(
      cases.map(async ([remote, message]) => {
        const { status, text } = await run(["--remote", remote, "--json", "x.sif", "plain.def"])
        const { error } = JSON.parse(text) as Failed
        assert.equal(error.code, "ERR_BUILD_REMOTE", text)
        assert.match(error.message, message)
        assert.equal(status, 25)
      }),
    )
  })

  it("believes nothing that comes back", async () => {
    define("plain.def", "Bootstrap: scratch\n")
    const squashfs = path.join(path.dirname(machine.program("x", "")), "other.squashfs")
    execFileSync("mksquashfs", [at("base"), squashfs, "-quiet", "-no-progress"], { stdio: "ignore" })
    chmodSync(squashfs, 0o644)
    const other = `readFileSync("${squashfs}")`
    const image = "ERR_BUILD_REMOTE_IMAGE"
    const cases: readonly (readonly [frames: string, code: string, message: RegExp, hello?: string])[] = [
      [`[built(${other}.length), tree(${other})]`, image, /another definition/],
      [
        `[built(${other}.length + 4096), tree(Buffer.concat([${other}, Buffer.alloc(4096)]))]`,
        image,
        /its tree ends at/,
      ],
      [`[built(8192), tree(Buffer.alloc(8192))]`, image, /malformed/],
      [`[built(8192), tree(Buffer.alloc(4096))]`, image, /4096 bytes, and 8192 were announced/],
      [`[built(4096, { recipients: [] })]`, "ERR_BUILD_REMOTE", /not understood/],
      [
        `[]`,
        "ERR_BUILD_REMOTE_VERSION",
        /0\.0\.9 is at ssh.*different protocols, 7 and 1/,
        '{ protocol: 7, version: "0.0.9" }',
      ],
    ]
    await Promise.all(
      cases.map(async ([frames, code, message, hello], index) => {
        const program = machine.program(`liar-${index}.mjs`, liar(frames, hello))
        const args = ["--pem-path", keys.publicKey, "--json", `liar-${index}.sif`, "plain.def"]
        const { text, stderr } = await run(["--remote", machine.remote + program, ...args])
        const { error } = JSON.parse(text) as Failed
        assert.equal(error.code, code, `${frames}: ${text}${stderr}`)
        assert.match(error.message, message)
        assert.ok(!existsSync(at(`liar-${index}.sif`)))
      }),
    )
    await nothingLeft()
  })

  it("tells why nobody takes what is sent any more", async () => {
    writeFileSync(at("large"), Buffer.alloc(8 << 20, "x"))
    define("large.def", "Bootstrap: scratch\n%files\nlarge /large\n")
    // In the middle of what is sent it has had enough, and goes.
    const going = `let size = 0
const full = say({ kind: "failed", error: { name: "BuildError", code: "ERR_BUILD_SCRATCH", message: "full" } })
process.stdin.on("data", ({ length }) => {
  if ((size += length) > 1 << 20) process.stdout.write(full, () => process.exit())
})
`
    const program = machine.program("full.mjs", liar("[]") + going)
    const made = await run(["--remote", machine.remote + program, "--json", "large.sif", "large.def"])
    assert.equal((JSON.parse(made.text) as Failed).error.code, "ERR_BUILD_SCRATCH", made.stderr)
    await nothingLeft()
  })

  it("is refused where scripts would see what that account runs, unless that is wanted", async () => {
    // As in a container that hides a part of /proc: nobody in it may mount another one.
    const hidden = machine.program(
      "hidden",
      `#!/bin/sh
export uid=$(id -u) gid=$(id -g)
exec unshare -rm sh -ec 'mount -t tmpfs none /proc/tty
exec unshare -U --map-user=$uid --map-group=$gid sifcrypt "$@"' sh "$@"
`,
    )
    define("scripted.def", "Bootstrap: localimage\nFrom: base\n%post\ntest -e /proc/1/cmdline\n")
    const args = ["--remote", `${machine.remote}${hidden}`, "--json", "scripted.sif", "scripted.def"]
    const refused = await run(args)
    assert.equal(refused.status, 20, refused.stderr)
    const { error } = JSON.parse(refused.text) as Failed
    assert.equal(error.code, "ERR_BUILD_REMOTE_REFUSED")
    assert.match(error.message, /cannot have a \/proc of their own/)
    assert.ok(!existsSync(at("scripted.sif")))
    const built = await run(["--allow-unconfined", ...args])
    assert.equal(built.status, 0, built.stderr)
    await nothingLeft()
  })

  it("chooses by architecture, and makes an image of each", async () => {
    define("arch.def", "Bootstrap: scratch\n%files\nfiles/_under /x\n")
    const [arm64, riscv64] = ["arm64", "riscv64"].map(
      (name) => machine.remote + machine.program(`${name}.mjs`, disguise(name)),
    )
    const both = ["--remote", arm64 ?? "", "--remote", riscv64 ?? ""]
    const [none, one, twice] = await Promise.all([
      run([...both, "--arch", "s390x", "--json", "none.sif", "arch.def"]),
      run([...both, "--arch", "riscv64", "one.sif", "arch.def"]),
      run([...both, "--remote", arm64 ?? "", "--json", "twice.sif", "arch.def"]),
    ])
    const { error } = JSON.parse(none.text) as Failed
    assert.equal(error.code, "ERR_ENV_ARCHITECTURE")
    assert.match(error.message, /arm64\.mjs is arm64, .*riscv64\.mjs is riscv64/)
    assert.equal(none.status, 24)
    assert.equal((JSON.parse(twice.text) as Failed).error.code, "ERR_BUILD_REMOTE_REFUSED")
    assert.equal(one.status, 0, one.stderr)
    assert.equal((await inspect(at("one.sif"))).architecture, "riscv64")
    for (const name of ["none", "twice", "twice-arm64"]) assert.ok(!existsSync(at(`${name}.sif`)), name)
    await nothingLeft()
  })

  it("builds on one after the other, and runs programs of another architecture where they are emulated", async function () {
    const obstacle = noEmulation()
    if (obstacle !== undefined) skip(this, obstacle)
    mkdirSync(at("base-arm64/bin"), { recursive: true })
    writeFileSync(at("base-arm64/bin/sh"), arm64Program())
    chmodSync(at("base-arm64/bin/sh"), 0o755)
    makeLayout(at("layouts"), { amd64: at("base"), arm64: at("base-arm64") }, {})
    define("each.def", "Bootstrap: oci\nFrom: layouts\n%post\nbusybox uname -m >/made\n")
    const emulated = machine.program("emulated", emulating("sifcrypt"))
    const arm64 = machine.program("native.mjs", disguise("arm64", emulated))
    const [asked, each] = await Promise.all(
      [
        // Not the first one, which has no emulator.
        ["--remote", machine.remote + emulated, "--arch", "arm64", "asked.sif"],
        ["--remote", machine.remote + arm64, "each.sif"],
      ].map((args) => build([...args, "each.def"])),
    )
    assert.equal(asked?.status, 0, asked?.stderr)
    assert.equal(each?.status, 0, each?.stderr)
    // Who is asked and not taken has nothing to complain of.
    for (const made of [asked, each]) assert.doesNotMatch(made.stderr, /connection/)
    for (const [name, architecture, made] of [
      ["asked", "arm64", "aarch64"],
      ["each-arm64", "arm64", "aarch64"],
      ["each-amd64", "amd64", "x86_64\n"],
    ] as const) {
      assert.equal((await inspect(at(`${name}.sif`))).architecture, architecture)
      await using image = await open(at(`${name}.sif`))
      assert.equal((await image.readFile("/made")).toString(), made, name)
    }
    // Under one name of a registry, as push makes it of them; and pull finds each there.
    await using registry = await Registry.start()
    const name = `oras://${registry.host}/each:1`
    for (const architecture of ["amd64", "arm64"])
      await sifcryptOk(["push", "-U", "--index", at(`each-${architecture}.sif`), name], { as: "user" })
    await Promise.all(
      ["amd64", "arm64"].map(async (architecture) => {
        const pulled = at(`pulled-${architecture}.sif`)
        await sifcryptOk(["pull", "--arch", architecture, pulled, name], { as: "user" })
        assert.ok(readFileSync(pulled).equals(readFileSync(at(`each-${architecture}.sif`))))
      }),
    )
    assert.ok(!existsSync(at("each.sif")))
    await nothingLeft()
  })

  it("builds of no base that is written to after it was verified", async () => {
    const key = (name: string): string => vectorPath(`sif/ed25519-${name}.pem`)
    const base = at("signed.sif")
    await sifcryptOk(["build", "--pem-path", keys.publicKey, base, at("base")], { as: "self" })
    const signed = await sifcryptOk(["sign", "--json", "--key", key("private"), base], { as: "self" })
    const fingerprint = /SHA256:[A-Za-z0-9+/=]+/.exec(signed.text)?.[0] ?? ""
    if (isRoot) execFileSync("chown", [`${idOf("user")}`, base])
    define(
      "signed.def",
      `Bootstrap: localimage\nFrom: signed.sif\nFingerprints: ${fingerprint}\n%post\necho ran\n`,
    )
    const program = `import { appendFileSync, readFileSync } from "node:fs"
import { build } from "${packageRoot}/dist/index.js"
for (const isWritten of [false, true]) {
  const ask = async () => {
    if (isWritten) appendFileSync("signed.sif", "x")
    return readFileSync("${keys.privateKey}")
  }
  await build({
    remote: ["${machine.remote}"],
    output: \`written-\${isWritten}.sif\`,
    source: "signed.def",
    unlock: [{ key: { ask } }],
    fingerprintKeys: { keyPaths: ["${key("public")}"] },
    onOutput: (bytes, stream) => process[stream].write(bytes),
  }).catch(({ code }) => console.log(code))
}
`
    const { text, stderr } = await runProgram([process.execPath, "--input-type=module", "-e", program], {
      ...{ as: "user", cwd: place, wrapper: machine.wrapper },
    })
    assert.equal(text, "ran\nERR_SIGNATURE_CHANGED\n", stderr)
    assert.deepEqual(
      [false, true].map((isWritten) => existsSync(at(`written-${isWritten}.sif`))),
      [true, false],
    )
    await nothingLeft()
  })

  it("leaves nothing, whoever is killed while it builds", async () => {
    define("long.def", "Bootstrap: localimage\nFrom: base\n%post\necho ready\nsleep 100\n")
    const start = async (
      name: string,
    ): Promise<{ child: ReturnType<typeof startSifcrypt>; result: Promise<Result> }> => {
      const args = [
        "build",
        "--remote",
        machine.remote,
        "--pem-path",
        keys.publicKey,
        `${name}.sif`,
        "long.def",
      ]
      const child = startSifcrypt(args, { as: "user", cwd: place, wrapper: machine.wrapper })
      const result = finish(child)
      if (child.stdout !== null) await once(child.stdout, "data")
      return { child, result }
    }
    const below = (pid: number | undefined, what: RegExp): number => {
      const found = processesBelow(pid ?? 0).find(({ command }) => what.test(command))
      assert.ok(found !== undefined, String(what))
      return found.pid
    }
    const [interrupted, killed, cut] = await Promise.all(["interrupted", "killed", "cut"].map(start))
    process.kill(below(interrupted?.child.pid, /node .*main\.js/), "SIGINT")
    process.kill(below(killed?.child.pid, /node .*main\.js/), "SIGKILL")
    process.kill(below(cut?.child.pid, /^\S*ssh /), "SIGKILL")
    assert.equal((await interrupted?.result)?.status, 130)
    assert.equal((await killed?.result)?.signal, "SIGKILL")
    assert.equal((await cut?.result)?.status, 25)
    await nothingLeft()

    const [session, builder] = await Promise.all(["session", "builder"].map(start))
    const sessions = machine.processes().filter(({ command }) => /^sshd\S*: \S+@notty/.test(command))
    assert.equal(sessions.length, 2)
    process.kill(sessions[0]?.pid ?? 0, "SIGKILL")
    process.kill(below(sessions[1]?.pid, /serve-build/), "SIGKILL")
    assert.equal((await session?.result)?.status, 25)
    assert.equal((await builder?.result)?.status, 25)
    await nothingLeft()
    for (const name of ["interrupted", "killed", "cut", "session", "builder"])
      assert.ok(!existsSync(at(`${name}.sif`)))
  })
})
