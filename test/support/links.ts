// Links in documents of Markdown: whether they lead somewhere.
import { existsSync, readFileSync } from "node:fs"
import path from "node:path"

/** How GitHub names a heading in a link. */
function anchor(heading: string): string {
  return heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N}\s_-]/gu, "")
    .replaceAll(" ", "-")
}

/** Code is no text: what looks like a link or a heading there is none. */
function prose(file: string): string {
  return readFileSync(file, "utf8").replace(/^```[^]*?^```$/gm, "")
}

/** The links of a document, by its path in `root`, that lead to nothing in `root`. */
export function brokenLinks(root: string, file: string): string[] {
  const links = [...prose(path.join(root, file)).matchAll(/\]\(([^)\s]+)\)/g)].map(
    ([, target = ""]) => target,
  )
  return links.filter((target) => {
    if (/^[a-z]+:/.test(target)) return false
    const [name = "", fragment] = target.split("#")
    const place = path.join(root, name === "" ? file : path.join(path.dirname(file), name))
    if (!place.startsWith(root) || !existsSync(place)) return true
    if (fragment === undefined) return false
    const headings = [...prose(place).matchAll(/^#+ (.*)$/gm)].map(([, heading = ""]) => anchor(heading))
    return !headings.includes(fragment)
  })
}
