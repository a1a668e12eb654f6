// Payloads on the kernel engine: what they see, and what the rest of the machine sees meanwhile.
import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { open, type ExecOptions, type Image, type Running } from "../../lib/index.ts"
import {
  assertSettles,
  cheapImageForBoth,
  collect,
  kernelState,
  needsDeviceMapper,
  output,
  withKey,
  type KernelState,
} from "./guest.ts"

describe("exec with the kernel engine", function () {
  let opened: Image
  let state: KernelState

  before(async function () {
    needsDeviceMapper(this)
    opened = await open(await cheapImageForBoth(), withKey)
    state = kernelState()
  })
  afterEach(async () => {
    await assertSettles(state)
  })
  after(async () => {
    await opened.close()
  })

  function start(argv: readonly string[], options: ExecOptions = {}): Promise<Running> {
    return opened.exec(argv, options)
  }

  it("is what root gets, and passes on exit status and identity", async () => {
    await using running = await start(["/bin/sh", "-c", "id -u; id -g; exit 7"])
    assert.equal(running.engine, "kernel")
    assert.equal(await collect(running.stdout), "0\n0\n")
    assert.deepEqual(await running.exited, { exitCode: 7 })
  })

  it("ends as its payload does that a signal ends", async () => {
    await using running = await start(["/bin/sh", "-c", "kill -TERM $$"])
    assert.deepEqual(await running.exited, { exitCode: 143, signal: "SIGTERM" })
  })

  it("S7: shows the root read-only, nosuid and nodev", async () => {
    await using running = await start(["/bin/cat", "/proc/self/mountinfo"])
    const root = (await collect(running.stdout)).split("\n").find((line) => line.split(" ")[4] === "/")
    const flags = root?.split(" ")[5]?.split(",") ?? []
    for (const flag of ["ro", "nosuid", "nodev"]) assert.ok(flags.includes(flag), root)
  })

  it("S22: makes a mapping that names nothing, has no node, and goes with its last user", async () => {
    await using running = await start(["/bin/cat"])
    const { loops, mappings, nodes } = kernelState()
    assert.deepEqual(nodes, ["control"])
    assert.equal(mappings.length, 1)
    const name = mappings[0]?.split(" ")[1] ?? ""
    assert.match(name, /^sifcrypt-[0-9a-f]{32}$/)
    assert.equal(loops.length, 1)
    const loop = loops[0]?.split(" ")[0] ?? ""
    for (const [flag, value] of [
      [`/sys/block/${loop}/loop/autoclear`, "1"],
      [`/sys/block/${loop}/ro`, "1"],
      [`/sys/block/${mappings[0]?.split(" ")[0] ?? ""}/ro`, "1"],
    ] as const)
      assert.equal(readFileSync(flag, "utf8").trim(), value, flag)
    // The key is in the kernel's keyring; the table only refers to it.
    assert.match(output("dmsetup", ["table", name]), / crypt aes-xts-plain64 :64:logon:\S+ 0 7:\d+ 8192 /)
    running.stdin?.end()
    assert.deepEqual(await running.exited, { exitCode: 0 })
  })

  it("keeps the mount in the payload's own namespace", async () => {
    await using running = await start(["/bin/cat"])
    assert.deepEqual(kernelState().mounts, state.mounts)
    running.stdin?.end()
    await running.exited
  })

  it("ends with its caller's signal", async () => {
    const controller = new AbortController()
    const running = await start(["/bin/sleep", "1000"], { signal: controller.signal })
    controller.abort(new Error("enough"))
    await assert.rejects(running.exited, /enough/)
  })
})
