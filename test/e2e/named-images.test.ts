// Images by their names: built into the cache once, and run, listed and read from there.
import assert from "node:assert/strict"
import { generateKeyPairSync } from "node:crypto"
import { execFileSync } from "node:child_process"
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import {
  homeOf,
  idOf,
  isRoot,
  sifcrypt,
  userId,
  type As,
  type CommandOptions,
  type Result,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { makeLayout } from "../support/layout.ts"
import { htpasswd, Registry } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

describe("an image by its name", () => {
  const keys = testKeys()
  const folder = newFolder("named", userId)
  const layout = path.join(folder, "layout")
  const names = {
    oci: `oci:${layout}`,
    "oci-archive": `oci-archive:${path.join(folder, "oci.tar")}`,
    "docker-archive": `docker-archive:${path.join(folder, "docker.tar")}`,
  }
  let count = 0

  before(() => {
    mkdirSync(layout)
    makeLayout(layout, makeRootTree(), {
      Env: ["PATH=/bin", "FROM_IMAGE=image"],
      Entrypoint: ["/bin/echo", "entry"],
      Cmd: ["command"],
      Labels: { made: "by hand" },
    })
    execFileSync("tar", ["-C", layout, "-cf", path.join(folder, "oci.tar"), "."])
    execFileSync("skopeo", ["copy", "-q", `oci:${layout}`, `docker-archive:${folder}/docker.tar:some:1`])
  })

  /** Runs the command with a cache of its own. */
  function withCache(as: As): {
    readonly cache: string
    readonly run: (args: readonly string[], options?: CommandOptions) => Promise<Result>
    readonly succeeds: (args: readonly string[], options?: CommandOptions) => Promise<Result>
    readonly images: () => string[]
  } {
    const cache = path.join(newFolder("cache", idOf(as)), String(++count))
    const run = (args: readonly string[], options: CommandOptions = {}): Promise<Result> =>
      sifcrypt(args, { as, cwd: folder, ...options, env: { SIFCRYPT_CACHEDIR: cache, ...options.env } })
    const images = (): string[] => {
      const place = path.join(cache, "images-1", "sha256")
      return existsSync(place) ? readdirSync(place).sort() : []
    }
    const succeeds = async (args: readonly string[], options: CommandOptions = {}): Promise<Result> => {
      const result = await run(args, options)
      assert.equal(result.status, 0, result.stderr)
      return result
    }
    return { cache, run, succeeds, images }
  }

  for (const as of ["user", "self"] as const satisfies readonly As[])
    describe(`as ${as === "user" ? "an ordinary user" : "root"}`, () => {
      before(function () {
        if (as === "self" && !isRoot) skip(this, "needs root")
      })

      for (const [transport, name] of Object.entries(names))
        it(`${transport}: is built once, and runs, is listed, read and inspected`, async () => {
          const { cache, succeeds, images } = withCache(as)
          const script = 'cat /data/hello; id -u; echo "$FROM_IMAGE $SINGULARITY_CONTAINER $APPTAINER_NAME"'
          const told = await succeeds(["exec", name, "sh", "-c", script])
          const [image] = images()
          assert.ok(image !== undefined && /^[0-9a-f]{64}$/.test(image), `one image: ${images().join(" ")}`)
          const file = path.join(cache, "images-1", "sha256", image)
          assert.equal(told.text, `hello\n${idOf(as)}\nimage ${file} ${image}\n`)
          const { ino } = statSync(file)
          assert.equal((await succeeds(["run", name])).text, "entry command\n")
          assert.equal((await succeeds(["run", name, "a b"])).text, "entry a b\n")
          assert.match((await succeeds(["ls", name])).text, /^data$/m)
          assert.equal((await succeeds(["cat", name, "/data/hello"])).text, "hello\n")
          assert.match((await succeeds(["inspect", name])).text, /^made: by hand$/m)
          assert.deepEqual(images(), [image])
          assert.equal(statSync(file).ino, ino, "it was built once")
        })
    })

  it("starts as an instance, mounts, and is built from", async () => {
    const { succeeds } = withCache("nobody")
    await succeeds(["instance", "start", names.oci, "named"])
    try {
      assert.equal((await succeeds(["exec", "instance://named", "cat", "/data/hello"])).text, "hello\n")
    } finally {
      await succeeds(["instance", "stop", "named"])
    }
    const target = newFolder("named-mount", idOf("nobody"))
    await succeeds(["mount", names.oci, target])
    await succeeds(["unmount", target])
    const image = path.join(newFolder("named-built", idOf("nobody")), "image.sif")
    await succeeds(["build", image, names["docker-archive"]])
  })

  it("of a registry is found again by its digest without the registry, and listed and cleaned with the cache", async () => {
    const { succeeds, run, images } = withCache("user")
    const registry = await Registry.start()
    let pinned: string
    try {
      await registry.push(names.oci, "group/image:1")
      const name = `docker://${registry.host}/group/image`
      // All at once: each finds it, whoever builds it.
      const all = await Promise.all([1, 2, 3].map(() => run(["exec", `${name}:1`, "cat", "/data/hello"])))
      for (const { text, stderr } of all) assert.equal(text, "hello\n", stderr)
      assert.equal(images().length, 1)
      pinned = `${name}@sha256:${images()[0] ?? ""}`
    } finally {
      await registry[Symbol.asyncDispose]()
    }
    assert.equal((await succeeds(["exec", pinned, "cat", "/data/hello"])).text, "hello\n")
    assert.match((await succeeds(["cache", "list"])).text, / {2}image\n/)
    assert.match((await succeeds(["cache", "clean"])).stderr, /1 image/)
    assert.deepEqual(images(), [])
  })

  it("that took a credential is kept encrypted for who has a key, and for nobody not at all", async () => {
    await using registry = await Registry.start({ htpasswd })
    await registry.push(names.oci, "private:1", "--dest-creds", "user:secret")
    const name = `docker://${registry.host}/private:1`
    const { cache, run, succeeds, images } = withCache("user")
    const env = { DOCKER_USERNAME: "user", DOCKER_PASSWORD: "secret" }
    const exec = ["exec", "--tmpdir", newFolder("named-tmp", userId)]
    const script = ["sh", "-c", 'cat /data/hello; echo "$DOCKER_PASSWORD"']
    assert.equal((await run([...exec, name, ...script])).status, 22)
    const once = await succeeds([...exec, name, ...script], { env })
    assert.equal(once.text, "hello\n\n")
    assert.match(once.stderr, /took a credential to get: without a key or a passphrase .* it is not kept/)
    assert.deepEqual(images(), [])
    // A key says that the layers are encrypted.
    const named = await run([...exec, "--pem-path", keys.privateKey, name, ...script], { env })
    assert.deepEqual([named.status, /no layer is encrypted/.test(named.stderr)], [21, true], named.stderr)
    exec.push("--allow-partial")
    const kept = await succeeds([...exec, "--pem-path", keys.privateKey, name, ...script], { env })
    assert.equal(kept.text, "hello\n\n")
    const [image = ""] = images()
    assert.match(image, /^[0-9a-f]{64}\.encrypted$/)
    const file = path.join(cache, "images-1", "sha256", image)
    assert.equal(readFileSync(file).includes("root:x:0:0"), false)
    const first = statSync(file).ino
    // Found again, also without the password by its digest; not without the key.
    await succeeds([...exec, "--pem-path", keys.privateKey, name, ...script], { env })
    const digest = `docker://${registry.host}/private@sha256:${image.slice(0, 64)}`
    await succeeds([...exec, "--pem-path", keys.privateKey, digest, ...script])
    assert.equal((await run([...exec, digest, ...script])).status, 22)
    // A key that opens layers alone is as good as none, whether somebody else's copy is there or not.
    const curve = path.join(newFolder("named-curve", userId), "ec.pem")
    const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" })
    writeFileSync(curve, privateKey.export({ type: "pkcs8", format: "pem" }))
    await succeeds([...exec, "--pem-path", curve, name, ...script], { env })
    assert.equal(statSync(file).ino, first)
    // Somebody else's key: it is built for that.
    await succeeds([...exec, "--pem-path", keys.otherPrivateKey, name, ...script], { env })
    assert.notEqual(statSync(file).ino, first)
    assert.deepEqual(images(), [image])
    // Nothing else was left anywhere.
    assert.deepEqual(readdirSync(cache), ["images-1"])
    assert.deepEqual(readdirSync(exec[2] ?? ""), [])
  })

  it("A29, A34: with encrypted layers is kept for whoever can decrypt them, and every run needs a key", async () => {
    await using registry = await Registry.start()
    const name = `docker://${registry.host}/group/encrypted:1`
    const { cache, run, succeeds, images } = withCache("user")
    const recipients = [keys.publicKey, keys.otherPublicKey].flatMap((key) => ["-r", `jwe:${key}`])
    const { text: digest } = await succeeds(["image", "encrypt", ...recipients, names.oci, name])
    const own = ["--pem-path", keys.privateKey, "--require-encrypted"]
    const script = ["cat", "/data/hello"]
    assert.equal((await succeeds(["exec", ...own, name, ...script])).text, "hello\n")
    const [image = ""] = images()
    assert.match(image, /^[0-9a-f]{64}\.layers$/)
    const file = path.join(cache, "images-1", "sha256", image)
    const first = statSync(file).ino
    const pinned = `docker://${registry.host}/group/encrypted@${digest.trim()}`
    for (const args of [own, ["--pem-path", keys.otherPrivateKey]])
      for (const one of [name, pinned])
        assert.equal((await succeeds(["exec", ...args, one, ...script])).text, "hello\n")
    assert.deepEqual([images(), statSync(file).ino], [[image], first], "it was built once")
    for (const one of [name, pinned, file]) {
      const refused = await run(["exec", one, ...script])
      assert.equal(refused.status, 22, refused.stderr)
    }
    assert.equal(
      (await run(["exec", ...own, file, ...script])).status,
      22,
      "the key alone does not open the copy",
    )
    // No file of the image is to be found there.
    for (const entry of readdirSync(cache, { recursive: true, withFileTypes: true })) {
      if (!entry.isFile()) continue
      const bytes = readFileSync(path.join(entry.parentPath, entry.name))
      for (const plain of ["root:x:0:0", "hello\n"]) assert.equal(bytes.includes(plain), false, entry.name)
    }
    // An image and a base of others.
    const output = path.join(newFolder("named-encrypted", userId), "image.sif")
    const from = path.join(newFolder("named-encrypted", userId), "from.def")
    const bare = path.basename(name)
    writeFileSync(
      from,
      `Bootstrap: docker\nFrom: ${registry.host}/group/${bare}\n\n%post\n  cat /data/hello > /data/copy\n`,
    )
    for (const [source, inside] of [
      [name, "/data/hello"],
      [from, "/data/copy"],
    ] as const) {
      const build = ["build", "--force", "--require-encrypted", "--pem-path", keys.publicKey, output, source]
      assert.equal((await run(build)).status, 22, "without the key of its layers")
      await succeeds([...build, "--key", keys.otherPrivateKey])
      assert.equal((await succeeds(["cat", ...own, output, inside])).text, "hello\n")
    }
  })

  it("is not taken from a cache that others can write, nor kept there", async function () {
    if (!isRoot) skip(this, "needs root, to have a folder that is somebody else's")
    const { succeeds, images, cache } = withCache("user")
    await succeeds(["exec", names.oci, "sh", "-c", "true"])
    const [image = ""] = images()
    const planted = path.join(newFolder("named-planted", userId), "planted.sif")
    const tree = makeRootTree()
    writeFileSync(path.join(tree, "data", "hello"), "planted\n")
    await succeeds(["build", planted, tree])
    const read = ["exec", names.oci, "cat", "/data/hello"]
    const kept = path.join(cache, "images-1", "sha256", image)
    copyFileSync(planted, kept)
    assert.equal((await succeeds(read)).text, "planted\n", "what is found is used")
    for (const [folder, owner, mode] of [
      [cache, 0, 0o1777],
      [cache, userId, 0o777],
      [path.join(cache, "images-1"), idOf("nobody"), 0o755],
      [path.dirname(kept), userId, 0o770],
    ] as const) {
      const before = statSync(folder)
      chownSync(folder, owner, owner)
      chmodSync(folder, mode)
      const { text, stderr } = await succeeds(read)
      assert.equal(text, "hello\n", folder)
      assert.match(stderr, /is not yours alone to write/)
      chownSync(folder, before.uid, before.gid)
      chmodSync(folder, before.mode)
    }
    const theirs = newFolder("named-theirs", idOf("nobody"))
    chmodSync(theirs, 0o755)
    symlinkSync(cache, path.join(theirs, "cache"))
    const led = await succeeds(read, { env: { SIFCRYPT_CACHEDIR: path.join(theirs, "cache") } })
    assert.equal(led.text, "hello\n", "another user's link")
    const nowhere = { env: { SIFCRYPT_CACHEDIR: "/dev/null/cache" } }
    assert.match((await succeeds(read, nowhere)).stderr, /nothing is kept: /)
  })

  it("is kept nowhere with --disable-cache", async () => {
    const { cache, succeeds, images } = withCache("user")
    const tmp = newFolder("named-tmp", userId)
    const args = ["exec", "--disable-cache", "--tmpdir", tmp]
    assert.equal((await succeeds([...args, names.oci, "cat", "/data/hello"])).text, "hello\n")
    assert.deepEqual([images(), existsSync(cache), readdirSync(tmp)], [[], false, []])
  })

  it("cannot be verified, and one that is not known here says what to do instead", async () => {
    const { run } = withCache("user")
    const verified = await run(["exec", "--verify", names.oci, "true"])
    assert.deepEqual([verified.status, /nobody signs/.test(verified.stderr)], [26, true], verified.stderr)
    for (const name of ["library://alpine", "shub://some/thing", "docker-daemon:x:1", "https://host/x.sif"]) {
      const { status, stderr } = await run(["exec", name, "true"])
      assert.equal(status, 20, stderr)
      assert.match(stderr, /is not read here; instead: /)
    }
    assert.ok(existsSync(homeOf("user")))
  })
})
