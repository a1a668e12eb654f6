import { InvalidArgumentError } from "commander"
import { cleanCache, listCache, type CachedBlob } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { jsonRow, print } from "../output.ts"
import { humanBytes, inform } from "../terminal.ts"
import { DAYS, duration, eachOf, flag } from "../values.ts"

function line({ kind, digest, size, lastUsed, isPartial }: CachedBlob): string {
  const day = new Date(lastUsed * 1000).toISOString().slice(0, 16).replace("T", " ")
  const note = `${kind === "image" ? "  image" : ""}${isPartial ? "  partial" : ""}`
  return `${digest.slice(0, 19).padEnd(19)}  ${day}  ${humanBytes(size).padStart(10)}${note}\n`
}

function sumOf(blobs: readonly CachedBlob[]): string {
  const size = blobs.reduce((sum, blob) => sum + blob.size, 0)
  const counted = (["blob", "image"] as const).flatMap((kind) => {
    const { length } = blobs.filter((one) => one.kind === kind)
    return length === 0 && kind === "image" ? [] : [`${length} ${length === 1 ? kind : `${kind}s`}`]
  })
  return `${counted.join(", ")}, ${humanBytes(size)}`
}

/** The peers' kinds; here are blobs, and what was built of OCI images. */
const kinds = ["library", "oci", "shub", "blob", "net", "oras", "all"]

function parseKind(text: string): string {
  if (!kinds.includes(text)) throw new InvalidArgumentError(`It is some of ${kinds.join(",")}.`)
  return text
}

const typeRow = [
  "-T, --type <list>",
  "only what the peers call so: of blob, and of oci, which are images built to run, there may be some",
  eachOf(parseKind),
] as const

/** What of the cache is asked for. */
function kindsOf(types: readonly string[] = ["all"]): CachedBlob["kind"][] {
  const wanted = (type: string): boolean => types.includes("all") || types.includes(type)
  return [...(wanted("blob") ? (["blob"] as const) : []), ...(wanted("oci") ? (["image"] as const) : [])]
}

const list = command({
  name: "list",
  examples: [["what is kept, and how large it is", "sifcrypt cache list"]],
  description: "Lists what is kept.",
  options: {
    types: typeRow,
    verbose: ["-v, --verbose", "accepted: each of them is shown anyway", flag, { hidden: true }],
    json: jsonRow,
  },
  run: async ({ json, types }) => {
    const kept = await listCache()
    const blobs = kept.filter(({ kind }) => kindsOf(types).includes(kind))
    if (json === true) await print(`${JSON.stringify(blobs)}\n`)
    else await print(`${blobs.map(line).join("")}${sumOf(blobs)}\n`)
  },
})

const clean = command({
  name: "clean",
  examples: [["what was not used for 30 days", "sifcrypt cache clean --days 30"]],
  description: "Removes what is kept.",
  options: {
    types: typeRow,
    days: ["-D, --days <days>", "only what was not used for so many days", duration(DAYS, 0, 99_999)],
    dryRun: ["-n, --dry-run", "remove nothing, only tell", flag],
    force: ["-f, --force", "accepted: nothing is asked anyway", flag],
    json: ["--json", "print what was removed as JSON", flag],
  },
  run: async ({ days, dryRun = false, json, types }) => {
    const olderThanDays = days === undefined ? undefined : days / DAYS.worth
    const removed = await cleanCache({ dryRun, olderThanDays, kinds: kindsOf(types) })
    if (json === true) await print(`${JSON.stringify(removed)}\n`)
    else inform(`${dryRun ? "would remove" : "removed"} ${sumOf(removed)}`)
  },
})

export const cache: CommandRow = {
  name: "cache",
  heading: "Registries",
  summary: "what was fetched from registries, and built of it",
  description:
    "Public blobs of images that were fetched from registries, and the images that were built to run them. What takes a credential is " +
    "kept as an encrypted image only, and only for whom a key or a passphrase was given.",
  commands: [list, clean],
}
