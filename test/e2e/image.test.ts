// OCI images as they are: archives, the store of a user, and what is told of them.
import assert from "node:assert/strict"
import { execFileSync, spawn } from "node:child_process"
import { createHash } from "node:crypto"
import { once } from "node:events"
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { PassThrough } from "node:stream"
import { buffer } from "node:stream/consumers"
import { gunzipSync, gzipSync } from "node:zlib"
import { oci } from "../../lib/index.ts"
import { isRoot, sifcrypt, sifcryptOk, startSifcrypt, userId, type CommandOptions } from "../support/cli.ts"
import { Layout, type JsonDescriptor, type JsonManifest } from "../support/layout.ts"
import { Registry } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"
import { vectorPath } from "../vectors/load.ts"

const indexType = "application/vnd.oci.image.index.v1+json"
const quiet = { oci: { environment: {} } }

function sha256(bytes: Buffer | string): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`
}

/** As root, of a user namespace at least: Debian 12's unpacks an archive with the owners in it, and ours are root's. */
function skopeo(...args: readonly string[]): string {
  const words = ["skopeo", "--insecure-policy", ...args]
  return isRoot
    ? execFileSync("env", words, { encoding: "utf8" })
    : execFileSync("unshare", ["--map-root-user", ...words], { encoding: "utf8" })
}

function tar(...args: readonly string[]): string {
  return execFileSync("tar", args, { encoding: "utf8" })
}

/** For two platforms that share their layers. */
function twoPlatforms(): {
  readonly layout: Layout
  readonly index: JsonDescriptor
  readonly amd: JsonDescriptor
} {
  const layout = new Layout()
  const amd = layout.write()
  layout.config.architecture = "arm64"
  const arm = layout.write()
  const manifests = [
    { ...amd, platform: { os: "linux", architecture: "amd64" } },
    { ...arm, platform: { os: "linux", architecture: "arm64" } },
  ]
  const index = layout.add(JSON.stringify({ schemaVersion: 2, mediaType: indexType, manifests }), indexType)
  layout.writeIndex({ schemaVersion: 2, manifests: [index] })
  return { layout, index, amd }
}

/** Of one platform; `note` makes it another one with the same layers. */
function onePlatform(note?: string): {
  readonly source: string
  readonly digest: string
  readonly layout: Layout
} {
  const layout = new Layout()
  if (note !== undefined) layout.config.config.Labels = { note }
  const { digest } = layout.write()
  return { source: `oci:${layout.folder}`, digest, layout }
}

function blobNames(folder: string): string[] {
  const place = path.join(folder, "blobs", "sha256")
  return existsSync(place) ? readdirSync(place).sort() : []
}

/** Runs with a store of its own. */
async function withStore(use: (store: string) => Promise<void>): Promise<void> {
  const before = process.env["SIFCRYPT_STOREDIR"]
  const store = path.join(newFolder("store"), "images")
  process.env["SIFCRYPT_STOREDIR"] = store
  try {
    await use(store)
  } finally {
    if (before === undefined) delete process.env["SIFCRYPT_STOREDIR"]
    else process.env["SIFCRYPT_STOREDIR"] = before
  }
}

describe("archives of images", () => {
  it("are what they were, however often an index names one", async () => {
    const { layout, amd } = twoPlatforms()
    const manifests = ["first", "second"].map((variant) => ({
      ...amd,
      platform: { os: "linux", architecture: "amd64", variant },
      annotations: { variant },
    }))
    const index = layout.add(JSON.stringify({ schemaVersion: 2, mediaType: indexType, manifests }), indexType)
    layout.writeIndex({ schemaVersion: 2, manifests: [index] })
    const target = `oci:${newFolder("twice")}`
    const made = await oci.copy({ source: `oci:${layout.folder}`, target, all: true, ...quiet })
    assert.equal(made.digest, index.digest)
  })

  it("keep every digest; skopeo reads both kinds, and the same image makes the same bytes", async () => {
    const { source, digest } = onePlatform()
    const folder = newFolder("archives")
    for (const format of ["oci-archive", "docker-archive"]) {
      const [one, two] = ["one", "two"].map((name) => path.join(folder, `${format}-${name}.tar`))
      for (const file of [one!, two!])
        assert.equal(
          (await oci.copy({ source, target: `${format}:${file}:example/name:v1`, ...quiet })).digest,
          digest,
        )
      assert.deepEqual(
        tar("-tf", one!)
          .split("\n")
          .filter((name) => name.includes("blobs/"))
          .sort(),
        tar("-tf", two!)
          .split("\n")
          .filter((name) => name.includes("blobs/"))
          .sort(),
      )
      assert.equal((await oci.inspect({ source: `${format}:${one!}`, ...quiet })).digest, digest)
      const shown = skopeo("inspect", "--raw", `${format}:${one!}:example/name:v1`)
      if (format === "oci-archive") assert.equal(sha256(shown), digest)
      else {
        const config = skopeo("inspect", "--config", "--raw", `${format}:${one!}`)
        const { configDigest } = (await oci.inspect({ source, ...quiet })).manifest!
        assert.equal(sha256(config), configDigest)
      }
    }
  })

  it("of skopeo are read, and what it makes of ours has the digest that it had", async () => {
    const { source, digest, layout } = onePlatform()
    const folder = newFolder("skopeo")
    skopeo("copy", "-q", "--preserve-digests", source, `oci-archive:${folder}/theirs.tar:name`)
    const back = await oci.copy({
      source: `oci-archive:${folder}/theirs.tar`,
      target: `oci:${folder}/ours`,
      ...quiet,
    })
    assert.equal(back.digest, digest)
    await oci.copy({ source, target: `oci-archive:${folder}/ours.tar:name`, ...quiet })
    skopeo(
      "copy",
      "-q",
      "--preserve-digests",
      `oci-archive:${folder}/ours.tar:name`,
      `oci:${folder}/again:name`,
    )
    assert.equal(sha256(skopeo("inspect", "--raw", `oci:${folder}/again:name`)), digest)
    writeFileSync(`${folder}/saved.tar`, gunzipSync(readFileSync(vectorPath("oci/docker-archive.tar.gz"))))
    skopeo("copy", "-q", `docker-archive:${folder}/saved.tar`, `docker-archive:${folder}/d.tar:a:b`)
    const theirs = await oci.copy({
      source: `docker-archive:${folder}/d.tar`,
      target: `oci:${folder}/d`,
      ...quiet,
    })
    assert.equal((await oci.inspect({ source: `oci:${folder}/d`, ...quiet })).digest, theirs.digest)
    layout.remove()
  })

  it("of a docker save without a layout have a manifest made; configuration and layers stay", async () => {
    const archive = path.join(newFolder("saved"), "image.tar")
    writeFileSync(archive, gunzipSync(readFileSync(vectorPath("oci/docker-archive.tar.gz"))))
    const folder = newFolder("from-saved")
    for (const file of [archive, vectorPath("oci/docker-archive.tar.gz")]) {
      const target = `oci:${folder}:${path.basename(file)}`
      await oci.copy({ source: `docker-archive:${file}`, target, ...quiet })
      const { manifest } = await oci.inspect({ source: target, ...quiet })
      const [entry] = JSON.parse(tar("-xOf", archive, "manifest.json")) as {
        Config: string
        Layers: string[]
      }[]
      assert.ok(entry!.Config.includes(manifest!.configDigest.slice(7)))
      const rootfs = manifest!.config!["rootfs"] as { diff_ids: string[] }
      assert.deepEqual(
        manifest!.layers.map(({ digest }) => digest),
        rootfs.diff_ids,
      )
      skopeo("copy", "-q", target, `dir:${newFolder("dir")}`)
    }
  })

  it("are listed, compressed or not, and bounded in what they say of themselves", async () => {
    const folder = newFolder("listed")
    const [plainFile, zipped] = [path.join(folder, "image.tar"), vectorPath("oci/docker-archive.tar.gz")]
    writeFileSync(plainFile, gunzipSync(readFileSync(zipped)))
    const of = (place: string): Promise<oci.ListedOciImage[]> =>
      oci.list({ place: `docker-archive:${place}` })
    assert.ok((await of(plainFile)).length > 0)
    assert.deepEqual(await of(zipped), await of(plainFile))
    // It is unpacked, once, where that is wanted.
    const unpacked = oci.list({ place: `docker-archive:${zipped}`, tmpFolder: path.join(folder, "absent") })
    await assert.rejects(unpacked, { code: "ENOENT" })
    // One configuration of 4 MiB, which any number of images have.
    const config = `{"rootfs":{"type":"layers","diff_ids":[]},"architecture":"amd64","os":"linux"${" ".repeat((4 << 20) - 80)}}`
    const entries = (count: number): string =>
      JSON.stringify(
        Array.from({ length: count }, (_, i) => ({ Config: "c.json", RepoTags: [`a:${i}`], Layers: [] })),
      )
    writeFileSync(path.join(folder, "c.json"), config)
    const many = path.join(folder, "many.tar")
    for (const count of [16, 17]) {
      writeFileSync(path.join(folder, "manifest.json"), entries(count))
      tar("-C", folder, "-cf", many, "manifest.json", "c.json")
      if (count === 16) assert.equal((await of(many)).length, count)
      else await assert.rejects(of(many), { code: "ERR_OCI_LIMIT" })
    }
    // Or of one image for any number of platforms.
    const layout = new Layout("many-configurations")
    layout.manifest.config = layout.add(config, layout.manifest.config.mediaType)
    layout.manifest.layers = []
    const { mediaType = "" } = layout.manifest
    const manifests = Array.from({ length: 17 }, (_, i) =>
      layout.add(JSON.stringify({ ...layout.manifest, annotations: { i: String(i) } }), mediaType),
    )
    layout.writeIndex({
      schemaVersion: 2,
      manifests: [layout.add(JSON.stringify({ schemaVersion: 2, manifests }), indexType)],
    })
    const [image] = await oci.list({ place: `oci:${layout.folder}` })
    assert.match(image?.damage ?? "", /bytes to be told of/)
    layout.remove()
  })

  it("are new ones: what is there is replaced when it is asked for, and only by what is complete", async () => {
    const { source, layout } = onePlatform()
    const file = path.join(newFolder("exists"), "image.tar")
    writeFileSync(file, "mine")
    const target = `oci-archive:${file}`
    await assert.rejects(oci.copy({ source, target, ...quiet }), { code: "ERR_BUILD_EXISTS" })
    writeFileSync(
      layout.blobPath(layout.manifest.layers[1]!.digest),
      Buffer.alloc(layout.manifest.layers[1]!.size),
    )
    await assert.rejects(oci.copy({ source, target, force: true, ...quiet }), { code: "ERR_OCI_DIGEST" })
    assert.equal(readFileSync(file, "utf8"), "mine")
    assert.deepEqual(readdirSync(path.dirname(file)), ["image.tar"])
    await oci.copy({ source: onePlatform().source, target, force: true, ...quiet })
    assert.match(tar("-tf", file), /index\.json/)
  })

  it("hold an index of all platforms, or for docker load one of them", async () => {
    const { layout, index, amd } = twoPlatforms()
    const source = `oci:${layout.folder}`
    const folder = newFolder("indexes")
    const all = await oci.copy({ source, target: `oci-archive:${folder}/all.tar`, all: true, ...quiet })
    assert.equal(all.digest, index.digest)
    await assert.rejects(
      oci.copy({ source, target: `docker-archive:${folder}/d.tar`, all: true, ...quiet }),
      {
        code: "ERR_OCI_UNSUPPORTED",
      },
    )
    const target = `docker-archive:${folder}/d.tar`
    const one = await oci.copy({ source, target, platforms: ["linux/amd64"], ...quiet })
    assert.equal(one.digest, amd.digest)
    assert.deepEqual(readdirSync(folder).sort(), ["all.tar", "d.tar"])
  })

  it("have names that are longer than a header's, as digests of SHA-512 are", async () => {
    const layout = new Layout()
    const [layer] = layout.manifest.layers
    const bytes = layout.blob(layer!.digest)
    const hex = createHash("sha512").update(bytes).digest("hex")
    layout.manifest.layers[0] = { ...layer!, digest: `sha512:${hex}` }
    execFileSync("mkdir", [path.join(layout.folder, "blobs", "sha512")])
    writeFileSync(path.join(layout.folder, "blobs", "sha512", hex), bytes)
    const { digest } = layout.write()
    const file = path.join(newFolder("long"), "image.tar")
    await oci.copy({ source: `oci:${layout.folder}`, target: `oci-archive:${file}`, ...quiet })
    assert.ok(tar("-tf", file).includes(`blobs/sha512/${hex}\n`))
    const again = await oci.copy({
      source: `oci-archive:${file}`,
      target: `oci:${newFolder("again")}`,
      ...quiet,
    })
    assert.equal(again.digest, digest)
  })

  it("leave layers that may not be passed on where their addresses are, and tell of them", async () => {
    const layout = new Layout()
    const foreign = {
      mediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
      digest: sha256("foreign"),
      size: 7,
      urls: ["https://layers.example/base"],
    }
    layout.manifest.layers = [foreign, ...layout.manifest.layers]
    const { digest } = layout.write()
    const source = `oci:${layout.folder}`
    const folder = newFolder("foreign")
    const told: string[] = []
    const onNotice = (text: string): unknown => told.push(text)
    const copied = await oci.copy({ source, target: `oci-archive:${folder}/image.tar`, ...quiet, onNotice })
    assert.equal(copied.digest, digest)
    assert.match(
      told.join(),
      /layer 0 may not be passed on: it stays where https:\/\/layers\.example\/base has it/,
    )
    await assert.rejects(oci.copy({ source, target: `docker-archive:${folder}/d.tar`, ...quiet }), {
      code: "ERR_OCI_UNSUPPORTED",
    })
    assert.deepEqual(readdirSync(folder), ["image.tar"])
  })
})

describe("the store of images", () => {
  it("is not in a folder that others may enter, or that is somebody else's, and that stays as it is", async () => {
    const { source } = onePlatform()
    await withStore(async (store) => {
      mkdirSync(store)
      chmodSync(store, 0o755)
      const refused = { code: "ERR_BUILD_OUTPUT", message: /others may enter it; chmod 700/ }
      await assert.rejects(oci.copy({ source, target: "store:one", ...quiet }), refused)
      assert.deepEqual([readdirSync(store), statSync(store).mode & 0o777], [[], 0o755])
      chmodSync(store, 0o700)
      await oci.copy({ source, target: "store:one", ...quiet })
    })
    // Only root can make one that is somebody else's.
    if (!isRoot) return
    await withStore(async (store) => {
      mkdirSync(store)
      chownSync(store, userId, userId)
      await assert.rejects(oci.copy({ source, target: "store:one", ...quiet }), { code: "ERR_BUILD_OUTPUT" })
      assert.deepEqual(readdirSync(store), [])
    })
  })

  it("keeps what an image leads to, whatever another one calls it", async () => {
    await withStore(async (store) => {
      const victim = onePlatform("victim")
      const evil = onePlatform("evil")
      // Its layer is the other one's manifest.
      const bytes = readFileSync(path.join(victim.layout.folder, "blobs/sha256", victim.digest.slice(7)))
      const type = "application/vnd.oci.image.layer.v1.tar"
      evil.layout.manifest.layers.push(evil.layout.add(bytes, type))
      evil.layout.write()
      await oci.copy({ source: evil.source, target: "store:evil", ...quiet })
      await oci.copy({ source: victim.source, target: "store:victim", ...quiet })
      const back = { source: "store:victim", target: `oci:${newFolder("kept")}`, ...quiet }
      assert.equal((await oci.copy(back)).digest, victim.digest)
      assert.ok(blobNames(store).length > 0)
    })
  })

  it("is named in messages by the image that is meant", () =>
    withStore(async () => {
      const { source, digest } = onePlatform()
      await oci.copy({ source, target: "store:plain", ...quiet })
      for (const [name, shown] of [
        ["plain", "docker.io/library/plain:latest"],
        [`@${digest}`, `@${digest}`],
      ] as const)
        await assert.rejects(oci.inspect({ source: `store:${name}`, ...quiet, platform: "linux/s390x" }), {
          message: `store:${shown}: there is no image for linux/s390x`,
        })
    }))

  it("has images by their whole names, is nobody else's, and leads build and skopeo to them", async () => {
    await withStore(async (store) => {
      const { source, digest } = onePlatform()
      assert.deepEqual(await oci.list(), [])
      await oci.copy({ source, target: "store:alpine", ...quiet })
      const [listed] = await oci.list()
      assert.deepEqual(
        { name: listed!.name, digest: listed!.digest, platforms: listed!.platforms },
        { name: "docker.io/library/alpine:latest", digest, platforms: ["linux/amd64"] },
      )
      assert.equal(execFileSync("stat", ["-c", "%a", store], { encoding: "utf8" }), "700\n")
      assert.equal(sha256(skopeo("inspect", "--raw", `oci:${store}:docker.io/library/alpine:latest`)), digest)
      const output = path.join(newFolder("built"), "image.sif")
      await sifcryptOk(["build", "--arch", "amd64", output, "store:alpine"], {
        as: "self",
        env: { SIFCRYPT_STOREDIR: store },
      })
      const definition = path.join(path.dirname(output), "of.def")
      writeFileSync(definition, "Bootstrap: store\nFrom: alpine\n")
      await sifcryptOk(["build", "-F", "--arch", "amd64", output, definition], {
        as: "self",
        env: { SIFCRYPT_STOREDIR: store },
      })
      // Where the store is concerns nobody who gets the image.
      assert.doesNotMatch(
        (await sifcryptOk(["inspect", "--all", output], { as: "self" })).text,
        new RegExp(store),
      )
      for (const name of ["store:other", "store:@" + sha256("")])
        await assert.rejects(oci.inspect({ source: name, ...quiet }), { code: "ERR_OCI_NOT_FOUND" })
      await assert.rejects(oci.copy({ source, target: "store:", ...quiet }), { code: "ERR_OCI_REFERENCE" })
    })
  })

  it("loses with a name what no other name leads to, and nothing else", async () => {
    await withStore(async (store) => {
      const [one, two] = [onePlatform(), onePlatform("two")]
      await oci.copy({ source: one.source, target: "store:one", ...quiet })
      const ofOne = blobNames(store)
      await oci.copy({ source: two.source, target: "store:two", ...quiet })
      await oci.copy({ source: two.source, target: "store:again", ...quiet })
      assert.equal(blobNames(store).length, ofOne.length + 2)
      await oci.remove({ names: ["two"] })
      assert.equal(blobNames(store).length, ofOne.length + 2)
      assert.deepEqual(await oci.remove({ names: [`@${two.digest}`] }), [
        { name: "docker.io/library/again:latest", digest: two.digest },
      ])
      assert.deepEqual(blobNames(store), ofOne)
      await assert.rejects(oci.remove({ names: ["two"] }), { code: "ERR_OCI_NOT_FOUND" })
      await oci.remove({ names: ["one"] })
      assert.deepEqual(blobNames(store), [])
    })
  })

  it("loses nothing that somebody is copying there or reading meanwhile", async () => {
    await withStore(async (store) => {
      const [one, two] = [onePlatform(), onePlatform("two")]
      await oci.copy({ source: one.source, target: "store:one", ...quiet })
      // Its layers are there already, and it has no name yet.
      let removed: Promise<unknown> | undefined
      const copied = oci.copy({
        source: two.source,
        target: "store:two",
        ...quiet,
        onProgress: () => {
          removed ??= oci.remove({ names: ["one"] })
        },
      })
      await copied
      await removed
      assert.deepEqual(
        (await oci.list()).map(({ name }) => name),
        ["docker.io/library/two:latest"],
      )
      const back = await oci.copy({ source: "store:two", target: `oci:${newFolder("back")}`, ...quiet })
      assert.equal(back.digest, two.digest)
      // What it alone had has gone when the last one left.
      assert.ok(!blobNames(store).includes(one.digest.slice(7)))
      let gone: Promise<unknown> | undefined
      const read = oci.copy({
        source: "store:two",
        target: `oci:${newFolder("read")}`,
        ...quiet,
        onProgress: () => {
          gone ??= oci.remove({ names: ["two"] })
        },
      })
      assert.equal((await read).digest, two.digest)
      await gone
      assert.deepEqual(await oci.list(), [])
    })
  })

  it("has nothing left of a copy that was killed, once somebody else was there", async () => {
    await withStore(async (store) => {
      const writer = spawn(
        process.execPath,
        [
          "--import",
          "tsx",
          "--input-type=module",
          "-e",
          `import { openStoreSink } from "./lib/oci/image-store.ts"
           import { VerifiedBlob } from "./lib/oci/sink.ts"
           import { digestOf } from "./lib/oci/digest.ts"
           const sink = await openStoreSink(process.env.SIFCRYPT_STOREDIR)
           const bytes = Buffer.from("left behind")
           const blob = { mediaType: "x", digest: digestOf(bytes), size: bytes.length, annotations: {} }
           await sink.write(new VerifiedBlob(blob, "test", () => [bytes]))
           process.stdout.write("written\\n")
           setInterval(() => {}, 1000)`,
        ],
        { stdio: ["ignore", "pipe", "inherit"] },
      )
      await once(writer.stdout, "data")
      assert.deepEqual(blobNames(store), [sha256("left behind").slice(7)])
      writer.kill("SIGKILL")
      await once(writer, "exit")
      assert.deepEqual(await oci.list(), [])
      await oci.copy({ source: onePlatform().source, target: "store:whole", ...quiet })
      assert.ok(!blobNames(store).includes(sha256("left behind").slice(7)))
      assert.ok(existsSync(path.join(store, "index.json")))
      const { source, layout } = onePlatform("broken")
      rmSync(layout.blobPath(layout.manifest.config.digest))
      await assert.rejects(oci.copy({ source, target: "store:broken", ...quiet }), {
        code: "ERR_OCI_NOT_FOUND",
      })
      assert.equal((await oci.list()).length, 1)
    })
  })

  it("keeps everything while an image in it is damaged, until that is removed", async () => {
    await withStore(async (store) => {
      const [one, two] = [onePlatform(), onePlatform("two")]
      await oci.copy({ source: one.source, target: "store:one", ...quiet })
      await oci.copy({ source: two.source, target: "store:two", ...quiet })
      writeFileSync(path.join(store, "blobs", "sha256", two.digest.slice(7)), "{}")
      const before = blobNames(store)
      await oci.remove({ names: ["one"] })
      assert.deepEqual(blobNames(store), before)
      const [listed] = await oci.list()
      assert.match(listed!.damage!, /2 bytes where/)
      await oci.remove({ names: ["two"] })
      assert.deepEqual(blobNames(store), [])
    })
  })

  it("of several processes at once has what each of them left there", async () => {
    const env = { SIFCRYPT_STOREDIR: path.join(newFolder("busy", userId), "images") }
    const images = [onePlatform(), onePlatform("two"), onePlatform("three")]
    const run = async (...args: string[]): Promise<void> => {
      const { status, stderr } = await sifcrypt(["image", ...args], { env })
      assert.equal(status, 0, stderr)
    }
    await Promise.all(
      images.map(async ({ source }, i) => {
        await run("copy", source, `store:gone${i}`)
        await run("copy", source, `store:left${i}`)
        await run("rm", `gone${i}`)
      }),
    )
    const listed = JSON.parse(
      (await sifcryptOk(["image", "list", "--json"], { env })).text,
    ) as oci.ListedOciImage[]
    assert.deepEqual(
      listed.map(({ name, digest, damage }) => ({ name, digest, damage })),
      images.map(({ digest }, i) => ({
        name: `docker.io/library/left${i}:latest`,
        digest,
        damage: undefined,
      })),
    )
    for (const { digest } of images)
      await run("copy", `store:@${digest}`, `oci-archive:${path.join(newFolder("out", userId), "image.tar")}`)
  })

  it("shows only whole images whenever who copies is killed, and keeps nothing of him", async () => {
    const env = { SIFCRYPT_STOREDIR: path.join(newFolder("kills", userId), "images") }
    const { source, digest } = onePlatform()
    for (let i = 0; i < 12; i++) {
      const child = startSifcrypt(["image", "copy", source, `store:image${i}`], { env })
      setTimeout(() => child.kill("SIGKILL"), 100 + 25 * i)
      await once(child, "exit")
      const { text } = await sifcryptOk(["image", "list", "--json"], { env })
      for (const one of JSON.parse(text) as oci.ListedOciImage[]) {
        assert.equal(one.digest, digest)
        assert.equal(one.damage, undefined)
      }
    }
    await sifcryptOk(["image", "copy", source, "store:last"], { env })
    await sifcryptOk(["image", "rm", `@${digest}`], { env })
    assert.deepEqual(blobNames(env.SIFCRYPT_STOREDIR), [])
    assert.deepEqual(readdirSync(env.SIFCRYPT_STOREDIR).sort(), [
      ".sifcrypt-holders",
      "blobs",
      "index.json",
      "oci-layout",
    ])
  })

  it("says whether layers are encrypted, and keeps them as they are", async () => {
    await withStore(async () => {
      for (const count of [0, 1, 3]) {
        const layout = new Layout()
        layout.manifest.layers = layout.manifest.layers.map((layer, i) => ({
          ...layer,
          mediaType: `${layer.mediaType}${i < count ? "+encrypted" : ""}`,
        }))
        const { digest } = layout.write()
        const copied = await oci.copy({
          source: `oci:${layout.folder}`,
          target: `store:image${count}`,
          ...quiet,
        })
        assert.equal(copied.digest, digest)
      }
      assert.deepEqual(
        (await oci.list()).map(({ encrypted }) => encrypted),
        ["none", "some", "all"],
      )
    })
  })
})

describe("image save and load", () => {
  it("bring several images by file and by pipe to where they have the same names and digests", async () => {
    await withStore(async () => {
      const [one, two] = [onePlatform(), twoPlatforms()]
      await oci.copy({ source: one.source, target: "store:one:v1", ...quiet })
      const source = `oci:${two.layout.folder}`
      await oci.copy({ source, target: "store:registry.example/two", all: true, ...quiet })
      const before = await oci.list()
      const names = ["one:v1", "registry.example/two:latest"]
      const file = path.join(newFolder("saved"), "images.tar")
      await oci.save({ names, output: file })
      const stream = new PassThrough()
      const bytes = buffer(stream)
      await oci.save({ names, output: stream })
      stream.end()
      const input = new PassThrough().end(await bytes)
      for (const given of [file, input])
        await withStore(async () => {
          const loaded = await oci.load({ input: given })
          assert.deepEqual(
            loaded.map(({ name }) => name).sort(),
            before.map(({ name }) => name),
          )
          assert.deepEqual(await oci.list(), before)
        })
    })
  })

  it("as docker-archive have what docker load reads, and the layout with it", async () => {
    await withStore(async () => {
      const { source, amd } = ((found) => ({ ...found, source: `oci:${found.layout.folder}` }))(
        twoPlatforms(),
      )
      await oci.copy({ source, target: "store:two", all: true, ...quiet })
      const output = path.join(newFolder("saved"), "image.tar")
      await oci.save({ names: ["two"], output, format: "docker-archive", platforms: ["linux/amd64"] })
      const [entry] = JSON.parse(tar("-xOf", output, "manifest.json")) as Record<string, string[]>[]
      assert.deepEqual(entry!["RepoTags"], ["docker.io/library/two:latest"])
      const manifest = JSON.parse(tar("-xOf", output, `blobs/sha256/${amd.digest.slice(7)}`)) as JsonManifest
      assert.deepEqual(
        entry!["Layers"],
        manifest.layers.map(({ digest }) => `blobs/sha256/${digest.slice(7)}`),
      )
      skopeo("copy", "-q", `docker-archive:${output}`, `dir:${newFolder("dir")}`)
      await withStore(async () => {
        assert.equal((await oci.load({ input: output }))[0]!.digest, amd.digest)
      })
    })
  })

  it("take what docker save has written, and nothing from what is no archive", async () => {
    await withStore(async () => {
      const [loaded] = await oci.load({ input: vectorPath("oci/docker-archive.tar.gz") })
      assert.equal(loaded!.name, "localhost/tiny:v1")
      const file = path.join(newFolder("no-archive"), "image.tar")
      const cut = readFileSync(vectorPath("oci/docker-archive.tar.gz")).subarray(0, 2000)
      for (const bytes of ["", "no archive at all", cut]) {
        writeFileSync(file, bytes)
        for (const input of [file, new PassThrough().end(bytes)])
          await assert.rejects(oci.load({ input }), (error: { code?: string }) =>
            /^ERR_OCI_/.test(error.code!),
          )
      }
      // A few bytes can stand for any number.
      for (const many of [Buffer.alloc(1 << 20), gzipSync(Buffer.alloc(1 << 20))])
        await assert.rejects(oci.load({ input: new PassThrough().end(many), maxBytes: 1 << 19 }), {
          code: "ERR_OCI_LIMIT",
        })
    })
  })

  it("take of an index what the archive has of it", async () => {
    await withStore(async () => {
      const { layout, index, amd } = twoPlatforms()
      const arm = (JSON.parse(layout.blob(index.digest).toString()) as { manifests: JsonDescriptor[] })
        .manifests[1]!
      rmSync(layout.blobPath(arm.digest))
      const input = path.join(newFolder("partial"), "image.tar")
      tar("-cf", input, "-C", layout.folder, ".")
      const told: string[] = []
      const [loaded] = await oci.load({ input, onNotice: (text) => told.push(text) })
      assert.match(told.join(), /linux\/arm64 is not there, and is left out/)
      const shown = await oci.inspect({ source: `store:@${loaded!.digest}`, platform: "linux/amd64" })
      assert.equal(shown.digest, amd.digest)
      rmSync(layout.blobPath(amd.digest))
      tar("-cf", input, "-C", layout.folder, ".")
      await assert.rejects(oci.load({ input }), {
        code: "ERR_OCI_NOT_FOUND",
        message: /nothing of it is there/,
      })
      const target = `oci:${newFolder("whole")}`
      await assert.rejects(oci.copy({ source: `oci:${layout.folder}`, target, all: true, ...quiet }), {
        code: "ERR_OCI_NOT_FOUND",
      })
    })
  })

  it("take names that are none here for none, and hold on to the image", async () => {
    await withStore(async () => {
      const { source, digest } = onePlatform()
      const file = path.join(newFolder("names"), "image.tar")
      await oci.copy({ source, target: `oci-archive:${file}:../../../etc/passwd`, ...quiet })
      const told: string[] = []
      assert.deepEqual(await oci.load({ input: file, onNotice: (text) => told.push(text) }), [
        { name: undefined, digest, mediaType: "application/vnd.oci.image.manifest.v1+json" },
      ])
      assert.match(told.join(), /cannot be a name here/)
      await oci.remove({ names: [`@${digest}`] })
      assert.deepEqual(await oci.list(), [])
    })
  })
})

describe("sifcrypt image", () => {
  const env = { SIFCRYPT_STOREDIR: path.join(newFolder("cli-store", userId), "images") }

  async function shown(args: readonly string[], options: CommandOptions): Promise<string> {
    return (await sifcryptOk(args, options)).text
  }

  it("copies, lists, inspects, saves, loads and removes", async () => {
    const { source, digest } = onePlatform()
    assert.equal(await shown(["image", "copy", source, "store:alpine"], { env }), `${digest}\n`)
    assert.match(await shown(["image", "list"], { env }), /^docker\.io\/library\/alpine:latest +sha256:/m)
    assert.equal(sha256(await shown(["image", "inspect", "--raw", "store:alpine"], { env })), digest)
    assert.match(await shown(["image", "inspect", "alpine"], { env }), /^Layer 0: +sha256:/m)
    const json = JSON.parse(await shown(["image", "inspect", "--json", "store:alpine"], { env })) as {
      digest: string
      manifest: { configDigest: string }
    }
    assert.equal(json.digest, digest)
    const config = await shown(["image", "inspect", "--config", "store:alpine"], { env })
    assert.equal(sha256(config), json.manifest.configDigest)
    const file = path.join(newFolder("cli", userId), "image.tar")
    await shown(["image", "save", "-o", file, "alpine"], { env })
    await shown(["image", "rm", "alpine"], { env })
    assert.equal(
      await shown(["image", "load"], { env, input: readFileSync(file) }),
      "docker.io/library/alpine:latest\n",
    )
    const saved = await sifcrypt(["image", "save", "nothing"], { env })
    assert.equal(saved.status, 25, saved.stderr)
    assert.equal((await sifcrypt(["image", "copy", source, "somewhere"], { env })).status, 20)
    const both = await sifcrypt(["image", "copy", "--all", "--platform", "arm64", source, "store:x"], { env })
    assert.equal(both.status, 20)
    assert.match(both.stderr, /'-a, --all' cannot be used with/)
  })

  it("goes to a registry and back, alone or with all platforms, and every digest stays", async () => {
    await using registry = await Registry.start()
    const { layout, index, amd } = twoPlatforms()
    const source = `oci:${layout.folder}`
    const name = `docker://${registry.host}/group/name`
    const file = path.join(newFolder("digest", userId), "digest")
    const copied = await shown(["image", "copy", "--all", "--digestfile", file, source, `${name}:all`], {
      env,
    })
    assert.equal(copied, `${index.digest}\n`)
    assert.equal(readFileSync(file, "utf8"), copied)
    assert.equal(sha256(skopeo("inspect", "--raw", "--tls-verify=false", `${name}:all`)), index.digest)
    const one = await shown(["image", "copy", "--platform", "linux/amd64", `${name}:all`, `${name}:one`], {
      env,
    })
    assert.equal(one, `${amd.digest}\n`)
    assert.equal(await shown(["image", "copy", "--all", `${name}:all`, "store:"], { env }), copied)
    const listed = await shown(["image", "list"], { env })
    assert.match(
      listed,
      new RegExp(`^${registry.host}/group/name:all +sha256:[0-9a-f]{12} +linux/amd64,linux/arm64 `, "m"),
    )
    assert.match(
      await shown(["image", "inspect", `${name}:all`], { env }),
      /^Platforms: +linux\/amd64, linux\/arm64$/m,
    )
    const raw = await shown(["image", "inspect", "--raw", "--platform", "linux/amd64", `${name}:all`], {
      env,
    })
    assert.equal(sha256(raw), amd.digest)
    const absent = await sifcrypt(["image", "copy", "--platform", "linux/s390x", `${name}:all`, "store:x"], {
      env,
    })
    assert.equal(absent.status, 25, absent.stderr)
    assert.match(absent.stderr, /there is no image for linux\/s390x/)
  })
})
