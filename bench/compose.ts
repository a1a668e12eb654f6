// Services of one compose file, ours of an encrypted image, podman-compose's of a plain one: ten are started and ended, as root; and one is
// asked through a published port. In a machine of their own, as far as the network goes.
import { mkdirSync, writeFileSync } from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { startMachine } from "../test/support/machine.ts"
import { makeRootTree } from "../test/support/trees.ts"
import { measure } from "./measure.ts"
import { goal, note, seconds } from "./report.ts"

const SERVICES = 10
const IMAGE = "localhost/sifcrypt-bench:1"
const PORT = 18_080
/** How long is asked, and by how many at once. */
const SECONDS = 5
const ASKING = 16

/** What answers: Node's own server, in the same words for both. The image has none; the machine's program is bound in. */
function answering(): object {
  const program = "require('http').createServer((_, answer) => answer.end('hello\\n')).listen(80)"
  const prefix = path.resolve(process.execPath, "..", "..")
  const folders = ["/usr", "/lib", "/lib64", ...(prefix.startsWith("/usr") ? [] : [prefix])]
  return {
    entrypoint: [process.execPath, "-e", program],
    volumes: folders.map((folder) => `${folder}:${folder}:ro`),
    ports: [`${PORT}:80`],
    stop_signal: "SIGKILL",
  }
}

/** @param work - Has the keys. */
export async function tenServices({
  work,
  command,
}: {
  readonly work: string
  readonly command: string
}): Promise<void> {
  console.log(`\n${SERVICES} services of a compose file, up and down, and one that is asked, as root`)
  const place = path.join(work, "compose")
  mkdirSync(place)
  const tree = makeRootTree()
  const image = path.join(place, "image.sif")
  await measure(command, ["build", "--pem-path", path.join(work, "public.pem"), image, tree])
  const file = (name: string, services: Readonly<Record<string, object>>): string => {
    const key = { pem_path: path.join(work, "private.pem") }
    // YAML takes JSON.
    writeFileSync(path.join(place, name), JSON.stringify({ "x-sifcrypt": key, services }))
    return path.join(place, name)
  }
  const sleeping = (of: string): Readonly<Record<string, object>> =>
    Object.fromEntries(
      Array.from({ length: SERVICES }, (_, i) => [
        `s${i}`,
        { image: of, entrypoint: ["sleep", "1000"], stop_signal: "SIGKILL" },
      ]),
    )
  const machine = await startMachine()
  const [nsenter = "", ...there] = machine.wrapper
  const run = (...argv: string[]): ReturnType<typeof measure> => measure(nsenter, [...there, ...argv])
  /** Requests in a second, once it answers at all. */
  const ask = async (): Promise<number> => {
    const url = `http://127.0.0.1:${PORT}/`
    for (const late = performance.now() + 20_000; ;)
      try {
        await run("busybox", "wget", "-qO", "/dev/null", url)
        break
      } catch (error) {
        if (performance.now() > late) throw error
        await sleep(100)
      }
    const { stdout } = await run("wrk", "-t1", `-c${ASKING}`, `-d${SECONDS}s`, url)
    return Number(/^Requests\/sec:\s*([\d.]+)$/m.exec(stdout)?.[1])
  }
  try {
    const ours = (name: string, ...argv: string[]): ReturnType<typeof measure> =>
      run(command, "compose", "-p", "bench", "-f", path.join(place, name), ...argv)
    file("ours.yaml", sleeping(image))
    const up = await ours("ours.yaml", "up", "-d")
    const { stdout } = await ours("ours.yaml", "ps", "-q")
    const down = await ours("ours.yaml", "down", "-t", "0")
    note("services of ours that ran", String(stdout.trim().split("\n").length))
    note("sifcrypt compose up -d, encrypted image", seconds(up.milliseconds))
    note("sifcrypt compose down", seconds(down.milliseconds))
    file("asked.yaml", { asked: { image, ...answering() } })
    await ours("asked.yaml", "up", "-d")
    const answered = await ask()
    await ours("asked.yaml", "down", "-t", "0")
    note("sifcrypt, requests per second through a port", answered.toFixed(0))

    await measure("sh", ["-c", 'tar -C "$1" -c . | podman import - "$2"', "sh", tree, IMAGE])
    // Without cgroups and limits of its own podman runs on machines of every kind; crun looks at the folder all the same.
    const settings = path.join(place, "containers.conf")
    writeFileSync(
      settings,
      '[containers]\ncgroups = "disabled"\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n',
    )
    const theirs = file("theirs.yaml", sleeping(IMAGE))
    const asked = file("theirs-asked.yaml", { asked: { image: IMAGE, ...answering() } })
    // All in one mount namespace, in which podman's own mounts are.
    const script = `set -e
mount -t tmpfs tmpfs /sys/fs/cgroup
now() { date +%s%3N; }
run() { podman-compose -p sifcrypt-bench -f "$@" > /dev/null 2>&1; }
trap 'run ${theirs} down -t 0; run ${asked} down -t 0; podman rmi -f ${IMAGE} > /dev/null' EXIT
began=$(now); run ${theirs} up -d; up=$(now)
running=$(podman ps -q --filter label=io.podman.compose.project=sifcrypt-bench | wc -l)
before=$(now); run ${theirs} down -t 0; down=$(now)
run ${asked} up -d
for i in $(seq 200); do busybox wget -qO /dev/null http://127.0.0.1:${PORT}/ 2> /dev/null && break; sleep 0.1; done
rate=$(wrk -t1 -c${ASKING} -d${SECONDS}s http://127.0.0.1:${PORT}/ | sed -n 's/^Requests.sec: *//p')
echo $((up - began)) $running $((down - before)) $rate`
    const measured = await run("unshare", "-m", "env", `CONTAINERS_CONF=${settings}`, "sh", "-c", script)
    const [theirUp = 0, running = 0, theirDown = 0, theirRate = 0] = measured.stdout
      .trim()
      .split(" ")
      .map(Number)
    note("services of podman-compose that ran", String(running))
    note("podman-compose up -d, plain image", seconds(theirUp))
    note("podman-compose down", seconds(theirDown))
    note("podman-compose, requests per second through a port", theirRate.toFixed(0))
    const [upRatio, downRatio] = [theirUp / up.milliseconds, theirDown / down.milliseconds]
    goal("ten services up, times faster", upRatio.toFixed(1), "at least 1", upRatio >= 1)
    goal("ten services down, times faster", downRatio.toFixed(1), "at least 1", downRatio >= 1)
    note("requests per second, of theirs", (answered / theirRate).toFixed(2))
  } finally {
    machine.stop()
  }
}
