// The images of the comparison, and what lies beside them: made anew for each run, the images by the peer itself.
import assert from "node:assert/strict"
import { generateKeyPairSync } from "node:crypto"
import { execFileSync } from "node:child_process"
import {
  chmodSync,
  copyFileSync,
  lchownSync,
  mkdirSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { peerRoot } from "../interop/peer.ts"
import { packageRoot, runProgram } from "../support/cli.ts"
import { makeLayout } from "../support/layout.ts"
import { makeRootTree } from "../support/trees.ts"
import { environmentScripts } from "./cases.ts"

export const uid = 1000

const definition = `Bootstrap: localimage
From: ./tree

%environment
export FROM_IMAGE=image
export EMPTY_IN_IMAGE=
export CONDITIONAL="\${CONDITIONAL:-default}"
export MULTI="one
two"
PATH=/opt/bin:$PATH
export PATH

%runscript
echo "run: $#"
for a in "$@"; do echo "<$a>"; done
exit 5

%startscript
echo start

%test
echo "test: $*"
exit 6

%help
Help on this image.
It has two lines.

%labels
Author somebody
Version 1.2

%apprun foo
echo "app foo: $* $FOO_VAR $SCIF_APPROOT"

%appenv foo
export FOO_VAR=foo

%apptest foo
echo "testing foo"
exit 4

%apphelp foo
Help on foo.

%applabels foo
Kind app

%appinstall foo
touch made
`

const shebangs = [
  "ash",
  "sort",
  "pwd",
  "printenv",
  "true",
  "false",
  "grep",
  "hostname",
  "date",
  "printf",
  "tail",
  "cut",
]

function makeTree(folder: string): void {
  const source = makeRootTree()
  execFileSync("cp", ["-a", source, folder])
  for (const applet of shebangs) symlinkSync("busybox", path.join(folder, "bin", applet))
  mkdirSync(path.join(folder, "var", "tmp"), { recursive: true })
  mkdirSync(path.join(folder, "usr", "bin"), { recursive: true })
}

/** Where the images are, and what both sides write. */
export const folder: string = path.join(packageRoot, "build", "peer")

export type Side = "peer" | "own"

/** Runs a script of shell as the user of the comparison, in the surroundings that both sides have. */
export async function inSurroundings(side: Side, script: string, name: string): Promise<void> {
  const file = path.join(folder, `${name}.sh`)
  writeFileSync(file, script)
  const { status, stderr } = await runProgram(
    [path.join(import.meta.dirname, "surroundings.sh"), side, peerRoot, folder, String(uid), file],
    { as: "self", timeoutMs: 280_000 },
  )
  assert.equal(status, 0, stderr)
}

/** Has the peer make the images, once for whichever tests come first. */
let made: Promise<void> | undefined
export function makeImages(): Promise<void> {
  return (made ??= inSurroundings("peer", prepare(), "images"))
}

/** Fills the folder with what the peer makes images of, and with what the cases refer to; gives the script that makes them. */
function prepare(): string {
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  const at = (...names: string[]): string => path.join(folder, ...names)
  makeTree(at("tree"))
  mkdirSync(at("static", "bin"), { recursive: true })
  for (const name of ["dev", "proc", "sys", "etc", "tmp"]) mkdirSync(at("static", name))
  copyFileSync(at("tree", "bin", "busybox"), at("static", "bin", "busybox"))
  writeFileSync(at("scripts.def"), definition)
  const Env = ["PATH=/app/bin:/bin", "A=1", "B=x y"]
  makeLayout(at("layout-oci"), at("tree"), {
    Env,
    Entrypoint: ["/bin/echo", "entry $HOME", "it's", 'a"b'],
    Cmd: ["command", "two words"],
  })
  execFileSync("tar", ["-C", at("layout-oci"), "-cf", at("oci.tar"), "."])
  execFileSync("skopeo", [
    "copy",
    "-q",
    `oci:${at("layout-oci")}`,
    `docker-archive:${at("docker.tar")}:some:1`,
  ])
  makeLayout(at("layout-oci-cmd"), at("tree"), { Env, Cmd: ["/bin/sh", "-c", "echo $HOME $0", "x y"] })
  makeLayout(at("layout-oci-entry"), at("tree"), { Env, Entrypoint: ["/bin/printenv"] })
  makeLayout(at("layout-no-shell"), at("static"), { Env })
  for (const name of ["home", "shared", "work-peer", "work-own", "odd:name", "odd,name"]) mkdirSync(at(name))
  for (const name of ["shared", "odd:name", "odd,name", "home"]) writeFileSync(at(name, "file"), `${name}\n`)
  writeFileSync(at("no-interpreter"), "#!/no/such/interpreter\n", { mode: 0o755 })
  for (const [name, script] of environmentScripts) writeFileSync(at(name), script)
  writeFileSync(at("no-first-line"), 'echo "a script all the same"\n', { mode: 0o755 })
  mkdirSync(at("below"))
  mkdirSync(at("data", "sub"), { recursive: true })
  writeFileSync(at("data", "sub", "file"), "in an image\n")
  symlinkSync("sub", at("data", "link"))
  writeFileSync(at("variables"), 'X=file\nY="$FOO and $X"\nZ=$(echo command)\nexport W=exported\n')
  writeFileSync(
    at("passwd"),
    `root:x:0:0:root:/root:/bin/sh\npeer:x:${uid}:${uid}:A Peer:${at("home")}:/bin/sh\n`,
  )
  writeFileSync(at("group"), `root:x:0:\npeer:x:${uid}:\n`)
  const pair = generateKeyPairSync("rsa", {
    modulusLength: 2048,
    publicKeyEncoding: { type: "pkcs1", format: "pem" },
    privateKeyEncoding: { type: "pkcs1", format: "pem" },
  })
  writeFileSync(at("public.pem"), pair.publicKey)
  writeFileSync(at("key.pem"), pair.privateKey)
  chmodSync(at("key.pem"), 0o644)
  lchownSync(folder, uid, uid)
  for (const name of readdirSync(folder, { recursive: true, encoding: "utf8" }))
    lchownSync(at(name), uid, uid)
  return [
    "set -e",
    "apptainer build --notest scripts.sif scripts.def",
    "apptainer build bare.sif tree",
    ...["oci", "oci-cmd", "oci-entry", "no-shell"].map(
      (name) => `apptainer build ${name}.sif oci:layout-${name}`,
    ),
    "apptainer build --sandbox box-peer scripts.sif",
    "cp -a box-peer box-own",
    "mksquashfs tree tree.sqfs -quiet -no-progress",
    "(echo '#!/usr/bin/env run-singularity'; cat tree.sqfs) > tree.simg",
    "mksquashfs data data.sqfs -quiet -no-progress",
    "cp bare.sif with-data.sif",
    "apptainer sif add --datatype 4 --parttype 3 --partfs 1 --partarch 2 with-data.sif data.sqfs",
    "apptainer build --encrypt --pem-path public.pem encrypted.sif scripts.sif",
    "",
  ].join("\n")
}
