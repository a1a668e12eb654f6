// The kernel engine where others are about: no udev, a private /dev, loop devices that cannot be had.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { mkdirSync, rmdirSync } from "node:fs"
import { open, type Image } from "../../lib/index.ts"
import { cli, runProgram } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import {
  assertSettles,
  cheapImageForBoth,
  collect,
  kernelState,
  loadModule,
  mountPoint,
  needsDeviceMapper,
  withKey,
  type KernelState,
} from "./guest.ts"

/** What a container engine gives a container that may use loop devices: nothing of device-mapper, no loop device yet. */
const makeDev = `
  set -e
  mount -t tmpfs -o mode=755 dev /dev
  mknod -m 666 /dev/null c 1 3
  mknod -m 666 /dev/zero c 1 5
  mknod -m 666 /dev/random c 1 8
  mknod -m 666 /dev/urandom c 1 9
  mknod -m 666 /dev/tty c 5 0
  mknod -m 666 /dev/fuse c 10 229
  mknod -m 600 /dev/loop-control c 10 237`

describe("the kernel engine", function () {
  let image: string
  let state: KernelState

  before(async function () {
    needsDeviceMapper(this)
    image = await cheapImageForBoth()
    state = kernelState()
  })
  afterEach(async () => {
    await assertSettles(state)
  })

  it("A13: works without udev in a /dev of its own, in new IPC, PID and mount namespaces", async () => {
    const payload = ["exec", "--engine", "kernel", "--pem-path", testKeys().privateKey, image]
    const { status, text, stderr } = await runProgram(
      [process.execPath, cli, ...payload, "/bin/sh", "-c", "cat /data/hello; exit 7"],
      {
        as: "self",
        wrapper: [
          ...["unshare", "--mount", "--ipc", "--pid", "--fork", "--mount-proc"],
          ...["bash", "-c", `${makeDev}\nexec "$@"`, "own-dev"],
        ],
      },
    )
    assert.equal(status, 7, stderr)
    assert.equal(text, "hello\n")
  })
})

describe("A14: the kernel engine where no loop device can be had", function () {
  /** Folders stand where the devices should be. */
  const devices = Array.from({ length: 256 }, (_, number) => `/dev/loop${number}`)

  let image: string
  let state: KernelState

  before(async function () {
    needsDeviceMapper(this)
    image = await cheapImageForBoth()
    execFileSync("bash", ["-c", `${makeDev}\nmkdir /dev/shm /dev/pts /dev/mapper`])
    execFileSync("bash", [
      "-c",
      `mknod /dev/mapper/control c 10 "$(awk '$2 == "device-mapper" { print $1 }' /proc/misc)"`,
    ])
    for (const device of devices) mkdirSync(device)
    state = kernelState()
  })
  afterEach(async () => {
    await assertSettles(state)
  })
  after(() => {
    execFileSync("umount", ["--lazy", "/dev"])
    // The search has made all of them.
    execFileSync("rmmod", ["loop"])
    assert.ok(loadModule("loop"))
  })

  it("says so", async () => {
    await using opened = await open(image, withKey)
    await assert.rejects(opened.mount(mountPoint(), { engine: "kernel" }), {
      code: "ERR_LOOP_BUSY",
      message: /no usable loop device of 256/,
    })
  })

  it("with auto the payload runs in user space", async () => {
    await using opened = await open(image, withKey)
    await using running = await opened.exec(["/bin/cat", "/data/hello"])
    assert.equal(running.engine, "userspace")
    assert.equal(await collect(running.stdout), "hello\n")
    assert.deepEqual(await running.exited, { exitCode: 0 })
  })

  it("passes over the broken ones to one that works", async () => {
    rmdirSync("/dev/loop77")
    await using opened = await open(image, withKey)
    await using mount = await opened.mount(mountPoint(), { engine: "kernel" })
    assert.equal(mount.info.engine, "kernel")
    assert.match(kernelState().loops[0] ?? "", /^loop77 /)
  })
})

describe("the kernel engine without a part of the kernel", function () {
  let opened: Image
  let state: KernelState

  before(async function () {
    needsDeviceMapper(this)
    opened = await open(await cheapImageForBoth(), withKey)
    state = kernelState()
  })
  after(async () => {
    await opened.close()
  })

  for (const [module, message] of [
    ["dm-crypt", /dm-crypt/],
    ["squashfs", /No such device/],
    ["loop", /loop devices/],
  ] as const)
    it(`says that ${module} is missing, and with auto leaves the image to user space`, async () => {
      execFileSync("rmmod", [module])
      try {
        await assert.rejects(opened.mount(mountPoint(), { engine: "kernel" }), {
          code: "ERR_ENV_NO_KERNEL_SUPPORT",
          message,
        })
        const running = await opened.exec(["/bin/cat", "/data/hello"])
        assert.equal(running.engine, "userspace")
        assert.equal(await collect(running.stdout), "hello\n")
        assert.deepEqual(await running.exited, { exitCode: 0 })
      } finally {
        assert.ok(loadModule(module))
      }
      await assertSettles(state)
    })
})
