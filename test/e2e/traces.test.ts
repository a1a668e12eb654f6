// What a run leaves lying about, and what it makes while it runs: nothing.
import assert from "node:assert/strict"
import { once } from "node:events"
import { readdirSync } from "node:fs"
import path from "node:path"
import { idOf, sifcryptOk, startSifcrypt } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

describe("traces", () => {
  it("S9, S10: makes no folder and no file of its own, temporary or not", async () => {
    const user = idOf("user")
    const home = newFolder("traces-home", user)
    const temporary = newFolder("traces-tmp", user)
    const env = { HOME: home, TMPDIR: temporary, XDG_RUNTIME_DIR: temporary, XDG_CACHE_HOME: home }
    const look = (): string[] => [...readdirSync(home), ...readdirSync(temporary)]
    const image = path.join(newFolder("traces", user), "image.sif")
    const { publicKey, privateKey } = testKeys()
    await sifcryptOk(["build", "--pem-path", publicKey, image, makeRootTree()], { env })
    assert.deepEqual(look(), [])
    assert.deepEqual(readdirSync(path.dirname(image)), ["image.sif"])
    const script = "echo started; read line"
    const args = ["exec", "--engine", "userspace", "--pem-path", privateKey, image, "sh", "-c", script]
    const running = startSifcrypt(args, { env, holdInput: true })
    try {
      await once(running.stdout ?? assert.fail(), "data")
      assert.deepEqual(look(), [])
      assert.deepEqual(readdirSync(path.dirname(image)), ["image.sif"])
    } finally {
      running.stdin?.end("\n")
      await once(running, "close")
    }
    assert.equal(running.exitCode, 0)
    assert.deepEqual(look(), [])
  })
})
