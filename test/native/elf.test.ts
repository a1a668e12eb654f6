// What the native files need at load time: so little that they start on any glibc system.
import assert from "node:assert/strict"
import { execFileSync, spawnSync } from "node:child_process"
import { appendFileSync, copyFileSync, mkdirSync, readFileSync } from "node:fs"
import path from "node:path"
import { packageRoot } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"

const allowed = [
  /^libc\.so\.6$/,
  /^libm\.so\.6$/,
  /^libdl\.so\.2$/,
  /^libpthread\.so\.0$/,
  /^ld-linux(-\S+)?\.so\.\d$/,
]
/** A source build may take these from the machine. */
const allowedFromSource = [/^libstdc\+\+\.so\.6$/, /^libgcc_s\.so\.1$/]

interface Elf {
  readonly needed: readonly string[]
  readonly runPaths: readonly string[]
}

/** The dynamic section of a 64-bit little-endian ELF file (elf(5)). */
function readElf(file: string): Elf {
  const bytes = readFileSync(file)
  assert.equal(bytes.toString("latin1", 0, 4), "\x7fELF")
  assert.equal(bytes[4], 2, "64 bit")
  assert.equal(bytes[5], 1, "little-endian")
  const number = (offset: number): number => Number(bytes.readBigUInt64LE(offset))
  const headersAt = number(32)
  const headerSize = bytes.readUInt16LE(54)
  const headers = Array.from({ length: bytes.readUInt16LE(56) }, (_, i) => {
    const at = headersAt + i * headerSize
    return {
      type: bytes.readUInt32LE(at),
      offset: number(at + 8),
      address: number(at + 16),
      size: number(at + 32),
    }
  })
  const fileOffset = (address: number): number => {
    const segment = headers.find(
      (header) => header.type === 1 && address >= header.address && address < header.address + header.size,
    )
    assert.ok(segment)
    return address - segment.address + segment.offset
  }
  const dynamic = headers.find(({ type }) => type === 2)
  assert.ok(dynamic, "a dynamic section")
  const entries: { tag: number; value: number }[] = []
  for (let at = dynamic.offset; at < dynamic.offset + dynamic.size; at += 16)
    entries.push({ tag: number(at), value: number(at + 8) })
  const strings = fileOffset(entries.find(({ tag }) => tag === 5)?.value ?? 0)
  const named = (...tags: number[]): string[] =>
    entries
      .filter(({ tag }) => tags.includes(tag))
      .map(({ value }) => bytes.toString("latin1", strings + value, bytes.indexOf(0, strings + value)))
  return { needed: named(1), runPaths: named(15, 29) }
}

describe("native files", () => {
  for (const name of ["sifcrypt.node", "sifcrypt-starter"])
    it(`${name} needs nothing beyond the C library and the compiler's`, () => {
      const { needed, runPaths } = readElf(path.join(packageRoot, "build", "Release", name))
      assert.ok(needed.includes("libc.so.6"))
      const others = needed.filter(
        (library) => ![...allowed, ...allowedFromSource].some((one) => one.test(library)),
      )
      assert.deepEqual(others, [])
      assert.deepEqual(runPaths, [], "no search path of the machine it was built on")
    })

  it("would not be shipped as they are built here, and the check says why", () => {
    const folder = path.join(newFolder("shipped"), process.arch === "arm64" ? "linux-arm64" : "linux-x64")
    mkdirSync(folder)
    const script = (name: string): string => path.join(packageRoot, "scripts", name)
    const digest = execFileSync(script("native-digest.sh"), { encoding: "utf8" }).trim()
    const checked = (built: string, name: string, sources = digest): string => {
      const file = path.join(folder, name)
      copyFileSync(path.join(packageRoot, "build", "Release", built), file)
      const { status, stderr } = spawnSync(script("prebuilds/check-binary.sh"), [sources, file], {
        encoding: "utf8",
      })
      assert.equal(status === 0, stderr === "", stderr)
      return stderr
    }
    assert.match(checked("sifcrypt.node", "sifcrypt.glibc.node"), /it needs libstdc\+\+\.so\.6/)
    assert.match(checked("sifcrypt-starter", "sifcrypt-starter.glibc"), /it is not stripped/)
    assert.match(
      checked("sifcrypt-starter", "sifcrypt-starter.musl"),
      /its interpreter is not \/lib\/ld-musl-/,
    )
    assert.match(checked("sifcrypt-starter", "sifcrypt-init"), /it is not static/)
    assert.match(checked("sifcrypt-init", "sifcrypt-init"), /it is not stripped/)
    assert.equal(checked("sifcrypt-shell", "sifcrypt-shell"), "")
    assert.match(
      checked("sifcrypt-shell", "sifcrypt-shell", "0".repeat(64)),
      /it does not say that it was made of/,
    )
  })

  it("would not be shipped with the folder in them where they were built, whatever that is called", () => {
    const project = path.join(newFolder("shipped"), "a+b(c)[d]")
    const script = path.join(project, "scripts", "prebuilds", "check-binary.sh")
    const file = path.join(project, process.arch === "arm64" ? "linux-arm64" : "linux-x64", "sifcrypt-shell")
    for (const name of [script, file]) mkdirSync(path.dirname(name), { recursive: true })
    copyFileSync(path.join(packageRoot, "scripts", "prebuilds", "check-binary.sh"), script)
    copyFileSync(path.join(packageRoot, "build", "Release", "sifcrypt-shell"), file)
    appendFileSync(file, `\n${project}/native/addon.cc\n`)
    const { status, stderr } = spawnSync(script, ["0".repeat(64), file], { encoding: "utf8" })
    assert.equal(status, 1)
    assert.ok(stderr.includes(`it tells where it was made: ${project}/native/addon.cc`), stderr)
  })
})
