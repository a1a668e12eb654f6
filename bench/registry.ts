// Images at registries and with encrypted layers, beside skopeo, and for an encrypted SIF of them skopeo and Apptainer; on loopback.
import { execFileSync, spawn } from "node:child_process"
import { createHash, randomBytes } from "node:crypto"
import { once } from "node:events"
import { chmodSync, mkdirSync, rmSync, statSync, writeFileSync } from "node:fs"
import { open } from "node:fs/promises"
import path from "node:path"
import { checkLayer } from "../lib/ocicrypt/layer-cipher.ts"
import { LayerKey } from "../lib/ocicrypt/layer-key.ts"
import { Containerd } from "../test/interop/containerd.ts"
import { Registry } from "../test/support/registry.ts"
import { measure, median, residentPeak } from "./measure.ts"
import { filesOnDisk, layoutOf, layoutOfFile, layoutOfLayers } from "./layout.ts"
import { goal, mebibytes, note, seconds } from "./report.ts"

export interface RegistryBench {
  readonly work: string
  /** A small system. */
  readonly tree: string
  readonly user: number
  readonly peerRun: string
  readonly command: string
}

const SIZE = 1 << 30
const SMALL_LAYERS = 100
const SMALL: number = 40 << 10
const RUNS = 3

type Command = readonly [program: string, args: readonly string[]]

interface Compared {
  readonly ours: Command
  readonly peer: Command
  /** Makes their places empty. */
  readonly before: () => void
  readonly size: number
}

/** Runs both in turn, so that both meet the same machine. */
async function compare(what: string, { ours, peer, before, size }: Compared): Promise<void> {
  const times: readonly [number[], number[]] = [[], []]
  const work: readonly [number[], number[]] = [[], []]
  let memory = 0
  for (let run = 0; run < RUNS; run++)
    for (const [i, [program, args]] of [ours, peer].entries()) {
      before()
      const measured = await measure(program, args)
      times[i as 0 | 1].push(measured.milliseconds)
      work[i as 0 | 1].push(measured.processorMs)
      if (i === 0) memory = Math.max(memory, measured.peakMemory)
    }
  const [time, peerTime] = times.map(median) as [number, number]
  const [cost, peerCost] = work.map(median) as [number, number]
  note(`skopeo, ${what}`, `${seconds(peerTime)}, ${seconds(peerCost)} of processors`)
  note(
    `sifcrypt, ${what}`,
    `${seconds(time)}, ${seconds(cost)} of processors, ${mebibytes(size / (time / 1000))}/s`,
  )
  const ratio = peerTime / time
  goal(`${what}, of skopeo's speed`, ratio.toFixed(2), "at least 1.00", ratio >= 1)
  // On a busy machine, who has more threads gets more of it: what was used is what can be compared then.
  const share = cost / peerCost
  goal(`${what}, of skopeo's processor time`, share.toFixed(2), "at most 1.00", share <= 1)
  goal(`${what}, memory`, mebibytes(memory), "below 256 MiB", memory < 256 << 20)
}

interface ImgcryptBench {
  readonly place: string
  readonly fresh: () => void
  readonly publicKey: string
  readonly privateKey: string
  readonly encrypting: Command
  readonly decrypting: Command
  /** Makes `image.tar`. */
  readonly archive: Command
}

/** imgcrypt's client, which works on what a containerd has; the work is shared by both, so processor time is not compared. */
async function besideImgcrypt(bench: ImgcryptBench): Promise<void> {
  const { place, fresh, publicKey, privateKey } = bench
  const file = path.join(place, "image.tar")
  await measure(...bench.archive)
  await using containerd = await Containerd.start(path.join(place, "containerd"), "/bin/false", [])
  const client = (...args: readonly string[]): Command => containerd.command("images", ...args)
  await measure(...client("import", "--no-unpack", file))
  rmSync(file)
  const [plain, encrypted, back] = ["plain", "encrypted", "back"].map((tag) => `example.org/it:${tag}`) as [
    string,
    string,
    string,
  ]
  const encrypt = client("encrypt", "--recipient", `jwe:${publicKey}`, plain, encrypted)
  const decrypt = client("decrypt", "--key", privateKey, encrypted, back)
  const remove = (name: string): Command => client("rm", "--sync", name)
  for (const [what, ours, peer, made, others] of [
    ["encrypt", bench.encrypting, encrypt, encrypted, []],
    // It would find the layer that it is going to write.
    ["decrypt", bench.decrypting, decrypt, back, [remove(plain)]],
  ] as const) {
    if (what === "decrypt") await measure(...encrypt)
    for (const other of others) await measure(...other)
    const times: readonly [number[], number[]] = [[], []]
    for (let run = 0; run < RUNS; run++) {
      fresh()
      times[0].push((await measure(...ours)).milliseconds)
      times[1].push((await measure(...peer)).milliseconds)
      await measure(...remove(made))
    }
    const [time, peerTime] = times.map(median) as [number, number]
    note(`imgcrypt, ${what}`, seconds(peerTime))
    note(`sifcrypt, ${what}, beside it`, seconds(time))
    const ratio = peerTime / time
    goal(`${what}, of imgcrypt's speed`, ratio.toFixed(2), "at least 1.00", ratio >= 1)
  }
}

