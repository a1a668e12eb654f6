// Named volumes: folders of the user's, which go on when a project has ended. What is in them is plain; an encrypted place for the whole
// folder, or an encrypted overlay instead of a volume, is what keeps it from a disk.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import os from "node:os"
import path from "node:path"
import { ComposeError } from "../errors.ts"
import { parseJson } from "../json.ts"
import { removeAsRootInside } from "../runtime/removal.ts"
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
    writeFileSync(path.join(folder, OWNER), JSON.stringify({ project }), { mode: 0o600 })
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

/** A container may have made files of subordinate ids in it, which their user alone cannot remove, or folders that he may not write to. */
async function removeContent(name: string, data: string): Promise<void> {
  try {
    rmSync(data, { recursive: true, force: true })
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    if (code !== "EACCES" && code !== "EPERM") throw cause
    const failed = (why: string): ComposeError =>
      new ComposeError("ERR_COMPOSE_PROJECT", `the volume ${name} cannot be removed: ${why}`, {
        path: data,
        cause,
      })
    if (process.geteuid?.() === 0) throw failed(message)
    await removeAsRootInside(data, ({ message: why }) => failed(why))
    if (existsSync(data)) throw failed(message)
  }
}

/** Removes the volumes that a project has made, with all that is in them, and tells which. */
export async function* removeVolumes(project: string): AsyncGenerator<string, void, undefined> {
  const folder = volumeFolder()
  const names = existsSync(folder) ? readdirSync(folder).filter((name) => ownerOf(name) === project) : []
  for (const name of names) {
    // Whose it is goes last: what cannot be removed now can be later.
    await removeContent(name, path.join(folder, name, "data"))
    rmSync(path.join(folder, name), { recursive: true, force: true })
    yield name
  }
}
