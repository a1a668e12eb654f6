// What stands in prebuilds/manifest.json, and whether a package may be made with it.
//
//   manifest.mjs write FOLDER       describes the files in FOLDER/linux-*, which were just made, in FOLDER/manifest.json
//   manifest.mjs check              before `npm pack`: dist and every file of the manifest are there, and made of these sources
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { sourcesOfDist } from "../dist-sources.mjs"

const root = path.resolve(import.meta.dirname, "..", "..")
const machines = ["linux-arm64", "linux-x64"]
const names = [
  "sifcrypt-init",
  "sifcrypt-shell",
  "sifcrypt-starter.glibc",
  "sifcrypt-starter.musl",
  "sifcrypt.glibc.node",
  "sifcrypt.musl.node",
]

/** Group of sources.lock or what a compiler adds → licence (SPDX), and which of the files have it. */
const addon = (name) => name.endsWith(".node")
const starter = (name) => name.startsWith("sifcrypt-starter")
const shell = (name) => name === "sifcrypt-shell"
const cxx = (name) => addon(name) || starter(name)
const musl = (name) => name.includes("musl") || name === "sifcrypt-init"
const parts = [
  { name: "libdeflate", licence: "MIT", within: cxx },
  { name: "libzstd", licence: "BSD-3-Clause", within: cxx },
  { name: "lz4", licence: "BSD-2-Clause", within: cxx },
  { name: "openssl", licence: "Apache-2.0", within: starter },
  { name: "fuse3", licence: "LGPL-2.1-only", within: starter },
  { name: "xz-utils", licence: "LicenseRef-public-domain", within: cxx },
  {
    name: "libstdc++-10-dev",
    licence: "GPL-3.0-or-later WITH GCC-exception-3.1",
    within: (name) => cxx(name) && !musl(name),
  },
  {
    name: "libgcc-10-dev",
    licence: "GPL-3.0-or-later WITH GCC-exception-3.1",
    within: (name) => cxx(name) && !musl(name),
  },
  {
    name: "zig-linux-x64",
    as: "libc++, libunwind and compiler-rt of zig",
    licence: "Apache-2.0 WITH LLVM-exception",
    within: (name) => cxx(name) && musl(name),
  },
  { name: "zig-linux-x64", as: "musl of zig", licence: "MIT", within: (name) => name === "sifcrypt-init" },
  { name: "golang-1.24-src", licence: "BSD-3-Clause", within: shell },
  { name: "golang-mvdan-sh-dev", licence: "BSD-3-Clause", within: shell },
  { name: "golang-golang-x-sync-dev", licence: "BSD-3-Clause", within: shell },
  { name: "golang-golang-x-sys-dev", licence: "BSD-3-Clause", within: shell },
  { name: "golang-golang-x-term-dev", licence: "BSD-3-Clause", within: shell },
]

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex")
const sources = execFileSync(path.join(root, "scripts", "native-digest.sh"), { encoding: "utf8" }).trim()

/** What decides how the sources are compiled: the recipe, the lock with compilers and libraries, headers of npm. */
function recipe() {
  const folder = path.join(root, "scripts", "prebuilds")
  const files = readdirSync(folder)
    .filter((name) => /^(?:sources\.lock|toolchain\.sh|libraries\.sh|binaries\.sh|addon\.map)$/.test(name))
    .map((name) => path.join(folder, name))
  files.push(
    ...[
      "scripts/prebuilds.sh",
      "scripts/static-libraries.sh",
      "scripts/build-shell.sh",
      "CMakeLists.txt",
    ].map((name) => path.join(root, name)),
  )
  const { packages } = JSON.parse(readFileSync(path.join(root, "package-lock.json"), "utf8"))
  const headers = ["node-addon-api", "node-api-headers"].map(
    (name) => packages[`node_modules/${name}`].integrity,
  )
  return sha256([...files.sort().map((file) => sha256(readFileSync(file))), ...headers].join("\n"))
}

/** Name → version, of the file names in sources.lock. */
function lockedVersions() {
  const versions = new Map()
  for (const line of readFileSync(path.join(root, "scripts", "prebuilds", "sources.lock"), "utf8").split(
    "\n",
  )) {
    const file = decodeURIComponent(path.posix.basename(line.split(" ")[2] ?? ""))
    const [, name, version] =
      /^(.+?)_(.+?)(?:_(?:amd64|all)\.deb|\.dsc)$/.exec(file) ??
      /^(zig-linux-x64)-(.+)\.tgz$/.exec(file) ??
      []
    // A source and a package may have one name; of a package that several roots have the first is meant, that of the compilers.
    const key = file.endsWith(".dsc") ? `source ${name}` : name
    if (name !== undefined && !versions.has(key)) versions.set(key, version)
  }
  return versions
}

