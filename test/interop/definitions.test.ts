// The same definition files built by a live Apptainer and by us, compared entry by entry.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import { chmodSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { open } from "../../lib/index.ts"
import { isRoot, packageRoot, runProgram, sifcrypt, type Result } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"
import { earlier, goldens } from "./definitions.ts"
import { inPeer, peerRoot } from "./peer.ts"

const version = isRoot ? inPeer("apptainer", "--version").trim() : "Apptainer"

/** Files that do the same in words of their own, and the default scripts among them. */
const worded =
  /^\/\.singularity\.d\/(actions\/\w+|env\/(01-base|94-appsbase|95-apps|99-base|99-runtimevars)\.sh)$|\/scif\/env\/01-base\.sh$/
/** Labels that tell when, and by which program. */
const ofTheBuild = /^org\.label-schema\.(build-date|usage\.\w+\.version)$|^org\.opencontainers\.image\./
const ENVIRONMENT_START = /^#!\/bin\/sh\n(#.*\n|\n)*/

/** What of a file has to be the same. */
function essence(file: string, content: string): string {
  if (worded.test(file)) return "worded"
  if (file.endsWith("/labels.json") && file.startsWith("/.singularity.d")) {
    const labels = JSON.parse(content) as Record<string, string>
    return JSON.stringify(Object.entries(labels).filter(([name]) => !ofTheBuild.test(name)))
  }
  // The peer keeps carriage returns and leaves out comments at the start; here each line ends with a line feed.
  if (file === "/.singularity.d/Singularity")
    return content
      .replaceAll("\r\n", "\n")
      .replace(/^(?:#.*\n)+/, "")
      .trimEnd()
  if (file.endsWith("/90-environment.sh")) return content.replace(ENVIRONMENT_START, "")
  if (
    /^\/\.singularity\.d\/(runscript|startscript)$/.test(file) &&
    /Copyright|exec \/bin\/sh "\$@"/.test(content)
  )
    return "default"
  if (file === "/.singularity.d/startscript" && content === "#!/bin/sh\n") return "default"
  return content
}

async function describeImage(file: string): Promise<Map<string, string>> {
  await using image = await open(file)
  const entries = await image.list("/", { recursive: true })
  const found = new Map<string, string>()
  for (const { path: name, type, mode, uid, gid, target } of entries) {
    const content =
      type === "file" ? essence(name, (await image.readFile(name)).toString("latin1")) : (target ?? "")
    const shown =
      content.length > 2000 ? createHash("sha256").update(content, "latin1").digest("hex") : content
    found.set(name, `${type} ${mode.toString(8)} ${uid}:${gid} ${shown}`)
  }
  return found
}

/** Runs a script as root of a user namespace with all ids: Apptainer wants every capability that there is. */
async function asPeerRoot(place: string, script: string): Promise<Result> {
  const enter = path.join(packageRoot, "test", "support", "peer-run.sh")
  const ids = ["--map-users=0:0:65536", "--map-groups=0:0:65536", "--setuid=0", "--setgid=0"]
  return await runProgram(
    [
      enter,
      "--bind",
      place,
      "0",
      "unshare",
      "--user",
      "--mount",
      ...ids,
      "sh",
      "-c",
      `cd ${place} && ${script}`,
    ],
    { as: "self", env: { SIFCRYPT_PEER_ROOT: peerRoot }, timeoutMs: 240_000 },
  )
}

function makeSources(place: string): void {
  execFileSync("cp", ["-a", makeRootTree(), path.join(place, "base")])
  const bin = path.join(place, "base", "bin")
  for (const applet of ["chmod", "dd", "ln", "mkfifo", "rm", "true", "false", "set"])
    symlinkSync("busybox", path.join(bin, applet))
  const source = path.join(place, "source")
  mkdirSync(path.join(source, "folder", "deep"), { recursive: true })
  for (const name of ["one.txt", "two.txt", "with space.txt", "folder/inner.txt", "folder/deep/er.txt"])
    writeFileSync(path.join(source, name), `${name}\n`)
  writeFileSync(path.join(source, "script.sh"), "#!/bin/sh\n")
  chmodSync(path.join(source, "script.sh"), 0o755)
  chmodSync(path.join(source, "two.txt"), 0o640)
  symlinkSync("one.txt", path.join(source, "link.txt"))
  symlinkSync("inner.txt", path.join(source, "folder", "linked"))
}

const quoted = (word: string): string => `'${word.replaceAll("'", "'\\''")}'`

describe(`definition files beside ${version}`, () => {
  const names = Object.keys(goldens)
  let place: string

  before(async function () {
    if (!isRoot) skip(this, "needs root, to enter the peer")
    place = newFolder("definitions")
    makeSources(place)
    writeFileSync(path.join(place, "earlier.def"), earlier)
    const script = ["umask 022; apptainer -s build -F earlier.sif earlier.def >earlier.log 2>&1"]
    for (const [index, name] of names.entries()) {
      const { text, args = [] } = goldens[name] ?? { text: "" }
      writeFileSync(path.join(place, `${index}.def`), text.replaceAll("SUFFIX", path.basename(place)))
      script.push(
        `apptainer -s build ${args.map(quoted).join(" ")} peer-${index}.sif ${index}.def >${index}.log 2>&1; echo $? >${index}.status`,
      )
    }
    const { status, stderr } = await asPeerRoot(place, script.join("\n"))
    assert.equal(status, 0, stderr)
  })

  for (const [index, name] of names.entries()) {
    const { args = [], refused, lenient } = goldens[name] ?? { text: "" }
    const what = refused === true ? "refuse" : lenient === true ? "are built here alone" : "become the same"
    it(`${what}: ${name}`, async () => {
      const peer = Number(readFileSync(path.join(place, `${index}.status`), "utf8"))
      const log = readFileSync(path.join(place, `${index}.log`), "utf8")
      const output = path.join(place, `ours-${index}.sif`)
      const ours = await sifcrypt(["build", ...args, output, `${index}.def`], { as: "self", cwd: place })
      if (refused === true) {
        assert.notEqual(peer, 0, log)
        assert.notEqual(ours.status, 0)
        assert.ok(!existsSync(output))
        return
      }
      assert.equal(ours.status, 0, ours.stderr)
      if (lenient === true) {
        assert.notEqual(peer, 0, log)
        return
      }
      assert.equal(peer, 0, log)
      const [expected, found] = await Promise.all([
        describeImage(path.join(place, `peer-${index}.sif`)),
        describeImage(output),
      ])
      assert.deepEqual(Object.fromEntries(found), Object.fromEntries(expected))
    })
  }
})
