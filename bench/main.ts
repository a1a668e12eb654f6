// Beside the peers, on this machine, in one run: build, reading, start-up, opening a key, signatures, memory. Ratios are what counts.
import { spawn } from "node:child_process"
import { generateKeyPairSync } from "node:crypto"
import { once } from "node:events"
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs"
import { open as openFile } from "node:fs/promises"
import { homedir } from "node:os"
import path from "node:path"
import { fileURLToPath } from "node:url"
import { loadAddon } from "../lib/native/load.ts"
import { parseLuksHeader } from "../lib/device/luks-header.ts"
import { decodeCryptoMessage, MAX_MESSAGE_SIZE } from "../lib/key/crypto-message.ts"
import { parsePrivateKey } from "../lib/key/key-file.ts"
import { unwrapSecret } from "../lib/key/rsa-oaep.ts"
import { listMounts, open, sif } from "../lib/index.ts"
import { jobsOnSlurm } from "./batch.ts"
import { tenServices } from "./compose.ts"
import { startUpAsRoot } from "./guest.ts"
import {
  dropCaches,
  measure,
  median,
  processesBelow,
  repeat,
  residentPeak,
  timed,
  type Resident,
} from "./measure.ts"
import { layersFromRegistry } from "./oci.ts"
import { readingPlainImages } from "./reads.ts"
import { imagesAtRegistries } from "./registry.ts"
import { goal, mebibytes, note, seconds, summary } from "./report.ts"
import { manyOfOneImage } from "./sharens.ts"

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "..")
const command = path.join(root, "dist", "cli", "main.js")
const peerRun = path.join(root, "test", "support", "peer-run.sh")
const peerMake = path.join(root, "test", "support", "peer.sh")
/** The ordinary user of the peer's root directory. */
const USER = 1000
const cache = path.join(process.env["XDG_CACHE_HOME"] ?? path.join(homedir(), ".cache"), "sifcrypt")
const mirror = process.env["SIFCRYPT_PEER_MIRROR"] ?? "http://deb.debian.org/debian"

/** A Debian minbase tree that an ordinary user can read all of; made once. */
async function minbase(): Promise<string> {
  const tree = path.join(cache, "minbase")
  if (existsSync(tree)) return tree
  console.log("making a Debian minbase tree")
  mkdirSync(cache, { recursive: true })
  const part = `${tree}.part`
  rmSync(part, { recursive: true, force: true })
  await measure("debootstrap", ["--variant=minbase", "bookworm", part, mirror])
  await measure("rm", ["-rf", path.join(part, "dev")])
  await measure("mkdir", ["-p", path.join(part, "dev")])
  await measure("chown", ["-R", `${USER}:${USER}`, part])
  await measure("chmod", ["-R", "u+rwX", part])
  renameSync(part, tree)
  return tree
}

function asUser(args: readonly string[]): readonly [string, string[]] {
  const ids = ["--reuid", String(USER), "--regid", String(USER), "--clear-groups"]
  return ["setpriv", [...ids, "env", "-i", `HOME=${work}`, "PATH=/usr/bin:/bin", ...args]]
}

const work = mkdtempSync(path.join("/var/tmp", "sifcrypt-bench-"))

