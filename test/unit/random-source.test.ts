// Where random bytes come from.
import assert from "node:assert/strict"
import { readdirSync, readFileSync } from "node:fs"
import path from "node:path"

const root = path.join(import.meta.dirname, "../..")

function sources(folder: string, pattern: RegExp): string[] {
  return readdirSync(path.join(root, folder), { recursive: true, encoding: "utf8" })
    .filter((name) => pattern.test(name))
    .map((name) => path.join(folder, name))
}

describe("random bytes", () => {
  it("S5: come from the operating system only: no other generator is used", () => {
    const files = [...sources("lib", /\.ts$/), ...sources("native", /\.(cc|h)$/)]
    assert.ok(files.length > 50)
    const forbidden =
      /Math\.random|pseudoRandomBytes|forge\.random|\bs?rand(?:om|48)?\(|std::(?:mt19937|minstd|random_|default_random)/
    for (const file of files)
      assert.doesNotMatch(readFileSync(path.join(root, file), "utf8"), forbidden, file)
  })
})
