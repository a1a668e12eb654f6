// Small root file systems for tests, and what a folder on disk looks like.
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import {
  chmodSync,
  copyFileSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { newFolder } from "./scratch.ts"

/** A statically linked busybox, which needs no libraries beside it. */
function busybox(): string {
  return execFileSync("sh", ["-c", "command -v busybox"], { encoding: "utf8" }).trim()
}

const applets = [
  "sh",
  "ls",
  "cat",
  "id",
  "env",
  "echo",
  "sleep",
  "readlink",
  "touch",
  "mkdir",
  "kill",
  "chown",
  "mv",
  "stat",
  "wc",
]

/** A root file system in which a shell runs. */
export function makeRootTree(): string {
  const root = newFolder("tree")
  for (const folder of ["bin", "etc", "tmp", "dev", "proc", "sys", "root", "home", "data"])
    mkdirSync(path.join(root, folder), { mode: 0o755 })
  copyFileSync(busybox(), path.join(root, "bin", "busybox"))
  chmodSync(path.join(root, "bin", "busybox"), 0o755)
  for (const applet of applets) symlinkSync("busybox", path.join(root, "bin", applet))
  writeFileSync(path.join(root, "etc", "passwd"), "root:x:0:0:root:/root:/bin/sh\n")
  writeFileSync(path.join(root, "etc", "group"), "root:x:0:\n")
  writeFileSync(path.join(root, "data", "hello"), "hello\n")
  return root
}

/** One line for each thing in a folder that two equal folders have in common; keys are paths, byte for byte (latin1). */
export function describeTree(root: string, owners: boolean = true): ReadonlyMap<string, string> {
  const found = new Map<string, string>()
  const links = new Map<number, string>()
  const visit = (folder: Buffer, inside: string): void => {
    const names = readdirSync(folder, { encoding: "buffer" }).sort((a, b) => Buffer.compare(a, b))
    for (const name of names) {
      const file = Buffer.concat([folder, Buffer.from("/"), name])
      const shown = `${inside}/${name.toString("latin1")}`
      const info = lstatSync(file)
      const facts = [
        (info.mode & 0o170000).toString(8),
        info.isSymbolicLink() ? "-" : (info.mode & 0o7777).toString(8),
        String(Math.floor(info.mtimeMs / 1000)),
        ...(owners ? [`${info.uid}:${info.gid}`] : []),
        ...(info.isFile()
          ? [String(info.size), createHash("sha256").update(readFileSync(file)).digest("hex")]
          : []),
        ...(info.isSymbolicLink() ? [readlinkSync(file, "buffer").toString("latin1")] : []),
        ...(info.isBlockDevice() || info.isCharacterDevice() ? [String(info.rdev)] : []),
      ]
      if (!info.isDirectory() && info.nlink > 1) {
        facts.push(`same as ${links.get(info.ino) ?? shown}`)
        if (!links.has(info.ino)) links.set(info.ino, shown)
      }
      found.set(shown, facts.join(" "))
      if (info.isDirectory()) visit(file, shown)
    }
  }
  visit(Buffer.from(root), "")
  return found
}
