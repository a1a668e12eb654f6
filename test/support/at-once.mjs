// Opens one image many times at once, mounts it everywhere at once, runs something in each: `at-once.mjs HOW_OFTEN KEY IMAGE
// FOLDER`. Prints how often each step succeeded, as JSON; the first failure is the end.
import { mkdirSync } from "node:fs"
import { readFile } from "node:fs/promises"
import path from "node:path"
import { text } from "node:stream/consumers"
import { open } from "../../dist/index.js"

const [howOften, key, image, folder] = process.argv.slice(2)
const all = Array.from({ length: Number(howOften) }, (_, index) => index)
const count = (results, expected) => results.filter((one) => one === expected).length
const engine = "userspace"

const images = await Promise.all(all.map(() => open(image, { unlock: [{ key: { file: key } }] })))
const read = await Promise.all(images.map(async (one) => String(await one.readFile("/data/hello"))))

const points = all.map((index) => path.join(folder, `mount-${index}`))
for (const point of points) mkdirSync(point)
const mounts = await Promise.all(images.map((one, index) => one.mount(points[index], { engine })))
const seen = await Promise.all(points.map((point) => readFile(path.join(point, "data", "hello"), "utf8")))
await Promise.all(mounts.map((mount) => mount.unmount()))

const ran = await Promise.all(
  images.map(async (one) => {
    const running = await one.exec(["/bin/cat", "/data/hello"], { engine })
    running.stdin?.end()
    const [output, { exitCode }] = await Promise.all([text(running.stdout), running.exited])
    return `${exitCode} ${output}`
  }),
)
await Promise.all(images.map((one) => one.close()))
const result = {
  opened: images.length,
  read: count(read, "hello\n"),
  mounted: mounts.length,
  seen: count(seen, "hello\n"),
  ran: count(ran, "0 hello\n"),
}
process.stdout.write(JSON.stringify(result))
