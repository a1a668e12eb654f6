// Puts the list of what is compared into docs/compatibility.md: `node --import tsx test/peer/table.ts`.
import { readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { compatibilityTable } from "./cases.ts"

const file = path.resolve(import.meta.dirname, "../../docs/compatibility.md")
const place = /(?<=<!-- made by test\/peer\/table\.ts -->\n)[^]*?(?=<!-- end -->)/
writeFileSync(
  file,
  readFileSync(file, "utf8").replace(place, () => `\n${compatibilityTable()}\n`),
)
