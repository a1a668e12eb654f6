// The way in through a real sshd: what its list of keys says is what a shell gets. As root, whose shell lets somebody in.
import assert from "node:assert/strict"
import { execFileSync, spawn } from "node:child_process"
import { existsSync, lstatSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { sshArguments } from "../../../lib/batch/authenticators.ts"
import { JobSet, type Manifest } from "../../../lib/batch/job-set.ts"
import { keepOut, letIn } from "../../../lib/batch/ssh-access.ts"
import { quoted } from "../../../lib/batch/submit.ts"
import { freePort } from "../../support/registry.ts"
import { newFolder } from "../../support/scratch.ts"
import { skip } from "../../support/skip.ts"
import { waitFor } from "../../support/processes.ts"

describe("the way to a broker through sshd", () => {
  it("starts what was meant, whatever is in its words, and leaves what else is there byte by byte", async function () {
    if (process.getuid?.() !== 0) skip(this, "needs root, whose shell lets somebody in")
    const home = newFolder("ssh-access")
    const authorized = path.join(home, ".ssh", "authorized_keys")
    mkdirSync(path.dirname(authorized), { mode: 0o700 })
    // A comment that is no UTF-8.
    const others = Buffer.from("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9Q m\xfcller\n", "latin1")
    writeFileSync(path.join(home, "keys"), others, { mode: 0o600 })
    symlinkSync(path.join(home, "keys"), authorized)
    const port = await freePort()
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", path.join(home, "host")])
    mkdirSync("/run/sshd", { recursive: true })
    const settings = [
      ...[
        `Port ${port}`,
        "ListenAddress 127.0.0.1",
        `HostKey ${home}/host`,
        `PidFile ${home}/pid`,
        "UsePAM no",
      ],
      ...[`AuthorizedKeysFile ${authorized}`, "StrictModes no", "PermitRootLogin yes"],
    ]
    writeFileSync(path.join(home, "sshd_config"), `${settings.join("\n")}\n`)
    const sshd = spawn("/usr/sbin/sshd", ["-D", "-f", path.join(home, "sshd_config")], { stdio: "ignore" })
    const before = process.env["HOME"]
    process.env["HOME"] = home
    try {
      await waitFor("sshd listens", () => existsSync(path.join(home, "pid")))
      const set = await JobSet.create(newFolder("sets"), { id: "odd" } as unknown as Manifest)
      const words = [`it's`, `a "quote"`, String.raw`back\slash`, String.raw`both\"`, "$HOME `id`"]
      await letIn(set, "127.0.0.1", port, `printf '%s\\n' ${words.map(quoted).join(" ")}`)
      const place = { host: "127.0.0.1", port: 0, publicKey: "", pid: 0 }
      const ssh = sshArguments(set, { ...place, ssh: { port, user: "root", socket: "" } })
      assert.equal(execFileSync("ssh", ssh, { encoding: "utf8", input: "" }), `${words.join("\n")}\n`)
      await keepOut(set)
      assert.deepEqual(readFileSync(authorized), others)
      assert.ok(lstatSync(authorized).isSymbolicLink())
    } finally {
      process.env["HOME"] = before
      sshd.kill()
    }
  })
})
