// The numbers of SIF by the names that the peers show.

/** `Unknown` for a number that nobody defined. */
function named(names: Readonly<Record<number, string>>): (code: number) => string {
  return (code) => names[code] ?? "Unknown"
}

export const dataTypeName: ReturnType<typeof named> = named({
  0x4001: "Def.FILE",
  0x4002: "Env.Vars",
  0x4003: "JSON.Labels",
  0x4004: "FS",
  0x4005: "Signature",
  0x4006: "JSON.Generic",
  0x4007: "Generic/Raw",
  0x4008: "Cryptographic Message",
  0x4009: "SBOM",
  0x400a: "OCI.RootIndex",
  0x400b: "OCI.Blob",
})

const architectures = [
  "unknown",
  "386",
  "amd64",
  "arm",
  "arm64",
  "ppc64",
  "ppc64le",
  "mips",
  "mipsle",
  "mips64",
  "mips64le",
  "s390x",
  "riscv64",
  "loong64",
]

export const fileSystemName: ReturnType<typeof named> = named({
  1: "Squashfs",
  2: "Ext3",
  3: "Archive",
  4: "Raw",
  5: "Encrypted squashfs",
  6: "Gocryptfs squashfs",
})

/** `*System` is the primary one. */
export const partitionTypeName: ReturnType<typeof named> = named({
  1: "System",
  2: "*System",
  3: "Data",
  4: "Overlay",
})

export const hashName: ReturnType<typeof named> = named({
  1: "SHA-256",
  2: "SHA-384",
  3: "SHA-512",
  4: "BLAKE2s-256",
  5: "BLAKE2b-256",
})

export const messageFormatName: ReturnType<typeof named> = named({ 1: "OpenPGP", 2: "PEM" })
export const messageTypeName: ReturnType<typeof named> = named({
  0x100: "Clear Signature",
  0x200: "RSA-OAEP",
})

export const sbomFormatName: ReturnType<typeof named> = named({
  1: "cyclonedx-json",
  2: "cyclonedx-xml",
  3: "github-json",
  4: "spdx-json",
  5: "spdx-rdf",
  6: "spdx-tag-value",
  7: "spdx-yaml",
  8: "syft-json",
})

/** Go's name of the two digits: `02` is `amd64`; `unknown` for anything else. */
export function architectureName(digits: string): string {
  return /^\d\d$/.test(digits) ? (architectures[Number(digits)] ?? "unknown") : "unknown"
}

/** The two digits of Go's or Node's name (`x64` is `amd64`); undefined when SIF has none. */
export function architectureDigits(name: string): string | undefined {
  const go: Readonly<Record<string, string>> = { x64: "amd64", ia32: "386", mipsel: "mipsle" }
  const index = architectures.indexOf(go[name] ?? name)
  return index <= 0 ? undefined : String(index).padStart(2, "0")
}

/** Go's name of an architecture, or of this machine's; one that SIF does not know stays as it is. */
export function shownArchitecture(name: string = process.arch): string {
  const digits = architectureDigits(name)
  return digits === undefined ? name : architectureName(digits)
}
