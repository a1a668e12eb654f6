// What a program reads that asked for JSON: one value, whatever happens.
import assert from "node:assert/strict"
import path from "node:path"
import { sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

interface Failure {
  readonly error: { readonly code: string; readonly message: string; readonly hint: string | null }
}

describe("--json", () => {
  const folder = newFolder("json", userId)
  const image = path.join(folder, "image.sif")
  before(async () => {
    await sifcryptOk(["build", image, makeRootTree()])
  })

  const failures: readonly (readonly [args: readonly string[], status: number, code: string])[] = [
    [["info", "--json", path.join(folder, "missing")], 25, "ENOENT"],
    [["ls", "--json", image, "/missing"], 25, "ERR_TREE_NOT_FOUND"],
    [["build", "--json", image, folder], 23, "ERR_BUILD_EXISTS"],
    [["build", "--json=true", "--no-such-option", "a", "b"], 20, "ERR_USAGE"],
    [["sif", "add", "--json", image], 20, "ERR_USAGE"],
    [["no-such-command", "--json"], 20, "ERR_USAGE"],
    [["recipient", "--json"], 20, "ERR_USAGE"],
    [["key", "export", "--json", "-"], 20, "ERR_USAGE"],
    [["unmount", "--json", folder], 25, "ERR_MOUNT_NOT_OURS"],
    [["instance", "stop", "--json", "nobody"], 255, "ERR_INSTANCE_NONE"],
    [["link", "--json", folder, "docker"], 20, "ERR_USAGE"],
  ]
  it("prints an error in place of the result, and says it on standard error as ever", async () => {
    for (const [args, status, code] of failures) {
      const failed = await sifcrypt(args)
      assert.equal(failed.status, status, args.join(" "))
      const { error } = JSON.parse(failed.text) as Failure
      assert.deepEqual(Object.keys(error), ["code", "message", "hint"])
      assert.equal(error.code, code, args.join(" "))
      const [told = ""] = failed.stderr.split("\n")
      if (code !== "ERR_USAGE") assert.equal(told, `sifcrypt: ${error.message}`)
      if (error.hint !== null) assert.ok(failed.stderr.includes(`hint: ${error.hint}`), args.join(" "))
    }
  })

  it("leaves the output of commands alone that were not asked for it", async () => {
    for (const args of [
      ["info", path.join(folder, "missing")],
      ["info", "--json=false", path.join(folder, "missing")],
      ["exec", "--no-such-option", image, "echo", "--json"],
    ])
      assert.equal((await sifcrypt(args)).text, "", args.join(" "))
  })

  it("names what was made or changed where there is nothing else to tell", async () => {
    const json = async (...args: string[]): Promise<unknown> => JSON.parse((await sifcryptOk(args)).text)
    const made = path.join(folder, "new.sif")
    assert.deepEqual(await json("sif", "new", "--json", made), { output: made })
    assert.deepEqual(await json("sif", "add", "--json", "--datatype", "7", made, image), { id: 1 })
    assert.deepEqual(await json("sif", "del", "--json", "1", made), { id: 1 })
    assert.deepEqual(await json("run-help", "--json", image), { help: null })
    const { links } = (await json("link", "--json", folder, "apptainer")) as { links: string[] }
    assert.deepEqual(links, [path.join(folder, "apptainer")])
    assert.deepEqual(Object.keys((await json("version", "--json")) as object), ["version"])
  })
})
