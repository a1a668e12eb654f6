// An OCI image from a registry on loopback, encrypted, as an ordinary user: ours beside Apptainer's.
import { spawn } from "node:child_process"
import { once } from "node:events"
import { chownSync, mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs"
import path from "node:path"
import { filesOnDisk, layoutOf } from "./layout.ts"
import { measure, repeat, residentPeak } from "./measure.ts"
import { goal, mebibytes, note, seconds } from "./report.ts"
import { Registry } from "../test/support/registry.ts"

export interface LayersBench {
  readonly work: string
  readonly tree: string
  readonly user: number
  readonly peerRun: string
  /** The command of an ordinary user. */
  readonly asUser: (args: readonly string[]) => readonly [string, string[]]
  readonly command: readonly string[]
}

/** @param bench - `work` has `public.pem` and `public-pkcs1.pem`. */
export async function layersFromRegistry(bench: LayersBench): Promise<void> {
  const { work, tree, user, peerRun, asUser, command } = bench
  console.log("\nBuild of a Debian image from docker:// on loopback, as an ordinary user, with an RSA key")
  const layout = path.join(work, "layout")
  layoutOf(tree, layout)
  await using registry = await Registry.start()
  await registry.push(`oci:${layout}`, "debian:12")
  const source = `docker://${registry.host}/debian:12`
  // The home folder of the peer's user is a new one each time, and so is our cache.
  const peerTime = async (from: string): Promise<number> =>
    await repeat(2, async () => {
      const options = ["-F", "--no-https", "--pem-path", `${work}/public-pkcs1.pem`]
      const args = ["--bind", work, String(user), "apptainer", "build", ...options]
      return (await measure(peerRun, [...args, `${work}/peer-oci.sif`, from])).milliseconds
    })
  const peer = await peerTime(source)
  note("apptainer build", seconds(peer))
  const cache = path.join(work, "cache")
  const output = path.join(work, "oci.sif")
  const emptyCache = (): void => {
    rmSync(cache, { recursive: true, force: true })
    mkdirSync(cache)
    chownSync(cache, user, user)
  }
  const buildOf = (from: string): readonly [string, string[]] =>
    asUser([
      `SIFCRYPT_CACHEDIR=${cache}`,
      ...command,
      ...["build", "-F", "--pem-path", `${work}/public.pem`, output, from],
    ])
  let [memory, peak, blobs] = [0, 0, 0]
  const time = await repeat(3, async () => {
    emptyCache()
    rmSync(output, { force: true })
    const [program, args] = buildOf(source)
    const started = performance.now()
    const child = spawn(program, args, { stdio: ["ignore", "ignore", "inherit"] })
    const watch = setInterval(() => {
      const files = [...filesOnDisk(child.pid ?? 0, cache).values()]
      peak = Math.max(
        peak,
        files.reduce((sum, size) => sum + size, 0),
      )
      memory = Math.max(memory, residentPeak(child.pid ?? 0))
    }, 20)
    const [status] = (await once(child, "close")) as [number | null]
    clearInterval(watch)
    if (status !== 0) throw new Error(`the build ends with status ${String(status)}`)
    const sizes = readdirSync(path.join(cache, "blobs", "sha256")).map(
      (name) => statSync(path.join(cache, "blobs", "sha256", name)).blocks * 512,
    )
    blobs = sizes.reduce((sum, size) => sum + size, 0)
    return performance.now() - started
  })
  const image = statSync(output).size
  note("sifcrypt build", seconds(time))
  note("its image, and the blobs", `${mebibytes(image)}, ${mebibytes(blobs)}`)
  const ratio = peer / time
  goal("build docker://, times faster", ratio.toFixed(1), "at least 5", ratio >= 5)
  const share = peak / (image + blobs)
  goal("build docker://, peak disk of image and blobs", share.toFixed(2), "at most 1.00", share <= 1)
  goal("build docker://, memory", mebibytes(memory), "below 256 MiB", memory < 256 << 20)

  console.log("\nBuild of a definition file with that image as its base and a small %post, likewise")
  const definition = path.join(work, "bench.def")
  writeFileSync(
    definition,
    `Bootstrap: docker
From: ${registry.host}/debian:12

%post
    echo made >/etc/made

%environment
    export MADE=yes

%runscript
    cat /etc/made
`,
    { mode: 0o644 },
  )
  const peerDefinition = await peerTime(definition)
  note("apptainer build", seconds(peerDefinition))
  const ours = await repeat(3, async () => {
    emptyCache()
    const [program, args] = buildOf(definition)
    return (await measure(program, args)).milliseconds
  })
  note("sifcrypt build", seconds(ours))
  const faster = peerDefinition / ours
  goal("build of a definition file, times faster", faster.toFixed(1), "at least 6", faster >= 6)
}
