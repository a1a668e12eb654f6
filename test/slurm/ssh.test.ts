// The other way to a broker, for clusters without MUNGE's programs: through sshd. As root, whose shell lets somebody in.
import assert from "node:assert/strict"
import { execFileSync, spawn, type ChildProcess } from "node:child_process"
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs"
import path from "node:path"
import { build, certificate } from "../../lib/index.ts"
import { runProgram } from "../support/cli.ts"
import { waitFor } from "../support/processes.ts"
import { freePort } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"
import { SlurmCluster } from "../support/slurm.ts"
import { makeRootTree } from "../support/trees.ts"

describe("jobs on Slurm, through sshd", () => {
  const folder = newFolder("batch-ssh")
  const home = path.join(folder, "home")
  const file = (name: string): string => path.join(folder, name)
  const authorized = path.join(home, ".ssh", "authorized_keys")
  const others = "# mine\nssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9Q me@home\n"
  let cluster: SlurmCluster
  let sshd: ChildProcess
  let port: number

  before(async () => {
    cluster = await SlurmCluster.start(1)
    port = await freePort()
    mkdirSync(path.dirname(authorized), { recursive: true, mode: 0o700 })
    writeFileSync(authorized, others, { mode: 0o640 })
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", file("host")])
    mkdirSync("/run/sshd", { recursive: true })
    const settings = [
      ...[`Port ${port}`, "ListenAddress 127.0.0.1", `HostKey ${file("host")}`, `PidFile ${file("pid")}`],
      ...[`AuthorizedKeysFile ${authorized}`, "StrictModes no", "UsePAM no", "PermitRootLogin yes"],
      ...["PasswordAuthentication no", "KbdInteractiveAuthentication no"],
    ]
    writeFileSync(file("sshd_config"), `${settings.join("\n")}\n`)
    sshd = spawn("/usr/sbin/sshd", ["-D", "-f", file("sshd_config")], { stdio: "ignore" })
    writeFileSync(file("password"), "password\n", { mode: 0o600 })
    const password = { file: file("password") }
    await certificate.create({ filePrefix: file("one"), password, bits: 2048 })
    await certificate.add({
      file: file("one.pfx"),
      password,
      folder: path.join(home, ".sifcrypt", "certificates"),
    })
    const recipients = [{ key: { file: file("one-public.pem") } }]
    await build({ output: file("image.sif"), source: makeRootTree(), recipients })
    await waitFor("sshd listens", () => existsSync(file("pid")))
  })
  after(async () => {
    sshd.kill()
    await cluster[Symbol.asyncDispose]()
  })

  it("gives tasks their keys, and takes the way away when they have ended", async () => {
    const settings = `broker_host: 127.0.0.1, authenticator: ssh, ssh_port: ${port}, cache: ${file("cache")}`
    writeFileSync(
      file("sifcrypt.yaml"),
      `cluster: { time: 600, ${settings} }
images: [ { image: image.sif } ]
jobs: [ { id: one, tasks: [ { image: image.sif, command: [sh, -c, "cat /data/hello; sleep 2"], task_factory: { repeat: 2 } } ] } ]
`,
    )
    const options = { as: "self", env: { HOME: home } } as const
    const args = ["batch", "submit", "--json", "--password-file", file("password"), file("sifcrypt.yaml")]
    const set = (JSON.parse(await cluster.ok(args, options)) as { folder: string }).folder
    const [line = ""] = readFileSync(authorized, "utf8")
      .split("\n")
      .filter((one) => one.includes("restrict"))
    assert.match(
      line,
      /^restrict,command="env PATH='[^"']*' '\/[^"]*main\.js' batch relay '\/[^"]*'" ssh-ed25519 \S+ sifcrypt-batch-\S+$/,
    )
    assert.equal(statSync(path.join(set, "ssh", "key")).mode & 0o777, 0o600)
    // Nothing but the relay starts, whatever is asked for.
    const ssh = [
      "ssh",
      "-F",
      "none",
      "-p",
      String(port),
      "-i",
      path.join(set, "ssh", "key"),
      "-o",
      `UserKnownHostsFile=${path.join(set, "ssh", "known_hosts")}`,
    ]
    const asked = await runProgram([...ssh, "-l", "root", "127.0.0.1", "id"], {
      as: "self",
      input: "ssh e30=\n",
    })
    assert.deepEqual(JSON.parse(asked.text), { status: "refused", reason: "it is no request" })
    await cluster.ok(["batch", "status", "--wait", set], options)
    for (const task of ["task-00000-00000", "task-00000-00001"])
      assert.equal(readFileSync(path.join(set, "out", "one", task, "stdout.txt"), "utf8"), "hello\n")
    await waitFor("the broker ends", () => !existsSync(path.join(set, "broker.json")), 20_000)
    assert.equal(readFileSync(authorized, "utf8"), others)
    assert.equal(statSync(authorized).mode & 0o777, 0o640)
  })
})
