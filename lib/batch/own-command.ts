// The command that nodes run, and the broker is.
import path from "node:path"
import { packageRoot } from "../native/load.ts"
import type { JobSet } from "./job-set.ts"

export function ownCommand(command: string | undefined): string {
  return command === undefined ? path.join(packageRoot, "dist", "cli", "main.js") : path.resolve(command)
}

/**
 * What runs a task of a set, as words.
 *
 * @param first - The task of the array's first element.
 */
export function taskCommand(
  command: string,
  { set, job, group, first }: { readonly set: JobSet } & Readonly<Record<"job" | "group" | "first", number>>,
): readonly string[] {
  const place = [job, group, first].map(String)
  return [command, "batch", "task", set.path("manifest.json"), set.manifestDigest, ...place]
}
