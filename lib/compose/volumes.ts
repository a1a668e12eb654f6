// Named volumes: folders of the user's, which go on when a project has ended. What is in them is plain; an encrypted place for the whole
// folder, or an encrypted overlay instead of a volume, is what keeps it from a disk.
import { execFile } from "node:child_process"
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import os from "node:os"
import path from "node:path"
import { promisify } from "node:util"
import { ComposeError } from "../errors.ts"
import { parseJson } from "../json.ts"
import { findProgram } from "../runtime/program.ts"
import { removeAsRootInside } from "../runtime/removal.ts"
import { scrubbedEnvironment } from "../runtime/starter-protocol.ts"
import type { Volume } from "./model.ts"

/** The folder of this user's volumes. */
export function volumeFolder(environment: NodeJS.ProcessEnv = process.env): string {
  const data = environment["XDG_DATA_HOME"]
  const base = data !== undefined && path.isAbsolute(data) ? data : path.join(os.homedir(), ".local", "share")
  return path.join(base, "sifcrypt", "volumes")
}

/** A volume is a folder with this beside what is in it. */
const OWNER = "project.json"

/**
 * The folder that a container sees; it is made if nobody else is to have made it.
 *
 * @throws ComposeError `ERR_COMPOSE_PROJECT`.
 */
export function openVolume({ name, external }: Volume, project: string): string {
  const folder = path.join(volumeFolder(), name)
  const data = path.join(folder, "data")
  if (external && !existsSync(data))
    throw new ComposeError("ERR_COMPOSE_PROJECT", `there is no volume ${name}: make the folder ${data}`, {
      path: data,
    })
  if (!existsSync(data)) {
    mkdirSync(folder, { recursive: true, mode: 0o700 })
    // Of a volume without it nobody would know any more whose it is.
    writeFileSync(path.join(folder, OWNER), JSON.stringify({ project }), { mode: 0o600, flush: true })
    mkdirSync(data, { recursive: true, mode: 0o755 })
  }
  return data
}

function ownerOf(name: string): string | undefined {
  try {
    const found = parseJson(readFileSync(path.join(volumeFolder(), name, OWNER), "utf8")) as {
      project?: unknown
    }
    return typeof found.project === "string" ? found.project : undefined
  } catch {
    return undefined
  }
}

/**
 * A container may have made files of subordinate ids in it, which their user alone cannot remove, or folders that he may not write to. And
 * another one may still be writing there: unlike Node's own, rm(1) is not led elsewhere by a link that takes a folder's place meanwhile.
 */
async function removeContent(name: string, data: string): Promise<void> {
  const words = ["-rf", "--one-file-system", "--", data]
  try {
    await promisify(execFile)(findProgram("rm", "it removes volumes"), words, { env: scrubbedEnvironment })
  } catch (cause) {
    const failed = (why: string): ComposeError =>
      new ComposeError("ERR_COMPOSE_PROJECT", `the volume ${name} cannot be removed: ${why}`, {
        path: data,
        cause,
      })
    const { stderr = "" } = cause as { readonly stderr?: string }
    if (stderr === "") throw cause
    const [, why = stderr] = /^\S+: (.*)/.exec(stderr) ?? []
    if (process.geteuid?.() === 0) throw failed(why)
    await removeAsRootInside(data, ({ message }) => failed(message))
    if (existsSync(data)) throw failed(why)
  }
}

/**
 * Removes the volumes that a project has made, with all that is in them, and tells which. One that an instance has stays.
 *
 * @param users - Volumes, and an instance that has each.
 * @throws ComposeError `ERR_COMPOSE_PROJECT`.
 */
export async function* removeVolumes(
  project: string,
  users: ReadonlyMap<string, string>,
): AsyncGenerator<string, void, undefined> {
  const folder = volumeFolder()
  const entries = existsSync(folder) ? readdirSync(folder, { withFileTypes: true }) : []
  // A link is none that was made here.
  const names = entries.filter((entry) => entry.isDirectory()).map(({ name }) => name)
  const made = names.filter((one) => ownerOf(one) === project)
  for (const name of made.filter((one) => !users.has(one))) {
    // Whose it is goes last: what cannot be removed now can be later.
    await removeContent(name, path.join(folder, name, "data"))
    rmSync(path.join(folder, name), { recursive: true, force: true })
    yield name
  }
  const [used] = made.filter((one) => users.has(one))
  if (used !== undefined)
    throw new ComposeError(
      "ERR_COMPOSE_PROJECT",
      `the volume ${used} stays: the instance ${users.get(used) ?? ""} has it, and is to be removed first`,
      { path: path.join(folder, used) },
    )
}
