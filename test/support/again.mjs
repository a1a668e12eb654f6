// One process that opens, mounts, reads and unmounts an image again and again, and says what it holds in between:
// again.mjs COUNT KEY IMAGE FOLDER
import { execFileSync } from "node:child_process"
import { mkdirSync, readdirSync, readFileSync } from "node:fs"
import path from "node:path"
import { open } from "../../dist/index.js"

const [, , count, key, image, folder] = process.argv
const place = path.join(folder, "mount")
mkdirSync(place)

/** What this process has, and how many there are of it and below it. */
function held() {
  global.gc()
  const status = readFileSync("/proc/self/status", "latin1")
  const children = execFileSync("ps", ["--no-headers", "-o", "pid", "--ppid", String(process.pid)])
  return {
    kibibytes: Number(/^VmRSS:\s*(\d+)/m.exec(status)[1]),
    descriptors: readdirSync("/proc/self/fd").length,
    threads: Number(/^Threads:\s*(\d+)/m.exec(status)[1]),
    // ps itself is one.
    children: children.toString().trim().split("\n").length - 1,
    mounts: readFileSync("/proc/self/mounts", "latin1")
      .split("\n")
      .filter((line) => line.includes(folder)).length,
  }
}

const samples = []
let read = 0
for (let round = 1; round <= Number(count); round++) {
  const opened = await open(image, { unlock: [{ key: { file: key } }], unsigned: "allow" })
  const mount = await opened.mount(place)
  if (readFileSync(path.join(place, "data", "hello"), "utf8") === "hello\n") read++
  await mount.unmount()
  if ((await opened.readFile("/data/hello")).toString() === "hello\n") read++
  await opened.close()
  // V8 and malloc have what they want to have after a tenth.
  if (round % Math.ceil(Number(count) / 10) === 0) samples.push(held())
}
process.stdout.write(JSON.stringify({ read, samples }))