function version(versions, name) {
  const found = versions.get(`source ${name}`) ?? versions.get(name)
  if (found === undefined) throw new Error(`sources.lock has no ${name}`)
  return found
}

function toolchain(versions, machine, name) {
  if (shell(name)) return `golang-1.24-go ${version(versions, "golang-1.24-go")}`
  if (musl(name)) return `zig ${version(versions, "zig-linux-x64")}`
  const compiler = machine === "linux-x64" ? "g++-10" : "g++-10-aarch64-linux-gnu"
  return `${compiler} ${version(versions, compiler)}, libc6 ${version(versions, "libc6")}`
}

function write(folder) {
  const versions = lockedVersions()
  const files = {}
  for (const machine of machines) {
    if (!existsSync(path.join(folder, machine))) continue
    for (const name of readdirSync(path.join(folder, machine)).sort()) {
      const bytes = readFileSync(path.join(folder, machine, name))
      files[`${machine}/${name}`] = {
        sha256: sha256(bytes),
        size: bytes.length,
        sources,
        toolchain: toolchain(versions, machine, name),
        libraries: parts
          .filter(({ within }) => within(name))
          .map((part) => ({
            name: part.as ?? part.name,
            version: version(versions, part.name),
            licence: part.licence,
          })),
      }
    }
  }
  writeFileSync(
    path.join(folder, "manifest.json"),
    `${JSON.stringify({ sources, recipe: recipe(), files }, undefined, 2)}\n`,
  )
}

/** What is wrong with dist and prebuilds/, one line each. */
function faults() {
  const found = []
  const dist = path.join(root, "dist", "native", "native-digest.js")
  const stated = existsSync(dist) && /"([0-9a-f]{64})"/.exec(readFileSync(dist, "utf8"))?.[1]
  const made = path.join(root, "dist", "sources")
  const again = "`npm run build:ts` makes it again"
  if (stated === false) found.push("dist is missing: `npm run build:ts` makes it")
  else if (stated !== sources) found.push(`dist was made beside other native sources: ${again}`)
  else if (!existsSync(made) || readFileSync(made, "utf8").trim() !== sourcesOfDist())
    found.push(`dist was made of another lib/: ${again}`)
  for (const name of ["index.js", "index.d.ts", "cli/main.js", "cli/command.js", "cli/run.js"])
    if (stated !== false && !existsSync(path.join(root, "dist", name))) found.push(`dist/${name} is missing`)

  const file = path.join(root, "prebuilds", "manifest.json")
  const how = "`npm run prebuilds` makes them"
  if (!existsSync(file)) return [...found, `prebuilds/manifest.json is missing: ${how}`]
  const manifest = JSON.parse(readFileSync(file, "utf8"))
  if (manifest.sources !== sources) found.push(`the prebuilt files were made of other native sources: ${how}`)
  if (manifest.recipe !== recipe()) found.push(`the prebuilt files were made by another recipe: ${how}`)
  const wanted = machines.flatMap((machine) => names.map((name) => `${machine}/${name}`))
  for (const name of wanted) {
    const entry = manifest.files[name]
    const place = path.join(root, "prebuilds", name)
    if (entry === undefined) found.push(`the manifest has no ${name}`)
    else if (!existsSync(place)) found.push(`prebuilds/${name} is missing`)
    else if (sha256(readFileSync(place)) !== entry.sha256)
      found.push(`prebuilds/${name} is not what the manifest says`)
    else if (entry.sources !== sources) found.push(`prebuilds/${name} was made of other native sources`)
  }
  const present = readdirSync(path.join(root, "prebuilds"), { recursive: true, encoding: "utf8" })
  for (const name of present)
    if (name.startsWith("linux-") && name.includes("/") && !wanted.includes(name))
      found.push(`prebuilds/${name} is in no list`)
  return found
}

const [, , what, folder] = process.argv
if (what === "write" && folder !== undefined) write(folder)
else if (what === "check") {
  const found = faults()
  for (const fault of found) console.error(`npm pack: ${fault}`)
  process.exitCode = found.length > 0 ? 1 : 0
} else {
  console.error("usage: manifest.mjs write FOLDER | check")
  process.exitCode = 2
}
