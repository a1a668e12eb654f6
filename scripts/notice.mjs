// NOTICE: what of others is in the package, and under which licences (`node scripts/notice.mjs`; `--check` compares).
//   scripts/linked-libraries.json   what is linked into the native files; static-libraries.sh and native/shell must not have more
//   package-lock.json               what npm brings along; dist/cli has all of it in it but `external`
//   scripts/licences                texts of the former; those of npm's packages are their own
import { execFileSync } from "node:child_process"
import { readdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"

const root = path.resolve(import.meta.dirname, "..")
const read = (...names) => readFileSync(path.join(root, ...names), "utf8")

/** Libraries and modules that are in native files. */
export const linked = JSON.parse(read("scripts", "linked-libraries.json"))
/** Of npm's packages, those that dist/cli does not have in it. */
export const external = ["@cfworker/json-schema", "bcrypt-pbkdf", "jose", "openpgp", "tweetnacl", "yaml"]

/** Every package that an installation gets: `{ name, version, license }`. */
export function installed() {
  const { packages } = JSON.parse(read("package-lock.json"))
  return Object.entries(packages)
    .filter(([place, { dev }]) => place !== "" && dev !== true)
    .map(([place, { version, license }]) => ({
      name: place.replace(/^.*node_modules\//, ""),
      version,
      license,
    }))
    .sort((a, b) => (a.name < b.name ? -1 : 1))
}

/** What a build takes that is in no row. */
function missing() {
  const list = (what) =>
    execFileSync(path.join(root, "scripts", "static-libraries.sh"), [what], { encoding: "utf8" })
  const archives = new Set(
    [
      ..."addon starter"
        .split(" ")
        .map(list)
        .join(" ")
        .matchAll(/-l:(\S+)/g),
    ].map(([, name]) => name),
  )
  const modules = readdirSync(path.join(root, "native", "shell"))
    .filter((name) => name.endsWith(".go"))
    .flatMap((name) => [...read("native", "shell", name).matchAll(/^\s*"([\w-]+\.[\w.-]+\/[^"]+)"$/gm)])
    .map(([, name]) => name)
  return [
    ...[...archives].filter((name) => !linked.some(({ archive }) => archive === name)),
    ...modules.filter((name) => !linked.some((row) => name === row.name || name.startsWith(`${row.name}/`))),
  ]
}

function licenceOf(name) {
  const folder = path.join("node_modules", name)
  const file = readdirSync(path.join(root, folder)).find((one) => /^licen[cs]e(?:\.\w+)?$/i.test(one))
  if (file === undefined) throw new Error(`${name} has no file with its licence`)
  return read(folder, file)
}

const RULE = "-".repeat(100)
const indented = (text) =>
  text
    .trimEnd()
    .replaceAll("\r", "")
    .replace(/[ \t]+$/gm, "")
    .replace(/^(?=.)/gm, "  ")

function table(rows) {
  const widths = rows[0].map((_, i) => Math.max(...rows.map((row) => row[i].length)))
  return rows
    .map((row) => `  ${row.map((cell, i) => cell.padEnd(widths[i])).join("  ")}`.trimEnd())
    .join("\n")
}

/** The whole of it. */
export function notice() {
  const unknown = missing()
  if (unknown.length > 0) throw new Error(`linked-libraries.json lacks ${unknown.join(", ")}`)
  const npm = installed()
  const bundled = npm.filter(({ name }) => !external.includes(name))
  const texts = [...new Set(linked.flatMap((row) => row.texts))].sort()
  return `sifcrypt
Copyright 2026 the sifcrypt authors

Licensed under the Apache License, Version 2.0 (LICENSE).

This file is made by scripts/notice.mjs.

The compiled addon (sifcrypt.node), starter (sifcrypt-starter), init (sifcrypt-init) and shell (sifcrypt-shell) carry these
inside them, linked statically. Each remains under its own licence; the texts are below.

${table(linked.map((row) => [row.name, row.within, row.licence, row.copyright]))}

libfuse3 and the C library are used unchanged. Whoever wants to link another version of them rebuilds from the sources in
this package: docs/building.md.

The bundled command (dist/cli/command.js, run.js) carries these packages of npm, wholly or in parts; their licences are below:

${table(bundled.map(({ name, version, license }) => [name, version, license]))}

These are installed beside this package, by npm, with their licences, and are not in it:

${table(npm.filter(({ name }) => external.includes(name)).map(({ name, version, license }) => [name, version, license]))}

schema/compose-spec.json is the Compose specification's schema, unchanged, as of compose-go 2.9.1 (Apache-2.0):
The Compose Specification, Copyright 2020 The Compose Specification Authors.

libcryptsetup (LGPL-2.1-or-later with an OpenSSL exception) and libdevmapper (LGPL-2.1) are not part of it: they are
opened on the machine when they are needed. crun and fusermount3 are programs of the machine.

${texts
  .map(
    (id) =>
      `${RULE}\n${id}: ${linked
        .filter((row) => row.texts.includes(id))
        .map(({ name }) => name)
        .join(
          ", ",
        )}\n\n${id === "Apache-2.0" ? "  The text is that of the file LICENSE." : indented(read("scripts", "licences", `${id}.txt`))}`,
  )
  .join("\n\n")}

${bundled.map(({ name, version }) => `${RULE}\n${name} ${version}\n\n${indented(licenceOf(name))}`).join("\n\n")}
`
}

if (process.argv[1] === import.meta.filename) {
  const text = notice()
  if (process.argv[2] !== "--check") writeFileSync(path.join(root, "NOTICE"), text)
  else if (read("NOTICE") !== text) {
    console.error("NOTICE is not what `node scripts/notice.mjs` makes")
    process.exitCode = 1
  }
}
