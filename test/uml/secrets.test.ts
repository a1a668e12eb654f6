// Secrets where a crash could leave them: every process of ours is made to dump its memory, on a machine that keeps all dumps.
// And what a payload that is root can read of the processes around it.
import assert from "node:assert/strict"
import { readdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { open } from "../../lib/index.ts"
import { finish, startProgram, startSifcrypt } from "../support/cli.ts"
import { passphrase, testKeys } from "../support/keys.ts"
import { processesBelow, waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import {
  assertSettles,
  cheapImageForBoth,
  collect,
  imageForBoth,
  kernelState,
  needsDeviceMapper,
  output,
  rootPartition,
  unwrappedSecret,
  withKey,
  withLoop,
  type KernelState,
} from "./guest.ts"

const pattern = "/proc/sys/kernel/core_pattern"

describe("S31: secrets", function () {
  let image: string
  let state: KernelState
  let formerPattern: string
  const cores = newFolder("cores")
  const secrets = new Map<string, Buffer>()

  before(async function () {
    needsDeviceMapper(this)
    image = await cheapImageForBoth()
    const { privateKey } = testKeys()
    const secret = await unwrappedSecret(image, privateKey)
    const folder = newFolder("secrets")
    const [secretFile, keyFile] = ["secret", "volume-key"].map((name) => path.join(folder, name)) as [
      string,
      string,
    ]
    writeFileSync(secretFile, secret)
    await withLoop(image, await rootPartition(image), (device) => {
      const dump = ["luksDump", "--dump-volume-key", "--batch-mode", "--key-file", secretFile]
      output("cryptsetup", [...dump, "--volume-key-file", keyFile, device])
    })
    secrets.set("the secret", secret)
    const key = readFileSync(keyFile)
    assert.equal(key.length, 64)
    // As it is expanded for AES its halves are, too.
    secrets.set("the volume key", key.subarray(0, 32))
    secrets.set("the second half of the volume key", key.subarray(32))
    secrets.set("the passphrase", Buffer.from(passphrase))
    const pem = readFileSync(privateKey, "utf8").split("\n")
    secrets.set("the private key", Buffer.from(pem[6] ?? assert.fail()))
    formerPattern = readFileSync(pattern, "utf8")
    writeFileSync(pattern, `${cores}/core.%e.%p`)
    output("prlimit", ["--pid", String(process.pid), "--core=unlimited"])
    state = kernelState()
  })
  after(() => {
    writeFileSync(pattern, formerPattern)
    output("prlimit", ["--pid", String(process.pid), "--core=0"])
  })

  /** Names of dumps; none of them may hold a secret. */
  function dumps(): string[] {
    const names = readdirSync(cores)
    for (const name of names) {
      const bytes = readFileSync(path.join(cores, name))
      for (const [what, secret] of secrets) assert.ok(!bytes.includes(secret), `${what} is in ${name}`)
    }
    return names
  }

  it("would be found in a dump", async () => {
    const secret = Buffer.from("0123456789abcdef-a-secret-to-find")
    const child = startProgram(["sh", "-c", `read x; : ${secret.toString()}`], { as: "self" })
    const ended = finish(child, { holdInput: true })
    await waitFor("the shell", () => processesBelow(child.pid ?? 0)[0]?.command.startsWith("sh "))
    child.kill("SIGABRT")
    await ended
    const [name = "", ...others] = readdirSync(cores)
    assert.deepEqual(others, [])
    assert.ok(readFileSync(path.join(cores, name)).includes(secret))
    output("rm", [path.join(cores, name)])
  })

  for (const engine of ["kernel", "userspace"] as const)
    it(`are in no dump of a process of a run, ${engine} engine`, async () => {
      await using opened = await open(image, withKey)
      /** The starter's processes in the order of their numbers: main, then its children. */
      const starters = (): number[] =>
        processesBelow(process.pid)
          .filter(({ command }) => command.startsWith("sifcrypt-starter "))
          .map(({ pid }) => pid)
          .sort((a, b) => a - b)
      const count = engine === "kernel" ? 2 : 3
      /** The one that unlocks, or the one that serves. */
      const holder = 1
      const holders: number[] = []
      for (let victim = 0; victim < count; victim++)
        for (const signal of ["SIGABRT", "SIGSEGV"] as const) {
          const running = await opened.exec(["/bin/sh", "-c", "echo; read line"], { engine })
          await new Promise((resolve) => running.stdout?.once("data", resolve))
          const all = starters()
          assert.equal(all.length, count)
          const pid = all[victim] ?? assert.fail()
          if (victim === holder) holders.push(pid)
          process.kill(pid, signal)
          await running.exited.catch(() => undefined)
          await assertSettles(state)
        }
      const names = dumps()
      assert.ok(names.some((name) => name.includes("sifcrypt")))
      assert.equal(holders.length, 2)
      for (const pid of holders) assert.ok(!names.some((name) => name.endsWith(`.${pid}`)))
    })

  it("are in no dump of a command that derives a key", async () => {
    const flags = ["--engine", "kernel", "--passphrase-file", testKeys().passphraseFile]
    const command = startSifcrypt(["exec", ...flags, await imageForBoth(), "/bin/true"], { as: "self" })
    const ended = finish(command)
    await waitFor(
      "Argon2's memory",
      () => {
        const status = readFileSync(`/proc/${String(command.pid)}/status`, "utf8")
        return Number(/^VmRSS:\s*(\d+) kB$/m.exec(status)?.[1] ?? 0) > 300 * 1024
      },
      60_000,
    )
    command.kill("SIGABRT")
    assert.equal((await ended).signal, "SIGABRT")
    assert.deepEqual(
      dumps().filter((name) => name.includes("node")),
      [],
    )
    await assertSettles(state)
  })

  for (const engine of ["kernel", "userspace"] as const)
    it(`are not to be seen by a payload that is root in the processes around it, ${engine} engine`, async () => {
      await using opened = await open(image, withKey)
      const look =
        "for p in /proc/$PPID /proc/[0-9]*; do cat $p/cmdline $p/environ 2>/dev/null; echo $p; done; ls /proc/$PPID/fd"
      await using running = await opened.exec(["/bin/sh", "-c", look], { engine })
      const seen = Buffer.from(await collect(running.stdout), "utf8")
      assert.ok(seen.includes("crun"), "it sees its parent")
      for (const [what, secret] of secrets) assert.ok(!seen.includes(secret), what)
    })
})
