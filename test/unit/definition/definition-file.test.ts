import assert from "node:assert/strict"
import {
  buildArgumentLines,
  labelsOf,
  looksLikeDefinition,
  MAX_DEFINITION_SIZE,
  parseBuildArguments,
  parseDefinition,
  type Definition,
  type Stage,
} from "../../../lib/definition/definition-file.ts"
import { BuildError, type ErrorCode } from "../../../lib/errors.ts"

const parse = (text: string, given: Readonly<Record<string, string>> = {}): Definition =>
  parseDefinition(text, { path: "x.def", buildArguments: new Map(Object.entries(given)) })

/** The only stage of a file with this body. */
function stageOf(body: string, given: Readonly<Record<string, string>> = {}): Stage {
  const { stages } = parse(`Bootstrap: scratch\n${body}`, given)
  assert.equal(stages.length, 1)
  return stages[0] as Stage
}

function assertRefused(text: string, message: string, code: ErrorCode = "ERR_DEFINITION_SYNTAX"): void {
  assert.throws(
    () => parse(text),
    (error) => {
      assert.ok(error instanceof BuildError)
      assert.equal(error.code, code)
      assert.equal(error.message, message)
      return true
    },
  )
}

describe("parseDefinition: headers", () => {
  it("takes keys in any case, with or without spaces around the colon, and trims values", () => {
    const stage = stageOf("FROM :  debian:12  \nMirrorURL:http://deb.debian.org/debian\n")
    assert.deepEqual(
      [...stage.headers],
      [
        ["bootstrap", "scratch"],
        ["from", "debian:12"],
        ["mirrorurl", "http://deb.debian.org/debian"],
      ],
    )
    assert.equal(stage.headerLines.get("from"), 2)
  })

  it("leaves comments out, whole lines and behind values", () => {
    const stage = stageOf("# a comment: with a colon\n\n  # another\nFrom: /base # not this\n")
    assert.deepEqual([...stage.headers.keys()], ["bootstrap", "from"])
    assert.equal(stage.headers.get("from"), "/base")
  })

  it("continues a line that ends in a backslash, and keeps \\n before it as a line end", () => {
    assert.equal(stageOf("Include: curl \\\n  git\\\n  jq\n").headers.get("include"), "curl gitjq")
    assert.equal(stageOf("ConfURL: one\\n\\\n  two\n").headers.get("confurl"), "one\ntwo")
    assert.equal(stageOf("Include: curl \\\n\nFrom: x\n").headers.get("from"), "x")
  })

  it("knows every key of the grammar and numbered OtherURLs", () => {
    const keys =
      "From Stage Include IncludeCmd MirrorURL UpdateURL OSVersion Library Registry Namespace Fingerprints Product User " +
      "Regcode ProductPGP RegisterURL Modules OtherURL1 OtherURL22 ConfURL SetOpt Target Frontend Filename BuildArgs"
    const stage = stageOf(
      keys
        .split(" ")
        .map((key) => `${key}: v\n`)
        .join(""),
    )
    assert.equal(stage.headers.size, keys.split(" ").length + 1)
  })

  it("refuses unknown keys and lines without a colon, by line", () => {
    assertRefused("Bootstrap: docker\n\nFrmo: x\n", "x.def:3: unknown header frmo")
    assertRefused("Bootstrap: docker\nOtherURL: x\n", "x.def:2: unknown header otherurl")
    assertRefused("Bootstrap: docker\ndebian\n", "x.def:2: header key debian has no value")
    assertRefused("From: x\n", "x.def:1: there is no Bootstrap: header")
    assertRefused(
      "From: x\nBootstrap: docker\n",
      "x.def:1: from: stands before Bootstrap:, with which a stage begins",
    )
    assertRefused("%post\ntrue\n", "x.def:1: there is no header")
    assertRefused("Bootstrap:\n", "x.def:1: there is no Bootstrap: header")
    assertRefused("# nothing\n\n", "x.def:1: nothing is defined")
    assertRefused("", "x.def:1: nothing is defined")
  })

  it("says that a repeated key counts once", () => {
    assert.deepEqual(parse("Bootstrap: scratch\nFrom: a\nFrom: b\n").notices, [
      "x.def:3: a second from: the last one counts",
    ])
  })
})

