// Node for arm64, emulated, and the package as it is installed there.
import { execFileSync } from "node:child_process"
import path from "node:path"
import { packageRoot } from "./cli.ts"
import { installPrebuilt, prebuiltFor } from "./prebuilt.ts"
import { newFolder } from "./scratch.ts"

export interface Arm64 {
  /** Starts Node with arguments, in this process's environment. */
  readonly node: string
  /** A folder with the package in its node_modules, which has only what is shipped. */
  readonly folder: string
  /** The command's file. */
  readonly command: string
}

export function arm64(): Arm64 {
  prebuiltFor("linux-arm64")
  const node = execFileSync(path.join(packageRoot, "scripts", "prebuilds", "arm64-node.sh"), {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  }).trim()
  const folder = newFolder("arm64")
  const installed = installPrebuilt(folder, "linux-arm64")
  return { node, folder, command: path.join(installed, "dist", "cli", "main.js") }
}
