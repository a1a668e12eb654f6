// The bundle of a command that joins a container: its process, and the files that it starts through.
import { ENTRY_FOLDER } from "./entry.ts"
import type { ConcreteEngine, Launch } from "./starter-protocol.ts"

interface Config {
  process: { args: string[]; cwd: string; env: string[] }
}

/** One file of a bundle. */
interface Record {
  readonly mode: string
  readonly name: string
  readonly content: Buffer
}

function decode(bundle: Buffer): Record[] {
  const records: Record[] = []
  for (let at = 0; at < bundle.length;) {
    const end = bundle.indexOf(0x0a, at)
    const [mode = "", size = "", name = ""] = bundle.toString("utf8", at, end).split(" ")
    const start = end + 1
    at = start + Number(size)
    records.push({ mode, name, content: bundle.subarray(start, at) })
  }
  return records
}

const encode = (records: readonly Record[]): Buffer =>
  Buffer.concat(
    records.flatMap(({ mode, name, content }) => [
      Buffer.from(`${mode} ${content.length} ${name}\n`),
      content,
    ]),
  )

function configOf(records: readonly Record[]): Config {
  const found = records.find(({ name }) => name === "config.json")
  if (found === undefined) throw new Error("a bundle has a config.json")
  return JSON.parse(found.content.toString("utf8")) as Config
}

/**
 * Of the bundle of a command: its process, and the scripts it starts through, to lie in `folder` of the container's files.
 *
 * @param cwd - undefined: as it is in the bundle.
 */
export function joinBundle(bundle: Buffer, folder: string, cwd?: string): Buffer {
  const records = decode(bundle)
  const { process } = configOf(records)
  const entry = process.args.indexOf(`${ENTRY_FOLDER}/entry`)
  process.args[entry] = `${ENTRY_FOLDER}/${folder}/entry`
  if (cwd !== undefined) {
    process.cwd = cwd
    process.env = [...process.env.filter((variable) => !variable.startsWith("PWD=")), `PWD=${cwd}`]
  }
  return encode([
    { mode: "600", name: "process.json", content: Buffer.from(JSON.stringify(process)) },
    ...records
      .filter(({ name }) => ["entry", "overrides.sh", "host.sh"].includes(name))
      .map((record) =>
        record.name === "entry"
          ? {
              ...record,
              content: Buffer.from(
                record.content
                  .toString("utf8")
                  .replaceAll(/\/\.sifcrypt\/(overrides|host)\.sh/g, `${ENTRY_FOLDER}/${folder}/$1.sh`),
              ),
            }
          : record,
      ),
  ])
}

/** A container that a command joins. */
export interface Joined {
  readonly engine: ConcreteEngine
  readonly image: string
  /** Its starter's process. */
  readonly pid: number
  /** As that was told. */
  readonly session: string
  readonly id: string
  readonly crun: string
  /** What the command holds as long as it runs: the container lives of that. */
  readonly fd?: number
  /** Descriptors of this process that the command gets. */
  readonly preserved?: readonly number[]
}

let count = 0

/** How a command joins one, and in which folder of its files the command's are. */
export function joinLaunch(joined: Joined): { readonly launch: Launch; readonly folder: string } {
  const { engine, image, pid, session, id, crun, fd, preserved = [] } = joined
  const folder = `join-${process.pid}-${Date.now().toString(36)}-${count++}`
  const launch: Launch = {
    engine,
    image,
    compose: (descriptors) => [
      "join",
      `--pid=${pid}`,
      `--session=${session}`,
      `--id=${id}`,
      `--crun=${crun}`,
      `--folder=${folder}`,
      ...(fd === undefined ? [] : [`--seat-fd=${descriptors.share(fd)}`]),
      ...(preserved.length === 0 ? [] : [`--preserve-fds=${preserved.join(",")}`]),
    ],
  }
  return { launch, folder }
}
