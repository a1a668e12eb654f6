// Networks that containers are in together: names, ports, who is kept apart; and nothing is left, whoever is killed. In a machine of the
// tests' own, as far as the network and root's folder of instances go.
import assert from "node:assert/strict"
import { chownSync, closeSync, mkdirSync, openSync, readdirSync, statSync, writeFileSync } from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { loadAddon } from "../../lib/native/load.ts"
import {
  idOf,
  isRoot,
  runProgram,
  sifcrypt,
  sifcryptOk,
  startProgram,
  type As,
  type CommandOptions,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { startMachine, type Machine } from "../support/machine.ts"
import {
  allProcesses,
  processesOfGroup,
  processorMs,
  waitFor,
  type ProcessInfo,
} from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { Chance, times } from "../support/soak.ts"
import { makeRootTree } from "../support/trees.ts"

/** Answers every question for an address with 198.51.100.7, and prints the name. */
const nameServer = `
  const socket = require("node:dgram").createSocket("udp4")
  socket.on("message", (asked, from) => {
    const end = asked.indexOf(0, 12) + 5
    const name = asked.toString("latin1", 12, end - 5).replace(/[^a-z]+/g, ".")
    const isAddress = asked.readUInt16BE(end - 4) === 1
    const answer = Buffer.concat([asked.subarray(0, end), ...(isAddress ? [Buffer.from("c00c00010001000000010004c6336407", "hex")] : [])])
    answer.writeUInt16BE(0x8180, 2)
    answer.writeUInt16BE(isAddress ? 1 : 0, 6)
    answer.writeUInt32BE(0, 8)
    socket.send(answer, from.port, from.address)
    console.log(name)
  })
  socket.bind(53, "192.0.2.2", () => console.log("ready"))`

let group = 78_000

describe("networks with a name", () => {
  const keys = testKeys()
  const tree = makeRootTree()
  mkdirSync(path.join(tree, ".singularity.d"))
  writeFileSync(path.join(tree, ".singularity.d", "runscript"), '#!/bin/sh\nexec "$@"\n', { mode: 0o755 })
  const chance = new Chance()
  let machine: Machine | undefined
  let wrapper: readonly string[]

  before(async function () {
    if (!isRoot) skip(this, "needs root, to make a machine's network")
    const resolvers = path.join(newFolder("resolvers"), "resolv.conf")
    writeFileSync(resolvers, "nameserver 192.0.2.2\n")
    machine = await startMachine(
      `mount --bind ${resolvers} "$(readlink -f /etc/resolv.conf)" && mkdir -p /run/sifcrypt &&
        mount -t tmpfs -o mode=0700 tmpfs /run/sifcrypt`,
    )
    wrapper = machine.wrapper
  })
  after(() => {
    machine?.stop()
  })

  /** What a program of the machine finds there; undefined: nobody listens. */
  const get = async (url: string): Promise<string | undefined> => {
    const { status, text } = await runProgram([...wrapper, "busybox", "wget", "-qO-", url], { as: "self" })
    return status === 0 ? text : undefined
  }
  const answers = async (url: string): Promise<void> => {
    for (const end = Date.now() + 20_000; (await get(url)) !== "hello\n";)
      if (Date.now() > end) assert.fail(`${url} does not answer`)
  }

  for (const as of ["user", "self"] as const satisfies readonly As[])
    describe(as === "user" ? "of an ordinary user" : "of root", () => {
      const folder = newFolder(`named-${as}`, idOf(as))
      const runtime = path.join(folder, "runtime")
      const image = path.join(folder, "image.sif")
      const key = ["--engine", "userspace", "--pem-path", keys.privateKey]
      const options = (): CommandOptions => ({ as, group, wrapper, env: { XDG_RUNTIME_DIR: runtime } })
      const command = async (...args: string[]): Promise<string> => (await sifcryptOk(args, options())).text
      const serve = ["--service", ...key]
      const httpd = ["busybox", "httpd", "-f", "-p", "80", "-h", "/data"]
      const start = async (name: string, ...args: string[]): Promise<string> =>
        await command("instance", "run", ...serve, ...args, image, name, ...httpd)
      const exec = async (network: string, script: string): Promise<string> =>
        await command("exec", ...key, "--network", network, image, "sh", "-c", script)
      /** All that came of the commands; root's pasta gives the group up that marks the others. */
      const processes = (): ProcessInfo[] => {
        const marked = processesOfGroup(group)
        const isOurs = ({ parent, command: line }: ProcessInfo): boolean =>
          line.startsWith("pasta ") && marked.some(({ pid }) => pid === parent)
        return [...marked, ...(as === "self" ? allProcesses().filter(isOurs) : [])]
      }
      const keeper = (): ProcessInfo | undefined =>
        processes().find(({ command: line }) => line.startsWith("sifcrypt-starter keep"))
      /** Links, tables and namespaces of the machine. */
      const surroundings = async (): Promise<string> => {
        const script = `ip -o link | cut -d: -f2; iptables-save; nft list tables; ls ${runtime}/sifcrypt/networks /run/sifcrypt/networks`
        const { text } = await runProgram([...wrapper, "sh", "-c", `${script} 2>/dev/null`], { as: "self" })
        return text
      }
      const nothingRuns = async (after: string): Promise<void> => {
        try {
          await waitFor("the end of all processes", () => processes().length === 0)
        } catch (cause) {
          throw new Error(
            `after ${after}: ${processes()
              .map(({ command: line }) => line)
              .join("; ")}`,
            { cause },
          )
        }
      }

      before(async () => {
        mkdirSync(runtime, { mode: 0o700 })
        chownSync(runtime, idOf(as), idOf(as))
        await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree], { as })
        await command("network", "create", "shop")
        await command("network", "create", "--internal", "back")
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

      it("names of others are asked of the machine's name servers, and of nobody from inside alone", async () => {
        const server = startProgram([...wrapper, process.execPath, "-e", nameServer], { as: "self" })
        let asked = ""
        server.stdout?.on("data", (said: Buffer) => (asked += said.toString()))
        try {
          await waitFor("the name server", () => asked.includes("ready"))
          const ask = (name: string): string =>
            `busybox timeout 5 busybox nslookup ${name} 2>&1; echo "status $?"`
          assert.match(await exec("shop", ask("outside.example")), /198\.51\.100\.7/)
          const inside = await exec("back", ask("leaking.example"))
          assert.match(inside, /^status [1-9]/m)
          assert.doesNotMatch(inside, /198\.51\.100\.7|status 127/)
          assert.match(asked, /outside\.example/)
          assert.doesNotMatch(asked, /leaking/)
        } finally {
          server.kill("SIGKILL")
        }
        await nothingRuns("the questions")
      })

      it("containers find each other by their names, and are kept apart from other networks", async () => {
        const before = await surroundings()
        await start("web", "--network", "shop", "--network-alias", "www", "--publish", "127.0.0.1:8080:80")
        await answers("http://127.0.0.1:8080/hello")
        await start("base", "--network", "back")
        const { containers } = JSON.parse(await command("network", "inspect", "shop")) as {
          containers: { name: string; address: string }[]
        }
        assert.deepEqual(containers, [{ name: "web", address: "10.89.0.2" }])
        const { instances } = JSON.parse(await command("instance", "list", "--json", "web")) as {
          instances: { ip: string; state: string; networks: object[] }[]
        }
        assert.deepEqual(
          instances.map(({ ip, state, networks }) => ({ ip, state, networks })),
          [{ ip: "10.89.0.2", state: "running", networks: [{ name: "shop", address: "10.89.0.2" }] }],
        )
        const ask = `for name in web www web.dns.podman base; do busybox wget -qO- http://$name/hello || echo none; done 2>/dev/null
          echo x | busybox nc -w 1 10.89.1.2 80 >/dev/null && echo reached || echo apart`
        assert.equal(await exec("shop", ask), "hello\nhello\nhello\nnone\napart\n")
        assert.equal(await exec("shop,back", ask), "hello\nhello\nhello\nhello\nreached\n")
        // Nothing leads out of one that is internal: it has no such route.
        assert.equal(
          await exec("back", "busybox ip route"),
          "10.89.1.0/24 dev eth0 scope link  src 10.89.1.3 \n",
        )
        if (as === "user")
          assert.equal(
            await command("exec", ...key, "-f", "--network", "shop", image, "sh", "-c", "busybox id -u"),
            "0\n",
          )
        const twice = await sifcrypt(
          ["instance", "run", ...serve, "--network", "back", image, "web", ...httpd],
          options(),
        )
        assert.equal(twice.status, 23)
        if (as === "user") {
          const busy = await sifcrypt(["network", "rm", "shop"], options())
          assert.equal(busy.status, 23)
          assert.match(busy.stderr, /the network shop is in use: web\n/)
        }
        for (const name of ["web", "base"]) await command("instance", "stop", name)
        await nothingRuns("the end of both")
        assert.equal(await surroundings(), before)
        assert.equal(await get("http://127.0.0.1:8080/hello"), undefined)
        for (const name of ["web", "base"]) await command("instance", "rm", name)
      })

      const PATIENCE_MS = 120_000
      const ROUND_MS = 10_000

      it("whoever of its processes is killed, the rest ends or goes on, and nothing is left", async function () {
        const before = await surroundings()
        const publish = ["--network", "shop", "--publish", "127.0.0.1:8080:80"]
        await start("web", ...publish)
        await answers("http://127.0.0.1:8080/hello")
        await command("instance", "stop", "web")
        await nothingRuns("a stop")
        // Of each kind one; and whoever, as often as there is time for.
        const kinds = [
          "sifcrypt-starter keep",
          "pasta ",
          "/usr/lib/podman/aardvark-dns",
          "sifcrypt-starter run",
        ]
        const kills = times("SIFCRYPT_NETWORK_KILLS", 100, kinds.length + 1)
        this.timeout(PATIENCE_MS + kills * ROUND_MS)
        for (let at = 0; at < kills; at++) {
          await start("web", ...publish)
          await answers("http://127.0.0.1:8080/hello")
          const wanted = kinds[at] ?? ""
          const victim = chance.pick(processes().filter(({ command: line }) => line.startsWith(wanted)))
          process.kill(victim.pid, "SIGKILL")
          // A name server and the way out of a network are nobody's life: the next container brings them back.
          const { status } = await sifcrypt(["instance", "stop", "web"], options())
          assert.ok(status === 0 || status === 255, String(status))
          await nothingRuns(victim.command)
          // Its file goes with the next that joins, if nobody was there to take it away.
          await command("network", "create", "other")
          await command("network", "rm", "other")
          assert.equal(await surroundings(), before, victim.command)
        }
      })

      // Whoever connects has to be the user.
      if (as === "self")
        it("wait without taking processor time where no more of them can join", async () => {
          const few = { ...options(), wrapper: [...wrapper, "prlimit", "--nofile=512:512"] }
          await sifcryptOk(["instance", "run", ...serve, "--network", "shop", image, "web", ...httpd], few)
          const { pid = 0 } = keeper() ?? {}
          const folders = readdirSync(`/proc/${pid}/fd`)
            .map((fd) => `/proc/${pid}/fd/${fd}`)
            .filter((fd) => statSync(fd).isDirectory())
          assert.equal(folders.length, 1)
          const handle = openSync(folders[0] ?? "", "r")
          const guests = Array.from(
            { length: 520 },
            () => loadAddon().connectIn({ folder: handle, name: "keeper" }) ?? -1,
          )
          const before = processorMs(pid)
          await sleep(500)
          assert.ok(processorMs(pid) - before < 100, "it looks again and again")
          for (const fd of [handle, ...guests]) closeSync(fd)
          assert.match(await exec("shop", "busybox wget -qO- http://web/hello"), /hello/)
          await command("instance", "stop", "web")
          await nothingRuns("a stop")
        })

      it("two come up and go down again and again", async function () {
        const before = await surroundings()
        const cycles = times("SIFCRYPT_NETWORK_CYCLES", 200, 2)
        this.timeout(PATIENCE_MS + cycles * ROUND_MS)
        for (let at = 0; at < cycles; at++) {
          await Promise.all([
            start("web", "--network", "shop", "--publish", "127.0.0.1:8080:80"),
            start("base", "--network", "shop,back", "--publish", "127.0.0.1:8081:80"),
          ])
          for (const port of [8080, 8081]) await answers(`http://127.0.0.1:${port}/hello`)
          assert.ok(keeper())
          await Promise.all(["web", "base"].map(async (name) => await command("instance", "stop", name)))
          await nothingRuns(`round ${at}`)
          assert.equal(await surroundings(), before)
        }
      })

      it("says what is missing, and starts nothing", async () => {
        const hidden = 'mount --bind /dev/null /usr/lib/podman/netavark && exec "$@"'
        const without = await sifcrypt(["exec", ...key, "--network", "shop", image, "true"], {
          ...options(),
          wrapper: [...wrapper, "unshare", "-m", "sh", "-c", hidden, "sh"],
        })
        assert.equal(without.status, 24)
        assert.match(without.stderr, /netavark is not installed; .*package netavark/)
        const none = await sifcrypt(["exec", ...key, "--network", "missing", image, "true"], options())
        assert.equal(none.status, 255)
        assert.match(none.stderr, /there is no network missing\n/)
        const networks = JSON.parse(await command("network", "list", "--json")) as { name: string }[]
        assert.deepEqual(
          networks.map(({ name }) => name),
          ["back", "shop"],
        )
        await command("network", "rm", "shop", "back")
        const files = path.join(runtime, "sifcrypt", "networks")
        if (as === "user") assert.deepEqual(readdirSync(files), [])
      })
    })
})
