// Where a payload's standard streams lead.
import { Readable, Writable } from "node:stream"
import { count, instance, invalidValue, oneOf, type Check } from "../arguments.ts"

/** Where one of them leads. */
export type Stdio = "inherit" | "pipe" | "ignore"
type Output = Stdio | number | Writable
/** Where the standard streams of a payload lead: all of them, or each. */
export type StdioOption =
  Stdio | "pty" | readonly [stdin: Stdio | number | Readable, stdout: Output, stderr: Output]

const stdioWord: Check<Stdio> = oneOf("inherit", "pipe", "ignore")
const WHAT = "inherit, pipe, ignore, a descriptor or a stream"
// The classes are loaded when somebody gives a stream.
const input: Check<Readable> = (value, name) => instance(Readable, WHAT)(value, name)
const output: Check<Writable> = (value, name) => instance(Writable, WHAT)(value, name)
const stream =
  <T>(object: Check<T>): Check<Stdio | number | T> =>
  (value, name) => {
    if (typeof value === "string") return stdioWord(value, name)
    return typeof value === "number" ? count(value, name) : object(value, name)
  }
export const stdioOption: Check<StdioOption> = (value, name) => {
  if (!Array.isArray(value)) return oneOf("inherit", "pipe", "ignore", "pty")(value, name)
  if (value.length !== 3) throw invalidValue(`${name} has three entries, not ${value.length}`)
  return [
    stream(input)(value[0], `${name}[0]`),
    stream(output)(value[1], `${name}[1]`),
    stream(output)(value[2], `${name}[2]`),
  ]
}