describe("parseDefinition: sections", () => {
  it("lower-cases names, takes indented ones, and keeps bodies as they are", () => {
    const { scripts } = stageOf("%POST\n  echo 'a  b'\n\n\techo c # d\n  %Test\nx\n")
    assert.deepEqual(scripts.post, { text: "  echo 'a  b'\n\n\techo c # d\n", args: "", line: 2 })
    assert.deepEqual(scripts.test, { text: "x\n", args: "", line: 6 })
  })

  it("joins repeated sections and takes their last arguments", () => {
    const { scripts } = stageOf("%post -c /bin/bash # why\na\n%runscript\nr\n%post\nb\n%post -x\nc\n")
    assert.deepEqual(scripts.post, { text: "a\nb\nc\n", args: "-x", line: 2 })
    assert.equal(stageOf("%post -c /bin/bash # why\na\n").scripts.post?.args, "-c /bin/bash")
  })

  it("reads CRLF and a byte order mark", () => {
    const { stages } = parse("\uFEFFBootstrap: scratch\r\n%post\r\necho\r\n")
    assert.equal(stages[0]?.scripts.post?.text, "echo\n")
  })

  it("knows all sections and refuses others by name and line", () => {
    const names = "pre setup post test runscript startscript environment help".split(" ")
    const { scripts } = stageOf(names.map((name) => `%${name}\n${name}\n`).join(""))
    assert.deepEqual(Object.keys(scripts).sort(), [...names].sort())
    assertRefused("Bootstrap: scratch\n%pots\n", "x.def:2: invalid section(s) specified: pots")
    assertRefused("Bootstrap: scratch\n%\n", "x.def:2: invalid section(s) specified: %")
    assertRefused(
      "Bootstrap: scratch\n%post\ncat <<E\n%wheel ALL\nE\n",
      "x.def:4: invalid section(s) specified: wheel",
    )
  })

  it("reads labels: key, optional value, comments; the last one counts", () => {
    const { labels } = stageOf(
      "%labels\n  Author  Jane Doe \n# x\n\nEmpty\nAuthor Joe\n__proto__ p\n%labels\nE 1\n",
    )
    assert.deepEqual(
      { ...labels, ["__proto__"]: labels["__proto__"] },
      { Author: "Joe", Empty: "", E: "1", ["__proto__"]: "p" },
    )
    assert.deepEqual({ ...labelsOf(["A\tb c"]) }, { A: "b c" })
  })
})

describe("parseDefinition: %files", () => {
  it("has a source and perhaps a destination; quotes group spaces", () => {
    const { files } = stageOf(
      `%files\n/a /b\n\n# no\n  c.txt\n"/with space" '/in to'\n/x/*.{a,b} /d # why\n/it's /e\n/z # y\n`,
    )
    assert.equal(files.length, 1)
    assert.deepEqual(
      files[0]?.transfers.map(({ source, destination }) => [source, destination]),
      [
        ["/a", "/b"],
        ["c.txt", ""],
        ["/with space", "/in to"],
        ["/x/*.{a,b}", "/d"],
        ["/it's", "/e"],
        ["/z", ""],
      ],
    )
    assert.equal(files[0].transfers[1]?.line, 6)
  })

  it("says what it ignores", () => {
    assert.deepEqual(parse("Bootstrap: scratch\n%files\na b c d\n").notices, [
      "x.def:3: more than a source and a destination: ignored: c d",
    ])
  })

  it("comes from an earlier stage, and from no other", () => {
    const two =
      "Bootstrap: scratch\nStage: one\n%post\nx\n\nBootstrap: scratch\n%files from one\n/a\n%files\n/b\n%files from one\n/c /d\n"
    const { stages } = parse(two)
    assert.equal(stages.length, 2)
    assert.equal(stages[0]?.name, "one")
    assert.deepEqual(
      stages[1]?.files.map(({ from, transfers }) => [from, transfers.map(({ source }) => source)]),
      [
        ["one", ["/a", "/c"]],
        [undefined, ["/b"]],
      ],
    )
    assertRefused(
      "Bootstrap: scratch\nStage: me\n%files from me\n/a\n",
      "x.def:4: there is no stage me before this one",
    )
    assertRefused(
      "Bootstrap: scratch\n%files form x\n/a\n",
      "x.def:2: %files form x: it is %files or %files from STAGE",
    )
  })
})

