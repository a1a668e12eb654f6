import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { TAR_END, tarHeader, tarPadding } from "../../../lib/oci/tar-writer.ts"

function list(...files: readonly (readonly [name: string, content: string])[]): string {
  const input = Buffer.concat([
    ...files.flatMap(([name, content]) => [
      tarHeader(name, content.length),
      Buffer.from(content),
      tarPadding(content.length),
    ]),
    TAR_END,
  ])
  return execFileSync("tar", ["-tv", "--utc", "--full-time"], { input, encoding: "utf8" })
}

describe("tarHeader", () => {
  it("is one that tar reads, of any size and length of name", () => {
    const long = `${"d".repeat(99)}/${"f".repeat(99)}`
    const lines = list(["a", ""], ["b/c", "x".repeat(511)], ["n".repeat(100), "x".repeat(512)], [long, "y"])
    assert.deepEqual(
      lines
        .trim()
        .split("\n")
        .map((line) => line.replace(/^-rw-r--r-- 0\/0 +(\d+) 1970-01-01 00:00:00 /, "$1 ")),
      ["0 a", "511 b/c", `512 ${"n".repeat(100)}`, `1 ${long}`],
    )
  })

  it("has a record for a size that eleven octal digits do not hold", () => {
    const small = tarHeader("name", 8 ** 11 - 1)
    assert.equal(small.length, 512)
    assert.equal(small.toString("latin1", 124, 136), "77777777777\0")
    const large = tarHeader("name", 8 ** 11)
    assert.equal(large.length, 3 * 512)
    assert.match(large.toString("latin1", 512, 1024), /^19 size=8589934592\n\0/)
  })

  it("counts a record's length in it, also where that has a digit more", () => {
    for (let length = 101; length < 1100; length++) {
      const header = tarHeader("n".repeat(length), 0)
      const text = header.toString("latin1", 512, header.length - 512).replace(/\0+$/, "")
      assert.equal(Number(text.split(" ")[0]), text.length)
    }
  })
})
