// Where the command writes: what others wrote does not steer the terminal, and nobody need listen to the end.
import assert from "node:assert/strict"
import { mkdirSync, writeFileSync } from "node:fs"
import path from "node:path"
import { sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

const keys = testKeys()
const folder = newFolder("output", userId)
const image = path.join(folder, "image.sif")
const opener = ["--pem-path", keys.privateKey, image]
const spoofed = "\u202efdp.exe\u2028\u{e0041}\x9b2J"

/** One of each kind: help, texts, lines, bytes, JSON, and a program's own output. */
const commands: readonly (readonly string[])[] = [
  ["--help"],
  ["--version"],
  ["build", "--help"],
  ["ls", ...opener],
  ["ls", "--json", ...opener],
  ["cat", ...opener, "many"],
  ["sif", "list", image],
  ["sif", "dump", "1", image],
  ["inspect", "--all", ...opener],
  ["info", image],
  ["build", "--force", path.join(folder, "out.sif"), path.join(folder, "loud.def")],
]
const wrong: readonly (readonly string[])[] = [
  ["ls", "--no-such-option"],
  ["ls", "--pem-path", keys.otherPrivateKey, image],
  ["ls", path.join(folder, "not there")],
  ["no-such-command"],
]

before(async () => {
  const tree = makeRootTree()
  writeFileSync(path.join(tree, "many"), "0123456789".repeat(100_000))
  mkdirSync(path.join(tree, spoofed))
  writeFileSync(
    path.join(folder, "loud.def"),
    `Bootstrap: localimage\nFrom: ${tree}\n%post\ni=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done\n`,
  )
  await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree])
})

describe("names in an image", () => {
  it("do not steer the terminal, in no listing, no message and no JSON", async () => {
    for (const args of [
      ["ls", ...opener],
      ["ls", "-l", ...opener],
      ["ls", "-R", ...opener],
      ["ls", "--json", ...opener],
      ["ls", ...opener, `no ${spoofed}`],
      ["cat", ...opener, spoofed],
      ["extract", ...opener, path.join(folder, "out"), `no ${spoofed}`],
      ["ls", `--${spoofed}`],
    ]) {
      const { text, stderr } = await sifcrypt(args)
      assert.match(
        text + stderr,
        /(\\u202e|\\xe2\\x80\\xae)fdp\.exe(\\u2028|\\xe2\\x80\\xa8)/,
        args.join(" "),
      )
      assert.doesNotMatch(text + stderr, /(?![\n\t])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u, args.join(" "))
    }
    const json = JSON.parse((await sifcryptOk(["ls", "--json", ...opener])).text) as { name: string }[]
    assert.ok(json.some(({ name }) => name === spoofed))
  })
})

describe("standard output and standard error", () => {
  /** As a shell runs it with this behind it; its exit status comes last. */
  const run = async (
    args: readonly string[],
    redirection: string,
  ): Promise<{ status: number; told: string }> => {
    const script = `{ "$@"; echo "status $?" >&4; } ${redirection}`
    const { text, stderr } = await sifcrypt(args, { wrapper: ["sh", "-c", `exec 4>&1; ${script}`, "sh"] })
    const status = /status (\d+)\n$/.exec(text)?.[1]
    return { status: Number(status), told: stderr + text }
  }
  const noTrace = /node:|^\s+at |Unhandled|defect/m

  it("whose reader goes away end nothing in a stack trace", async () => {
    for (const args of commands) {
      const { status, told } = await run(args, "| true")
      assert.doesNotMatch(told, noTrace, args.join(" "))
      assert.equal(status, 0, `${args.join(" ")}: ${told}`)
    }
    for (const args of [...commands, ...wrong]) {
      const { status, told } = await run(args, "2>&1 >/dev/null | true")
      assert.doesNotMatch(told, noTrace, args.join(" "))
      assert.notEqual(status, 1, args.join(" "))
    }
  })

  it("that are full make an error with status 25, not a silent success", async () => {
    for (const args of commands) {
      const { status, told } = await run(args, ">/dev/full")
      assert.doesNotMatch(told, noTrace, args.join(" "))
      assert.equal(status, 25, `${args.join(" ")}: ${told}`)
      assert.match(told, /^sifcrypt: standard output: no space left on device/m)
    }
    for (const args of wrong) {
      const [full, plain] = await Promise.all([run(args, "2>/dev/full"), sifcrypt(args)])
      assert.equal(full.status, plain.status, args.join(" "))
    }
  })

  it("that are closed are like /dev/null", async () => {
    for (const args of commands) {
      const { status, told } = await run(args, ">&-")
      assert.doesNotMatch(told, noTrace, args.join(" "))
      assert.equal(status, 0, args.join(" "))
    }
    for (const args of wrong)
      assert.equal((await run(args, "2>&-")).status, (await sifcrypt(args)).status, args.join(" "))
  })
})