describe("parseDefinition: stages", () => {
  it("start at Bootstrap: in any case; comments before the first belong to it", () => {
    const { stages, text } = parse("# first\n\nBootStrap: scratch\nStage: a\nbootstrap: docker\nFrom: b\n")
    assert.deepEqual(
      stages.map(({ line, headers }) => [line, headers.get("bootstrap")]),
      [
        [1, "scratch"],
        [5, "docker"],
      ],
    )
    assert.equal(text, "# first\n\nBootStrap: scratch\nStage: a\nbootstrap: docker\nFrom: b\n")
  })

  it("must all have headers, and different names", () => {
    assertRefused("%post\nx\nBootstrap: scratch\n", "x.def:1: several stages, so each must have a header")
    assertRefused(
      "Bootstrap: scratch\nStage: a\nBootstrap: scratch\nStage: a\n",
      "x.def:3: a second stage with the name a",
    )
  })
})

describe("parseDefinition: apps", () => {
  it("collects the sections of each, in the order of their first appearance", () => {
    const { apps } = stageOf(
      "%appinstall two\ni2\n%apprun one\nr1\n%appenv one\ne1\n%applabels one\nK v\n%apphelp one\nh1\n" +
        "%apptest one\nt1\n%appstart one\ns1\n%appfiles one\na b\n%appinstall one\ni1\n%appinstall two\nmore\n",
    )
    assert.deepEqual(
      apps.map(({ name, install }) => [name, install]),
      [
        ["two", "i2\nmore\n"],
        ["one", "i1\n"],
      ],
    )
    const one = apps[1]
    assert.deepEqual(
      [one?.run, one?.env, one?.help, one?.test, one?.start, { ...one?.labels }],
      ["r1\n", "e1\n", "h1\n", "t1\n", "s1\n", { K: "v" }],
    )
    assert.deepEqual(one?.files, [{ source: "a", destination: "b", line: 17 }])
  })

  it("must have a name, and one that stays in its folder", () => {
    assertRefused("Bootstrap: scratch\n%apprun\nx\n", "x.def:2: %apprun names no app")
    assertRefused("Bootstrap: scratch\n%apprun ../x\nx\n", "x.def:2: ../x is no name for an app")
    assertRefused("Bootstrap: scratch\n%apprun ..\nx\n", "x.def:2: .. is no name for an app")
  })
})

