// What an instance adds to a bundle: a shell that stays when the start script has ended, and the files of commands that join.
import { RunError } from "../errors.ts"
import { ENTRY_FOLDER } from "./entry.ts"

interface Config {
  process: { args: string[]; cwd: string; env: string[] }
}

/** What the shell that stays calls itself. */
export const KEEPER_NAME = "sifcrypt-instance"

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

/**
 * Starts what it is given in the background, and stays. A signal to end goes to the start script; when that has ended after
 * it, so does the shell, and with it the container.
 */
const keeper = `
exec 3<&0
"$@" </dev/null 3<&- &
_sifcrypt_script=$!
# Waiting for a shell that waits for nothing can be interrupted by a signal, which reading cannot in every shell.
(read _sifcrypt_nothing <&3) &
_sifcrypt_waiting=$!
exec 3<&-
_sifcrypt_end=
for _sifcrypt_signal in HUP INT QUIT TERM; do
  trap "_sifcrypt_end=1; kill -$_sifcrypt_signal $_sifcrypt_script 2>/dev/null" $_sifcrypt_signal
done
for _sifcrypt_signal in USR1 USR2; do
  trap "kill -$_sifcrypt_signal $_sifcrypt_script 2>/dev/null" $_sifcrypt_signal
done
while [ -z "$_sifcrypt_end" ]; do wait $_sifcrypt_waiting; done
while kill -0 $_sifcrypt_script 2>/dev/null; do wait $_sifcrypt_script; done
kill -KILL $_sifcrypt_waiting
exit 0
`

function configOf(records: readonly Record[]): Config {
  const found = records.find(({ name }) => name === "config.json")
  if (found === undefined) throw new Error("a bundle has a config.json")
  return JSON.parse(found.content.toString("utf8")) as Config
}

/** The bundle of an instance, from that of a `start`. */
export function instanceBundle(bundle: Buffer): Buffer {
  const records = decode(bundle)
  const config = configOf(records)
  // Behind what checks the process or is its init.
  const at = config.process.args.indexOf(`${ENTRY_FOLDER}/entry`) - 1
  config.process.args.splice(at, 0, "/bin/sh", "-c", keeper, KEEPER_NAME)
  return encode(
    records.map((record) =>
      record.name === "config.json" ? { ...record, content: Buffer.from(JSON.stringify(config)) } : record,
    ),
  )
}

/** Of the bundle of a command: its process, and the scripts it starts through, to lie in `folder` of the instance's files. */
export function joinBundle(bundle: Buffer, folder: string, cwd: string): Buffer {
  const records = decode(bundle)
  const { process } = configOf(records)
  const entry = process.args.indexOf(`${ENTRY_FOLDER}/entry`)
  if (entry < 0) throw new RunError("ERR_RUN", "an instance runs commands through its /bin/sh")
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
