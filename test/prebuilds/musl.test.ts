// The prebuilt programs for musl, run by this machine's kernel with the musl that Debian has: Node and the addon are
// glibc's, which start them as they start those for glibc. musl's addon is loaded, and not called. The container's first
// process and its shell are static, and the same on both.
import assert from "node:assert/strict"
import { execFileSync, spawnSync } from "node:child_process"
import { createHash } from "node:crypto"
import { copyFileSync, existsSync, readFileSync } from "node:fs"
import path from "node:path"
import { idOf, runProgram, type Result } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { installPrebuilt } from "../support/prebuilt.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

const machine = `linux-${process.arch}`
const loader = `/lib/ld-musl-${process.arch === "x64" ? "x86_64" : "aarch64"}.so.1`

describe("what is prebuilt for musl", function () {
  this.timeout(120_000)
  let folder: string
  let command: string
  let prebuilds: string
  let starter: string
  let init: string
  const keys = testKeys()
  const run = async (as: "self" | "user", ...args: readonly string[]): Promise<Result> =>
    await runProgram([process.execPath, command, ...args], { as, cwd: folder })
  const runOk = async (as: "self" | "user", ...args: readonly string[]): Promise<string> => {
    const { status, text, stderr } = await run(as, ...args)
    assert.equal(status, 0, stderr)
    return text
  }

  before(async () => {
    assert.ok(existsSync(loader), `${loader} is missing (scripts/system-packages.sh prebuilds)`)
    folder = newFolder("musl", idOf("user"))
    const installed = installPrebuilt(folder, machine)
    prebuilds = path.join(installed, "prebuilds", machine)
    starter = path.join(prebuilds, "sifcrypt-starter.musl")
    assert.ok(readFileSync(starter).includes(loader), "it names musl's dynamic linker")
    copyFileSync(starter, path.join(prebuilds, "sifcrypt-starter.glibc"))
    init = createHash("sha256")
      .update(readFileSync(path.join(prebuilds, "sifcrypt-init")))
      .digest("hex")
    command = path.join(installed, "dist", "cli", "main.js")
    const tree = makeRootTree()
    await runOk("user", "build", "plain.sif", tree)
    await runOk("user", "build", "--pem-path", keys.publicKey, "luks.sif", tree)
    await runOk("user", "build", "--format", "gocryptfs", "--pem-path", keys.publicKey, "gocryptfs.sif", tree)
  })

  for (const as of ["user", "self"] as const)
    for (const image of ["plain", "luks", "gocryptfs"]) {
      const options = ["--engine", "userspace", ...(image === "plain" ? [] : ["--pem-path", keys.privateKey])]
      const who = as === "self" ? "whoever runs the tests" : "an ordinary user"
      it(`runs a payload of ${image}.sif as ${who}`, async () => {
        const script = "cat /data/hello; ls /proc/self/fd >/dev/null; exit 7"
        const result = await run(as, "exec", ...options, `${image}.sif`, "/bin/sh", "-c", script)
        assert.deepEqual([result.status, result.text], [7, "hello\n"], result.stderr)
        // A container that has a first process of its own: that one.
        const hash = ["/bin/busybox", "sha256sum", "/proc/1/exe"]
        const told = await runOk(as, "exec", "--containall", ...options, `${image}.sif`, ...hash)
        assert.equal(told, `${init}  /proc/1/exe\n`)
      })
    }

  it("has an addon that musl loads where there is what Node has", () => {
    // What is weak, and in nobody's hands, is no fault: libzstd asks for functions that would be told what it does.
    const symbols = (file: string, ...which: readonly string[]): readonly string[] => {
      const listed = execFileSync("nm", ["--dynamic", ...which, file], {
        encoding: "utf8",
        maxBuffer: 2 ** 28,
      })
      return [...listed.matchAll(/ [^ w] ([^@\n]+)/g)].map(([, name = ""]) => name)
    }
    const addon = path.join(prebuilds, "sifcrypt.musl.node")
    const ofMusl = new Set(symbols(loader, "--defined-only"))
    const others = symbols(addon, "--undefined-only").filter((name) => !ofMusl.has(name))
    const ofNode = new Set(symbols(process.execPath, "--defined-only"))
    assert.deepEqual([others.filter((name) => !ofNode.has(name)), others.length > 50], [[], true])

    // There is no Node for musl here, so what it has is stood in for, in a program that is there.
    const node = path.join(folder, "node.so")
    const functions = others.map((name) => `int ${name}(void) { return 0; }\n`)
    execFileSync("gcc", ["-shared", "-nostdlib", "-x", "c", "-o", node, "-"], { input: functions.join("") })
    const beside = (...objects: readonly string[]): readonly [number | null, string] => {
      const options = { env: { LD_PRELOAD: objects.join(":") }, encoding: "utf8" } as const
      const { status, stderr } = spawnSync(starter, ["none"], options)
      return [status, stderr]
    }
    assert.deepEqual(beside(node, addon), [2, "sifcrypt-starter: unknown command: none\n"])
    const [status, stderr] = beside(addon)
    assert.equal(status, 127)
    assert.match(stderr, /sifcrypt\.musl\.node: napi_fatal_error: symbol not found/)
  })

  it("mounts and unmounts", async () => {
    const target = newFolder("musl-mount", idOf("self"))
    await runOk("self", "mount", "--engine", "userspace", "--pem-path", keys.privateKey, "luks.sif", target)
    try {
      assert.equal(readFileSync(path.join(target, "data", "hello"), "utf8"), "hello\n")
    } finally {
      await runOk("self", "unmount", target)
    }
  })
})
