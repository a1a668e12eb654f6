// What a command does with the kernel engine when one of its system calls fails (test/support/survival.ts).
import assert from "node:assert/strict"
import { mkdirSync, readFileSync } from "node:fs"
import { build } from "../../lib/index.ts"
import { sifcrypt, sifcryptOk, type Result } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { mountsIn } from "../support/processes.ts"
import { isSoak } from "../support/soak.ts"
import { Survival, type Place, type State, type Work } from "../support/survival.ts"
import { kernelState, needsDeviceMapper, rootTree } from "./guest.ts"

function devices(): readonly string[] {
  const { loops, mappings, nodes } = kernelState()
  return [...loops, ...mappings, ...nodes]
}

describe("a system call that fails with the kernel engine", function () {
  this.timeout(isSoak ? 36_000_000 : 300_000)
  const keys = testKeys()
  const survival = new Survival("self", 85_000, devices)
  const key = ["--engine", "kernel", "--pem-path", keys.privateKey]

  before(async function () {
    needsDeviceMapper(this)
    await build({
      output: survival.original("image.sif"),
      source: rootTree(),
      recipients: [{ key: { file: keys.publicKey } }],
    })
    await survival.compile(["exec", "mount", "instance start"])
  })
  after(() => {
    survival.end()
  })

  const works: Readonly<Record<string, Work>> = {
    "exec, kernel": {
      prepare: survival.copied("image.sif"),
      args: () => ["exec", ...key, "image.sif", "cat", "/data/hello"],
      state: (_: Place, { text }: Result): State => {
        assert.ok("hello\n".startsWith(text), text)
        return text === "hello\n" ? "new" : "old"
      },
    },
    "mount, kernel": {
      prepare: (place) => {
        survival.copied("image.sif")(place)
        mkdirSync(place.in("work", "mount"))
      },
      args: () => ["mount", ...key, "image.sif", "mount"],
      state: (place) => {
        if (mountsIn(place.folder).length === 0) return "old"
        assert.equal(readFileSync(place.in("work", "mount", "data", "hello"), "utf8"), "hello\n")
        return "new"
      },
      after: async ({ folder, options }) => {
        if (mountsIn(folder).length > 0) await sifcryptOk(["unmount", "mount"], options)
      },
    },
    "instance, kernel": {
      prepare: survival.copied("image.sif"),
      args: () => ["instance", "start", ...key, "image.sif", "one"],
      state: async (place) => {
        const { text } = await sifcryptOk(["instance", "list", "--json"], place.options)
        if (!text.includes('"running"')) return "old"
        const asked = ["exec", "instance://one", "cat", "/data/hello"]
        assert.equal((await sifcryptOk(asked, place.options)).text, "hello\n")
        return "new"
      },
      after: async ({ options }) => {
        await sifcrypt(["instance", "stop", "--force", "one"], options)
      },
      // Logs stay, and the folder that they are in.
      outputs: /^(?:home|run)\/|^cache\/sifcrypt-/,
    },
  }
  // What other processes have of the machine's devices would be taken for theirs.
  survival.tests(works, 1)
})
