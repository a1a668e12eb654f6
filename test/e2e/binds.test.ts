// Binds out of images, and the overlay that an image brings.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { once } from "node:events"
import { chownSync, copyFileSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { Worker } from "node:worker_threads"
import { openBindImages } from "../../lib/container/bind-images.ts"
import { openOverlays } from "../../lib/container/overlays.ts"
import { Credentials } from "../../lib/encryption/credentials.ts"
import { overlaysOf } from "../../lib/encryption/partition.ts"
import { sif } from "../../lib/index.ts"
import { idOf, isRoot, sifcrypt, sifcryptOk, userId, type As, type Result } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

// SIF specification: fields of a partition; amd64.
const extra = (fileSystem: number, type: number): Buffer => {
  const bytes = Buffer.alloc(12)
  bytes.writeInt32LE(fileSystem, 0)
  bytes.writeInt32LE(type, 4)
  bytes.write("02\0", 8, "latin1")
  return bytes
}
const PARTITION = 0x4004
const SQUASHFS = 1
const EXT3 = 2
const RAW = 4
const DATA = 3
const OVERLAY = 4

describe("images beside and in an image", () => {
  const keys = testKeys()
  const folder = newFolder("binds", userId)
  const at = (name: string): string => path.join(folder, name)
  let dataId = 0

  before(async () => {
    const tree = makeRootTree()
    await sifcryptOk(["build", at("plain.sif"), tree])
    await sifcryptOk(["build", "--pem-path", keys.publicKey, at("locked.sif"), tree])
    const data = newFolder("data")
    mkdirSync(path.join(data, "sub"))
    writeFileSync(path.join(data, "sub", "file"), "in the image\n")
    symlinkSync("/sub", path.join(data, "absolute"))
    symlinkSync("../../../../etc/hosts", path.join(data, "outside"))
    const squashfs = ["-quiet", "-noappend", "-all-root"]
    execFileSync("mksquashfs", [data, at("data.img"), ...squashfs], { stdio: "ignore" })
    const partition = { type: PARTITION, extra: extra(SQUASHFS, DATA), group: 1 }
    copyFileSync(at("plain.sif"), at("with-data.sif"))
    dataId = await sif.addObject(at("with-data.sif"), partition, readFileSync(at("data.img")))
    await sifcryptOk(["overlay", "create", at("overlay.img")])
    const overlay = { type: PARTITION, extra: extra(EXT3, OVERLAY), group: 1 }
    for (const name of ["plain", "locked"]) {
      copyFileSync(at(`${name}.sif`), at(`${name}-own.sif`))
      await sif.addObject(at(`${name}-own.sif`), overlay, readFileSync(at("overlay.img")))
    }
    copyFileSync(at("with-data.sif"), at("two-data.sif"))
    await sif.addObject(at("two-data.sif"), partition, readFileSync(at("data.img")))
    copyFileSync(at("locked.sif"), at("locked-data.sif"))
    await sif.addObject(at("locked-data.sif"), partition, readFileSync(at("data.img")))
    copyFileSync(at("plain.sif"), at("two-locked.sif"))
    for (let count = 0; count < 2; count++)
      await sif.addObject(
        at("two-locked.sif"),
        { ...partition, extra: extra(RAW, OVERLAY) },
        Buffer.alloc(4096),
      )
    copyFileSync(at("plain-own.sif"), at("two-own.sif"))
    await sif.addObject(at("two-own.sif"), overlay, readFileSync(at("overlay.img")))
  })

  it("S5: no ext file system of an image meets the kernel's driver, whoever owns the file", async function () {
    if (!isRoot) skip(this, "needs root, to own the files")
    const options = { credentials: new Credentials(), policy: {} }
    const [image, file] = [at("trusted.sif"), at("trusted.img")]
    copyFileSync(at("plain-own.sif"), image)
    copyFileSync(at("overlay.img"), file)
    await using opened = await sif.openSif(image)
    const [partition = assert.fail()] = overlaysOf(opened.objects, opened.primary())
    const source = { image, fd: opened.fd, offset: 0, size: 0, unlocked: undefined }
    await using own = await openOverlays([], {
      ...options,
      ...{ encryptedImage: false, allowPlain: false },
      own: { image: source, partition, writable: false },
    })
    const bind = { source: image, destination: "/in", readOnly: true, image: { path: "/", id: partition.id } }
    await using bound = await openBindImages([bind], options)
    for (const refused of [own, bound]) {
      assert.throws(() => refused.layers("kernel", "userspace"), { code: "ERR_RUN_OVERLAY" })
      assert.equal(refused.layers("userspace", "userspace").length, 1)
    }
    await using named = await openBindImages(
      [{ ...bind, source: file, image: { path: "/", id: undefined } }],
      options,
    )
    assert.equal(named.layers("kernel", "userspace").length, 1)
  })

  for (const as of ["user", "self"] as const satisfies readonly As[])
    describe(as === "user" ? "as an ordinary user" : "as root", () => {
      before(function () {
        if (as === "self" && !isRoot) skip(this, "needs root")
        for (const name of ["overlay.img", "plain-own.sif"]) chownSync(at(name), idOf(as), idOf(as))
      })
      const run = (
        flags: readonly string[],
        script: string,
        image: string = "plain.sif",
      ): Promise<Result> => {
        const command = ["exec", "--engine", "userspace", ...flags, image, "sh", "-c", script]
        return sifcrypt(command, { as, cwd: folder })
      }
      async function output(flags: readonly string[], script: string, image?: string): Promise<string> {
        const { text, stderr, status } = await run(flags, script, image)
        assert.deepEqual([stderr, status], ["", 0])
        return text
      }

      it("A21: show folders and files out of squashfs and SIF images, encrypted ones too", async () => {
        const binds = [
          ...[
            "-B",
            "data.img:/in:image-src=/sub,data.img:/one:image-src=/sub/file,data.img:/all:image-src=/",
          ],
          ...[
            "-B",
            `with-data.sif:/first:image-src=sub,with-data.sif:/id:id=${dataId},with-data.sif:/root:id=1`,
          ],
          ...["--mount", "type=bind,src=locked.sif,dst=/locked,image-src=/data"],
          ...["--pem-path", keys.privateKey],
        ]
        const places = "/in/file /one /all/sub/file /first/file /id/sub/file /root/data/hello /locked/hello"
        const text = await output(
          binds,
          `cat ${places}; touch /in/x 2>/dev/null || echo read-only; stat -c %u /in/file`,
        )
        const inImage = "in the image\n"
        assert.equal(text, `${inImage.repeat(5)}hello\nhello\nread-only\n${idOf(as)}\n`)
      })

      it("S20: a link in such an image stays in it", async () => {
        assert.equal(
          await output(["-B", "data.img:/in:image-src=/absolute"], "cat /in/file"),
          "in the image\n",
        )
        const { status, stderr } = await run(["-B", "data.img:/in:image-src=/outside"], "cat /in")
        assert.equal(status, 255)
        assert.match(stderr, /data\.img: \/outside in it: No such file/)
      })

      it("a link in such an image is followed while files elsewhere are renamed", async () => {
        const code = `const { workerData } = require("node:worker_threads"), fs = require("node:fs")
          fs.writeFileSync(workerData + "1", "")
          for (let at = 1; ; at = 3 - at) fs.renameSync(workerData + at, workerData + (3 - at))`
        const renaming = new Worker(code, { eval: true, workerData: path.join(newFolder("renamed"), "file") })
        try {
          await once(renaming, "online")
          const { stderr } = await run(["-B", "data.img:/in:image-src=/outside"], "cat /in")
          assert.match(stderr, /data\.img: \/outside in it: No such file/)
        } finally {
          await renaming.terminate()
        }
      })

      it("an ext image is written, unless it is bound read-only", async () => {
        const bind = "overlay.img:/in:image-src=/upper"
        await output(["-B", bind], "echo kept > /in/kept")
        const script = "cat /in/kept; touch /in/x 2>/dev/null || echo read-only"
        assert.equal(await output(["-B", `${bind},ro`], script), "kept\nread-only\n")
        await output(["-B", bind], "rm -f /in/kept 2>/dev/null || : > /in/kept")
      })

      it("what is no image, has no such partition or needs a key says so", async () => {
        for (const [bind, message, code] of [
          [`${folder}:/in:image-src=/`, /image-src and id are for images, and this is none/, 255],
          ["data.img:/in:id=1", /id is for SIF images/, 255],
          ["with-data.sif:/in:id=1000", /there is no partition 1000/, 255],
          ["with-data.sif:/in:id=x", /is no number of a partition/, 255],
          ["data.img:/in:image-src=/none", /\/none in it: No such file/, 255],
          ["locked.sif:/in:image-src=/", /no key was given/, 22],
        ] as const) {
          const { status, stderr } = await run(["-B", bind], "true")
          assert.match(stderr, message, bind)
          assert.equal(status, code, bind)
        }
      })

      it("S5: a plain partition that anybody could have put beside an encrypted root is nothing that is bound", async () => {
        const key = ["--pem-path", keys.privateKey]
        const bind = (id: string): readonly string[] => ["-B", `locked-data.sif:/in:${id}`, ...key]
        const { text, stderr, status } = await run(bind("image-src=/data"), "ls /in")
        assert.deepEqual([text, status], ["hello\n", 0])
        assert.match(stderr, /locked-data\.sif: partition \d+ is not encrypted as the image is, .*left out/)
        await using opened = await sif.openSif(at("locked-data.sif"))
        for (const { id, partition } of opened.objects) {
          if (partition?.type !== DATA) continue
          const named = await run(bind(`id=${id}`), "ls /in")
          assert.equal(named.status, 255)
          assert.match(named.stderr, /is not encrypted as the image is, and anybody could have put it there/)
        }
      })

      it("S5: which of several partitions is meant is not for the image to choose", async () => {
        const bound = await run(["-B", "two-data.sif:/in:image-src=/"], "true")
        assert.equal(bound.status, 21)
        assert.match(bound.stderr, /the partitions \d+, \d+ are all for data/)
        assert.equal(await output(["-B", `two-data.sif:/in:id=${dataId}`], "ls /in/sub"), "file\n")
        const own = await run([], "true", "two-own.sif")
        assert.equal(own.status, 21)
        assert.match(own.stderr, /the partitions \d+, \d+ are all overlays of the root file system/)
        const named = await run(["--overlay", "two-locked.sif"], "true")
        assert.equal(named.status, 21)
        assert.match(named.stderr, /the partitions \d+, \d+ are all encrypted overlays/)
      })

      it("mounts are nosuid and nodev, and a folder that holds the session does not show it", async () => {
        const flags =
          'while read a b c d e; do case $b in /in|/host|/tmp) echo "$b ${d%,relatime}";; esac; done </proc/self/mounts'
        const text = await output(["-B", `${folder}:/in,/:/host`], `${flags}; ls /host/mnt | wc -l`)
        for (const place of ["/in", "/host", "/tmp"])
          assert.match(text, new RegExp(`^${place} rw,nosuid,nodev`, "m"))
        assert.equal(
          await output(["-B", "/:/host"], "ls -d /host/*/root /host/*/bound 2>/dev/null; true"),
          "",
        )
      })

      it("A9: --writable keeps changes in the image's own overlay, never in an encrypted image", async () => {
        const own = "plain-own.sif"
        await output(["--writable"], "echo changed > /data/hello; echo new > /data/new", own)
        assert.equal(
          await output([], "cat /data/hello /data/new; touch /x 2>/dev/null || echo no", own),
          "changed\nnew\nno\n",
        )
        await output(["--writable-tmpfs"], "rm /data/new 2>/dev/null; echo lost > /data/hello", own)
        assert.equal(await output([], "cat /data/hello", own), "changed\n")
        for (const [flags, image, message] of [
          [["--writable"], "plain.sif", /--writable: there is nothing in this image that can be written/],
          [
            ["--writable", "--pem-path", keys.privateKey],
            "locked.sif",
            /--writable: an encrypted image is read-only/,
          ],
          [["--writable", "--overlay", "overlay.img"], own, /--writable: it excludes --overlay/],
        ] as const) {
          const { status, stderr } = await run(flags, "true", image)
          assert.equal(status, 255)
          assert.match(stderr, message)
        }
      })

      it("A9: an encrypted image does not take over what a plain overlay in it says", async () => {
        const { text, stderr, status } = await run(
          ["--pem-path", keys.privateKey],
          "cat /data/hello",
          "locked-own.sif",
        )
        assert.deepEqual([text, status], ["hello\n", 0])
        assert.match(stderr, /its own overlay is not encrypted as the image is: it is left out/)
      })
    })
})
