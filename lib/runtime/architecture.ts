// Whether this machine runs programs of an image's architecture: by itself, or by an emulator that binfmt_misc knows.
import { readdirSync, readFileSync } from "node:fs"
import { machine } from "node:os"
import path from "node:path"
import { EnvironmentError } from "../errors.ts"

const BINFMT = "/proc/sys/fs/binfmt_misc"

/** What stands in the header of an ELF program (elf.h): class, order of bytes, machine. */
const elf: Readonly<Record<string, readonly [bits: 32 | 64, order: "LE" | "BE", machine: number]>> = {
  "386": [32, "LE", 3],
  amd64: [64, "LE", 62],
  arm: [32, "LE", 40],
  arm64: [64, "LE", 183],
  ppc64: [64, "BE", 21],
  ppc64le: [64, "LE", 21],
  mips: [32, "BE", 8],
  mipsle: [32, "LE", 8],
  mips64: [64, "BE", 8],
  mips64le: [64, "LE", 8],
  s390x: [64, "BE", 22],
  riscv64: [64, "LE", 243],
  loong64: [64, "LE", 258],
}

/** Go's names by Node's, and by the kernel's where they differ. */
const names: Readonly<Record<string, string>> = {
  x64: "amd64",
  ia32: "386",
  mipsel: "mipsle",
  x86_64: "amd64",
  i686: "386",
  aarch64: "arm64",
  armv7l: "arm",
  armv6l: "arm",
  loongarch64: "loong64",
}

/** The processors of most architectures run the smaller one, too. */
const smaller: Readonly<Record<string, string>> = { amd64: "386", arm64: "arm" }

/** The start of a program of an architecture, as far as binfmt_misc has to look. */
function headerOf(architecture: string): Buffer | undefined {
  const found = elf[architecture]
  if (found === undefined) return undefined
  const [bits, order, number] = found
  const header = Buffer.alloc(64)
  header.set([0x7f, 0x45, 0x4c, 0x46, bits === 64 ? 2 : 1, order === "LE" ? 1 : 2, 1])
  const write = (value: number, at: number): number =>
    order === "LE" ? header.writeUInt16LE(value, at) : header.writeUInt16BE(value, at)
  write(2, 16) // ET_EXEC
  write(number, 18)
  return header
}

/** Does an entry of binfmt_misc, as the kernel shows it, take such a program? */
export function takesProgram(entry: string, header: Uint8Array): boolean {
  const field = (name: string): string | undefined => new RegExp(`^${name} (.*)$`, "m").exec(entry)?.[1]
  const magic = Buffer.from(field("magic") ?? "", "hex")
  const mask = Buffer.from(field("mask") ?? "ff".repeat(magic.length), "hex")
  const offset = Number(field("offset") ?? "0")
  if (!entry.startsWith("enabled") || magic.length === 0) return false
  return magic.every(
    (byte, at) => ((header[offset + at] ?? 0) & (mask[at] ?? 0xff)) === (byte & (mask[at] ?? 0xff)),
  )
}

function hasEmulator(architecture: string, folder: string): boolean {
  const header = headerOf(architecture)
  if (header === undefined) return false
  try {
    const entries = readdirSync(folder).filter((name) => name !== "register" && name !== "status")
    return (
      readFileSync(path.join(folder, "status"), "utf8").trim() === "enabled" &&
      entries.some((name) => takesProgram(readFileSync(path.join(folder, name), "utf8"), header))
    )
  } catch {
    return false // It is not mounted.
  }
}

/** Of this process, and of the kernel, which may know more. */
function ownArchitectures(): string[] {
  return [process.arch, machine()].map((name) => names[name] ?? name)
}

function isOwn(architecture: string): boolean {
  return ownArchitectures().some((name) => name === architecture || smaller[name] === architecture)
}

/** Of which this machine runs programs, by Go's names, its own first. */
export function runnableArchitectures(binfmt: string = BINFMT): string[] {
  const [own = "unknown"] = ownArchitectures()
  const others = Object.keys(elf).filter((name) => name !== own && (isOwn(name) || hasEmulator(name, binfmt)))
  return [own, ...others]
}

/**
 * @param image - For the message.
 * @param architecture - Go's name; `unknown` is taken for one that fits.
 * @param binfmt - Where binfmt_misc is mounted.
 * @throws EnvironmentError `ERR_ENV_ARCHITECTURE`.
 */
export function checkArchitecture(image: string, architecture: string, binfmt: string = BINFMT): void {
  if (architecture === "unknown") return
  if (isOwn(architecture)) return
  if (hasEmulator(architecture, binfmt)) return
  throw new EnvironmentError(
    "ERR_ENV_ARCHITECTURE",
    `${image} is for ${architecture}, and this machine is ${ownArchitectures()[0] ?? ""}`,
    { path: image },
  )
}
