// Start-up as root through dm-crypt: ours beside Apptainer's own, in one User-Mode Linux guest, where every system call and every page
// fault is dear, to both. What counts is the ratio.
import { copyFileSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { fileURLToPath } from "node:url"
import { makeRootTree } from "../test/support/trees.ts"
import { measure, median, timed } from "./measure.ts"
import { goal, note, seconds } from "./report.ts"

const here = path.dirname(fileURLToPath(import.meta.url))
const umlRun = path.resolve(here, "../test/support/uml-run.sh")
const ROUNDS = 5

const quoted = (words: readonly string[]): string =>
  words.map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(" ")

/** `work` has the keys, and is seen by this machine, the guest and the peer in it. */
export async function startUpAsRoot(options: {
  readonly work: string
  readonly peerRoot: string
  readonly peerRun: string
  readonly command: readonly string[]
}): Promise<void> {
  const { work, peerRoot, peerRun, command } = options
  console.log("\nStarting /bin/true in an image, as root through dm-crypt, in the guest")
  const place = path.join(work, "guest")
  mkdirSync(place)
  for (const key of ["private.pem", "private-pkcs1.pem", "public-pkcs1.pem"])
    copyFileSync(path.join(work, key), path.join(place, key))
  const tree = makeRootTree()
  symlinkSync("busybox", path.join(tree, "bin", "true"))
  await measure("cp", ["-a", tree, path.join(place, "tree")])
  const [program = "", ...args] = command
  await measure(program, [
    ...[...args, "build", "--pem-path", path.join(work, "public.pem")],
    ...[path.join(place, "ours.sif"), path.join(place, "tree")],
  ])
  const inPeer = (script: string): string => `${quoted([peerRun, "--bind", place, "0"])} bash ${script}`
  const run = (name: string, ...argv: readonly string[]): string =>
    `${quoted([...timed, ...argv])} | sed 's/^/${name} /'`
  const peerExec = (image: string): string[] => [
    ...["apptainer", "-s", "exec", "--pem-path", "private-pkcs1.pem"],
    ...[image, "/bin/true"],
  ]
  const script = (name: string, ...lines: readonly string[]): void => {
    writeFileSync(path.join(place, name), ["set -eo pipefail", ...lines, ""].join("\n"))
  }
  const publicKey = `${place}/public-pkcs1.pem`
  script("peer-build.sh", `apptainer -s build -F --pem-path ${publicKey} peer.sif tree`)
  script("peer.sh", run("peer", ...peerExec("peer.sif")), run("peer-ours", ...peerExec("ours.sif")))
  script(
    "main.sh",
    `cd ${quoted([place])}`,
    inPeer("peer-build.sh"),
    `for round in $(seq ${ROUNDS}); do`,
    run("node", process.execPath, "-e", "0"),
    run(
      "ours",
      ...command,
      "exec",
      "--engine",
      "kernel",
      "--pem-path",
      "private.pem",
      "ours.sif",
      "/bin/true",
    ),
    inPeer("peer.sh"),
    "done",
  )
  const kernel = (await measure(path.join(here, "guest-kernel.sh"), [peerRoot])).stdout.trim()
  const { stdout } = await measure("env", [
    ...[`SIFCRYPT_PEER_ROOT=${peerRoot}`, umlRun, "--uml", kernel, "--kernel", "seccomp=on"],
    ...["--mem", "3G", "--timeout", "900", "--", "bash", path.join(place, "main.sh")],
  ])
  const times = (name: string): number =>
    median([...stdout.matchAll(new RegExp(`^${name} (\\d+)$`, "gm"))].map((found) => Number(found[1]) / 1000))
  const [peer, peerOurs, ours, node] = [times("peer"), times("peer-ours"), times("ours"), times("node")]
  note("apptainer exec, its own image, as root", seconds(peer))
  note("apptainer exec, our image, as root", seconds(peerOurs))
  note("sifcrypt exec, as root", seconds(ours))
  note("of which node itself, in the guest", seconds(node))
  const ratio = peer / ours
  goal("exec as root through dm-crypt, times faster", ratio.toFixed(1), "at least 5", ratio >= 5)
}
