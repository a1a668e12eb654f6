// What limits do to payloads, as whoever runs this: `limits-cells.mjs KEY IMAGE FOLDER`. Prints JSON. One process for all,
// because a process takes seconds to start in the guest.
import { writeFileSync } from "node:fs"
import path from "node:path"
import { text } from "node:stream/consumers"
import { compose, open } from "../../dist/index.js"

const [keyFile = "", image = "", folder = ""] = process.argv.slice(2)
const file = path.join(folder, "limits.toml")
writeFileSync(file, "[memory]\nlimit = 67108864\n[pids]\nlimit = 12\n")

const opened = await open(image, { unlock: [{ key: { file: keyFile } }] })

async function sh(script, options) {
  try {
    const running = await opened.exec(["/bin/sh", "-c", script], options)
    running.stdin?.end()
    const [output, { exitCode }] = await Promise.all([text(running.stdout), running.exited])
    return `${output.trim().replaceAll("\n", " ")} ${exitCode}`.trim()
  } catch (error) {
    return error.code ?? String(error)
  }
}

/** Takes 100 MiB, and touches all of it. */
const greedy = "/bin/busybox dd if=/dev/zero of=/dev/null bs=100M count=1 2>/dev/null; echo $?"
/** Twenty processes at once; says how many there were when no more could be had, for which it takes none. */
const many =
  "set -- $(for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 9 >/dev/null & echo $i; done 2>/dev/null); echo $#"
/** Has to wait for its next turn: the kernel counts how often. */
const busy = `
  read -r line </proc/self/cgroup
  at=/sys/fs/cgroup\${line#0::}
  i=0
  while :; do
    i=$((i + 1))
    [ $((i % 1000)) != 0 ] || while read -r name value; do
      [ "$name $value" = "nr_throttled 0" ] || [ "$name" != nr_throttled ] || exit 0
    done <"$at/cpu.stat"
    [ $i -lt 3000000 ] || exit 1
  done`

/** The same of a service: what it prints. */
async function service(script, limits) {
  const file = path.join(folder, "compose.yaml")
  const entrypoint = ["/bin/sh", "-c", script.replaceAll("$", "$$$$")]
  const one = { image, entrypoint, network_mode: "none", deploy: { resources: { limits } } }
  writeFileSync(file, JSON.stringify({ "x-sifcrypt": { pem_path: keyFile }, services: { one } }))
  const project = compose.load({ files: [file], name: "limits" })
  try {
    await project.up()
    let printed = ""
    for await (const { data } of project.logs({ follow: true })) printed += data
    return printed.trim().replaceAll("\n", " ")
  } catch (error) {
    return error.code ?? String(error)
  } finally {
    await project.down()
  }
}

const cells = {}
const engine = process.geteuid() === 0 ? "kernel" : "userspace"
if (engine === "userspace") {
  cells["no limit, memory"] = await sh(greedy, { engine })
  cells["no limit, processes"] = await sh(many, { engine })
}
cells.memory = await sh(greedy, { engine, memory: 64 << 20 })
cells.processes = await sh(many, { engine, pidsLimit: 12 })
cells.cpu = await sh(busy, { engine, cpus: 0.5 })
cells["file, memory"] = await sh(greedy, { engine, applyCgroups: file })
cells["file, processes"] = await sh(many, { engine, applyCgroups: file })
cells["a service, memory and processes"] = await service(`${greedy}; ${many}`, { memory: "64M", pids: 12 })
await opened.close()
process.stdout.write(JSON.stringify(cells))
