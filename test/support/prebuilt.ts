// The package as it is installed where nothing is built: dist, what is shipped in prebuilds/, and what it depends on.
import assert from "node:assert/strict"
import { cpSync, existsSync, mkdirSync, readFileSync, symlinkSync } from "node:fs"
import path from "node:path"
import { packageRoot } from "./cli.ts"

/** Where the files are that are tested: what `npm run prebuilds` has put into the project, or another folder of that form. */
const prebuilds = process.env["SIFCRYPT_PREBUILDS"] ?? path.join(packageRoot, "prebuilds")

/** Fails where there are no prebuilt files: this is run to test them. */
export function prebuiltFor(machine: string): string {
  const folder = path.join(prebuilds, machine)
  assert.ok(existsSync(folder), `${prebuilds} has nothing for ${machine}: \`npm run prebuilds\` makes it`)
  return folder
}

/** Installs into `folder/node_modules`, with what is prebuilt for a machine, and returns the package's own folder. */
export function installPrebuilt(folder: string, machine: string): string {
  const installed = path.join(folder, "node_modules", "sifcrypt")
  mkdirSync(installed, { recursive: true })
  cpSync(path.join(packageRoot, "dist"), path.join(installed, "dist"), { recursive: true })
  cpSync(path.join(packageRoot, "package.json"), path.join(installed, "package.json"))
  cpSync(prebuiltFor(machine), path.join(installed, "prebuilds", machine), { recursive: true })
  const { dependencies } = JSON.parse(readFileSync(path.join(packageRoot, "package.json"), "utf8")) as {
    readonly dependencies: Readonly<Record<string, string>>
  }
  for (const name of [...Object.keys(dependencies), "file-uri-to-path"]) {
    const place = path.join(folder, "node_modules", name)
    mkdirSync(path.dirname(place), { recursive: true })
    symlinkSync(path.join(packageRoot, "node_modules", name), place)
  }
  return installed
}