/** Bytes a second that a primitive does on this machine, now. */
function opensslSpeed(name: string): number {
  const args = ["speed", "-elapsed", "-seconds", "2", "-bytes", "1048576", "-evp", name]
  const said = execFileSync("openssl", args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] })
  const speed = /([\d.]+)k\s*$/.exec(said)?.[1]
  if (speed === undefined) throw new Error(`openssl speed says no number: ${said}`)
  return Number(speed) * 1000
}

/** All that is done with a ciphertext before the first byte of it is deciphered for anybody, and the same as OpenSSL does it. */
async function decipheringSpeed(file: string): Promise<void> {
  const key = new LayerKey(randomBytes(32), randomBytes(16), undefined)
  const handle = await open(file, "r")
  try {
    const blob = { fd: handle.fd, offset: 0, size: SIZE }
    const ratios: number[] = []
    for (let run = 0; run < RUNS; run++) {
      const limit = 1 / (1 / opensslSpeed("aes-256-ctr") + 1 / opensslSpeed("sha256"))
      const started = performance.now()
      await checkLayer(blob, key, Buffer.alloc(32))
      const speed = SIZE / ((performance.now() - started) / 1000)
      note("AES-256-CTR plus SHA-256, openssl speed", `${mebibytes(limit)}/s`)
      note("a layer's MAC, decrypting, and its digest", `${mebibytes(speed)}/s`)
      ratios.push(speed / limit)
    }
    const ratio = median(ratios)
    goal("decrypting and MAC, of openssl speed", ratio.toFixed(2), "at least 0.80", ratio >= 0.8)
  } finally {
    await handle.close()
  }
}

