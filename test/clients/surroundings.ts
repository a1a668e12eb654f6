// What programs that call the peers find: the names first on the search path, images, a key in the environment, an ordinary user.
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import { chmodSync, copyFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { homeOf, sifcryptOk, userId, type CommandOptions, type Result } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { Layout } from "../support/layout.ts"
import { namesFolder, underNames } from "../support/names.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

/** Where the programs work, with `plain.sif` and `encrypted.sif` in it. */
export const work: string = newFolder("clients", userId)
export const kinds = ["plain", "encrypted"] as const

let made: Promise<string> | undefined

/** An OCI layout of one layer. */
function makeLayout(tree: string): string {
  const layout = new Layout()
  const tar = execFileSync("tar", ["--owner=0", "--group=0", "-C", tree, "-c", "."], { maxBuffer: 1 << 26 })
  layout.manifest.layers = [layout.add(tar, "application/vnd.oci.image.layer.v1.tar")]
  layout.config.rootfs.diff_ids = [`sha256:${createHash("sha256").update(tar).digest("hex")}`]
  layout.write()
  return layout.folder
}

async function make(): Promise<string> {
  const tree = makeRootTree()
  // Workflow programs ask for it; busybox is enough of one.
  const bash = path.join(tree, "bin", "bash")
  writeFileSync(bash, '#!/bin/sh\nexec /bin/sh "$@"\n')
  chmodSync(bash, 0o755)
  const { publicKey } = testKeys()
  await sifcryptOk(["build", path.join(work, "plain.sif"), tree])
  await sifcryptOk(["build", "--pem-path", publicKey, path.join(work, "encrypted.sif"), tree])
  writeFileSync(path.join(work, "input"), "what goes in\n")
  return makeLayout(tree)
}

/** Makes them once; gives an OCI layout of the same files. */
export function makeImages(): Promise<string> {
  return (made ??= make())
}

/** Puts a file of this folder where the programs work. */
export function bring(name: string): void {
  copyFileSync(path.join(import.meta.dirname, name), path.join(work, name))
}

/** Runs a program as somebody does who works there. */
export async function client(argv: readonly string[], options: CommandOptions = {}): Promise<Result> {
  const env = {
    // Folders that are closed to ordinary users are no programs' to look into.
    PATH: `${await namesFolder()}:${path.dirname(process.execPath)}:/usr/bin:/bin`,
    USER: "somebody",
    LOGNAME: "somebody",
    APPTAINER_ENCRYPTION_PEM_PATH: testKeys().privateKey,
    ...options.env,
  }
  return await underNames(["-C", options.cwd ?? work, ...argv], { timeoutMs: 240_000, ...options, env })
}

export const home: string = homeOf("user")