async function build(tree: string): Promise<void> {
  console.log("\nBuild of a Debian minbase tree, as an ordinary user, with an RSA key")
  const input = (await measure("du", ["-sb", tree])).stdout.split("\t")[0] ?? "0"
  note("input", mebibytes(Number(input)))
  // Inside the peer the tree is read through the same page cache; both sides have it warm.
  const peer = await repeat(2, async () => {
    const { milliseconds } = await measure(peerRun, [
      ...["--bind", tree, "--bind", work, String(USER)],
      ...["apptainer", "build", "-F", "--pem-path", `${work}/public-pkcs1.pem`, `${work}/peer.sif`, tree],
    ])
    return milliseconds
  })
  note("apptainer build (gocryptfs image)", seconds(peer))
  note("its image", mebibytes(statSync(`${work}/peer.sif`).size))
  for (const [name, options, wanted] of [
    ["zstd", ["--compression", "zstd"], 10],
    ["gzip", ["--compression", "gzip"], 6],
    ["gocryptfs", ["--format", "gocryptfs"], 10],
  ] as const) {
    const output = `${work}/${name}.sif`
    let memory = 0
    const time = await repeat(3, async () => {
      const [program, args] = asUser([
        command,
        ...["build", "-F", "--pem-path", `${work}/public.pem`, ...options, output, tree],
      ])
      const measured = await measure(program, args)
      memory = Math.max(memory, measured.peakMemory)
      return measured.milliseconds
    })
    const ratio = peer / time
    note(`sifcrypt build, ${name}`, seconds(time))
    note("its image", mebibytes(statSync(output).size))
    goal(`build ${name}, times faster`, ratio.toFixed(1), `at least ${wanted}`, ratio >= wanted)
    goal(`build ${name}, memory`, mebibytes(memory), "below 256 MiB", memory < 256 << 20)
  }
}

/** Reads every file once, as one stream, and prints the seconds it took. */
function readAll(folder: string): string {
  const files = `find ${folder} -xdev -type f -print0 | xargs -0 cat >/dev/null`
  return `start=$(date +%s%N); ${files}; end=$(date +%s%N); echo $(( (end - start) / 1000 ))`
}

async function timeReading(program: string, args: readonly string[]): Promise<number> {
  const { stdout } = await measure(program, args)
  return Number(stdout.trim().split("\n").at(-1)) / 1000
}

async function reading(tree: string): Promise<void> {
  console.log("\nReading every file of that tree (find | xargs cat)")
  const mountPoint = `${work}/mount`
  mkdirSync(mountPoint, { recursive: true })
  const plain = `${work}/plain.sqfs`
  await measure("mksquashfs", [
    tree,
    plain,
    "-comp",
    "zstd",
    "-Xcompression-level",
    "3",
    "-quiet",
    "-no-progress",
    "-noappend",
  ])
  await measure("mount", ["-o", "loop,ro", plain, mountPoint])
  let kernelWarm: number
  try {
    const read = (): Promise<number> => timeReading("bash", ["-c", readAll(mountPoint)])
    note("kernel squashfs, not encrypted, cold", seconds(await repeat(3, read, dropCaches)))
    await read()
    kernelWarm = await repeat(5, read)
    note("kernel squashfs, not encrypted, warm", seconds(kernelWarm))
  } finally {
    await measure("umount", [mountPoint])
  }

  const inside = [
    ...["--bind", work, String(USER), "apptainer", "-s", "exec", "--userns", "--no-mount", "home,cwd,tmp"],
    ...["--pem-path", `${work}/private-pkcs1.pem`, `${work}/peer.sif`, "bash", "-c"],
  ]
  const peerCold = await repeat(
    3,
    () => timeReading(peerRun, [...inside, readAll("/usr /etc /var /lib /opt")]),
    dropCaches,
  )
  note("apptainer's unprivileged stack, cold", seconds(peerCold))
  const peerTwice = `${readAll("/usr /etc /var /lib /opt")} >/dev/null; ${readAll("/usr /etc /var /lib /opt")}`
  note(
    "apptainer's unprivileged stack, warm",
    seconds(await repeat(3, () => timeReading(peerRun, [...inside, peerTwice]))),
  )

  for (const [kind, file] of [
    ["LUKS2", "zstd.sif"],
    ["gocryptfs", "gocryptfs.sif"],
    ["gocryptfs, the peer's image", "peer.sif"],
  ] as const)
    await readingOurs(kind, `${work}/${file}`, mountPoint, { peerCold, kernelWarm })
}

