// `sifcrypt view`: an encrypted image as plain files, for programs that know nothing of its encryption.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import {
  idOf,
  isRoot,
  packageRoot,
  runProgram,
  sifcrypt,
  sifcryptOk,
  type As,
  type CommandOptions,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { mountsIn, processesOfGroup, waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { DataType, FileSystem, partitionExtra, PartitionType } from "../../lib/sif/format.ts"
import { PARTITION_ALIGNMENT, SifLayout } from "../../lib/sif/write.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

/** Two images that were made one after the other differ in ID and times, and in nothing else. */
function withoutTimes(sif: Buffer): Buffer {
  const bytes = Buffer.from(sif)
  bytes.fill(0, 48, 80) // ID, created, modified
  const [slots, table] = [Number(bytes.readBigInt64LE(88)), Number(bytes.readBigInt64LE(96))]
  for (let slot = 0; slot < slots; slot++) bytes.fill(0, table + slot * 585 + 41, table + slot * 585 + 57)
  return bytes
}

/** A plain image with so many objects, each at a multiple of so many bytes. */
function withObjects(squashfs: Buffer, count: number, alignment: number): Buffer {
  const layout = new SifLayout(1_700_000_000, undefined, { slots: count + 1 })
  const root = layout.next(PARTITION_ALIGNMENT)
  const facts = { fileSystem: FileSystem.squashfs, type: PartitionType.primarySystem, arch: "02" }
  layout.add({ type: DataType.partition, extra: partitionExtra(facts) }, squashfs.length, PARTITION_ALIGNMENT)
  const texts = Array.from({ length: count }, (_, i) => Buffer.from(`object ${i}`))
  const places = texts.map((text) => {
    const place = layout.next(alignment)
    layout.add({ type: DataType.generic }, text.length, alignment)
    return place
  })
  const bytes = Buffer.alloc(layout.size)
  layout.serialize("02").copy(bytes)
  squashfs.copy(bytes, root)
  for (const [i, place] of places.entries()) texts[i]?.copy(bytes, place)
  return bytes
}

describe("a plain view of an image", () => {
  const keys = testKeys()
  const tree = makeRootTree()
  const unlock = ["--pem-path", keys.privateKey]

  // fusermount3 serves only users whom passwd knows.
  for (const as of ["nobody", "self"] as const satisfies readonly As[])
    describe(as === "nobody" ? "as an ordinary user" : "as root", () => {
      const uid = idOf(as)
      const folder = newFolder(`view-${as}`, uid)
      const options: CommandOptions = { as, ...(isRoot ? { group: 72_200 + (as === "nobody" ? 1 : 2) } : {}) }
      const at = (name: string): string => path.join(folder, name)
      const target = at("a view")

      const view = (image: string, ...more: string[]): ReturnType<typeof sifcrypt> =>
        sifcrypt(["view", ...unlock, ...more, at(image), target], options)
      const unmount = (): ReturnType<typeof sifcryptOk> => sifcryptOk(["unmount", target], options)
      /** What its owner reads: root may not enter another user's mount. */
      const read = async (name: string): Promise<Buffer> => {
        const { status, stdout, stderr } = await runProgram(["cat", path.join(target, name)], { as })
        assert.equal(status, 0, stderr)
        return stdout
      }

      const rootOf = async (name: string): Promise<Buffer> => {
        const { text } = await sifcryptOk(["sif", "list", "--json", at(name)], options)
        const root = (JSON.parse(text) as { id: number; partition?: unknown }[]).find(
          ({ partition }) => partition,
        )
        return (await sifcryptOk(["sif", "dump", String(root?.id), at(name)], options)).stdout
      }

      before(async function () {
        this.timeout(120_000)
        if (as === "self" && !isRoot) skip(this, "needs root")
        mkdirSync(target)
        if (isRoot) execFileSync("chown", [String(uid), target])
        const inside = async (...args: string[]): Promise<void> => {
          await sifcryptOk(args, { ...options, cwd: folder })
        }
        // Labels and definition go inside the encryption, and a data object stays beside it.
        writeFileSync(at("image.def"), `Bootstrap: localimage\nFrom: ${tree}\n%labels\n  about view\n`)
        writeFileSync(at("note"), "a note of 23 bytes here")
        await inside("build", "--pem-path", keys.publicKey, "luks.sif", "image.def")
        copyFileSync(at("luks.sif"), at("signed.sif"))
        if (isRoot) execFileSync("chown", [String(uid), at("signed.sif")])
        await inside("sif", "add", "--datatype", "6", "luks.sif", "note")
        await inside("build", "--format", "gocryptfs", "--pem-path", keys.publicKey, "gocryptfs.sif", tree)
        for (const name of ["luks", "gocryptfs"])
          await inside("decrypt", ...unlock, `${name}.sif`, `${name}-plain.sif`)
      })

      afterEach(async () => {
        for (const place of mountsIn(folder)) await runProgram(["umount", "-l", place], { as: "self" })
        if (isRoot)
          await waitFor("the end of the servers", () => processesOfGroup(options.group ?? 0).length === 0)
      })

      for (const format of ["luks", "gocryptfs"])
        it(`has of ${format} the bytes that decrypt would write`, async () => {
          const shown = await view(`${format}.sif`)
          assert.equal(shown.status, 0, shown.stderr)
          // What anybody may have put beside the encryption looks like the image's own in there.
          const told = /^sifcrypt: .*luks\.sif had it outside of its encryption.*: JSON\.Generic\n$/
          assert.match(shown.stderr, format === "luks" ? told : /^$/)
          const plain = readFileSync(at(`${format}-plain.sif`))
          const image = await read("image.sif")
          assert.equal(image.length, plain.length)
          assert.ok(withoutTimes(image).equals(withoutTimes(plain)), "it has other bytes")
          assert.ok(
            (await read("root.squashfs")).equals(await rootOf(`${format}-plain.sif`)),
            "the squashfs has other bytes",
          )
          await unmount()
          assert.deepEqual(mountsIn(folder), [])
        })

      it("is read by what knows no encryption, in whatever order", async () => {
        assert.equal((await view("luks.sif")).status, 0)
        const listed = await runProgram(["unsquashfs", "-l", path.join(target, "root.squashfs")], { as })
        assert.equal(listed.status, 0, listed.stderr)
        const files = await runProgram(["find", ".", "-printf", "%P\n"], { as: "self", cwd: tree })
        const names = files.text.split("\n").filter((name) => name !== "")
        for (const name of names) assert.ok(`${listed.text}\n`.includes(`squashfs-root/${name}\n`), name)
        const inspected = await sifcryptOk(["inspect", path.join(target, "image.sif")], options)
        assert.match(inspected.text, /^about: view$/m)
        const pieces = await runProgram(
          [
            "sh",
            "-c",
            'tail -c 70000 "$0/image.sif" | head -c 5000 && dd if="$0/image.sif" bs=1 skip=4090 count=700 status=none',
            target,
          ],
          { as },
        )
        const plain = readFileSync(at("luks-plain.sif"))
        const start = plain.length - 70_000
        assert.ok(pieces.stdout.subarray(0, 5000).equals(plain.subarray(start, start + 5000)))
        assert.equal(pieces.stdout.length, 5700)
      })

      it("needs no descriptor for each of many objects, and says of too many that are scattered how many", async () => {
        const root = await rootOf("luks-plain.sif")
        const many = withObjects(root, 2000, 1)
        writeFileSync(at("many.sif"), many)
        const limited = { ...options, wrapper: ["prlimit", "--nofile=200:200"] }
        const shown = await sifcrypt(["view", at("many.sif"), target], limited)
        assert.equal(shown.status, 0, shown.stderr)
        assert.ok(withoutTimes(await read("image.sif")).equals(withoutTimes(many)), "it has other bytes")
        await unmount()
        writeFileSync(at("scattered.sif"), withObjects(root, 600, 16))
        const refused = await sifcrypt(["view", at("scattered.sif"), target], options)
        assert.equal(refused.status, 21, refused.stderr)
        assert.match(refused.stderr, /scattered\.sif: its objects lie in 601 places, and 512 can be shown/)
      })

      it("is its owner's, read-only, and listed", async () => {
        const { stdout } = await view("luks.sif", "--json")
        const info = JSON.parse(stdout.toString()) as { pid: number; target: string; engine: string }
        assert.deepEqual([info.target, info.engine], [target, "userspace"])
        const { text } = await runProgram(["find", target, "-printf", "%f %m %U %G\n"], { as })
        assert.deepEqual(text.trim().split("\n").sort(), [
          `a view 500 ${uid} ${uid}`,
          `image.sif 500 ${uid} ${uid}`,
          `root.squashfs 400 ${uid} ${uid}`,
        ])
        const write = await runProgram(["touch", path.join(target, "x")], { as })
        assert.match(write.stderr, /Read-only file system/)
        if (isRoot) {
          const other = ["setpriv", "--reuid=3456", "--regid=3456", "--clear-groups"]
          for (const user of as === "nobody" ? [other, []] : [other])
            assert.notEqual(
              (await runProgram([...user, "cat", path.join(target, "image.sif")], { as: "self" })).status,
              0,
            )
        }
        const { text: all } = await sifcryptOk(["mounts", "--json"], options)
        const mine = (JSON.parse(all) as { target: string; pid: number }[]).find(
          (one) => one.target === target,
        )
        assert.equal(mine?.pid, info.pid)
        const look = await runProgram(["cat", `/proc/${info.pid}/maps`], { as: "nobody" })
        assert.notEqual(look.status, 0)
      })

      it("goes when its server is killed", async () => {
        const { stdout } = await view("luks.sif", "--json")
        process.kill((JSON.parse(stdout.toString()) as { pid: number }).pid, "SIGKILL")
        await waitFor("the end of the mount", () => mountsIn(folder).length === 0)
      })

      it("gives no byte of a block that is not what was signed", async () => {
        const config = at("keys")
        const home = { ...options, env: { SIFCRYPT_KEYSDIR: config }, cwd: folder }
        await sifcryptOk(["sign", "--tree", "--key", keys.otherPrivateKey, "signed.sif"], home)
        const verify = ["--verify", "--signer-key", keys.otherPublicKey]
        assert.equal((await view("signed.sif", ...verify)).status, 0)
        const whole = await read("root.squashfs")
        await unmount()
        const bytes = readFileSync(at("signed.sif"))
        // In the encrypted root file system, behind its header of 4 MiB.
        const place = (4 << 20) + 400_000
        bytes.writeUInt8(bytes.readUInt8(place) ^ 1, place)
        writeFileSync(at("signed.sif"), bytes)
        const shown = await view("signed.sif", ...verify)
        if (shown.status === 0) {
          const damaged = await runProgram(["cat", path.join(target, "root.squashfs")], { as })
          assert.match(damaged.stderr, /Input\/output error/)
          assert.ok(whole.subarray(0, damaged.stdout.length).equals(damaged.stdout))
          await unmount()
        } else assert.equal(shown.status, 26, shown.stderr)
      })

      it("is refused without the key, of what is no image, and on what is no folder", async () => {
        const wrong = await sifcrypt(
          ["view", "--pem-path", keys.otherPrivateKey, at("luks.sif"), target],
          options,
        )
        assert.equal(wrong.status, 22, wrong.stderr)
        assert.equal((await view("note")).status, 21)
        const nowhere = await sifcrypt(["view", ...unlock, at("luks.sif"), at("note")], options)
        assert.equal(nowhere.status, 25)
        assert.match(nowhere.stderr, /is no folder/)
        const plain = await view("luks-plain.sif", "--require-encrypted")
        assert.notEqual(plain.status, 0)
        assert.match(plain.stderr, /not encrypted/)
        assert.deepEqual(mountsIn(folder), [])
      })

      it("lives as long as a program wants it", async () => {
        const program = `
          import { view } from ${JSON.stringify(path.join(packageRoot, "dist", "index.js"))}
          import { statSync, readdirSync } from "node:fs"
          const [image, target, file] = process.argv.slice(1)
          const shown = await view({ image, target, unlock: [{ key: { file } }] })
          console.log(readdirSync(target).join(), statSync(target + "/image.sif").size > 0, shown.info.engine)
          await shown.unmount()
          console.log(readdirSync(target).length)
          try { await view({ image, target, unlocked: [] }) } catch (error) { console.log(error.message) }
        `
        const { text, stderr } = await runProgram(
          ["node", "--input-type=module", "-e", program, at("luks.sif"), target, keys.privateKey],
          { as },
        )
        assert.equal(stderr, "")
        assert.match(text, /^image\.sif,root\.squashfs true userspace\n0\n.*unlocked/)
      })
    })
})
