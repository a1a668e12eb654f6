// Ctrl-C, typed at the terminal on which somebody uses a program in an image.
import assert from "node:assert/strict"
import { createHash, randomBytes } from "node:crypto"
import { readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { typingUnseen } from "../support/terminal.ts"
import { makeRootTree } from "../support/trees.ts"

describe("Ctrl-C", () => {
  const keys = testKeys()
  const folder = newFolder("interrupt", userId)
  const image = path.join(folder, "image.sif")
  // Not read before: it comes from the server when somebody asks.
  const content = randomBytes(2 << 20)
  const digest = createHash("md5").update(content).digest("hex")
  const ctrlC = "\x03"

  before(async () => {
    const tree = makeRootTree()
    writeFileSync(path.join(tree, "data", "random"), content)
    await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree])
  })

  for (const flags of [[], ["--pid"]]) {
    const exec = ["exec", "--engine", "userspace", "--pem-path", keys.privateKey, ...flags, image]
    const how = flags.length === 0 ? "" : ` with ${flags.join(" ")}`

    it(`A20: ends what an interactive shell runs, and the image is served on${how}`, async () => {
      // What the terminal echoes of these does not look like a prompt.
      const lines = [`sh -c 'printf "busy%s " :; sleep 300'`, ctrlC, ctrlC, "md5sum /data/random", "exit 5"]
      const script = "export PS1='next: '; exec sh -i"
      const { status, text } = await sifcrypt([...exec, "sh", "-c", script], typingUnseen(lines.join(",")))
      assert.ok(text.includes(`${digest}  /data/random`), text)
      assert.equal(status, 5, text)
    })

    // Then it has no terminal of its own, and the command's group is signalled, of which the server is none.
    it(`A20: reaches a payload whose output goes to a file, and the image is served on${how}`, async () => {
      const output = path.join(newFolder("interrupted"), "output")
      const script = `
        trap 'echo interrupted; stopped=1' INT
        printf 'busy: ' >&2
        until [ "$stopped" ]; do sleep 0.1; done
        md5sum /data/random
        exit 5`
      const terminal = typingUnseen(ctrlC)
      const { status, text } = await sifcrypt([...exec, "sh", "-c", script], {
        ...terminal,
        wrapper: [
          ...(terminal.wrapper ?? []),
          "sh",
          "-c",
          'output=$1; shift; exec "$@" >"$output"',
          "sh",
          output,
        ],
      })
      assert.equal(readFileSync(output, "utf8"), `interrupted\n${digest}  /data/random\n`, text)
      assert.equal(status, 5, text)
    })
  }
})
