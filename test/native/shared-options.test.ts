// One object of options, used by several operations at once.
import assert from "node:assert/strict"
import path from "node:path"
import { build, open } from "../../lib/index.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

/** Frozen with all that is in it. */
function frozen<T>(value: T): T {
  if (typeof value === "object" && value !== null) Object.values(Object.freeze(value)).forEach(frozen)
  return value
}

describe("options that are shared", () => {
  it("S32: several builds and opens at once with the same frozen options get right results", async () => {
    const keys = testKeys()
    const folder = newFolder("shared-options")
    const source = makeRootTree()
    const recipients = frozen([{ key: { file: keys.publicKey } }])
    const common = frozen({ source, recipients })
    const images = [0, 1, 2, 3].map((i) => path.join(folder, `${i}.sif`))
    await Promise.all(images.map((output) => build(frozen({ ...common, output }))))

    const options = frozen({ unlock: [{ key: { file: keys.privateKey } }] })
    const contents = await Promise.all(
      [...images, ...images].map(async (file) => {
        await using image = await open(file, options)
        return (await image.readFile("/data/hello")).toString()
      }),
    )
    assert.deepEqual(contents, Array(8).fill("hello\n"))
  })
})
