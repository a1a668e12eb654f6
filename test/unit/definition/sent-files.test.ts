// What %files takes of this machine, as another one gets it.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { parseDefinition } from "../../../lib/definition/definition-file.ts"
import {
  hostTransfers,
  sentArchive,
  sentTransfers,
  withChosenFiles,
  withSent,
} from "../../../lib/definition/sent-files.ts"
import { nameOfSent, sentName } from "../../../lib/definition/sent-names.ts"
import { newFolder } from "../../support/scratch.ts"

const text = `Bootstrap: scratch
Stage: one
%files
a* /x
b

Bootstrap: scratch
%files from one
/x
%files
sub /y
%appfiles tool
b
`

describe("files that are sent", () => {
  const cwd = newFolder("sent")
  const context = { path: "image.def", cwd }
  const { stages } = parseDefinition(text, { path: "image.def" })
  const archive = async (names: readonly (readonly string[])[]): Promise<Buffer> => {
    const transfers = hostTransfers(stages)
    const sent = transfers.map(({ source }, index) => ({ source, names: names[index] ?? [] }))
    const pieces: Buffer[] = []
    for await (const piece of sentArchive(transfers, sent, context)) pieces.push(piece)
    return Buffer.concat(pieces)
  }

  before(() => {
    for (const name of ["a1", "a2", "b"]) writeFileSync(path.join(cwd, name), `${name}\n`)
    mkdirSync(path.join(cwd, "sub"))
    writeFileSync(path.join(cwd, "sub/.wh.x"), "white\n")
    writeFileSync(path.join(cwd, "sub/_x"), "under\n")
    writeFileSync(path.join(cwd, `sub/${"ü".repeat(60)}`), "long\n")
    chmodSync(path.join(cwd, "sub/_x"), 0o751)
    symlinkSync("../b", path.join(cwd, "sub/link"))
  })

  it("are counted alike at both ends", async () => {
    const transfers = hostTransfers(stages)
    const sent = await sentTransfers(transfers, context)
    assert.deepEqual(
      sent.map(({ names }) => names),
      [["a1", "a2"], ["b"], ["sub"], ["b"]],
    )
    const numbered = hostTransfers(withSent(stages, sent) ?? [])
    assert.deepEqual(
      numbered.map((one) => one.sent?.map(({ number }) => number)),
      [[0, 1], [2], [3], [4]],
    )
    assert.equal(withSent(stages, sent.slice(1)), undefined)
  })

  it("are those of %files only where that is asked for", () => {
    const sources = (sections: readonly ("files" | "post")[] | undefined): string[] =>
      hostTransfers(withChosenFiles(stages, sections)).map(({ source }) => source)
    assert.deepEqual(sources(undefined), ["a*", "b", "sub", "b"])
    assert.deepEqual(sources(["files"]), ["a*", "b", "sub", "b"])
    assert.deepEqual(sources(["post"]), ["b"])
  })

  it("lie in an archive by their numbers, links followed, and no name means anything", async () => {
    const bytes = await archive([["a1", "a2"], ["b"], ["sub"], ["b"]])
    const list = execFileSync("tar", ["-tvf", "-"], {
      input: bytes,
      encoding: "utf8",
      env: { LANG: "C.UTF-8" },
    })
    const entries = list
      .trimEnd()
      .split("\n")
      .map((line) => [line.split(" ")[0], line.split(" ").at(-1)])
    assert.deepEqual(entries, [
      ["-rw-r--r--", "0"],
      ["-rw-r--r--", "1"],
      ["-rw-r--r--", "2"],
      ["drwxr-xr-x", "3/"],
      ["-rw-r--r--", "3/_.wh.x"],
      ["-rwxr-x--x", "3/__x"],
      ["-rw-r--r--", "3/link"],
      ["-rw-r--r--", `3/${"ü".repeat(60)}`],
      ["-rw-r--r--", "4"],
    ])
    const link = execFileSync("tar", ["-xOf", "-", "3/link"], { input: bytes, encoding: "utf8" })
    assert.equal(link, "b\n")
  })

  it("are missed by their line", async () => {
    for (const [names, why] of [
      [[["none"]], /^image\.def:4: cannot copy a\*: there is no such file$/],
      [[[], ["/dev/null"]], /^image\.def:5: cannot copy b: \/dev\/null is neither a file nor a folder$/],
    ] as const)
      await assert.rejects(archive(names), { code: "ERR_BUILD_SOURCE", message: why })
    symlinkSync(".", path.join(cwd, "loop"))
    await assert.rejects(archive([["loop"]]), /is a link to a folder that it is in/)
  })

  it("have names that a layer gives no meaning, and get theirs back", () => {
    for (const name of ["a", ".wh.x", ".wh..wh..opq", "_", "_.wh.x", "__", ".whx", "ü"]) {
      assert.ok(!sentName(name).startsWith(".wh."))
      assert.equal(nameOfSent(sentName(name)), name)
    }
    for (const sent of ["_..", "_.", "_x", "_"]) assert.throws(() => nameOfSent(sent), /no name of a file/)
  })
})
