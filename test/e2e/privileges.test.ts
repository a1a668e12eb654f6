// What each process of each command may do and has, held against the table in docs/security.md.
import assert from "node:assert/strict"
import type { ChildProcess } from "node:child_process"
import { chownSync, copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { isDeepStrictEqual } from "node:util"
import {
  idOf,
  isRoot,
  packageRoot,
  sifcrypt,
  sifcryptOk,
  startSifcrypt,
  type CommandOptions,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { noneOfGroup, processesOfGroup, signalGroup, waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"
import { cellsOf, roleOf } from "../support/walk.ts"

const firstGroup = 84_000
/** Where many programs run at once, the last process of a command may come late. */
const settleMs = 40_000
/** What is as it should be stays so: what one more look sees after so long. */
const restMs = 50

/** A command that goes on, and a process that is there once all are. */
interface Case {
  readonly name: string
  readonly args: readonly string[]
  readonly last: RegExp
  /** Of all that there is, what is looked at: the rest begins and ends meanwhile. */
  readonly only?: RegExp
  /** It ends by itself, and what it has started stays. */
  readonly leaves?: boolean
}

/** The rows of a table below a heading, without its head. */
function tableBelow(file: string, heading: string): string[] {
  const text = readFileSync(path.join(packageRoot, file), "utf8").split(`\n${heading}\n`)[1] ?? ""
  return text
    .split(/\n#/)[0]
    ?.split("\n")
    .filter((line) => line.startsWith("|"))
    .slice(2)
    .map((line) => line.replace(/\s+/g, " ").trim()) as string[]
}

/** What is found at two looks running, once that is as it should be, or what it is in the end. A process may end meanwhile. */
async function settled(found: () => string[], expected: readonly string[]): Promise<string[]> {
  const end = performance.now() + settleMs
  for (let before = false; ;) {
    let rows: string[] | undefined
    try {
      rows = found()
    } catch (error) {
      if (!["ENOENT", "ESRCH"].includes((error as NodeJS.ErrnoException).code ?? "")) throw error
    }
    const now = isDeepStrictEqual(rows, expected)
    if (rows !== undefined && ((before && now) || performance.now() > end)) return rows
    before = now
    await sleep(restMs)
  }
}

describe("what each process may", function () {
  this.timeout(900_000)
  const keys = testKeys()
  const folder = newFolder("privileges")
  let group = firstGroup

  before(function () {
    if (!isRoot) skip(this, "needs root, to look into processes of others")
  })
  after(() => {
    for (let each = firstGroup; each < group; each++) signalGroup(each, "SIGKILL")
  })

  it("is what docs/security.md says", async () => {
    const image = path.join(folder, "image.sif")
    // What no kernel reads: compose asks for no engine.
    const unread = path.join(folder, "gocryptfs.sif")
    const tree = makeRootTree()
    const building = ["build", "--pem-path", keys.publicKey]
    await sifcryptOk([...building, image, tree], { as: "self" })
    await sifcryptOk([...building, "--format", "gocryptfs", unread, tree], { as: "self" })
    const table = tableBelow("docs/security.md", "## What each process may")
    const rows: string[] = []
    for (const as of ["nobody", "self"] as const) {
      const place = newFolder(`privileges-${as}`, idOf(as))
      const at = (name: string): string => path.join(place, name)
      for (const name of ["run", "mount", "view", "tmp"]) {
        mkdirSync(at(name), { mode: 0o700 })
        chownSync(at(name), idOf(as), idOf(as))
      }
      copyFileSync(image, at("image.sif"))
      copyFileSync(unread, at("image-gocryptfs.sif"))
      // A network that leads nowhere needs no pasta, which is another's.
      writeFileSync(
        at("compose.yaml"),
        `name: privileges
x-sifcrypt: { pem_path: "${keys.privateKey}" }
services:
  one:
    image: ./image-gocryptfs.sif
    entrypoint: sleep 200
    healthcheck: { test: [CMD, sleep, "300"], interval: 100ms, timeout: 10m }
networks: { default: { internal: true } }
`,
      )
      writeFileSync(at("image.def"), "Bootstrap: localimage\nFrom: image.sif\n%post\n    sleep 300\n")
      const key = ["--pem-path", keys.privateKey]
      const user = ["--engine", "userspace", ...key]
      const cases: readonly Case[] = [
        { name: "exec", args: ["exec", ...user, "image.sif", "sleep", "300"], last: /^(?:\/bin\/)?sleep / },
        {
          name: "exec --containall",
          args: ["exec", "--containall", ...user, "image.sif", "sleep", "300"],
          last: /^(?:\/bin\/)?sleep /,
        },
        {
          name: "instance",
          args: ["instance", "start", ...user, "image.sif", "one"],
          last: /init/,
          leaves: true,
        },
        {
          name: "mount",
          args: ["mount", ...user, "image.sif", "mount"],
          last: /^sifcrypt-starter/,
          leaves: true,
        },
        {
          name: "view",
          args: ["view", ...key, "image.sif", "view"],
          last: /^sifcrypt-starter/,
          leaves: true,
        },
        {
          name: "compose",
          args: ["compose", "up", "-d"],
          last: /^(?:\/bin\/)?sleep 300/,
          leaves: true,
        },
        {
          name: "build",
          args: [
            ...["build", "--source-pem-path", keys.privateKey, "--scratch", "userspace", "--tmpdir", "tmp"],
            ...["made.sif", "image.def"],
          ],
          last: /crun /,
          only: /^(?:node|starter )/,
        },
      ]
      for (const { name, args, last, only = /^/, leaves = false } of cases) {
        const options: CommandOptions = { as, group, cwd: place, env: { XDG_RUNTIME_DIR: at("run") } }
        let child: ChildProcess | undefined
        if (leaves) await sifcryptOk(args, options)
        else child = startSifcrypt(args, { ...options, stdio: "ignore" })
        await waitFor(name, () => processesOfGroup(group).some(({ command }) => last.test(command)), 40_000)
        const names = {
          [at("image")]: "image",
          // Some file systems have no files that are unnamed from the start.
          [at("tmp/#")]: "unnamed",
          [at("tmp/.sifcrypt-")]: "unnamed",
          [place]: "output",
          "/run/sifcrypt": "output",
          "/mnt/": "session",
          "/.singularity.d": "script",
        }
        const first = `| ${name} | ${as === "self" ? "root" : "user"} |`
        const found = (): string[] => {
          const all = processesOfGroup(group)
            .filter((one) => only.test(roleOf(one)))
            .map((one) => `${first} ${[roleOf(one), ...cellsOf(one.pid, names)].join(" | ")} |`)
          return [...new Set(all)].sort()
        }
        const told = table.filter((row) => row.startsWith(first))
        rows.push(...(await settled(found, told)))
        if (name === "instance") await sifcrypt(["instance", "stop", "--force", "one"], options)
        if (name === "mount" || name === "view") await sifcryptOk(["unmount", name], options)
        if (name === "compose") await sifcrypt(["compose", "down", "-t", "0"], options)
        child?.kill("SIGTERM")
        await noneOfGroup(group, `the end of ${name}`, 40_000)
        group++
      }
    }
    if (process.env["SIFCRYPT_WRITE"] !== undefined)
      writeFileSync(process.env["SIFCRYPT_WRITE"], rows.join("\n"))
    const wrong = [
      ...rows.filter((row) => !table.includes(row)).map((row) => `found: ${row}`),
      ...table.filter((row) => !rows.includes(row)).map((row) => `not found: ${row}`),
    ]
    assert.deepEqual(wrong, [])
    assert.deepEqual(rows, table)
  })
})
