// A container's own network: what gets out, what gets in, and what is left. In a machine of the tests' own, as far as the network
// goes, so that no port can be anybody else's.
import assert from "node:assert/strict"
import type { ChildProcess } from "node:child_process"
import { chownSync, mkdirSync, writeFileSync } from "node:fs"
import path from "node:path"
import {
  finish,
  idOf,
  isRoot,
  packageRoot,
  runProgram,
  sifcrypt,
  sifcryptOk,
  startProgram,
  startSifcrypt,
  type As,
  type CommandOptions,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { startMachine, type Machine } from "../support/machine.ts"
import { allProcesses, processesOfGroup, waitFor, type ProcessInfo } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

let group = 77_000

describe("a network of the container's own", () => {
  const keys = testKeys()
  const tree = makeRootTree()
  let machine: Machine | undefined
  let wrapper: readonly string[]

  before(async function () {
    if (!isRoot) skip(this, "needs root, to make a machine's network")
    machine = await startMachine()
    wrapper = machine.wrapper
  })
  after(() => machine?.stop())

  it("a machine that cannot be made is told of", async () => {
    await assert.rejects(startMachine("echo no such disk >&2; false"), /no machine: no such disk/)
  })

  /** What a program of the machine finds there; undefined: nobody listens. */
  const get = async (url: string): Promise<string | undefined> => {
    const fetched = `fetch(${JSON.stringify(url)}).then((answer) => answer.text()).then(
      (text) => process.stdout.write(text), () => process.exit(1))`
    const { status, text } = await runProgram([...wrapper, process.execPath, "-e", fetched], { as: "self" })
    return status === 0 ? text : undefined
  }
  const answers = async (url: string): Promise<void> => {
    for (const end = Date.now() + 20_000; (await get(url)) !== "hello\n";)
      if (Date.now() > end) assert.fail(`${url} does not answer`)
  }

  it("a program is told by codes: a port that is taken, and a machine that pasta finds no way out of", async () => {
    const image = path.join(newFolder("network-codes"), "image.sif")
    await sifcryptOk(["build", image, tree], { as: "self" })
    const program = `
      const { open } = await import(${JSON.stringify(path.join(packageRoot, "dist", "index.js"))})
      const server = (await import("node:net")).createServer().listen(8080, "0.0.0.0")
      const image = await open(${JSON.stringify(image)})
      for (const options of [{ publish: ["8080:80"] }, { publish: ["8081:80"] }])
        await image.exec(["true"], { engine: "userspace", ...options }).then(
          () => console.log("started"),
          ({ code }) => console.log(code),
        )
      await image[Symbol.asyncDispose]()
      server.close()`
    const argv = ["unshare", "-n", process.execPath, "--input-type=module", "-e", program]
    const { text, stderr } = await runProgram(argv, { as: "self" })
    // pasta of 2024 and later starts without a way out.
    assert.match(text, /^ERR_RUN_PORT\n(?:ERR_RUN_NETWORK|started)\n$/, stderr)
  })

  for (const as of ["user", "self"] as const satisfies readonly As[])
    describe(as === "user" ? "of an ordinary user" : "of root", () => {
      const folder = newFolder(`network-${as}`, idOf(as))
      const runtime = path.join(folder, "runtime")
      const image = path.join(folder, "image.sif")
      const key = ["--engine", "userspace", "--pem-path", keys.privateKey]
      const options = (): CommandOptions => ({ as, group, wrapper, env: { XDG_RUNTIME_DIR: runtime } })
      const exec = async (...args: string[]): Promise<string> =>
        (await sifcryptOk(["exec", ...key, ...args], options())).text
      /** All that came of the commands; root's pasta gives the group up that marks the others. */
      const processes = (): ProcessInfo[] => {
        const marked = processesOfGroup(group)
        const isOurs = ({ parent, command }: ProcessInfo): boolean =>
          command.startsWith("pasta ") && marked.some(({ pid }) => pid === parent)
        return [...marked, ...(as === "self" ? allProcesses().filter(isOurs) : [])]
      }
      const nothingRuns = async (): Promise<void> => {
        await waitFor("the end of all processes", () => processes().length === 0)
      }

      before(async () => {
        mkdirSync(runtime, { mode: 0o700 })
        chownSync(runtime, idOf(as), idOf(as))
        await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree], { as })
      })
      afterEach(() => {
        for (const { pid } of processesOfGroup(group))
          try {
            process.kill(pid, "SIGKILL")
          } catch {
            // It has ended meanwhile.
          }
        group++
      })

      it("has a way out, a resolver, ports of its own, and nothing of the machine's loopback", async () => {
        const server = startProgram(
          [...wrapper, "busybox", "httpd", "-f", "-p", "127.0.0.1:8000", "-h", path.join(tree, "data")],
          { as: "self" },
        )
        try {
          await answers("http://127.0.0.1:8000/hello")
          const inside = await exec(
            ...["--network", "bridge", "--add-host", "registry.lan:192.0.2.1,six:::1", image, "sh", "-c"],
            `tail -2 /etc/hosts; busybox ip route | head -1; cat /etc/resolv.conf | head -1
             for to in 127.0.0.1 10.255.254.1 10.255.254.2 169.254.1.53; do
               busybox nc -w 1 $to 8000 </dev/null || echo closed
             done 2>/dev/null
             busybox nc -l -p 80 &
             for i in $(busybox seq 100); do
               busybox grep -q ':0050 0*:0000 0A' /proc/net/tcp /proc/net/tcp6 && echo listens && break
               sleep 0.1
             done
             kill %1`,
          )
          assert.deepEqual(inside.split("\n"), [
            "192.0.2.1\tregistry.lan",
            "::1\tsix",
            "default via 10.255.254.1 dev eth0 ",
            "nameserver 169.254.1.53",
            ...["closed", "closed", "closed", "closed", "listens", ""],
          ])
        } finally {
          server.kill("SIGKILL")
        }
        await nothingRuns()
      })

      it("an instance's published ports answer, its commands are in its network, and its end ends it", async () => {
        const publish = ["--publish", "127.0.0.1:8080:80,9001-9002:80-81", "--publish", "8053:8053/udp"]
        await sifcryptOk(["instance", "start", ...key, ...publish, image, `net-${as}`], options())
        const joined = startSifcrypt(
          ["exec", `instance://net-${as}`, "busybox", "httpd", "-f", "-p", "80", "-h", "/data"],
          options(),
        )
        await answers("http://127.0.0.1:8080/hello")
        // None to write packets with: bits 12 and 13 of it.
        const status =
          "while read n v; do [ $n != CapEff: ] || echo $((0x$v >> 12 & 3)); done </proc/self/status"
        const rights = await sifcryptOk(["exec", `instance://net-${as}`, "sh", "-c", status], options())
        assert.equal(rights.text, "0\n")
        assert.equal(await get("http://192.0.2.2:9001/hello"), "hello\n")
        assert.equal(await get("http://192.0.2.2:8080/hello"), undefined)
        const taken = await sifcrypt(["exec", ...key, "--publish", "9002:80", image, "true"], options())
        assert.equal(taken.status, 255)
        assert.match(taken.stderr, /port: tcp 0\.0\.0\.0:9002: Address already in use\n/)
        const [inside] = processesOfGroup(group).filter(({ command }) => command.includes("busybox httpd"))
        // Bound to the interface, it would go to the machine's loopback.
        const send = `import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 25, b"eth0")
try: s.sendto(b"x", ("127.0.0.1", 9)); print("sent")
except PermissionError: print("refused")`
        const sent = await runProgram(
          ["nsenter", `--net=/proc/${String(inside?.pid)}/ns/net`, "python3", "-c", send],
          { as: "self" },
        )
        assert.equal(sent.text, "refused\n", sent.stderr)
        const echo = startProgram(
          [
            ...["nsenter", `--net=/proc/${String(inside?.pid)}/ns/net`, process.execPath, "-e"],
            `const socket = require("dgram").createSocket("udp4")
             socket.on("message", (text, { port, address }) => socket.send(text, port, address)).bind(8053)`,
          ],
          { as: "self" },
        )
        const ask = `const socket = require("dgram").createSocket("udp4")
          socket.on("message", (text) => { console.log(String(text)); process.exit() })
          setInterval(() => socket.send("echo", 8053, "127.0.0.1"), 50)`
        const { text } = await runProgram([...wrapper, process.execPath, "-e", ask], {
          as: "self",
          timeoutMs: 20_000,
        })
        assert.equal(text, "echo\n")
        echo.kill("SIGKILL")
        await sifcryptOk(["instance", "stop", `net-${as}`], options())
        await finish(joined)
        assert.equal(await get("http://127.0.0.1:8080/hello"), undefined)
        await nothingRuns()
      })

      it("whoever of its processes is killed, nothing is left, and it is told", async () => {
        const start = async (): Promise<ChildProcess> => {
          const child = startSifcrypt(
            [
              "exec",
              ...key,
              "--publish",
              "8080:80",
              image,
              "busybox",
              "httpd",
              "-f",
              "-p",
              "80",
              "-h",
              "/data",
            ],
            options(),
          )
          await answers("http://127.0.0.1:8080/hello")
          return child
        }
        const first = await start()
        const of = processes()
        const pasta = of.filter(({ command }) => command.startsWith("pasta "))
        assert.equal(pasta.length, 1, of.map(({ command }) => command).join("\n"))
        first.kill("SIGKILL")
        await finish(first)
        await nothingRuns()
        for (let at = 0; at < of.length; at++) {
          const child = await start()
          const victim = processes()[at]
          assert.ok(victim)
          process.kill(victim.pid, "SIGKILL")
          const { status, stderr } = await finish(child)
          assert.notEqual(status, 0, victim.command)
          if (victim.command.startsWith("pasta ")) assert.match(stderr, /network: pasta has ended\n/)
          await nothingRuns()
        }
      })

      it("says what is missing, and starts nothing", async () => {
        const without = await sifcrypt(["exec", ...key, "--network", "pasta", image, "true"], {
          ...options(),
          wrapper: ["unshare", "-m", "sh", "-c", 'mount --bind /dev/null /usr/bin/pasta && exec "$@"', "sh"],
        })
        assert.equal(without.status, 24)
        assert.match(without.stderr, /pasta is not installed; .*package passt/)
        if (as === "self") return
        const closed = path.join(newFolder("network-tun"), "tun")
        writeFileSync(closed, "", { mode: 0o600 })
        const noTun = await sifcrypt(["exec", ...key, "--network", "pasta", image, "true"], {
          ...options(),
          wrapper: [
            ...wrapper,
            "unshare",
            "-m",
            "sh",
            "-c",
            `mount --bind ${closed} /dev/net/tun && exec "$@"`,
            "sh",
          ],
        })
        assert.equal(noTun.status, 255)
        assert.match(noTun.stderr, /network: pasta: \/dev\/net\/tun: Permission denied\n/)
        const low = await sifcrypt(["exec", ...key, "--publish", "80:80", image, "true"], options())
        assert.equal(low.status, 255)
        assert.match(low.stderr, /port: tcp 0\.0\.0\.0:80: Permission denied\n.*ip_unprivileged_port_start/)
      })
    })
})
