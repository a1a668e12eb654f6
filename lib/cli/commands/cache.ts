import type { Command } from "commander"
import { cleanCache, listCache, type CachedBlob } from "../../index.ts"
import { print } from "../output.ts"
import { humanBytes, notice } from "../terminal.ts"
import { DAYS, duration } from "../values.ts"

function line({ digest, size, lastUsed, isPartial }: CachedBlob): string {
  const day = new Date(lastUsed * 1000).toISOString().slice(0, 16).replace("T", " ")
  return `${digest.slice(0, 19).padEnd(19)}  ${day}  ${humanBytes(size).padStart(10)}${isPartial ? "  partial" : ""}\n`
}

function sumOf(blobs: readonly CachedBlob[]): string {
  const size = blobs.reduce((sum, blob) => sum + blob.size, 0)
  return `${blobs.length} ${blobs.length === 1 ? "blob" : "blobs"}, ${humanBytes(size)}`
}

export function addCacheCommands(program: Command): void {
  const cache = program
    .command("cache")
    .description(
      "Public blobs of images that were fetched from registries. Nothing that takes a credential is kept.",
    )
  cache
    .command("list")
    .description("Lists what is kept.")
    .option("--json", "print as JSON")
    .action(async ({ json }: { readonly json?: true }) => {
      const blobs = await listCache()
      if (json === true) await print(`${JSON.stringify(blobs)}\n`)
      else await print(`${blobs.map(line).join("")}${sumOf(blobs)}\n`)
    })
  cache
    .command("clean")
    .description("Removes what is kept.")
    .option("-D, --days <days>", "only what was not used for so many days", duration(DAYS, 0, 99_999))
    .option("-n, --dry-run", "remove nothing, only tell")
    .option("-f, --force", "accepted: nothing is asked anyway")
    .option("--json", "print what was removed as JSON")
    .action(async (flags: { readonly days?: number; readonly dryRun?: true; readonly json?: true }) => {
      const removed = await cleanCache({
        dryRun: flags.dryRun === true,
        olderThanDays: flags.days === undefined ? undefined : flags.days / DAYS.worth,
      })
      if (flags.json === true) await print(`${JSON.stringify(removed)}\n`)
      else notice(`${flags.dryRun === true ? "would remove" : "removed"} ${sumOf(removed)}`)
    })
}