/** @param bench - `work` has `public.pem`, `private.pem` and `public-pkcs1.pem`. */
export async function imagesAtRegistries(bench: RegistryBench): Promise<void> {
  const { work, tree, user, peerRun, command } = bench
  const place = path.join(work, "registry")
  mkdirSync(place)
  chmodSync(place, 0o755)
  const at = (name: string): string => path.join(place, name)
  const env = ["env", "-i", `HOME=${place}`, "PATH=/usr/bin:/bin", `TMPDIR=${place}`]
  const ours = (...args: readonly string[]): Command => ["env", [...env.slice(1), command, ...args]]
  const skopeo = (...args: readonly string[]): Command => [
    "skopeo",
    ["copy", "-q", "--insecure-policy", ...args],
  ]

  console.log(
    `\nImages with a layer of ${mebibytes(SIZE)} that cannot be compressed, and a registry on loopback`,
  )
  const noise = at("noise")
  const hash = createHash("sha256")
  writeFileSync(noise, "")
  for (let have = 0; have < SIZE; have += 1 << 26) {
    const piece = randomBytes(1 << 26)
    hash.update(piece)
    writeFileSync(noise, piece, { flag: "a" })
  }
  const layout = at("layout")
  layoutOfFile(noise, `sha256:${hash.digest("hex")}`, layout)
  await using registry = await Registry.start()
  await using other = await Registry.start()
  const fresh = (): void => {
    for (const name of ["ours", "peer"]) rmSync(at(name), { recursive: true, force: true })
  }
  // Of names that a registry has it has the blobs, too: it is a new registry's folder each time.
  const empty = (one: Registry): void => {
    rmSync(path.join(one.folder, "data"), { recursive: true, force: true })
  }
  const source = `oci:${layout}:latest`
  const remote = `docker://${registry.host}/image:1`
  const between = (
    from: string,
    to: string,
  ): Readonly<Record<"push" | "pull", Pick<Compared, "ours" | "peer">>> => ({
    push: {
      ours: ours("image", "copy", from, to),
      peer: skopeo("--dest-tls-verify=false", "--preserve-digests", from, to),
    },
    pull: {
      ours: ours("image", "copy", "--disable-cache", to, `oci:${at("ours")}:latest`),
      peer: skopeo("--src-tls-verify=false", to, `oci:${at("peer")}:latest`),
    },
  })
  const emptied = (): void => {
    empty(registry)
  }
  const large = between(source, remote)
  await compare("push", { ...large.push, before: emptied, size: SIZE })
  await compare("pull", { ...large.pull, before: fresh, size: SIZE })
  await compare("copy from one registry to another", {
    ours: ours("image", "copy", "--disable-cache", remote, `docker://${other.host}/image:1`),
    peer: skopeo(
      ...["--src-tls-verify=false", "--dest-tls-verify=false", "--preserve-digests"],
      ...[remote, `docker://${other.host}/image:1`],
    ),
    before: () => {
      empty(other)
    },
    size: SIZE,
  })
  const layers = `${SMALL_LAYERS} layers of ${SMALL >> 10} KiB`
  const contents = Array.from({ length: SMALL_LAYERS }, () => randomBytes(SMALL))
  layoutOfLayers(contents, at("small"))
  const small = between(`oci:${at("small")}:latest`, remote)
  await compare(`push of ${layers}`, { ...small.push, before: emptied, size: SMALL_LAYERS * SMALL })
  await compare(`pull of ${layers}`, { ...small.pull, before: fresh, size: SMALL_LAYERS * SMALL })

  console.log("\nThe image with the large layer, encrypted and decrypted for an RSA key")
  const [publicKey, privateKey] = [path.join(work, "public.pem"), path.join(work, "private.pem")]
  const encrypting = ours("image", "encrypt", "-r", `jwe:${publicKey}`, source, `oci:${at("ours")}:latest`)
  await compare("encrypt", {
    ours: encrypting,
    peer: skopeo("--encryption-key", `jwe:${publicKey}`, source, `oci:${at("peer")}:latest`),
    before: fresh,
    size: SIZE,
  })
  const encrypted = `oci:${at("encrypted")}:latest`
  await measure(...ours("image", "encrypt", "-r", `jwe:${publicKey}`, source, encrypted))
  const decrypting = ours("image", "decrypt", "--key", privateKey, encrypted, `oci:${at("ours")}:latest`)
  await compare("decrypt", {
    ours: decrypting,
    peer: skopeo("--decryption-key", privateKey, encrypted, `oci:${at("peer")}:latest`),
    before: fresh,
    size: SIZE,
  })
  await besideImgcrypt({
    ...{ place, fresh, publicKey, privateKey, encrypting, decrypting },
    archive: ours("image", "copy", source, `oci-archive:${at("image.tar")}:example.org/it:plain`),
  })
  await decipheringSpeed(noise)
  fresh()

  console.log("\nAn encrypted SIF of a Debian image with encrypted layers, as an ordinary user")
  const system = at("system")
  layoutOf(tree, system)
  const sealed = `oci:${at("sealed")}:latest`
  await measure(...ours("image", "encrypt", "-r", `jwe:${publicKey}`, `oci:${system}`, sealed))
  await measure("chown", ["-R", `${user}:${user}`, place])
  const asUser = (...args: readonly string[]): Command => [
    "setpriv",
    [...["--reuid", String(user), "--regid", String(user), "--clear-groups"], ...env, ...args],
  ]
  const output = at("ours.sif")
  const times: readonly [number[], number[]] = [[], []]
  let [stagedByPeer, memory] = [0, 0]
  const staged = new Map<string, number>()
  const keys = ["--key", privateKey, "--pem-path", publicKey]
  const [program, args] = asUser(command, "build", "-F", ...keys, output, sealed)
  // The first one keeps what was compiled of the command's code.
  await measure(program, args)
  for (let run = 0; run < RUNS; run++) {
    rmSync(output, { force: true })
    const started = performance.now()
    const child = spawn(program, args, { stdio: ["ignore", "ignore", "inherit"] })
    const watch = setInterval(() => {
      memory = Math.max(memory, residentPeak(child.pid ?? 0))
      for (const [file, size] of filesOnDisk(child.pid ?? 0, at("absent")))
        staged.set(file, Math.max(size, staged.get(file) ?? 0))
    }, 10)
    const [status] = (await once(child, "close")) as [number | null]
    clearInterval(watch)
    if (status !== 0) throw new Error(`the build ends with status ${String(status)}`)
    times[0].push(performance.now() - started)
    // It writes one file, which is the image in the end: whatever else it had on a disk was staged.
    const { dev, ino } = statSync(output)
    staged.delete(`${dev}:${ino}`)
    const plain = at("plain")
    rmSync(plain, { recursive: true, force: true })
    const peerStarted = performance.now()
    const [program2, decrypt] = skopeo("--decryption-key", privateKey, sealed, `oci:${plain}:latest`)
    await measure(...asUser(program2, ...decrypt))
    const build = ["apptainer", "build", "-F", "--pem-path", `${work}/public-pkcs1.pem`, at("peer.sif")]
    await measure(peerRun, ["--bind", work, String(user), ...build, `oci:${plain}`])
    times[1].push(performance.now() - peerStarted)
    stagedByPeer = Number((await measure("du", ["-sb", plain])).stdout.split("\t")[0] ?? 0)
  }
  const [time, peer] = [median(times[0]), median(times[1])]
  note("skopeo copy --decryption-key, then apptainer build", seconds(peer))
  note("what lies plain on the disk meanwhile, at least", mebibytes(stagedByPeer))
  note("sifcrypt build --key", seconds(time))
  note("its image", mebibytes(statSync(output).size))
  const ratio = peer / time
  goal("encrypted OCI image to encrypted SIF, times faster", ratio.toFixed(1), "at least 5", ratio >= 5)
  const bytes = [...staged.values()].reduce((sum, size) => sum + size, 0)
  goal("the same, bytes staged on a disk", String(bytes), "0", bytes === 0)
  goal("the same, memory", mebibytes(memory), "below 256 MiB", memory < 256 << 20)
}
