// A requested AppArmor profile, on both engines and for ordinary users: in force, or an error. The guest's kernel has AppArmor
// (scripts/test.sh turns it on), and nothing is confined until a profile is loaded.
import assert from "node:assert/strict"
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { open, type ExecOptions } from "../../lib/index.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { cheapImageForBoth, collect, needsDeviceMapper, output, withKey } from "./guest.ts"

const securityfs = "/sys/kernel/security"
const profile = `profile sifcrypt-test flags=(attach_disconnected, mediate_deleted) {
  file,
  capability,
  network,
  mount,
  umount,
  pivot_root,
  signal,
  ptrace,
  unix,
  deny /data/hello r,
}
`

describe("S18: AppArmor", function () {
  before(function () {
    needsDeviceMapper(this)
    if (!existsSync("/sys/module/apparmor/parameters/enabled"))
      skip(this, "this kernel has no AppArmor, or was started without it (lsm=apparmor)")
    output("mount", ["-t", "securityfs", "securityfs", securityfs])
    const file = path.join(newFolder("profile"), "profile")
    writeFileSync(file, profile)
    output("apparmor_parser", ["--replace", "--skip-cache", file])
  })
  after(() => {
    if (!existsSync(path.join(securityfs, "apparmor"))) return
    writeFileSync(path.join(securityfs, "apparmor", ".remove"), "sifcrypt-test")
    output("umount", [securityfs])
  })

  const script = "read line </proc/self/attr/current; echo $line; cat /data/hello 2>&1"
  const refused = "cat: can't open '/data/hello': Permission denied\n"

  for (const engine of ["kernel", "userspace"] as const)
    for (const [who, security] of [
      ["root's payload", ["apparmor:sifcrypt-test"]],
      ["a payload of another user", ["apparmor:sifcrypt-test", "uid:77"]],
    ] as const)
      it(`is in force with the ${engine} engine: ${who}`, async () => {
        await using opened = await open(await cheapImageForBoth(), withKey)
        const run = async (options: ExecOptions): Promise<string> => {
          await using running = await opened.exec(["/bin/sh", "-c", script], { engine, ...options })
          return await collect(running.stdout)
        }
        assert.equal(await run({ security }), `sifcrypt-test (enforce)\n${refused}`)
      })

  it("a profile that is not loaded is an error, and without one all is as ever", async () => {
    await using opened = await open(await cheapImageForBoth(), withKey)
    const security = ["apparmor:sifcrypt-none"]
    await assert.rejects(async () => {
      await using running = await opened.exec(["/bin/true"], { security })
      await running.exited
    }, /attr\/exec|AppArmor/)
    await using running = await opened.exec(["/bin/sh", "-c", script])
    assert.equal(await collect(running.stdout), "unconfined\nhello\n")
    assert.equal(readFileSync("/proc/self/attr/current", "utf8"), "unconfined\n")
  })
})
