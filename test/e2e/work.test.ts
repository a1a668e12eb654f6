// Ctrl-C ends a command within half a second wherever its time goes: where JavaScript waits, in native code, and where JavaScript itself is busy.
import assert from "node:assert/strict"
import type { ChildProcess } from "node:child_process"
import { createHash, generateKeyPairSync } from "node:crypto"
import { chmodSync, existsSync, readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs"
import path from "node:path"
import { gzipSync } from "node:zlib"
import { generateKey } from "openpgp"
import { finish, isRoot, sifcryptOk, startSifcrypt, userId, type CommandOptions } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { Layout } from "../support/layout.ts"
import { noneOfGroup, processesOfGroup, processorMs, waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { slowKeys } from "../support/slow-keys.ts"
import { makeRootTree } from "../support/trees.ts"

/** Half a second, and what a machine takes that does much else. The best of several counts. */
const WITHIN_MS = 500
const ATTEMPTS = 5

/** A tar header. */
function header(name: string, type: string, size = 0, target = ""): Buffer {
  const bytes = Buffer.alloc(512)
  bytes.write(name, 0, "latin1")
  bytes.write("0000644\0" + "0000000\0".repeat(2), 100, "latin1")
  bytes.write(
    `${size.toString(8).padStart(11, "0")}\0${"0".repeat(11)}\0${" ".repeat(8)}${type}${target}`,
    124,
    "latin1",
  )
  bytes.write("ustar\x0000", 257, "latin1")
  const sum = bytes.reduce((total, byte) => total + byte, 0)
  bytes.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1")
  return bytes
}

/** A header and its records. */
function pax(type: "x" | "g", records: readonly (readonly [string, string])[]): Buffer {
  const text = records
    .map(([key, value]) => {
      const rest = ` ${key}=${value}\n`
      let length = rest.length + 1
      while (String(length).length + rest.length !== length) length++
      return `${length}${rest}`
    })
    .join("")
  const data = Buffer.alloc(Math.ceil(text.length / 512) * 512)
  data.write(text, "latin1")
  return Buffer.concat([header("pax", type, text.length), data])
}

/** An image of one layer, as a folder. */
function layoutOf(tar: Buffer): string {
  const layout = new Layout("work")
  const layer = layout.add(gzipSync(tar), "application/vnd.oci.image.layer.v1.tar+gzip")
  layout.manifest.layers = [layer]
  layout.config.rootfs.diff_ids = [`sha256:${createHash("sha256").update(tar).digest("hex")}`]
  layout.write()
  return layout.folder
}

/** Attributes of a global header that each entry gets: a millisecond for each, and each is but a line. */
function busyLayer(entries: number): Buffer {
  const records = Array.from({ length: 5000 }, (_, index) => [`SCHILY.xattr.user.${index}`, "v"] as const)
  return Buffer.concat([
    pax("g", records),
    ...Array.from({ length: entries }, () => header("f", "0")),
    Buffer.alloc(1024),
  ])
}

/** Where a SIF image says where its first object lies (SIF specification, descriptor table). */
const PARTITION_AT = 4096 + 17
/** Where a squashfs says how long it is. */
const SQUASHFS_SIZE_AT = 40

/** The image of a partition that is so large, and takes hardly any room on the disk. */
function enlarged(image: string, size: number): string {
  const bytes = readFileSync(image)
  const record = bytes.subarray(PARTITION_AT)
  const from = Number(record.readBigInt64LE(0))
  const squashfs = Buffer.from(bytes.subarray(from, from + Number(record.readBigInt64LE(8))))
  squashfs.writeBigInt64LE(BigInt(size), SQUASHFS_SIZE_AT)
  const at = Math.ceil(bytes.length / 4096) * 4096
  record.writeBigInt64LE(BigInt(at), 0)
  record.writeBigInt64LE(BigInt(size), 8)
  record.writeBigInt64LE(BigInt(size), 16)
  const file = path.join(newFolder("enlarged", userId), "image.sif")
  writeFileSync(file, Buffer.concat([bytes, Buffer.alloc(at - bytes.length), squashfs]))
  truncateSync(file, at + size)
  chmodSync(file, 0o666)
  return file
}

/** A layer of many links. */
function longLayer(folders: number, links: number): Buffer {
  const entries: Uint8Array[] = []
  for (let folder = 0; folder < folders; folder++) {
    entries.push(header(`${folder}/`, "5"))
    for (let link = 0; link < links; link++) entries.push(header(`${folder}/${link}`, "2", 0, "x"))
  }
  entries.push(Buffer.alloc(1024))
  return Buffer.concat(entries)
}

describe("an interrupted command", () => {
  const folder = newFolder("work", userId)
  const { publicKey } = testKeys()
  const at = (name: string): string => path.join(folder, name)
  const locked = at("locked.sif")
  const passphrase = at("passphrase")
  const unlock = ["--passphrase-file", passphrase]
  const signingKey = at("signing.pem")
  const base = at("base.sif")
  const holes = at("holes.sif")
  const many = at("many.sif")
  let [signed, huge]: string[] = []

  before(async function () {
    this.timeout(120_000)
    writeFileSync(passphrase, "a passphrase\n", { mode: 0o644 })
    const tree = makeRootTree()
    await sifcryptOk(["build", base, tree])
    writeFileSync(path.join(tree, "holes"), "")
    truncateSync(path.join(tree, "holes"), 2 ** 40)
    await sifcryptOk(["build", "--pem-path", publicKey, ...unlock, "--pbkdf", "pbkdf2:3500000", locked, tree])
    await sifcryptOk(["build", holes, tree])
    await sifcryptOk(["build", many, `oci:${layoutOf(longLayer(40, 2000))}`])
    const pair = generateKeyPairSync("ed25519")
    writeFileSync(signingKey, pair.privateKey.export({ type: "pkcs8", format: "pem" }), { mode: 0o644 })
    writeFileSync(at("signing.pub"), pair.publicKey.export({ type: "spki", format: "pem" }), { mode: 0o644 })
    huge = enlarged(holes, 2 ** 36)
    signed = enlarged(holes, 2 ** 31)
    await sifcryptOk(["sign", "--key", signingKey, signed])
    const { publicKey: openPgp } = await generateKey({ userIDs: [{ name: "Ada" }], format: "binary" })
    writeFileSync(at("ring"), Buffer.concat(Array<Uint8Array>(1000).fill(openPgp)), { mode: 0o644 })
    for (const [name, bytes] of Object.entries(slowKeys())) writeFileSync(at(name), bytes, { mode: 0o644 })
  })

  /** How long a command takes to end once it is asked to, in the middle of its work. */
  async function interrupted(
    args: readonly string[],
    isBusy: (child: ChildProcess) => boolean,
    options: CommandOptions = {},
  ): Promise<number> {
    let best = Infinity
    for (let attempt = 0; attempt < ATTEMPTS && best > WITHIN_MS; attempt++) {
      const child = startSifcrypt(args, { ...options, stdio: ["ignore", "ignore", "pipe"] })
      const ended = finish(child)
      await waitFor("work", () => child.exitCode !== null || isBusy(child))
      const asked = performance.now()
      if (!child.kill("SIGINT")) assert.fail(`${args.join(" ")} ended by itself: ${(await ended).stderr}`)
      const { status, signal, stderr } = await ended
      assert.equal(signal ?? status, 130, `${args.join(" ")}: ${stderr}`)
      best = Math.min(best, performance.now() - asked)
    }
    return best
  }

  const opening = (key: string): string[] => ["--pem-path", at(key), "--key-passphrase-file", passphrase]
  const output = at("never.sif")
  /** What it does; by then it has taken so many milliseconds of processors. */
  const commands: Readonly<Record<string, readonly [args: () => readonly string[], busyMs: number]>> = {
    "build from layers that go on and on": [
      () => ["build", output, `oci:${layoutOf(busyLayer(20_000))}`],
      600,
    ],
    "ls, deriving a key": [() => ["ls", ...unlock, locked], 500],
    "ls -R of very many entries": [() => ["ls", "-lR", many], 400],
    "cat, deriving a key": [() => ["cat", ...unlock, locked, "holes"], 500],
    "cat of a file without an end": [() => ["cat", holes, "holes"], 500],
    "extract, deriving a key": [() => ["extract", ...unlock, locked, at("extracted")], 500],
    "extract of very many entries": [
      () => ["extract", many, path.join(newFolder("extracted", userId), "all")],
      400,
    ],
    "inspect, deriving a key": [() => ["inspect", "--all", ...unlock, locked], 500],
    "encrypt of a large image": [() => ["encrypt", "--pem-path", publicKey, huge ?? "", output], 500],
    "decrypt, deriving a key": [() => ["decrypt", ...unlock, locked, output], 500],
    "reencrypt, deriving a key": [() => ["reencrypt", ...unlock, locked, output], 500],
    "sign of a large image": [() => ["sign", "--key", signingKey, huge ?? ""], 500],
    "sign --tree of a large image": [() => ["sign", "--tree", "--key", signingKey, huge ?? ""], 500],
    "verify of a large image": [() => ["verify", "--key", at("signing.pub"), signed ?? ""], 500],
    "sif dump of a large object": [() => ["sif", "dump", "1", huge ?? ""], 500],
    "recipient add, deriving a key": [
      () => ["recipient", "add", ...unlock, "--recipient", publicKey, locked],
      500,
    ],
    "recipient rotate, deriving a key": [
      () => ["recipient", "rotate", ...unlock, "--recipient", publicKey, locked],
      500,
    ],
    "overlay create of a large one": [() => ["overlay", "create", "--size", "16g", at("never.img")], 400],
    "key import of very many keys": [() => ["key", "import", at("ring")], 600],
    "exec, deriving a key": [() => ["exec", ...unlock, locked, "true"], 500],
    "exec, deriving the key of an image that is bound": [
      () => ["exec", ...unlock, "--bind", `${locked}:/data:image-src=/`, base, "true"],
      500,
    ],
    "instance start, deriving the key of an image that is bound": [
      () => ["instance", "start", ...unlock, "--bind", `${locked}:/data:image-src=/`, base, "work"],
      500,
    ],
    "build from a definition, deriving the key of its base": [
      () => {
        writeFileSync(at("locked.def"), `Bootstrap: localimage\nFrom: ${locked}\n`, { mode: 0o644 })
        return ["build", ...unlock, output, at("locked.def")]
      },
      500,
    ],
    "a key's password, checked by OpenSSL": [() => ["cat", ...opening("pkcs8.der"), locked, "holes"], 500],
    "a key's password, checked by bcrypt": [() => ["cat", ...opening("openssh.pem"), locked, "holes"], 600],
    "a key's password, of PKCS#12": [() => ["cat", ...opening("file.p12"), locked, "holes"], 600],
    "a key's password, of a key that signs": [
      () => ["sign", "--key", at("pkcs8.der"), "--key-passphrase-file", passphrase, holes],
      500,
    ],
  }
  for (const [what, [args, busyMs]] of Object.entries(commands))
    it(`ends within half a second: ${what}`, async function () {
      this.timeout(120_000)
      const ms = await interrupted(args(), (child) => processorMs(child.pid ?? 0) > busyMs)
      assert.ok(ms <= WITHIN_MS, `${ms} ms`)
      assert.ok(!existsSync(output))
    })

  /** What runs programs: it ends, and so do they. */
  const helpers: Readonly<Record<string, readonly [args: () => readonly string[], program: RegExp]>> = {
    "overlay create, while mkfs works": [
      () => ["overlay", "create", "--sparse", "--size", "900g", at("never.img")],
      /^\S*mkfs\.ext3 /,
    ],
    "exec, while a file of variables is evaluated": [
      () => {
        writeFileSync(at("endless.env"), "while :; do :; done\n", { mode: 0o644 })
        return ["exec", "--env-file", at("endless.env"), holes, "true"]
      },
      /^\S*sh -s --/,
    ],
    "build, while a script of the definition runs": [
      () => {
        const script = "sleep 300"
        writeFileSync(at("endless.def"), `Bootstrap: localimage\nFrom: ${base}\n%post\n${script}\n`, {
          mode: 0o644,
        })
        return ["build", output, at("endless.def")]
      },
      / \/\.sifcrypt\/script$/,
    ],
  }
  for (const [what, [args, program]] of Object.entries(helpers))
    it(`ends within half a second, and leaves no program behind: ${what}`, async function () {
      this.timeout(120_000)
      if (!isRoot) skip(this, "needs root, to mark all processes that come of a command")
      const group = 76_100 + Object.keys(helpers).indexOf(what)
      const temporary = newFolder("temporary", userId)
      const runs = (): boolean => processesOfGroup(group).some(({ command }) => program.test(command))
      const ms = await interrupted(args(), runs, { group, env: { TMPDIR: temporary } })
      assert.ok(ms <= WITHIN_MS, `${ms} ms`)
      await noneOfGroup(group, "the end of all of it")
      assert.deepEqual(readdirSync(temporary), [])
    })
})
