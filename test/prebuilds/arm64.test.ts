// The prebuilt files for arm64, under an emulator: what they write is read by those of this machine, and the other way round. Payloads and
// mounts are not among it: they are another process, which this machine's kernel would have to start.
import assert from "node:assert/strict"
import { writeFileSync } from "node:fs"
import path from "node:path"
import { arm64, type Arm64 } from "../support/arm64.ts"
import { packageRoot, runProgram, sifcrypt, sifcryptOk, type Result } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { prebuiltFor } from "../support/prebuilt.ts"
import { makeRootTree } from "../support/trees.ts"
import { images, vector, vectorPath } from "../vectors/load.ts"

describe("what is prebuilt for arm64", function () {
  // Emulated, Node alone takes a second to start.
  this.timeout(900_000)
  let machine: Arm64
  const patiently = () => ({ as: "self", cwd: machine.folder, timeoutMs: 300_000 }) as const
  let tree: string
  const keys = testKeys()
  const there = async (...args: readonly string[]): Promise<Result> =>
    await runProgram([machine.node, machine.command, ...args], patiently())
  const thereOk = async (...args: readonly string[]): Promise<string> => {
    const result = await there(...args)
    assert.equal(result.status, 0, result.stderr)
    return result.text
  }
  const here = async (...args: readonly string[]): Promise<string> =>
    (await sifcryptOk(args, patiently())).text

  before(() => {
    machine = arm64()
    tree = makeRootTree()
    for (const name of images) writeFileSync(path.join(machine.folder, path.basename(name)), vector(name))
  })

  it("is imported and required by Node for arm64", async () => {
    for (const [kind, script] of [
      ["module", 'import { build } from "sifcrypt"; console.log(process.arch, typeof build)'],
      ["commonjs", 'console.log(process.arch, typeof require("sifcrypt").build)'],
    ] as const) {
      const argv = [machine.node, `--input-type=${kind}`, "-e", script]
      const result = await runProgram(argv, patiently())
      assert.equal(result.text, "arm64 function\n", result.stderr)
    }
  })

  for (const [what, made, opened] of [
    ["plain", [], []],
    ["encrypted", ["--pem-path", keys.publicKey], ["--pem-path", keys.privateKey]],
    ["gocryptfs", ["--format", "gocryptfs", "--pem-path", keys.publicKey], ["--pem-path", keys.privateKey]],
  ] as const)
    it(`builds what this machine reads, and reads what it builds: ${what}`, async () => {
      await thereOk("build", ...made, `there-${what}.sif`, tree)
      await here("build", ...made, `here-${what}.sif`, tree)
      const expected = await here("ls", "-lR", ...opened, `here-${what}.sif`, "/")
      assert.ok(expected.split("\n").length > 5, expected)
      const file = "/data/hello"
      const content = await here("cat", ...opened, `here-${what}.sif`, file)
      for (const image of [`there-${what}.sif`, `here-${what}.sif`]) {
        assert.equal(await here("ls", "-lR", ...opened, image, "/"), expected)
        assert.equal(await thereOk("ls", "-lR", ...opened, image, "/"), expected)
        assert.equal(await here("cat", ...opened, image, file), content)
        assert.equal(await thereOk("cat", ...opened, image, file), content)
      }
    })

  it("signs what this machine verifies, and verifies what it signs", async () => {
    const [key, pem] = [vectorPath("sif/ed25519-private.pem"), vectorPath("sif/ed25519-public.pem")]
    await thereOk("build", "signed-there.sif", tree)
    await here("build", "signed-here.sif", tree)
    await thereOk("sign", "--key", key, "signed-there.sif")
    await here("sign", "--key", key, "signed-here.sif")
    for (const image of ["signed-there.sif", "signed-here.sif"])
      assert.equal(await thereOk("verify", "--key", pem, image), await here("verify", "--key", pem, image))
    const other = await there("verify", "--key", vectorPath("sif/ecdsa-public.pem"), "signed-here.sif")
    assert.equal(
      other.status,
      (
        await sifcrypt(["verify", "--key", vectorPath("sif/ecdsa-public.pem"), "signed-here.sif"], {
          as: "self",
          cwd: machine.folder,
        })
      ).status,
    )
    assert.notEqual(other.status, 0)
  })

  it("has programs that start, for glibc and for musl, and say what they miss", async () => {
    const root = path.join(packageRoot, "build", "prebuilds", "root-arm64")
    for (const [name, status, said] of [
      ["sifcrypt-starter.glibc", 2, "sifcrypt-starter: a command is missing\n"],
      ["sifcrypt-starter.musl", 2, "sifcrypt-starter: a command is missing\n"],
      ["sifcrypt-init", 255, "sifcrypt: sifcrypt-init: no program\n"],
      ["sifcrypt-shell", 255, "sifcrypt: usage: sifcrypt-shell SCRIPT ACTION [ARGUMENT...]\n"],
    ] as const) {
      const program = path.join(prebuiltFor("linux-arm64"), name)
      const result = await runProgram(["qemu-aarch64-static", "-L", root, program], patiently())
      assert.deepEqual([result.status, result.stderr], [status, said], name)
    }
  })

  it("says of images made by others what this machine says", async () => {
    const names = images.map((name) => path.basename(name))
    const script = `import { sif } from "sifcrypt"
      for (const name of ${JSON.stringify(names)}) {
        const image = await sif.openSif(name)
        console.log(name, image.objects)
      }`
    const said = async (node: string): Promise<string> => {
      const argv = [node, "--input-type=module", "-e", script]
      const { status, text, stderr } = await runProgram(argv, patiently())
      assert.equal(status, 0, stderr)
      return text
    }
    assert.equal(await said(machine.node), await said(process.execPath))
  })
})
