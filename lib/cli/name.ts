// The name that the command was called by. Under the names of the peers it answers as they do; under its own it says who it is.
import { readFileSync } from "node:fs"
import path from "node:path"
import { ctrEncWords } from "./ctr-enc.ts"

/** Names that `sifcrypt link` puts into a folder: those of the peers, and that of the launch line of images. */
export const peerNames = ["apptainer", "singularity", "run-singularity"] as const

/** Those of imgcrypt's programs, which this command stands in for, and that of an OCI runtime. */
export const toolNames = ["ctd-decoder", "ctr-enc", "sifcrypt-oci"] as const

/** A program of its own stands in for this one. */
export const squashfuseName = "squashfuse_ll"

const called = path.basename(process.argv[1] ?? "")

export const isPeer: boolean = peerNames.some((name) => name === called)

export const programName: string = isPeer ? called : "sifcrypt"

/** What the user would type. */
export const commandName: string = programName === "run-singularity" ? "singularity" : programName

/** Whose options these are: scripts decide by that number what they may ask for. Its `singularity` says so, too. */
const PEER_VERSION = "1.4.5"

function packageVersion(): string {
  const file = readFileSync(path.join(import.meta.dirname, "../../package.json"), "utf8")
  return (JSON.parse(file) as { version: string }).version
}

/** What `version` prints. */
export function versionNumber(): string {
  return isPeer ? PEER_VERSION : packageVersion()
}

/** What `--version` prints. */
export function versionLine(): string {
  return `${isPeer ? "apptainer" : "sifcrypt"} version ${versionNumber()}`
}

/** What was asked for: an image's launch line is followed by its path and arguments, and nothing else; a tool has words of its own. */
export function commandWords(): readonly string[] {
  const words = process.argv.slice(2)
  if (called === "run-singularity") return ["run", ...words]
  if (called === "ctr-enc") return ctrEncWords(words)
  if (called === "sifcrypt-oci") return ["oci-runtime", "--", ...words]
  return called === "ctd-decoder" ? [called, ...words] : words
}
