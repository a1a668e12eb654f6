// Ctrl-C ends a command within half a second wherever its time goes.
import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { gzipSync } from "node:zlib"
import { finish, sifcryptOk, startSifcrypt, userId } from "../support/cli.ts"
import { Layout } from "../support/layout.ts"
import { waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
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

/** Processor time of a process so far, in milliseconds. */
function processorMs(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "latin1").split(") ")[1]?.split(" ") ?? []
  return (Number(fields[11]) + Number(fields[12])) * 10
}

describe("an interrupted command", () => {
  const folder = newFolder("work", userId)
  const locked = path.join(folder, "locked.sif")
  const passphrase = path.join(folder, "passphrase")

  before(async () => {
    writeFileSync(passphrase, "a passphrase\n", { mode: 0o644 })
    const stretched = ["--passphrase-file", passphrase, "--pbkdf", "pbkdf2:3500000"]
    await sifcryptOk(["build", ...stretched, locked, makeRootTree()])
  })

  /** How long a command takes to end once it is asked to, in the middle of its work. */
  async function interrupted(args: readonly string[], busyMs: number): Promise<number> {
    let best = Infinity
    for (let attempt = 0; attempt < ATTEMPTS && best > WITHIN_MS; attempt++) {
      const child = startSifcrypt(args)
      const ended = finish(child)
      await waitFor("work", () => child.exitCode !== null || processorMs(child.pid ?? 0) > busyMs)
      const asked = performance.now()
      assert.ok(child.kill("SIGINT"), `${args.join(" ")} had ended by itself`)
      const { status, signal } = await ended
      assert.equal(signal ?? status, 130, args.join(" "))
      best = Math.min(best, performance.now() - asked)
    }
    return best
  }

  it("ends a build from layers that goes on and on when it is interrupted", async () => {
    const output = path.join(folder, "never.sif")
    const ms = await interrupted(["build", output, `oci:${layoutOf(busyLayer(20_000))}`], 600)
    assert.ok(ms <= WITHIN_MS, `${ms} ms`)
    assert.ok(!existsSync(output))
  })

  it("ends a key derivation when it is interrupted", async () => {
    const ms = await interrupted(["ls", "--passphrase-file", passphrase, locked], 500)
    assert.ok(ms <= WITHIN_MS, `${ms} ms`)
  })
})
