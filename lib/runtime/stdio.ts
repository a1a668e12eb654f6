// Where a payload's standard streams lead.
import { Readable, Writable } from "node:stream"
import * as is from "../arguments.ts"

/** Where one of them leads. */
export type Stdio = "inherit" | "pipe" | "ignore"
type Output = Stdio | number | Writable
/** Where the standard streams of a payload lead: all of them, or each. */
export type StdioOption =
  Stdio | "pty" | readonly [stdin: Stdio | number | Readable, stdout: Output, stderr: Output]

const stdioWord: is.Check<Stdio> = is.oneOf("inherit", "pipe", "ignore")
const WHAT = "inherit, pipe, ignore, a descriptor or a stream"
// The classes are loaded when somebody gives a stream.
const input: is.Check<Readable> = (value, name) => is.instance(Readable, WHAT)(value, name)
const output: is.Check<Writable> = (value, name) => is.instance(Writable, WHAT)(value, name)
const stream =
  <T>(object: is.Check<T>): is.Check<Stdio | number | T> =>
  (value, name) => {
    if (typeof value === "string") return stdioWord(value, name)
    return typeof value === "number" ? is.count(value, name) : object(value, name)
  }
export const stdioOption: is.Check<StdioOption> = (value, name) => {
  if (!Array.isArray(value)) return is.oneOf("inherit", "pipe", "ignore", "pty")(value, name)
  if (value.length !== 3) throw is.invalidValue(`${name} has three entries, not ${value.length}`)
  return [
    stream(input)(value[0], `${name}[0]`),
    stream(output)(value[1], `${name}[1]`),
    stream(output)(value[2], `${name}[2]`),
  ]
}
