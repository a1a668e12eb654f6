// What is written over an image with the kernel engine: encrypted overlays, ext images, limits of cgroups.
import assert from "node:assert/strict"
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { gunzipSync } from "node:zlib"
import { createOverlay, open, type ExecOptions, type Image } from "../../lib/index.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { vectorPath } from "../vectors/load.ts"
import {
  assertSettles,
  cheapImageForBoth,
  collect,
  kernelState,
  needsDeviceMapper,
  withKey,
  type KernelState,
} from "./guest.ts"

describe("overlays with the kernel engine", function () {
  let opened: Image
  let state: KernelState
  let folder: string

  before(async function () {
    needsDeviceMapper(this)
    opened = await open(await cheapImageForBoth(), withKey)
    folder = newFolder("overlays")
    state = kernelState()
  })
  afterEach(async () => {
    await assertSettles(state)
  })
  after(async () => {
    await opened.close()
  })

  async function sh(script: string, options: ExecOptions): Promise<{ text: string; code: number }> {
    await using running = await opened.exec(["/bin/sh", "-c", script], { engine: "kernel", ...options })
    assert.equal(running.engine, "kernel")
    const text = await collect(running.stdout)
    return { text, code: (await running.exited).exitCode }
  }
  const rootFlags = 'while read a b c d e; do [ "$b" = / ] && flags=$d; done </proc/self/mounts; echo $flags'

  async function assertRoot(options: ExecOptions, writable: boolean): Promise<void> {
    const { text } = await sh(rootFlags, options)
    const flags = text.trim().split(",")
    for (const flag of [writable ? "rw" : "ro", "nosuid", "nodev"]) assert.ok(flags.includes(flag), text)
  }

  it("A9: what is kept of an encrypted image's payload is encrypted", async () => {
    const file = path.join(folder, "encrypted.sif")
    await createOverlay({
      output: file,
      encrypt: true,
      recipients: [{ key: { file: testKeys().publicKey } }],
    })
    const options = { overlay: [file], overlayUnlock: [{ key: { file: testKeys().privateKey } }] }
    const marker = "marker of what is written 0123456789abcdef"
    const written = await sh(`echo "${marker}" > /data/kept; sync; echo $?`, options)
    assert.deepEqual(written, { text: "0\n", code: 0 })
    await assertSettles(state)
    assert.deepEqual(await sh("cat /data/kept", options), { text: `${marker}\n`, code: 0 })
    await assertSettles(state)
    assert.equal(readFileSync(file).includes(marker), false, "the backing file holds what was written")
    await assertRoot(options, true)
  })

  for (const version of readdirSync(vectorPath("releases")))
    it(`an encrypted overlay of ${version} is opened, and written`, async () => {
      const release = (name: string): string => vectorPath(`releases/${version}/${name}`)
      const file = path.join(folder, `${version}.sif`)
      writeFileSync(file, gunzipSync(readFileSync(release("overlay-encrypted.sif.gz"))), { mode: 0o600 })
      const options = { overlay: [file], overlayUnlock: [{ key: { file: release("key.pem") } }] }
      assert.deepEqual(await sh("echo kept >/frozen/kept && cat /frozen/kept", options), {
        text: "kept\n",
        code: 0,
      })
    })

  it("A9: a plain overlay of an encrypted image is refused unless it is asked for", async () => {
    const file = path.join(folder, "plain.img")
    await createOverlay({ output: file, sparse: true })
    for (const overlay of [file, folder])
      await assert.rejects(sh("true", { overlay: [overlay] }), { code: "ERR_RUN_PLAIN_OVERLAY" })
    const marker = "another marker fedcba9876543210"
    const options = { overlay: [file], plainOverlay: true }
    assert.equal((await sh(`echo "${marker}" > /data/kept`, options)).code, 0)
    await assertSettles(state)
    assert.ok(readFileSync(file).includes(marker), "the search finds what is there in the clear")
    assert.deepEqual(await sh("cat /data/kept; echo x > /data/kept", { overlay: [`${file}:ro`] }), {
      text: `${marker}\n`,
      code: 1,
    })
    await assertRoot(options, true)
  })

  it("S7: the kernel mounts no ext image that somebody else can write", async () => {
    const file = path.join(folder, "foreign.img")
    await createOverlay({ output: file, sparse: true })
    chownSync(file, 2345, 2345)
    const options = { overlay: [file], plainOverlay: true }
    await assert.rejects(sh("true", options), { code: "ERR_RUN_OVERLAY" })
    chownSync(file, 0, 0)
    chmodSync(file, 0o666)
    await assert.rejects(sh("true", options), { code: "ERR_RUN_OVERLAY" })
  })

  it("a folder, and memory", async () => {
    const upper = path.join(folder, "upper")
    mkdirSync(upper)
    await assertRoot({ overlay: [upper], plainOverlay: true }, true)
    assert.ok(existsSync(path.join(upper, "upper")))
    await assertRoot({ writableTmpfs: true }, true)
    await assertRoot({}, false)
    assert.deepEqual(await sh("echo x > /data/hello && cat /data/hello", { writableTmpfs: true }), {
      text: "x\n",
      code: 0,
    })
    assert.deepEqual(await sh("cat /data/hello", {}), { text: "hello\n", code: 0 })
  })

  it("limits are set, and their cgroup goes", async () => {
    const file = path.join(folder, "limits.toml")
    writeFileSync(file, "[pids]\nlimit = 33\n[memory]\nlimit = 67108864\n")
    const script =
      'read line < /proc/self/cgroup; at=/sys/fs/cgroup${line#0::}; cat "$at/memory.max" "$at/pids.max"'
    for (const options of [{ memory: 64 << 20, pidsLimit: 33 }, { applyCgroups: file }])
      assert.deepEqual(await sh(script, options), { text: "67108864\n33\n", code: 0 })
    const limits = { engine: "kernel", memory: 64 << 20, pidsLimit: 33 } as const
    const instance = await opened.startInstance("limited", [], limits)
    const { source, memoryLimit, processLimit, processes, memory, cpuTime } = instance.stats()
    assert.deepEqual([source, memoryLimit, processLimit], ["cgroup", 64 << 20, 33])
    assert.ok(processes > 0 && memory > 0 && cpuTime > 0, `${processes} ${memory} ${cpuTime}`)
    await instance.stop()
    assert.deepEqual(
      readFileSync("/proc/self/cgroup", "utf8").includes("sifcrypt"),
      false,
      "this process stays where it was",
    )
  })
})
