// Node for arm64, emulated, and the package as it is installed there.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { cpSync, existsSync, mkdirSync, readFileSync, symlinkSync } from "node:fs"
import path from "node:path"
import { packageRoot } from "./cli.ts"
import { newFolder } from "./scratch.ts"

export interface Arm64 {
  /** Starts Node with arguments, in this process's environment. */
  readonly node: string
  /** A folder with the package in its node_modules, which has only what is shipped. */
  readonly folder: string
  /** The command's file. */
  readonly command: string
}

/** Fails where there are no prebuilt files: this is run to test them. */
export function arm64(): Arm64 {
  const prebuilt = process.env["SIFCRYPT_PREBUILDS"] ?? path.join(packageRoot, "prebuilds")
  assert.ok(
    existsSync(path.join(prebuilt, "linux-arm64", "sifcrypt.glibc.node")),
    `${prebuilt} has nothing for arm64: \`npm run prebuilds\` makes it`,
  )
  const node = execFileSync(path.join(packageRoot, "scripts", "prebuilds", "arm64-node.sh"), {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  }).trim()
  const folder = newFolder("arm64")
  const installed = path.join(folder, "node_modules", "sifcrypt")
  mkdirSync(installed, { recursive: true })
  cpSync(path.join(packageRoot, "dist"), path.join(installed, "dist"), { recursive: true })
  cpSync(path.join(packageRoot, "package.json"), path.join(installed, "package.json"))
  cpSync(path.join(prebuilt, "linux-arm64"), path.join(installed, "prebuilds", "linux-arm64"), {
    recursive: true,
  })
  const { dependencies } = JSON.parse(readFileSync(path.join(packageRoot, "package.json"), "utf8")) as {
    readonly dependencies: Readonly<Record<string, string>>
  }
  for (const name of [...Object.keys(dependencies), "file-uri-to-path"])
    symlinkSync(path.join(packageRoot, "node_modules", name), path.join(folder, "node_modules", name))
  return { node, folder, command: path.join(installed, "dist", "cli", "main.js") }
}
