import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import {
  copyFileSync,
  existsSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { gunzipSync, gzipSync } from "node:zlib"
import { build, open, sif, type BuildOptions } from "../../lib/index.ts"
import { architectureName } from "../../lib/sif/names.ts"
import { sifcrypt, sifcryptOk } from "../support/cli.ts"
import { imageTree, type Entry } from "../support/image-tree.ts"
import { Layout } from "../support/layout.ts"
import { newFolder } from "../support/scratch.ts"
import { vectorPath } from "../vectors/load.ts"

interface Expected {
  readonly path: string
  readonly type: string
  readonly mode: string
  readonly uid: number
  readonly gid: number
  readonly content?: string
  readonly sha256?: string
  readonly target?: string
  readonly nlink?: number
  readonly mtime?: number
  readonly xattrs?: Readonly<Record<string, string>>
  readonly rdev?: readonly [number, number]
}

const types: Readonly<Record<string, string>> = {
  dir: "directory",
  char: "character-device",
  block: "block-device",
}

/** What every image gets besides its layers. */
const added =
  /^(?:\.singularity\.d(?:\/.*)?|\.(?:exec|run|shell|test)|singularity|environment|dev|home|proc|root|sys|tmp|var|var\/tmp|etc|etc\/hosts|etc\/resolv\.conf)$/

function compare(found: ReadonlyMap<string, Entry>, expected: readonly Expected[]): void {
  for (const one of expected) {
    const entry = found.get(one.path)
    assert.ok(entry !== undefined, `${one.path} is missing`)
    assert.equal(entry.type, types[one.type] ?? one.type, one.path)
    assert.equal(entry.mode, Number(one.mode), one.path)
    assert.deepEqual([entry.uid, entry.gid], [one.uid, one.gid], one.path)
    const sha256 =
      one.content === undefined ? one.sha256 : createHash("sha256").update(one.content).digest("hex")
    assert.equal(entry.sha256, sha256, one.path)
    assert.equal(entry.target, one.target, one.path)
    if (one.nlink !== undefined) assert.equal(entry.nlink, one.nlink, one.path)
    if (one.mtime !== undefined) assert.equal(entry.mtime, one.mtime, one.path)
    if (one.rdev !== undefined) assert.equal(entry.rdev, (one.rdev[0] << 8) | one.rdev[1], one.path)
    assert.deepEqual(entry.xattrs, one.xattrs ?? {}, one.path)
  }
  const known = new Set(["", ...expected.map((one) => one.path)])
  const more = [...found.keys()].filter((name) => !known.has(name) && !added.test(name))
  assert.deepEqual(more, [], "nothing else is there")
}

function expectedTree(name: string): Expected[] {
  return JSON.parse(readFileSync(vectorPath(`oci/${name}.json`), "utf8")) as Expected[]
}

describe("OCI images", () => {
  const folder = newFolder("oci", 2345)
  let count = 0

  async function built(source: string, options: Partial<BuildOptions> = {}): Promise<string> {
    const output = path.join(folder, `${++count}.sif`)
    await build({ output, source, architecture: "amd64", ...options })
    return output
  }
  async function refused(
    source: string,
    code: string,
    message: RegExp,
    options: Partial<BuildOptions> = {},
  ): Promise<void> {
    const output = path.join(folder, `${++count}.sif`)
    await assert.rejects(
      build({ output, source, architecture: "amd64", ...options }),
      (error: Error & { code?: string }) => {
        assert.equal(error.code, code, error.message)
        assert.match(error.message, message)
        return true
      },
    )
    assert.equal(existsSync(output), false, "nothing is left")
  }
  const refusedLayout = async (layout: Layout, code: string, message: RegExp): Promise<void> =>
    refused(`oci:${layout.folder}`, code, message)

  describe("are the same tree", () => {
    for (const source of [
      "oci:layout",
      "oci-archive:oci-archive.tar.gz",
      "docker-archive:docker-archive.tar.gz",
    ])
      it(`from ${source}, that others unpack`, async () => {
        const [transport, name] = source.split(":") as [string, string]
        compare(
          await imageTree(await built(`${transport}:${vectorPath(`oci/${name}`)}`)),
          expectedTree("plain"),
        )
      })

    it("from archives that are not compressed, or otherwise", async () => {
      for (const name of ["oci-archive", "docker-archive"]) {
        const file = path.join(folder, `${name}.tar`)
        writeFileSync(file, gunzipSync(readFileSync(vectorPath(`oci/${name}.tar.gz`))))
        for (const program of ["cat", "xz", "zstd"]) {
          const packed = path.join(folder, `${name}-${program}`)
          writeFileSync(packed, execFileSync(program, { input: readFileSync(file) }))
          compare(await imageTree(await built(`${name}:${packed}`)), expectedTree("plain"))
        }
      }
    })

    it("with every odd case of layers", async () => {
      compare(
        await imageTree(await built(`oci-archive:${vectorPath("oci/edge-layers.tar.gz")}`)),
        expectedTree("edge-layers"),
      )
    })

    it("by an ordinary user, encrypted, owners and devices kept", async () => {
      const image = path.join(folder, "user.sif")
      const keys = { SIFCRYPT_ENCRYPTION_PASSPHRASE: "correct horse" }
      const env = { ...keys }
      await sifcryptOk(
        [
          "build",
          "-e",
          "--pbkdf-memory",
          "32",
          "--arch",
          "amd64",
          image,
          `oci-archive:${vectorPath("oci/edge-layers.tar.gz")}`,
        ],
        { env },
      )
      const listed = await sifcryptOk(["ls", "-l", image, "/"], { env })
      assert.match(listed.text, /^drwxr-x---\s+2\s+5\s+6\s.*keep$/m)
      assert.match(listed.text, /^crw-rw-rw-\s+1\s+0\s+0\s+1,\s*3\s.*nul$/m)
      // What the peers leave readable is inside, and nothing of the layers lies anywhere else.
      const objects = await sifcryptOk(["sif", "list", image])
      assert.doesNotMatch(objects.text, /Def\.FILE|JSON/)
      const bytes = readFileSync(image)
      assert.equal(bytes.includes("docker2singularity"), false)
    })

    it("with owners as --owner says", async () => {
      const source = `oci:${vectorPath("oci/layout")}`
      const root = await imageTree(await built(source, { owner: "root" }))
      assert.deepEqual([root.get("home/u")!.uid, root.get("home/u")!.gid], [0, 0])
      const other = await imageTree(await built(source, { owner: { uid: 7, gid: 8 } }))
      assert.deepEqual([other.get("etc/motd")!.uid, other.get("etc/motd")!.gid], [7, 8])
    })

    it("the same, byte for byte, with SOURCE_DATE_EPOCH", async () => {
      const source = `oci:${vectorPath("oci/layout")}`
      const [first, second] = [
        await built(source, { sourceDateEpoch: 5 }),
        await built(source, { sourceDateEpoch: 5 }),
      ]
      assert.deepEqual(readFileSync(first), readFileSync(second))
    })

    it("with binary attributes, whatever compresses the layer", async () => {
      const tar = readFileSync(vectorPath("oci/binary-xattr.tar"))
      for (const [type, pack] of [
        ["tar", (bytes: Buffer): Buffer => bytes],
        ["tar+gzip", (bytes: Buffer): Buffer => gzipSync(bytes)],
        ["tar+zstd", (bytes: Buffer): Buffer => execFileSync("zstd", ["-qc"], { input: bytes })],
      ] as const) {
        const layout = new Layout()
        layout.manifest.layers = [layout.add(pack(tar), `application/vnd.oci.image.layer.v1.${type}`)]
        layout.config.rootfs.diff_ids = [`sha256:${createHash("sha256").update(tar).digest("hex")}`]
        layout.write()
        const tree = await imageTree(await built(`oci:${layout.folder}`))
        const values = [...tree.values()]
          .map(({ xattrs }) => xattrs["security.capability"])
          .filter((one) => one !== undefined)
        assert.deepEqual(
          values,
          [Buffer.from(`01000002ff80a00a20${"00".repeat(11)}`, "hex").toString("latin1")],
          type,
        )
      }
    })
  })

  describe("are chosen", () => {
    it("by name, digest and place in an index; several without a choice are an error that names them", async () => {
      const layout = new Layout()
      layout.config.config.Labels = { which: "one" }
      const one = layout.write()
      layout.config.config.Labels = { which: "two" }
      const two = layout.write()
      const named = (descriptor: object, name: string): object => ({
        ...descriptor,
        annotations: { "org.opencontainers.image.ref.name": name },
      })
      layout.writeIndex({ schemaVersion: 2, manifests: [named(one, "first"), named(two, "second")] })
      const label = async (choice: string): Promise<unknown> => {
        await using image = await open(await built(`oci:${layout.folder}${choice}`))
        const labels = JSON.parse((await image.readFile("/.singularity.d/labels.json")).toString()) as Record<
          string,
          string
        >
        return labels["which"]
      }
      assert.equal(await label(":second"), "two")
      assert.equal(await label(":@0"), "one")
      assert.equal(await label(`@${two.digest}`), "two")
      assert.equal(await label(`:@${one.digest}`), "one")
      await refused(`oci:${layout.folder}`, "ERR_OCI_NOT_FOUND", /several images.*first, second/)
      await refused(
        `oci:${layout.folder}:third`,
        "ERR_OCI_NOT_FOUND",
        /third is not there, but first, second/,
      )
    })

    it("for a platform, through nested indexes; attestations are passed by", async () => {
      const layout = new Layout()
      const amd = layout.write()
      layout.config.architecture = "arm64"
      const arm = layout.write()
      const inner = layout.add(
        JSON.stringify({
          schemaVersion: 2,
          mediaType: "application/vnd.oci.image.index.v1+json",
          manifests: [
            { ...amd, platform: { os: "unknown", architecture: "unknown" } },
            { ...arm, platform: { os: "linux", architecture: "arm64", variant: "v8" } },
            { ...amd, platform: { os: "linux", architecture: "amd64" } },
          ],
        }),
        "application/vnd.oci.image.index.v1+json",
      )
      layout.writeIndex({ schemaVersion: 2, manifests: [inner] })
      const source = `oci:${layout.folder}`
      for (const [wanted, found] of [
        ["amd64", "amd64"],
        ["arm64", "arm64"],
        ["arm64v8", "arm64"],
        ["x64", "amd64"],
      ] as const) {
        await using image = await sif.openSif(await built(source, { architecture: wanted }))
        assert.equal(architectureName(image.primary().partition.arch), found)
      }
      await refused(
        source,
        "ERR_OCI_NOT_FOUND",
        /no image for linux\/s390x, but for linux\/arm64\/v8, linux\/amd64/,
        {
          architecture: "s390x",
        },
      )
    })

    it("and an image that is for another platform than its index says is refused", async () => {
      const layout = new Layout()
      const amd = layout.write()
      layout.writeIndex({
        schemaVersion: 2,
        manifests: [
          {
            ...layout.add(
              JSON.stringify({
                schemaVersion: 2,
                manifests: [{ ...amd, platform: { os: "linux", architecture: "arm64" } }],
              }),
              "application/vnd.oci.image.index.v1+json",
            ),
          },
        ],
      })
      await refused(`oci:${layout.folder}`, "ERR_OCI_FORMAT", /says that it is for linux\/amd64/, {
        architecture: "arm64",
      })
    })

    it("of what docker save writes by name and place, through links inside the archive", async () => {
      const work = newFolder("saved")
      execFileSync("tar", ["-xzf", vectorPath("oci/docker-archive.tar.gz"), "-C", work])
      const [image] = JSON.parse(readFileSync(path.join(work, "manifest.json"), "utf8")) as [
        { Config: string; Layers: string[]; RepoTags: string[] },
      ]
      const moved = image.Layers.map((layer, i) => {
        renameSync(path.join(work, layer), path.join(work, `data-${i}`))
        if (!existsSync(path.join(work, layer))) symlinkSync(`data-${i}`, path.join(work, `link-${i}`))
        return `link-${i}`
      })
      const entries = [
        { ...image, Layers: moved, RepoTags: ["registry.example/one:1"] },
        { ...image, Layers: moved, RepoTags: ["alpine:latest"] },
      ]
      // Unpacked by an ordinary user it is read-only.
      rmSync(path.join(work, "manifest.json"))
      writeFileSync(path.join(work, "manifest.json"), JSON.stringify(entries))
      const file = path.join(folder, "saved.tar")
      execFileSync("tar", ["-cf", file, "-C", work, "."])
      for (const choice of [":alpine", ":docker.io/library/alpine:latest", ":registry.example/one:1", ":@1"])
        compare(await imageTree(await built(`docker-archive:${file}${choice}`)), expectedTree("plain"))
      await refused(
        `docker-archive:${file}`,
        "ERR_OCI_NOT_FOUND",
        /several images.*registry.example\/one:1, alpine:latest/,
      )
      await refused(`docker-archive:${file}:other`, "ERR_OCI_NOT_FOUND", /other is not there/)
    })
  })

  describe("are refused", () => {
    it("S12: with links whose names lead out, which change nothing on this machine", async () => {
      // The rules are tested one by one in layer_tree_test.cc; here that nothing is written beside the output.
      const outside = path.join(folder, "outside")
      const layout = new Layout()
      const work = newFolder("evil")
      symlinkSync(folder, path.join(work, "d"))
      execFileSync("sh", [
        "-c",
        `cd "${work}" && tar -cf evil.tar d && rm d && mkdir d && echo x > d/outside && tar -rf evil.tar d/outside`,
      ])
      const tar = readFileSync(path.join(work, "evil.tar"))
      layout.manifest.layers = [layout.add(tar, "application/vnd.oci.image.layer.v1.tar")]
      layout.config.rootfs.diff_ids = [`sha256:${createHash("sha256").update(tar).digest("hex")}`]
      layout.write()
      const tree = await imageTree(await built(`oci:${layout.folder}`))
      assert.equal(existsSync(outside), false)
      assert.equal(
        tree.get(`${folder.slice(1)}/outside`)?.type,
        "file",
        "the link was followed inside the image",
      )
    })

    it("S13: by name where their transport is not read, with what to do instead", async () => {
      for (const [source, advice] of [
        ["library://a/b", /oras:\/\/.*docker:\/\//],
        ["shub://a/b", /shut down/],
        ["docker-daemon:a", /docker save/],
        ["containers-storage:a", /skopeo copy/],
        ["https://a/b", /sifcrypt pull/],
        ["nonsense://a", /is not known/],
      ] as const) {
        await refused(source, "ERR_OCI_REFERENCE", advice)
      }
      const { status, stderr } = await sifcrypt(["build", path.join(folder, "x.sif"), "library://a/b"])
      assert.equal(status, 20, stderr)
    })

    it("S15: where media types and structure disagree", async () => {
      const layout = new Layout()
      layout.manifest.mediaType = "application/vnd.oci.image.index.v1+json"
      layout.write()
      await refusedLayout(layout, "ERR_OCI_FORMAT", /announced as .*index.* and holds layers/)
      const both = new Layout()
      both.manifest.manifests = []
      both.write()
      await refusedLayout(both, "ERR_OCI_FORMAT", /both an index and a manifest/)
      const other = new Layout()
      const descriptor = other.write()
      other.writeIndex({
        schemaVersion: 2,
        manifests: [{ ...descriptor, mediaType: "application/vnd.docker.distribution.manifest.v2+json" }],
      })
      if (other.manifest.mediaType !== undefined)
        await refusedLayout(other, "ERR_OCI_FORMAT", /it calls itself .* and was announced as/)
      const asIndex = new Layout()
      const manifest = asIndex.write()
      asIndex.writeIndex({
        schemaVersion: 2,
        manifests: [{ ...manifest, mediaType: "application/vnd.oci.image.index.v1+json" }],
      })
      await refusedLayout(asIndex, "ERR_OCI_FORMAT", /announced as|calls itself/)
    })

    it("S16: with digests that are none, before they name a file", async () => {
      for (const digest of [
        "sha256:../../../../etc/passwd",
        "sha256:ABCD",
        `sha256:${"A".repeat(64)}`,
        "sha256:",
        `sha1:${"a".repeat(40)}`,
        "../x",
      ]) {
        const layout = new Layout()
        layout.manifest.layers[0]!.digest = digest
        layout.write()
        await refusedLayout(
          layout,
          digest.startsWith("sha1") ? "ERR_OCI_UNSUPPORTED" : "ERR_OCI_FORMAT",
          /digest/,
        )
      }
    })

    it("S16: when a blob, a document or a layer's content is not what its digest says", async () => {
      const layer = new Layout()
      const { digest } = layer.manifest.layers[2]!
      const bytes = layer.blob(digest)
      bytes[bytes.length - 5]! ^= 1
      writeFileSync(layer.blobPath(digest), bytes)
      await refusedLayout(layer, "ERR_OCI_DIGEST", /layer 2 .*content is not what its digest says/)

      const cut = new Layout()
      writeFileSync(cut.blobPath(digest), bytes.subarray(0, 100))
      await refusedLayout(cut, "ERR_OCI_DIGEST", /100 bytes where/)

      const config = new Layout()
      const text = config.blob(config.manifest.config.digest)
      text[text.length - 2]! ^= 1
      writeFileSync(config.blobPath(config.manifest.config.digest), text)
      await refusedLayout(config, "ERR_OCI_DIGEST", /its configuration/)

      const swapped = new Layout()
      swapped.config.rootfs.diff_ids.reverse()
      swapped.write()
      await refusedLayout(swapped, "ERR_OCI_DIGEST", /uncompressed content is not what/)

      const fewer = new Layout()
      fewer.config.rootfs.diff_ids.pop()
      fewer.write()
      await refusedLayout(fewer, "ERR_OCI_FORMAT", /3 layers, and its configuration names 2/)
    })

    it("when they are encrypted in part, of schema 1, or no images", async () => {
      const encrypted = new Layout()
      encrypted.manifest.layers[1]!.mediaType += "+encrypted"
      encrypted.write()
      await refusedLayout(encrypted, "ERR_OCI_PARTIAL", /of 3 layers 2 are plain: 0, 2/)
      const artifact = new Layout()
      artifact.manifest.config.mediaType = "application/vnd.oci.empty.v1+json"
      artifact.write()
      await refusedLayout(artifact, "ERR_OCI_UNSUPPORTED", /no container image/)
      const old = new Layout()
      old.manifest.schemaVersion = 1
      old.write()
      await refusedLayout(old, "ERR_OCI_UNSUPPORTED", /schema 1/)
    })

    it("when a few bytes stand for too many", async () => {
      const layout = new Layout()
      const tar = Buffer.concat([readFileSync(vectorPath("oci/binary-xattr.tar")), Buffer.alloc(8 << 20)])
      layout.manifest.layers = [layout.add(gzipSync(tar), "application/vnd.oci.image.layer.v1.tar+gzip")]
      layout.config.rootfs.diff_ids = [`sha256:${createHash("sha256").update(tar).digest("hex")}`]
      layout.write()
      await refused(`oci:${layout.folder}`, "ERR_OCI_LIMIT", /more than 1048576 bytes uncompressed/, {
        oci: { maxLayerBytes: 1 << 20 },
      })
      await refused(
        `oci-archive:${vectorPath("oci/oci-archive.tar.gz")}`,
        "ERR_OCI_LIMIT",
        /more than 4096 bytes/,
        {
          oci: { maxLayerBytes: 4096 },
        },
      )
    })
  })

  it("with a manifest that names no type and layers of Docker's types are read", async () => {
    const layout = new Layout()
    delete layout.manifest.mediaType
    for (const layer of layout.manifest.layers)
      layer.mediaType = layer.mediaType.endsWith("gzip")
        ? "application/vnd.docker.image.rootfs.diff.tar.gzip"
        : "application/vnd.docker.image.rootfs.diff.tar"
    layout.write()
    compare(await imageTree(await built(`oci:${layout.folder}`)), expectedTree("plain"))
  })

  describe("run", () => {
    const image = path.join(folder, "run.sif")
    const nasty = ["two words", '"', "'", "$HOME", "`id`", "$(id)", "\\", "*", "a\nb", "", "--", "-n", "ä"]

    function makeBusyboxLayer(): { readonly packed: Buffer; readonly diffId: string } {
      const work = newFolder("busybox")
      const busybox = execFileSync("sh", ["-c", "command -v busybox"], { encoding: "utf8" }).trim()
      execFileSync("mkdir", [path.join(work, "bin")])
      copyFileSync(busybox, path.join(work, "bin", "busybox"))
      symlinkSync("busybox", path.join(work, "bin", "sh"))
      // Prints its arguments so that nothing is lost.
      writeFileSync(
        path.join(work, "bin", "show"),
        '#!/bin/sh\nfor one in "$@"; do printf "<%s>" "$one"; done\n',
        { mode: 0o755 },
      )
      const tar = execFileSync("tar", ["-c", "--owner=0", "--group=0", "-C", work, "bin"], {
        maxBuffer: 1 << 28,
      })
      return {
        packed: gzipSync(tar, { level: 1 }),
        diffId: `sha256:${createHash("sha256").update(tar).digest("hex")}`,
      }
    }
    let busyboxLayer: ReturnType<typeof makeBusyboxLayer> | undefined

    async function withConfig(config: Layout["config"]["config"]): Promise<void> {
      const layout = new Layout()
      const { packed, diffId } = (busyboxLayer ??= makeBusyboxLayer())
      layout.manifest.layers = [layout.add(packed, "application/vnd.oci.image.layer.v1.tar+gzip")]
      layout.config.rootfs.diff_ids = [diffId]
      layout.config.config = config
      layout.config.architecture = process.arch === "x64" ? "amd64" : process.arch
      layout.write()
      await build({ output: image, force: true, source: `oci:${layout.folder}` })
    }
    const shown = (list: readonly string[]): string => list.map((one) => `<${one}>`).join("")
    const run = async (...args: readonly string[]): Promise<string> =>
      (await sifcryptOk(["run", "--unsigned", "allow", image, ...args])).text

    it("their entry point with their command, which arguments replace; all as they are", async () => {
      await withConfig({ Entrypoint: ["/bin/show", ...nasty], Cmd: ["cmd", ...nasty] })
      assert.equal(await run(), shown([...nasty, "cmd", ...nasty]))
      assert.equal(await run(...nasty), shown([...nasty, ...nasty]))
    })

    it("their command alone, which arguments replace, and without either what is asked for", async () => {
      await withConfig({ Cmd: ["/bin/show", "x"] })
      assert.equal(await run(), shown(["x"]))
      assert.equal(await run("/bin/show", "$y"), shown(["$y"]))
      await withConfig({})
      assert.equal(await run("/bin/show", "z"), shown(["z"]))
    })

    it("with their environment, byte for byte, unless the caller has the variable", async () => {
      const values = nasty.map((value, i) => [`VALUE_${i}`, value] as const)
      await withConfig({
        Env: [
          "PATH=/bin:/nowhere",
          "not-a-name=x",
          "GIVEN=image",
          ...values.map(([name, value]) => `${name}=${value}`),
        ],
        Entrypoint: [
          "/bin/sh",
          "-c",
          `/bin/show "$PATH" "$GIVEN" ${values.map(([name]) => `"$${name}"`).join(" ")}`,
        ],
      })
      const { text } = await sifcryptOk(["run", "--env", "GIVEN=caller", image])
      // What the peers append to a path that lacks it.
      const appended = ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin"
      assert.equal(text, shown([`/bin:/nowhere${appended}`, "caller", ...nasty]))
    })
  })
})
