// Puts the lists of what is compared, and of programs that are run, into docs/compatibility.md: `node --import tsx test/peer/table.ts`.
import { readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { clientsTable } from "../clients/cases.ts"
import { compatibilityTable } from "./cases.ts"

const file = path.resolve(import.meta.dirname, "../../docs/compatibility.md")
const place = (list: string): RegExp => new RegExp(`(?<=<!-- ${list} -->\\n)[^]*?(?=<!-- end -->)`)
writeFileSync(
  file,
  readFileSync(file, "utf8")
    .replace(place("made by test/peer/table\\.ts"), () => `\n${compatibilityTable()}\n`)
    .replace(place("of test/clients"), () => `\n${clientsTable()}\n`),
)