/** One process, whatever the kind of image; measured against the peer's three and the kernel. */
async function readingOurs(
  kind: string,
  file: string,
  mountPoint: string,
  beside: { readonly peerCold: number; readonly kernelWarm: number },
): Promise<void> {
  const image = await open(file, { unlock: [{ key: { file: `${work}/private.pem` } }] })
  const read = (): Promise<number> => timeReading("bash", ["-c", readAll(mountPoint)])
  let cold: number
  let warm: number
  let memory = 0
  try {
    const times: number[] = []
    for (let i = 0; i < 3; i++) {
      await dropCaches()
      await using mount = await image.mount(mountPoint, { engine: "userspace" })
      times.push(await read())
      memory = Math.max(memory, residentPeak(mount.info.pid ?? 0))
    }
    cold = median(times)
    await using mount = await image.mount(mountPoint, { engine: "userspace" })
    await read()
    warm = await repeat(5, read)
    memory = Math.max(memory, residentPeak(mount.info.pid ?? 0))
  } finally {
    await image.close()
  }
  note(`sifcrypt userspace mount (${kind}), cold`, seconds(cold))
  note(`sifcrypt userspace mount (${kind}), warm`, seconds(warm))
  const faster = beside.peerCold / cold
  goal(`cold read (${kind}), times faster than apptainer`, faster.toFixed(1), "at least 2", faster >= 2)
  const slower = warm / beside.kernelWarm
  goal(`warm read (${kind}), times the kernel's squashfs`, slower.toFixed(2), "at most 1.3", slower <= 1.3)
  goal(`FUSE server's memory (${kind})`, mebibytes(memory), "below 32 MiB", memory < 32 << 20)
}

const isPayload = ({ command }: Resident): boolean => /^(?:\S*\/)?(?:sh|sleep|find|xargs|cat) /.test(command)

