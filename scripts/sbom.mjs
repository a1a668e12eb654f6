// What the package is made of, as CycloneDX (`npm run sbom`): npm's own account of its packages, and what is linked into the native
// files. Without time and serial number, so the same package has the same file.
//
//   sbom.mjs [FOLDER]       writes FOLDER/sifcrypt-VERSION.cdx.json, beside the tarball; default: here
//
// Versions of what is linked are those of prebuilds/manifest.json, whose files are shipped; where there is none, those of this
// machine's packages, which a build here takes.
import { execFileSync } from "node:child_process"
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { installed, linked } from "./notice.mjs"

const root = path.resolve(import.meta.dirname, "..")
const folder = path.resolve(process.argv[2] ?? ".")

function run(program, ...args) {
  return execFileSync(program, args, { cwd: root, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] })
}

/** In what is shipped: `{ name, version, licence }`, each once. */
function shipped(manifest) {
  const { files } = JSON.parse(readFileSync(manifest, "utf8"))
  const libraries = Object.values(files).flatMap((file) => file.libraries)
  return [...new Map(libraries.map((one) => [`${one.name} ${one.version}`, one])).values()].map((one) => ({
    ...one,
    title: linked.find((row) => row.source === one.name)?.name,
    source: "deb",
  }))
}

/** Source and version of a package of this machine; of one that only names the current compiler, the compiler's. */
function debian(name) {
  const format = "${source:Package} ${source:Version} ${Depends}"
  const [source, version, ...depends] = run("dpkg-query", "-W", "-f", format, name).split(/[ ,]+/)
  const compiler = depends.find((word) => /^(?:gcc|golang)-[\d.]+(?:-go)?$/.test(word))
  return source.endsWith("-defaults") && compiler !== undefined ? debian(compiler) : [source, version]
}

/** In what is built here: C libraries from the machine's packages, headers from npm's. */
function built() {
  const { packages } = JSON.parse(readFileSync(path.join(root, "package-lock.json"), "utf8"))
  return linked.flatMap(({ name, package: from, npm, licence }) => {
    if (npm !== undefined)
      return [{ name: npm, version: packages[`node_modules/${npm}`].version, licence, source: "npm" }]
    // The libraries of another compiler than this machine's.
    if (from === undefined) return []
    const [source, version] = debian(from)
    return [{ name: source, title: name, version, licence, source: "deb" }]
  })
}

function component({ name, title, version, licence, source }) {
  const place = `${encodeURIComponent(name)}@${encodeURIComponent(version)}`
  const purl = source === "npm" ? `pkg:npm/${place}` : `pkg:deb/debian/${place}?arch=source`
  const license = / WITH | OR /.test(licence)
    ? { expression: licence }
    : { license: licence.startsWith("LicenseRef-") ? { name: licence } : { id: licence } }
  return {
    "bom-ref": `linked:${title ?? name}@${version}`,
    type: "library",
    name: title ?? name,
    version,
    scope: "required",
    description: "linked statically",
    // A part of a compiler has no name of its own anywhere.
    ...(name.includes(" ") ? {} : { purl }),
    licenses: [license],
  }
}

const bom = JSON.parse(run("npm", "sbom", "--omit=dev", "--package-lock-only", "--sbom-format=cyclonedx"))
delete bom.serialNumber
delete bom.metadata.timestamp
const { name, version } = JSON.parse(readFileSync(path.join(root, "package.json"), "utf8"))
// npm calls it by the name of its folder.
bom.metadata.component.name = name
const own = bom.dependencies.find(({ ref }) => ref === bom.metadata.component["bom-ref"])
// npm leaves out what a package that only developers have needs as well.
for (const one of installed().filter((each) => bom.components.every((known) => known.name !== each.name))) {
  const ref = `${one.name}@${one.version}`
  bom.components.push({
    "bom-ref": ref,
    type: "library",
    name: one.name,
    version: one.version,
    scope: "required",
    purl: `pkg:npm/${ref}`,
    licenses: [{ license: { id: one.license } }],
  })
  own.dependsOn.push(ref)
  bom.dependencies.push({ ref, dependsOn: [] })
}
const manifest = path.join(root, "prebuilds", "manifest.json")
const libraries = (existsSync(manifest) ? shipped(manifest) : built()).map(component)
bom.components.push(...libraries)
own.dependsOn.push(...libraries.map((one) => one["bom-ref"]))
bom.dependencies.push(...libraries.map((one) => ({ ref: one["bom-ref"], dependsOn: [] })))
const file = path.join(folder, `${name}-${version}.cdx.json`)
writeFileSync(file, `${JSON.stringify(bom, undefined, 2)}\n`)
console.log(file)
