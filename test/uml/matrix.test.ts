// A15: who × engine × credential × action, on one image.
import assert from "node:assert/strict"
import { chmodSync, copyFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { idOf, packageRoot, runProgram, type CommandOptions } from "../support/cli.ts"
import { passphrase, testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import {
  assertSettles,
  cheapImageForBoth,
  kernelState,
  needsDeviceMapper,
  type KernelState,
} from "./guest.ts"

const program = path.join(packageRoot, "test", "uml", "matrix-cells.mjs")
const outcomes = { exec: "5", run: "6", shell: "7", mount: "hello" } as const

describe("A15: the matrix", function () {
  let image: string
  let passphraseFile: string
  let state: KernelState

  before(async function () {
    needsDeviceMapper(this)
    image = path.join(newFolder("matrix"), "image.sif")
    copyFileSync(await cheapImageForBoth(), image)
    chmodSync(image, 0o644)
    passphraseFile = path.join(path.dirname(image), "passphrase")
    writeFileSync(passphraseFile, `${passphrase}\n`)
    state = kernelState()
  })

  const rows: readonly {
    readonly who: string
    readonly kernel: boolean
    readonly options: CommandOptions
    readonly owner?: number
  }[] = [
    // fusermount3 serves only users whom passwd knows.
    { who: "root", kernel: true, options: { as: "self" } },
    { who: "an ordinary user", kernel: false, options: { as: "nobody" }, owner: idOf("nobody") },
    {
      who: "root of a user namespace",
      kernel: false,
      options: { as: "self", wrapper: ["unshare", "--user", "--map-root-user", "--mount"] },
    },
  ]

  for (const { who, kernel, options, owner } of rows)
    it(`works for ${who}`, async () => {
      const folder = newFolder("mount", owner)
      const argv = [process.execPath, program, testKeys().privateKey, passphraseFile, image, folder]
      const { status, text, stderr } = await runProgram(argv, { ...options, timeoutMs: 120_000 })
      assert.equal(status, 0, stderr)
      assert.equal(stderr, "")
      const expected: Record<string, string> = {}
      for (const credential of ["rsa", "passphrase"])
        for (const engine of ["kernel", "userspace"])
          for (const [action, outcome] of Object.entries(outcomes))
            expected[`${credential} ${engine} ${action}`] =
              engine === "kernel" && !kernel ? "ERR_ENV_NO_PRIVILEGE" : `${engine} ${outcome}`
      assert.deepEqual(JSON.parse(text), expected, stderr)
      await assertSettles(state)
    })
})