describe("parseDefinition: templates", () => {
  const file = "Bootstrap: docker\nFrom: debian:{{ V }}\n%arguments\nV=12\n%post\necho {{V}} # {{ W }}\n"

  it("take the stage's defaults, or what is given", () => {
    assert.equal(parse(file).stages[0]?.headers.get("from"), "debian:12")
    const { stages, text } = parse(file, { V: "13" })
    assert.equal(stages[0]?.headers.get("from"), "debian:13")
    assert.equal(stages[0].scripts.post?.text, "echo 13 # {{ W }}\n")
    assert.match(text, /^Bootstrap: docker\nFrom: debian:13\n%arguments\nV=12\n/)
  })

  it("are left alone behind #, but not behind #!", () => {
    const { scripts } = stageOf("%runscript\n#!{{ S }} # {{ T }}\n# {{ T }}\n", { S: "/bin/sh" })
    assert.equal(scripts.runscript?.text, "#!/bin/sh # {{ T }}\n# {{ T }}\n")
  })

  it("may refer to other arguments, one level deep", () => {
    const { scripts } = stageOf("%arguments\nA={{ B }}-{{ C }}\nB=1\nC={{ B }}\n%post\n{{ A }}\n", { B: "2" })
    assert.equal(scripts.post?.text, "2-{{ B }}\n")
  })

  it("have a value in their own stage, or are refused by line", () => {
    assertRefused(
      "Bootstrap: scratch\nStage: a\n%arguments\nX=1\n%post\n{{ X }}\nBootstrap: scratch\n%post\n{{ X }}\n",
      "x.def:9: {{ X }} has no value: neither a build argument nor %arguments",
      "ERR_DEFINITION_ARGUMENT",
    )
  })

  it("tell which of the given arguments nothing asked for", () => {
    assert.deepEqual(parse(file, { V: "1", Z: "2", Y: "3" }).unusedArguments, ["Z", "Y"])
    assert.deepEqual(parse(file, { V: "1" }).unusedArguments, [])
  })

  it("cannot start a stage or move lines: messages count the lines of the file", () => {
    assert.throws(
      () => parse("Bootstrap: scratch\n%post\n{{ A }}\n%nope\n", { A: "1\n2\n3" }),
      /x\.def:4: invalid section/,
    )
  })

  it("reads NAME=VALUE, and files of them", () => {
    assert.deepEqual(
      [...parseBuildArguments(["A = b c", "A=2", "X="])],
      [
        ["A", "2"],
        ["X", ""],
      ],
    )
    assert.throws(() => parseBuildArguments(["nothing"]), /"nothing" is not NAME=VALUE/)
    assert.throws(() => parseBuildArguments(["=x"]), /"=x" is not NAME=VALUE/)
    assert.deepEqual(buildArgumentLines("# a\nA=1\r\n\n  B=2\n"), ["A=1", "B=2"])
  })
})

describe("parseDefinition: hostile files", () => {
  it("are bounded in size, before and after templates are replaced", () => {
    assertRefused(
      "x".repeat(MAX_DEFINITION_SIZE + 1),
      `x.def: ${MAX_DEFINITION_SIZE + 1} bytes are more than the ${MAX_DEFINITION_SIZE} that are read`,
    )
    const value = "y".repeat(1 << 16)
    assert.throws(
      () => parse(`Bootstrap: scratch\n%post\n${"{{A}}".repeat(1000)}\n`, { A: value }),
      /more than the 16777216 that are read/,
    )
    assert.throws(
      () => parse(`Bootstrap: scratch\n%arguments\nA=${"{{B}}".repeat(1000)}\n%post\n{{A}}\n`, { B: value }),
      /more than the 16777216 that are read/,
    )
  })

  it("are bounded in stages and apps, and hold no zero bytes", () => {
    assertRefused("Bootstrap: scratch\n".repeat(129), "x.def:129: more than 128 stages")
    const apps = Array.from({ length: 1025 }, (_, index) => `%apprun a${index}\n`).join("")
    assert.throws(() => parse(`Bootstrap: scratch\n${apps}`), /x\.def:1026: more than 1024 apps/)
    assertRefused("Bootstrap: scratch\n%post\n\0\n", "x.def:3: a byte that is zero")
  })

  it("take no more than linear time", () => {
    for (const line of ["{{A}}", "{{ ", "\"'", "#", "% ", " ", "a:"]) {
      const text = `Bootstrap: scratch\n%files\n${line.repeat(200_000)}\n`
      try {
        parse(text, { A: "b" })
      } catch (error) {
        assert.ok(error instanceof BuildError)
      }
    }
  })
})

describe("looksLikeDefinition", () => {
  it("takes text with a header or a section, and nothing else", () => {
    for (const text of ["Bootstrap: docker\nFrom: x\n", "# hi\nbootstrap:x", "%post\nls\n", "From: x\n"])
      assert.equal(looksLikeDefinition(Buffer.from(text)), true, text)
    for (const text of ["", "hsqs\0\0", "hello\nworld\n", "Bootstrap: x\0"])
      assert.equal(looksLikeDefinition(Buffer.from(text)), false, text)
  })
})
