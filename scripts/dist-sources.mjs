// What dist/ is known to be made of: scripts/bundle-command.mjs, which ends a build, leaves the digest of it in dist/sources, and `npm pack`
// (scripts/prebuilds/manifest.mjs) compares.
import { createHash } from "node:crypto"
import { readdirSync, readFileSync } from "node:fs"
import path from "node:path"

const root = path.resolve(import.meta.dirname, "..")
const read = (file) => readFileSync(path.join(root, file))
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex")
const files = () =>
  readdirSync(path.join(root, "lib"), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(root, path.join(entry.parentPath, entry.name)))
    .sort()

/** Of lib/, of what compiles it, and of the versions that are bundled with it. */
export function sourcesOfDist() {
  const others = ["package-lock.json", "tsconfig.json", "tsconfig.build.json", "scripts/bundle-command.mjs"]
  return sha256([...files(), ...others].map((file) => `${sha256(read(file))} ${file}\n`).join(""))
}

/** Whether tsc has compiled these files of lib/ and no others: its own notes have the SHA-256 of each that it read. */
export function isCompiled() {
  const { fileNames, fileInfos } = JSON.parse(read("build/typescript.tsbuildinfo").toString())
  const compiled = new Map(
    fileNames.map((name, i) => [path.join("build", name), fileInfos[i].version ?? fileInfos[i]]),
  )
  const known = files().every((file) => {
    const version = compiled.get(file)
    // lib/cli is bundled, not compiled, but for what others import.
    if (version === undefined) return !file.endsWith(".ts") || file.startsWith("lib/cli/")
    return version === sha256(read(file))
  })
  return known && [...compiled.keys()].every((file) => !file.startsWith("lib/") || files().includes(file))
}
