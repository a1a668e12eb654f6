// Ten services of one compose file, started and ended: ours of an encrypted image, podman-compose's of a plain one, as root.
import { mkdirSync, writeFileSync } from "node:fs"
import path from "node:path"
import { makeRootTree } from "../test/support/trees.ts"
import { measure } from "./measure.ts"
import { goal, note, seconds } from "./report.ts"

const SERVICES = 10
const IMAGE = "localhost/sifcrypt-bench:1"

/** @param work - Has the keys. */
export async function tenServices({
  work,
  command,
}: {
  readonly work: string
  readonly command: string
}): Promise<void> {
  console.log(`\n${SERVICES} services of a compose file, up and down, as root`)
  const place = path.join(work, "compose")
  mkdirSync(place)
  const tree = makeRootTree()
  const image = path.join(place, "image.sif")
  await measure(command, ["build", "--pem-path", path.join(work, "public.pem"), image, tree])
  const file = (name: string, of: string): string => {
    const services = Array.from(
      { length: SERVICES },
      (_, i) => `  s${i}:\n    image: ${of}\n    entrypoint: [sleep, "1000"]\n    stop_signal: SIGKILL\n`,
    )
    const key = `x-sifcrypt: { pem_path: ${path.join(work, "private.pem")} }\n`
    writeFileSync(path.join(place, name), `${key}services:\n${services.join("")}`)
    return path.join(place, name)
  }
  const ours = file("ours.yaml", image)
  const up = await measure(command, ["compose", "-p", "bench", "-f", ours, "up", "-d"])
  const { stdout } = await measure(command, ["compose", "-p", "bench", "ps", "-q"])
  const down = await measure(command, ["compose", "-p", "bench", "down", "-t", "0"])
  note("services of ours that ran", String(stdout.trim().split("\n").length))
  note("sifcrypt compose up -d, encrypted image", seconds(up.milliseconds))
  note("sifcrypt compose down", seconds(down.milliseconds))

  await measure("sh", ["-c", 'tar -C "$1" -c . | podman import - "$2"', "sh", tree, IMAGE])
  // Without cgroups and limits of its own podman runs on machines of every kind; crun looks at the folder all the same.
  const settings = path.join(place, "containers.conf")
  writeFileSync(
    settings,
    '[containers]\ncgroups = "disabled"\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n',
  )
  const theirs = file("theirs.yaml", IMAGE)
  // All in one mount namespace, in which podman's own mounts are.
  const script = `set -e
mount -t tmpfs tmpfs /sys/fs/cgroup
now() { date +%s%3N; }
run() { podman-compose -p sifcrypt-bench -f ${theirs} "$@" > /dev/null 2>&1; }
trap 'run down -t 0; podman rmi -f ${IMAGE} > /dev/null' EXIT
began=$(now); run up -d; up=$(now)
running=$(podman ps -q --filter label=io.podman.compose.project=sifcrypt-bench | wc -l)
before=$(now); run down -t 0; down=$(now)
echo $((up - began)) $running $((down - before))`
  const measured = await measure("unshare", ["-m", "env", `CONTAINERS_CONF=${settings}`, "sh", "-c", script])
  const [theirUp = 0, running = 0, theirDown = 0] = measured.stdout.trim().split(" ").map(Number)
  note("services of podman-compose that ran", String(running))
  note("podman-compose up -d, plain image", seconds(theirUp))
  note("podman-compose down", seconds(theirDown))
  const [upRatio, downRatio] = [theirUp / up.milliseconds, theirDown / down.milliseconds]
  goal("ten services up, times faster", upRatio.toFixed(1), "at least 1", upRatio >= 1)
  goal("ten services down, times faster", downRatio.toFixed(1), "at least 1", downRatio >= 1)
}