/** Resident memory of a command and all below it but the payload: the most, and the most since the command has left the stage. */
async function memoryOfAll(
  program: string,
  args: readonly string[],
): Promise<{ readonly starting: number; readonly running: number }> {
  const child = spawn(program, args, { stdio: "ignore", cwd: "/" })
  const ended = once(child, "close")
  let starting = 0
  let running = 0
  while (child.exitCode === null && child.signalCode === null) {
    const processes = processesBelow(child.pid ?? 0)
    const sum = processes.reduce((total, one) => total + (isPayload(one) ? 0 : one.resident), 0)
    starting = Math.max(starting, sum)
    if (processes.some(({ command }) => command.includes("main.js"))) running = 0
    else if (processes.some(isPayload)) running = Math.max(running, sum)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  await ended
  return { starting, running }
}

async function startUp(): Promise<void> {
  console.log("\nStarting /bin/true in the image, as an ordinary user")
  const timeOf = async (program: string, args: readonly string[]): Promise<number> =>
    Number((await measure(program, args, "/")).stdout) / 1000
  const exec = (image: string, ...argv: readonly string[]): readonly string[] => [
    ...[command, "exec", "--engine", "userspace"],
    ...["--pem-path", `${work}/private.pem`, image, ...argv],
  ]
  const peerExec = ["apptainer", "-s", "exec", "--userns", "--pem-path", `${work}/private-pkcs1.pem`]
  // In turn, so that all have the machine in the same state; each timed where it runs, in the same way.
  const times: Record<"peer" | "ours" | "node", number[]> = { peer: [], ours: [], node: [] }
  for (let i = 0; i < 11; i++) {
    times.peer.push(
      await timeOf(peerRun, [
        ...["--bind", work, String(USER), ...timed],
        ...[...peerExec, `${work}/peer.sif`, "/bin/true"],
      ]),
    )
    times.ours.push(await timeOf(...asUser([...timed, ...exec(`${work}/zstd.sif`, "/bin/true")])))
    times.node.push(await timeOf(...asUser([...timed, process.execPath, "-e", "0"])))
  }
  const [peer, ours, node] = [median(times.peer), median(times.ours), median(times.node)]
  note("apptainer exec --userns", seconds(peer))
  note("sifcrypt exec", seconds(ours))
  note("of which node itself", seconds(node))
  const limit = 2 * node + 60
  goal("exec, milliseconds", ours.toFixed(0), `at most ${limit.toFixed(0)} (2.0 x node + 60)`, ours <= limit)
  const ratio = peer / ours
  goal("exec, times faster", ratio.toFixed(1), "at least 4", ratio >= 4)
  const { starting, running } = await memoryOfAll(...asUser(exec(`${work}/zstd.sif`, "sleep", "2")))
  goal("exec, memory of all we start", mebibytes(starting), "below 120 MiB", starting < 120 << 20)
  goal("the same while it runs", mebibytes(running), "below 40 MiB", running < 40 << 20)
  for (const [kind, file] of [
    ["LUKS2", "zstd.sif"],
    ["gocryptfs", "gocryptfs.sif"],
  ] as const) {
    const readEverything = "find / -xdev -type f -print0 | xargs -0 cat >/dev/null; sleep 1"
    const reading = await memoryOfAll(...asUser(exec(`${work}/${file}`, "sh", "-c", readEverything)))
    goal(
      `while it runs, during and after reading every file (${kind})`,
      mebibytes(reading.running),
      "below 40 MiB",
      reading.running < 40 << 20,
    )
  }
}

async function openingKey(): Promise<void> {
  console.log("\nOpening the volume key of an RSA image")
  await using image = await sif.openSif(`${work}/zstd.sif`)
  const partition = image.primary()
  const header = await parseLuksHeader(image.reader, partition)
  const [message] = image.objects.filter(({ type }) => type === sif.DataType.cryptoMessage)
  if (message === undefined) throw new Error("the image has no crypto message")
  const key = await parsePrivateKey(privatePem, "the key")
  const secret = unwrapSecret(key, decodeCryptoMessage(await image.data(message, MAX_MESSAGE_SIZE)))
  if (secret === undefined) throw new Error("the message is for another key")
  const fd = openSync(`${work}/zstd.sif`, "r")
  const { areaSize, metadata } = header
  const { offset, size } = partition
  const time = await repeat(20, async () => {
    const started = performance.now()
    await loadAddon().luksUnlock({ fd, offset, size, areaSize, metadata, secret, keyslot: -1 })
    return performance.now() - started
  })
  goal("volume key, native call", seconds(time), "below 15 ms", time < 15)
}

/** An image of 4 GiB, nearly all of it a hole: the message goes behind it. */
async function sparseImage(file: string): Promise<void> {
  await measure(command, ["build", "--pem-path", `${work}/public.pem`, file, root + "/docs"])
  await using image = await sif.openSif(file)
  const partition = image.primary()
  const [message] = image.objects.filter(({ type }) => type === sif.DataType.cryptoMessage)
  if (message === undefined) throw new Error("the image has no crypto message")
  const data = await image.data(message, MAX_MESSAGE_SIZE)
  const size = 2 ** 32
  const record = (slot: number): number => image.header.tableOffset + slot * 585
  const bytes = Buffer.alloc(8)
  const target = await openFile(file, "r+")
  try {
    for (const [at, value] of [
      [record(partition.slot) + 25, size],
      [record(message.slot) + 17, partition.offset + size],
    ] as const) {
      bytes.writeBigInt64LE(BigInt(value))
      await target.write(bytes, 0, 8, at)
    }
    await target.write(data, 0, data.length, partition.offset + size)
  } finally {
    await target.close()
  }
}

async function changingRecipients(): Promise<void> {
  console.log("\nChanging the recipients of an image of 4 GiB")
  const image = `${work}/sparse.sif`
  await sparseImage(image)
  const opener = ["--pem-path", `${work}/private.pem`]
  const results: Record<"add" | "remove", { times: number[]; peaks: number[] }> = {
    add: { times: [], peaks: [] },
    remove: { times: [], peaks: [] },
  }
  for (let i = 0; i < 5; i++)
    for (const [name, args] of [
      ["add", ["--recipient", `${work}/second.pem`, image]],
      ["remove", [image, `${work}/second.pem`]],
    ] as const) {
      const measured = await measure(command, ["recipient", name, ...opener, ...args])
      results[name].times.push(measured.milliseconds)
      results[name].peaks.push(measured.peakMemory)
    }
  for (const [name, { times, peaks }] of Object.entries(results)) {
    const [time, peak] = [median(times), Math.max(...peaks)]
    goal(`recipient ${name}`, seconds(time), "below 300 ms", time < 300)
    goal(`recipient ${name}, memory`, mebibytes(peak), "below 64 MiB", peak < 64 << 20)
  }
}

/** Signing and verifying read all of an image; sha256sum and OpenSSL's command do no more than that. */
async function signatures(): Promise<void> {
  console.log("\nSigning and verifying an image of 4 GiB")
  const image = `${work}/signed.sif`
  await sparseImage(image)
  const hashing = async (program: string, ...args: readonly string[]): Promise<number> =>
    await repeat(3, async () => (await measure(program, [...args, image])).milliseconds)
  const sha256sum = await hashing("sha256sum")
  note("sha256sum", seconds(sha256sum))
  const opensslTime = await hashing("openssl", "dgst", "-sha256")
  note("openssl dgst -sha256", seconds(opensslTime))
  const sign = await measure(command, ["sign", "--key", `${work}/private.pem`, image])
  note("sifcrypt sign", seconds(sign.milliseconds))
  await measure(command, ["sign", "--secret-keyring", `${root}/test/vectors/sif/pgp-private.asc`, image])
  for (const [kind, keys] of [
    ["DSSE", ["--key", `${work}/public.pem`]],
    ["OpenPGP", ["--keyring", `${root}/test/vectors/sif/pgp-private.asc`]],
  ] as const) {
    let memory = 0
    const time = await repeat(3, async () => {
      const measured = await measure(command, ["verify", ...keys, image])
      memory = Math.max(memory, measured.peakMemory)
      return measured.milliseconds
    })
    note(`sifcrypt verify, ${kind}`, seconds(time))
    const speed = sha256sum / time
    goal(`verify ${kind}, of sha256sum's speed`, speed.toFixed(2), "at least 0.8", speed >= 0.8)
    note(`verify ${kind}, of openssl's speed`, (opensslTime / time).toFixed(2))
    goal(`verify ${kind}, memory`, mebibytes(memory), "below 64 MiB", memory < 64 << 20)
  }
}

const pair = generateKeyPairSync("rsa", { modulusLength: 2048 })
const privatePem = Buffer.from(pair.privateKey.export({ type: "pkcs8", format: "pem" }))

async function verifyingWhenRead(): Promise<void> {
  console.log("\nImages with a signed hash tree")
  const mountPoint = `${work}/mount`
  const credentials = [{ key: { file: `${work}/private.pem` } }]
  const signer = { keyPaths: [`${work}/public.pem`] }
  const addTree = async (image: string): Promise<number> =>
    (await measure(command, ["sign", "--tree", "--key", `${work}/private.pem`, image])).milliseconds
  const image = `${work}/zstd-tree.sif`
  await measure("cp", [`${work}/zstd.sif`, image])
  await addTree(image)
  // By turns, so that both meet the same disk.
  const times: Record<"unverified" | "verified", number[]> = { unverified: [], verified: [] }
  for (let i = 0; i < 5; i++)
    for (const way of ["unverified", "verified"] as const) {
      await using opened = await open(image, {
        unlock: credentials,
        ...(way === "verified" ? { verify: signer } : {}),
      })
      await dropCaches()
      await using mount = await opened.mount(mountPoint, { engine: "userspace" })
      times[way].push(await timeReading("bash", ["-c", readAll(mount.info.target)]))
    }
  const [unverified, verified] = [median(times.unverified), median(times.verified)]
  note("reading every file, cold, not verified", seconds(unverified))
  note("reading every file, cold, verified", seconds(verified))
  const ratio = verified / unverified
  goal("verified reading, times the unverified", ratio.toFixed(2), "at most 1.25", ratio <= 1.25)
  const large = `${work}/large.sif`
  await sparseImage(large)
  note("sign --tree of 4 GiB", seconds(await addTree(large)))
  const opening = await repeat(10, async () => {
    const started = performance.now()
    const opened = await open(large, { unlock: credentials, verify: signer })
    const took = performance.now() - started
    await opened.close()
    return took
  })
  goal("opening 4 GiB, verified, with its key", seconds(opening), "below 100 ms", opening < 100)
}

async function besidePeers(): Promise<void> {
  // The cache may lie where an ordinary user cannot look.
  const tree = path.join(work, "tree")
  // Made where it is missing, which must not count as the peer's time.
  const peerRoot = (await measure(peerMake, [])).stdout.trim()
  await measure("cp", ["-a", await minbase(), tree])
  const registries = { work, tree, user: USER, peerRun, command }
  const layers = { work, tree, user: USER, peerRun, asUser, command: [command] }
  const sharing = { work, user: USER, command, peerRun, asUser }
  const reads = { work, tree, user: USER, peerRoot, peerRun, command, asUser }
  if (process.argv[2] === "registry") await imagesAtRegistries(registries)
  else if (process.argv[2] === "layers") await layersFromRegistry(layers)
  else if (process.argv[2] === "reads") await readingPlainImages(reads)
  else if (process.argv[2] === "sharens") {
    await measure(...asUser([command, "build", "--pem-path", `${work}/public.pem`, `${work}/zstd.sif`, tree]))
    await measure(peerRun, [
      ...["--bind", tree, "--bind", work, String(USER)],
      ...["apptainer", "build", "--pem-path", `${work}/public-pkcs1.pem`, `${work}/peer.sif`, tree],
    ])
    await manyOfOneImage(sharing)
  } else {
    await build(tree)
    await layersFromRegistry(layers)
    await imagesAtRegistries(registries)
    await reading(tree)
    await readingPlainImages(reads)
    await startUp()
    await manyOfOneImage(sharing)
    await startUpAsRoot({ work, peerRoot, peerRun, command: [command] })
    await openingKey()
    await changingRecipients()
    await signatures()
    await verifyingWhenRead()
    await jobsOnSlurm()
    await tenServices({ work, command })
  }
}

async function main(): Promise<void> {
  chownSync(work, USER, USER)
  chmodSync(work, 0o755)
  const files: Readonly<Record<string, string | Buffer>> = {
    "private.pem": privatePem,
    "private-pkcs1.pem": pair.privateKey.export({ type: "pkcs1", format: "pem" }),
    "second.pem": generateKeyPairSync("rsa", { modulusLength: 2048 }).publicKey.export({
      type: "spki",
      format: "pem",
    }),
    "public.pem": pair.publicKey.export({ type: "spki", format: "pem" }),
    "public-pkcs1.pem": pair.publicKey.export({ type: "pkcs1", format: "pem" }),
  }
  for (const [name, content] of Object.entries(files)) {
    writeFileSync(`${work}/${name}`, content, { mode: 0o600 })
    chownSync(`${work}/${name}`, USER, USER)
  }
  try {
    if (process.argv[2] === "batch") await jobsOnSlurm()
    else if (process.argv[2] === "compose") await tenServices({ work, command })
    else await besidePeers()
  } finally {
    for (const { target } of await listMounts())
      if (target.startsWith(work)) await measure("umount", [target])
    rmSync(work, { recursive: true, force: true })
  }
  if (!summary()) process.exitCode = 1
}

await main()
