// Services beside each other: from encrypted images, found by their names, at ports of the machine, and gone with `down`. In a machine of
// the tests' own, as far as the network goes.
import assert from "node:assert/strict"
import type { ChildProcess } from "node:child_process"
import {
  chmodSync,
  chownSync,
  copyFileSync,
  mkdirSync,
  readdirSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
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
import { makeLayout } from "../support/layout.ts"
import { startMachine, type Machine } from "../support/machine.ts"
import { noneOfGroup, processesOfGroup, waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

let group = 79_000
const REGISTRY = "127.0.0.1:5000"

const file = `
x-sifcrypt: { pem_path: key.pem, require_encrypted: true }
services:
  num:
    image: "\${IMAGE}"
    entrypoint: ["sh", "-c", "cat /run/secrets/number > /www/num && exec httpd -f -p 8000 -h /www"]
    ports: ["8000:8000"]
    secrets: [number]
    healthcheck: { test: [CMD, wget, -qO, /dev/null, "http://127.0.0.1:8000/num"], interval: 200ms }
  page:
    image: "\${IMAGE}"
    entrypoint: httpd -f -p 80 -h /www
    ports: ["8080:80"]
    depends_on: { num: { condition: service_healthy } }
secrets: { number: { environment: NUMBER } }
`

describe("services beside each other", () => {
  const keys = testKeys()
  const tree = makeRootTree()
  let machine: Machine | undefined
  let registry: ChildProcess | undefined
  let wrapper: readonly string[]

  before(async function () {
    if (!isRoot) skip(this, "needs root, to make a machine's network")
    for (const applet of ["httpd", "wget"]) symlinkSync("busybox", path.join(tree, "bin", applet))
    const page = path.join(tree, "www", "cgi-bin", "page")
    mkdirSync(path.dirname(page), { recursive: true })
    // Node's fetch is strict in the ends of lines.
    const answer = "printf 'Content-Type: text/plain\\r\\n\\r\\n'; wget -qO- http://num:8000/num"
    writeFileSync(page, `#!/bin/sh\n${answer}\n`)
    chmodSync(page, 0o755)
    machine = await startMachine()
    wrapper = machine.wrapper
    await pushEncrypted()
  })
  after(() => {
    registry?.kill("SIGKILL")
    machine?.stop()
  })

  /** The tree as an image of one encrypted layer, at a registry of that machine. */
  async function pushEncrypted(): Promise<void> {
    const folder = newFolder("compose-registry")
    const config = {
      version: "0.1",
      log: { level: "error", accesslog: { disabled: true } },
      storage: { filesystem: { rootdirectory: path.join(folder, "data") } },
      http: { addr: REGISTRY },
    }
    // YAML takes JSON.
    writeFileSync(path.join(folder, "config.yml"), JSON.stringify(config))
    registry = startProgram([...wrapper, "docker-registry", "serve", path.join(folder, "config.yml")], {
      as: "self",
    })
    const layout = newFolder("compose-layout")
    makeLayout(layout, tree, { Env: ["PATH=/bin"], Cmd: ["/bin/sh"] })
    await waitFor("the registry", async () => (await get(`http://${REGISTRY}/v2/`)) !== undefined)
    const names = [`oci:${layout}`, `docker://${REGISTRY}/num:encrypted`]
    const argv = ["image", "encrypt", "--no-https", "--recipient", `jwe:${keys.publicKey}`, ...names]
    await sifcryptOk(argv, { as: "self", wrapper })
  }

  /** What a program of the machine finds there; undefined: nobody answers. */
  async function get(url: string): Promise<string | undefined> {
    const fetched = `fetch(${JSON.stringify(url)}).then((answer) => answer.text()).then(
      (text) => process.stdout.write(text), () => process.exit(1))`
    const { status, text } = await runProgram([...wrapper, process.execPath, "-e", fetched], { as: "self" })
    return status === 0 ? text : undefined
  }

  for (const as of ["user", "self"] as const satisfies readonly As[])
    describe(as === "user" ? "of an ordinary user" : "of root", () => {
      const folder = newFolder(`compose-${as}`, idOf(as))
      const runtime = path.join(folder, "runtime")
      const image = path.join(folder, "num.sif")
      const options = (more: Readonly<Record<string, string>> = {}): CommandOptions => ({
        ...{ as, group, wrapper, cwd: folder },
        env: { XDG_RUNTIME_DIR: runtime, XDG_CACHE_HOME: path.join(folder, "cache"), ...more },
      })
      const compose = async (
        argv: readonly string[],
        env?: Readonly<Record<string, string>>,
      ): Promise<string> => (await sifcryptOk(["compose", ...argv], options(env))).text

      before(async () => {
        mkdirSync(runtime, { mode: 0o700 })
        chownSync(runtime, idOf(as), idOf(as))
        copyFileSync(keys.privateKey, path.join(folder, "key.pem"))
        chmodSync(path.join(folder, "key.pem"), 0o644)
        writeFileSync(path.join(folder, "compose.yaml"), file)
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

      const start = async (from: string): Promise<void> => {
        const variables = { IMAGE: from, NUMBER: "4711" }
        await compose(["-p", "app", "up", "-d", ...(from === image ? [] : ["--no-https"])], variables)
        assert.equal(await get("http://127.0.0.1:8000/num"), "4711")
        await waitFor(
          "the page, which finds num by its name",
          async () => (await get("http://127.0.0.1:8080/cgi-bin/page")) === "4711",
        )
        const found = JSON.parse(await compose(["-p", "app", "ps", "--json"])) as Record<string, unknown>[]
        assert.deepEqual(
          found.map(({ name, state, health, ports }) => ({ name, state, health, ports })),
          [
            { name: "app-num-1", state: "running", health: "healthy", ports: ["8000:8000/tcp"] },
            { name: "app-page-1", state: "running", health: undefined, ports: ["8080:80/tcp"] },
          ],
        )
        const seen = await compose(["-p", "app", "exec", "num", "sh", "-c", "env; id -u"], variables)
        assert.match(seen, /^0$/m)
        assert.doesNotMatch(seen, /4711/, "a secret is no variable")
      }
      const end = async (): Promise<void> => {
        await compose(["-p", "app", "down"])
        await noneOfGroup(group, "the end of all processes")
        assert.equal(await get("http://127.0.0.1:8000/num"), undefined)
        const left = readdirSync(runtime, { recursive: true, withFileTypes: true }).filter(
          (one) => !one.isDirectory(),
        )
        assert.deepEqual(
          left.map(({ name }) => name),
          [],
        )
      }

      it("come of encrypted SIF images, find each other, answer at their ports, and leave nothing", async () => {
        await start(image)
        const again = await compose(["-p", "app", "restart", "-t", "5", "--json", "page"], {
          IMAGE: image,
          NUMBER: "4711",
        })
        assert.deepEqual(JSON.parse(again), [
          { kind: "service", name: "app-page-1", state: "stopped" },
          { kind: "service", name: "app-page-1", state: "started" },
        ])
        await end()
      })

      it("come of images with encrypted layers, too, at a registry", async () => {
        await start(`${REGISTRY}/num:encrypted`)
        await end()
      })

      // What follows is the same for root.
      if (as === "self") return

      it("are stopped when one that others need does not succeed, and what it wrote can be read", async () => {
        writeFileSync(
          path.join(folder, "failing.yaml"),
          `x-sifcrypt: { pem_path: key.pem }
services:
  stays: { image: ./num.sif, entrypoint: sleep 1000, network_mode: none }
  first: { image: ./num.sif, entrypoint: "sh -c 'echo no; printf more; exit 3'", network_mode: none }
  second:
    image: ./num.sif
    network_mode: none
    depends_on: { first: { condition: service_completed_successfully }, stays: { condition: service_started } }
  broken: { image: ./num.sif, network_mode: none, secrets: [gone], profiles: [broken] }
secrets: { gone: { file: ./gone } }
`,
        )
        const failing = ["-f", "failing.yaml", "-p", "failing"]
        const { status, stderr } = await sifcrypt(["compose", ...failing, "up", "-d"], options())
        assert.equal(status, 255, stderr) // ERR_COMPOSE_SERVICE
        assert.match(stderr, /failing-first-1 ended with status 3/)
        assert.equal(
          await compose([...failing, "logs", "first"]),
          "failing-first-1 | no\nfailing-first-1 | more\n",
        )
        // ERR_COMPOSE_PROJECT
        assert.equal((await sifcrypt(["compose", ...failing, "exec", "stays", "true"], options())).status, 25)
        const broken = await sifcrypt(["compose", ...failing, "up", "-d", "broken"], options())
        assert.equal(broken.status, 255, broken.stderr) // ERR_COMPOSE_SERVICE
        assert.match(broken.stderr, /service failing-broken-1 failed/)
        await compose(["-p", "failing", "down"])
        await noneOfGroup(group, "the end of all processes")
      })
    })

  it("of a user with subordinate ids find each other, and what belongs to those ids goes with its volume", async () => {
    const folder = newFolder("compose-ids", idOf("nobody"))
    for (const name of ["image", "runtime", "data"]) mkdirSync(path.join(folder, name), { mode: 0o700 })
    for (const name of ["image", "runtime", "data"])
      chownSync(path.join(folder, name), idOf("nobody"), idOf("nobody"))
    writeFileSync(path.join(folder, "ids"), "nobody:300000:65536\n")
    const bind = `mount --bind ${folder}/ids /etc/subuid && mount --bind ${folder}/ids /etc/subgid && exec "$@"`
    const options: CommandOptions = {
      ...{ as: "nobody", group, cwd: folder, wrapper: [...wrapper, "unshare", "-m", "sh", "-c", bind, "sh"] },
      env: { XDG_RUNTIME_DIR: path.join(folder, "runtime"), XDG_DATA_HOME: path.join(folder, "data") },
    }
    const compose = async (...argv: string[]): Promise<string> =>
      (await sifcryptOk(["compose", "-p", "ids", ...argv], options)).text
    await sifcryptOk(["build", path.join(folder, "image", "web.sif"), tree], { as: "nobody" })
    const own = [
      "mkdir /data/own",
      "echo 4711 > /data/own/num",
      "chown -R 5:6 /data/own",
      "chmod -R 700 /data/own",
    ]
    const script = [
      ...own.map((line) => line.replace(/^(?!echo)/, "busybox ")),
      "cat /proc/self/uid_map",
    ].join(" && ")
    writeFileSync(
      path.join(folder, "compose.yaml"),
      JSON.stringify({
        services: {
          web: {
            image: "./image/web.sif",
            entrypoint: ["sh", "-c", `${script} && exec httpd -f -p 8000 -h /data`],
            volumes: ["own:/data"],
          },
          asks: { image: "./image/web.sif", entrypoint: ["wget", "-qO-", "http://web:8000/own/num"] },
        },
        volumes: { own: {} },
      }),
    )
    await compose("up", "-d", "web")
    const volumes = path.join(folder, "data", "sifcrypt", "volumes")
    await waitFor("the service", async () => (await compose("logs", "web")) !== "")
    assert.match(
      (await compose("logs", "--no-log-prefix", "web")).replace(/ +/g, " "),
      /^ 0 0 1\n 1 1 65536\n$/,
    )
    const { uid, gid } = statSync(path.join(volumes, "ids_own", "data", "own", "num"))
    assert.deepEqual([uid, gid], [300_004, 300_005])
    assert.equal(await compose("run", "asks"), "4711\n")
    assert.deepEqual(JSON.parse(await compose("ps", "-q", "--json")), ["ids-web-1"])
    assert.deepEqual(JSON.parse(await compose("config", "--services", "--json")), ["web", "asks"])
    const other = path.join(folder, "other.yaml")
    writeFileSync(
      other,
      JSON.stringify({
        services: {
          web: { image: "./image/web.sif", entrypoint: ["sleep", "300"], volumes: ["theirs:/data"] },
        },
        volumes: { theirs: { external: true, name: "ids_own" } },
      }),
    )
    const beside = ["compose", "-f", other, "-p", "other"]
    await sifcryptOk([...beside, "up", "-d"], options)
    const refused = await sifcrypt(["compose", "-p", "ids", "down", "-v"], options)
    assert.match(refused.stderr, /the volume ids_own stays: the instance other-web-1 has it/)
    assert.deepEqual(readdirSync(volumes), ["ids_own"])
    await sifcryptOk([...beside, "down", "-v"], options)
    assert.deepEqual(readdirSync(volumes), ["ids_own"])
    assert.match(await compose("down", "-v", "--json"), /"volume","name":"ids_own","state":"removed"/)
    assert.deepEqual(readdirSync(volumes), [])
    await noneOfGroup(group, "the end of all processes")
  })
})
