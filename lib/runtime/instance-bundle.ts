// The bundle of a command that joins an instance: its process, and the files that it starts through.
import { ENTRY_FOLDER } from "./entry.ts"

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

/** Of the bundle of a command: its process, and the scripts it starts through, to lie in `folder` of the instance's files. */
export function joinBundle(bundle: Buffer, folder: string, cwd: string): Buffer {
  const records = decode(bundle)
  const { process } = configOf(records)
  const entry = process.args.indexOf(`${ENTRY_FOLDER}/entry`)
  process.args[entry] = `${ENTRY_FOLDER}/${folder}/entry`
  process.cwd = cwd
  process.env = [...process.env.filter((variable) => !variable.startsWith("PWD=")), `PWD=${cwd}`]
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
