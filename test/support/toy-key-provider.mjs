// A key provider that protects nothing: what it wraps is hidden by the byte 5a. What it is told goes into the file that its argument names.
import { appendFileSync, readFileSync } from "node:fs"

const base64 = (bytes) => Buffer.from(bytes).toString("base64")
const hidden = (text) => base64(Buffer.from(text, "base64").map((byte) => byte ^ 0x5a))

const question = readFileSync(0, "utf8")
const { op, keywrapparams, keyunwrapparams } = JSON.parse(question)
const wrapped = op === "keywrap" ? JSON.stringify({ k: hidden(keywrapparams.optsdata) }) : undefined
const answer =
  wrapped === undefined
    ? {
        keyunwrapresults: {
          optsdata: hidden(JSON.parse(Buffer.from(keyunwrapparams.annotation, "base64")).k),
        },
      }
    : { keywrapresults: { annotation: base64(wrapped) } }
appendFileSync(process.argv[2], `${question}\n${JSON.stringify(Object.keys(process.env).sort())}\n`)
process.stdout.write(JSON.stringify(answer))
