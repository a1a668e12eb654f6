// Builds on another machine: sshd on loopback, another user behind it.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { listRecipients, open } from "../../lib/index.ts"
import { idOf, isRoot, sifcrypt, type Result } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { startBuilder, type BuilderMachine } from "../support/sshd.ts"
import { makeRootTree } from "../support/trees.ts"

describe("build --remote", () => {
  const keys = testKeys()
  const place = newFolder("remote", idOf("user"))
  const at = (name: string): string => path.join(place, name)
  let machine: BuilderMachine

  const define = (name: string, text: string): string => {
    writeFileSync(at(name), text)
    return name
  }
  const build = (
    args: readonly string[],
    env: Readonly<Record<string, string>> = {},
    wrapper = machine.wrapper,
  ): Promise<Result> =>
    sifcrypt(["build", "--remote", machine.remote, ...args], { as: "user", cwd: place, env, wrapper })
  const nothingLeft = async (): Promise<void> => {
    await waitFor("the end there", () => machine.processes().length === 0)
    assert.deepEqual(machine.left(), [])
  }

  before(async () => {
    machine = await startBuilder()
    execFileSync("cp", ["-a", makeRootTree(), at("base")])
    mkdirSync(at("files/sub"), { recursive: true })
    writeFileSync(at("files/sub/.wh.odd"), "odd\n")
    writeFileSync(at("files/_under"), "under\n", { mode: 0o750 })
    writeFileSync(at("files/größe"), "size\n")
    symlinkSync("../files/_under", at("files/link"))
    if (isRoot) execFileSync("chown", ["-Rh", `${idOf("user")}:${idOf("user")}`, place])
  })
  after(async () => {
    await machine[Symbol.asyncDispose]()
  })

  it("builds there what is defined here, and encrypts it here", async () => {
    define(
      "main.def",
      `Bootstrap: localimage
From: base

%files
files /data/files
files/gr*
%post
id -u > /made
echo "who: {{ WHO }}" >> /made
echo out
echo err >&2
%environment
export GREETING=hello
%labels
Author somebody
`,
    )
    const made = await build(["--pem-path", keys.publicKey, "--build-arg", "WHO=me", "main.sif", "main.def"])
    assert.equal(made.status, 0, made.stderr)
    assert.equal(made.text, "out\n")
    assert.match(made.stderr, /^err$/m)
    assert.match(made.stderr, /running %post/)
    await using image = await open(at("main.sif"), { unlock: [{ key: { file: keys.privateKey } }] })
    assert.equal((await image.readFile("/made")).toString(), "0\nwho: me\n")
    assert.equal((await image.readFile("/data/files/sub/.wh.odd")).toString(), "odd\n")
    assert.equal((await image.readFile("/data/files/link")).toString(), "under\n")
    assert.equal((await image.readFile("/files/größe")).toString(), "size\n")
    const recipients = await listRecipients(at("main.sif"))
    assert.equal(recipients.length, 1)
    await nothingLeft()
  })
})
