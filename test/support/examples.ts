// The examples in the documentation, as it has them: blocks of code by their language.
import { readdirSync, readFileSync } from "node:fs"
import path from "node:path"

const root = path.resolve(import.meta.dirname, "../..")

/** The pages whose examples are run. */
export const pages: readonly string[] = [
  "README.md",
  ...readdirSync(path.join(root, "docs/guide"))
    .sort()
    .map((name) => `docs/guide/${name}`),
]

/** What stands in the blocks of a language, in their order. */
export function examples(page: string, language: "ts" | "js" | "sh"): readonly string[] {
  const blocks = readFileSync(path.join(root, page), "utf8").matchAll(/^```(\w+)\n(.*?)^```$/gms)
  return [...blocks].filter(([, found]) => found === language).map(([, , text = ""]) => text)
}
