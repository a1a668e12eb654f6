// What each process of each command may do and has, held against the table in docs/security.md.
import assert from "node:assert/strict"
import type { ChildProcess } from "node:child_process"
import { chownSync, copyFileSync, mkdirSync, realpathSync, writeFileSync } from "node:fs"
import path from "node:path"
import { idOf, isRoot, sifcrypt, sifcryptOk, startSifcrypt, type CommandOptions } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import {
  noneOfGroup,
  processesOfGroup,
  signalGroup,
  waitFor,
  type ProcessInfo,
} from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"
import { vectorPath } from "../vectors/load.ts"
import { roleOf, settledRows, tableRows } from "../support/walk.ts"

const firstGroup = 84_000

/** A command that goes on, and a process that is there once all are. */
interface Case {
  readonly name: string
  readonly args: readonly string[]
  readonly last: RegExp
  /** Of all that there is, what is looked at: the rest begins and ends meanwhile. */
  readonly only?: RegExp
  /** It ends by itself, and what it has started stays. */
  readonly leaves?: boolean
  /** What the last process is put in the place of. */
  readonly over?: string
  /** Not as root. */
  readonly userOnly?: boolean
}

/** A program of others, as it is started: it stops before it does anything, and fails when it goes on. */
const stopped = "#!/bin/sh\nkill -STOP $$\nexit 1\n"

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
    const script = (name: string): string => {
      const file = path.join(folder, "bin", name)
      mkdirSync(path.dirname(file), { recursive: true })
      writeFileSync(file, stopped, { mode: 0o755 })
      return file
    }
    for (const name of ["docker-credential-stops", "gpg"]) script(name)
    const providers = { "key-providers": { stops: { cmd: { path: script("key-provider") } } } }
    writeFileSync(path.join(folder, "providers.json"), JSON.stringify(providers), { mode: 0o644 })
    const layers = `oci:${vectorPath("oci/layout")}`
    writeFileSync(path.join(folder, "config.json"), JSON.stringify({ credsStore: "stops" }))
    const forPrograms = {
      PATH: `${path.join(folder, "bin")}:${process.env["PATH"] ?? ""}`,
      DOCKER_CONFIG: folder,
      OCICRYPT_KEYPROVIDER_CONFIG: path.join(folder, "providers.json"),
    }
    // Those of batch are looked at where there is a cluster.
    const table = tableRows().filter((row) => !row.startsWith("| batch "))
    const rows: string[] = []
    for (const as of ["nobody", "self"] as const) {
      const place = newFolder(`privileges-${as}`, idOf(as))
      const at = (name: string): string => path.join(place, name)
      for (const name of ["run", "mount", "view", "tmp"]) {
        mkdirSync(at(name), { mode: 0o700 })
        chownSync(at(name), idOf(as), idOf(as))
      }
      copyFileSync(image, at("image.sif"))
      chownSync(at("image.sif"), idOf(as), idOf(as))
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
      writeFileSync(at("variables"), "exec sleep 1000\n")
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
        {
          name: "exec --network pasta",
          args: ["exec", "--network", "pasta", ...user, "image.sif", "sleep", "300"],
          over: "/usr/bin/pasta",
          last: /pasta/,
        },
        {
          name: "compose up",
          args: ["compose", "up", "-d"],
          over: "/usr/lib/podman/netavark",
          last: /netavark/,
          only: /^netavark/,
        },
        {
          name: "registry logout",
          args: ["registry", "logout", "registry.example"],
          last: /docker-credential/,
          only: /^docker/,
          userOnly: true,
        },
        {
          name: "--key-command",
          args: ["cat", "--key-command", "exec sleep 1000", "image.sif", "/data/hello"],
          last: /^sleep 1000/,
          only: /^sleep/,
          userOnly: true,
        },
        {
          name: "exec --env-file",
          args: ["exec", ...user, "--env-file", "variables", "image.sif", "true"],
          last: /^sleep 1000/,
          only: /^sleep/,
          userOnly: true,
        },
        {
          name: "sign --gpg",
          args: ["sign", "--gpg", "image.sif"],
          last: /gpg/,
          only: /^gpg/,
          userOnly: true,
        },
        {
          name: "image encrypt",
          args: ["image", "encrypt", "-r", "provider:stops", layers, "oci:encrypted"],
          last: /key-provider/,
          only: /^key-provider/,
          userOnly: true,
        },
        {
          name: "image encrypt",
          args: ["image", "encrypt", "-r", "pgp:somebody", layers, "oci:encrypted"],
          last: /gpg/,
          only: /^gpg/,
          userOnly: true,
        },
        {
          name: "overlay create",
          args: ["overlay", "create", "--sparse", "made.img"],
          over: "/usr/sbin/mke2fs",
          last: /mkfs\.ext3/,
          only: /^mkfs/,
        },
      ]
      for (const { name, args, last, only = /^/, leaves = false, over, userOnly = false } of cases) {
        if (userOnly && as === "self") continue
        const isOfOthers = over !== undefined || userOnly
        const env = {
          XDG_RUNTIME_DIR: at("run"),
          ...(isOfOthers ? { ...forPrograms, SIFCRYPT_KEPT: "what nobody is to get" } : {}),
        }
        const covered = 'mount --bind "$0" "$1" && shift && exec "$@"'
        const inPlace = ["unshare", "--mount", "--propagation", "private", "sh", "-c", covered]
        const options: CommandOptions = {
          ...{ as, group, cwd: place, env },
          ...(over === undefined ? {} : { wrapper: [...inPlace, script(path.basename(over)), over] }),
        }
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
          [path.join(folder, "bin")]: "script",
          ...(over === undefined ? {} : { [realpathSync(over)]: "script" }),
          "/run/answer": "answer",
          "/run/complaints": "answer",
          "/run/input": "question",
        }
        const first = `| ${name} | ${as === "self" ? "root" : "user"} |`
        const told = table.filter(
          (row) => row.startsWith(first) && only.test(row.slice(first.length).trimStart()),
        )
        const processes = (): readonly ProcessInfo[] =>
          processesOfGroup(group).filter((one) => only.test(roleOf(one)))
        rows.push(
          ...(await settledRows(first, processes, names, told, over === undefined ? "self" : child?.pid)),
        )
        if (name === "instance") await sifcrypt(["instance", "stop", "--force", "one"], options)
        if (name === "mount" || name === "view") await sifcryptOk(["unmount", name], options)
        // What waits for a program that stops, and tries it again when that fails, does not end by itself.
        if (isOfOthers) signalGroup(group, "SIGKILL")
        else child?.kill("SIGTERM")
        if (name.startsWith("compose"))
          await sifcrypt(["compose", "down", "-t", "0"], { as, group, cwd: place, env })
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
