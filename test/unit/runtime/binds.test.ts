import assert from "node:assert/strict"
import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import {
  composeBinds,
  folderAt,
  homeOf,
  isWithin,
  parseBinds,
  type Place,
} from "../../../lib/runtime/binds.ts"

describe("isWithin", () => {
  for (const [inner, outer, expected] of [
    ["/safe", "/safe", true],
    ["/safe/", "/safe", true],
    ["/safe/a", "/safe", true],
    ["/safe/a/b", "/safe", true],
    ["/safe2", "/safe", false],
    ["/safe2/a", "/safe", false],
    ["/saf", "/safe", false],
    ["/safe.d", "/safe", false],
    ["/", "/safe", false],
    ["/safe", "/", true],
    ["/", "/", true],
    ["/safe/../other", "/safe", false],
    ["/safe/../safe/a", "/safe", true],
    ["/safe/..a", "/safe", true],
    ["/safe/...", "/safe", true],
    ["/other/safe", "/safe", false],
    ["/a/b", "/a/b/c", false],
    ["/safe\n", "/safe", false],
    ["/SAFE/a", "/safe", false],
  ] as const)
    it(`S17: ${inner} is ${expected ? "" : "not "}within ${outer}`.replace("\n", "\\n"), () => {
      assert.equal(isWithin(inner, outer), expected)
    })
})

describe("binds", () => {
  let folder: string
  beforeEach(() => {
    folder = realpathSync(mkdtempSync(path.join(tmpdir(), "sifcrypt-unit-")))
    for (const name of ["data", "data2", "with:colon", "with,comma", "home"])
      mkdirSync(path.join(folder, name))
  })
  afterEach(() => {
    rmSync(folder, { recursive: true })
  })

  describe("parseBinds", () => {
    const parse = (...texts: string[]): readonly (readonly [string, string, boolean])[] =>
      parseBinds(texts, folder).map(({ source, destination, readOnly }) => [
        path.relative(folder, source),
        destination.startsWith(folder) ? path.relative(folder, destination) : destination,
        readOnly,
      ])

    it("takes a source alone, with a destination, and with options", () => {
      assert.deepEqual(parse("data"), [["data", "data", false]])
      assert.deepEqual(parse("data:/in"), [["data", "/in", false]])
      assert.deepEqual(parse("data:/in:ro"), [["data", "/in", true]])
      assert.deepEqual(parse("data:/in:rw"), [["data", "/in", false]])
      assert.deepEqual(parse("data::ro"), [["data", "data", true]])
      assert.deepEqual(parse(`${folder}/data:/in/../other//x`), [["data", "/other/x", false]])
    })

    it("takes several, in one text or in many", () => {
      const both = [
        ["data", "/a", true],
        ["data2", "/b", false],
      ]
      assert.deepEqual(parse("data:/a:ro,data2:/b"), both)
      assert.deepEqual(parse("data:/a:ro", "data2:/b"), both)
    })

    it("takes colons and commas in names when they are escaped", () => {
      assert.deepEqual(parse("with\\:colon:/in"), [["with:colon", "/in", false]])
      assert.deepEqual(parse("with\\,comma:/in,data:/b"), [
        ["with,comma", "/in", false],
        ["data", "/b", false],
      ])
    })

    it("takes blanks around commas for none, and nothing for nothing", () => {
      assert.deepEqual(parse(" data:/a:ro , data2:/b,, "), [
        ["data", "/a", true],
        ["data2", "/b", false],
      ])
      assert.deepEqual(parse("", " ", ","), [])
    })

    it("leaves out what would lie over the root, and says so; a program that asks for it is told", () => {
      const notices: string[] = []
      assert.deepEqual(
        parseBinds(["/,data:/", "data2:/x/.."], folder, (text) => notices.push(text)),
        [],
      )
      assert.equal(notices.length, 3)
      assert.match(notices[0] ?? "", /bind \/: left out, nothing is bound over the root/)
      assert.throws(() => parseBinds([{ source: folder, destination: "/" }], folder), {
        code: "ERR_RUN_BIND",
      })
    })

    for (const [text, says] of [
      [":/in", /no source/],
      ["data:/in:ro:x", /more than SRC:DST:OPTION/],
      ["data:/in:rx", /rx is not a valid bind option/],
      ["data:/in:ro,x", /the source does not exist|not a valid/],
      ["missing", /the source does not exist/],
      ["data:in", /the destination must be an absolute path/],
      ["data:../in", /the destination must be an absolute path/],
    ] as const)
      it(`refuses ${JSON.stringify(text)}`, () => {
        assert.throws(() => parse(text), { name: "RunError", code: "ERR_RUN_BIND", message: says })
      })
  })

  describe("composeBinds", () => {
    const caller = (cwd: string): Parameters<typeof composeBinds>[0] => ({
      uid: 1000,
      gid: 1000,
      home: path.join(folder, "home"),
      cwd,
    })
    const destinations = (binds: readonly Place[]): string[] => binds.map(({ destination }) => destination)

    it("binds home, the temporary folders and the working directory", () => {
      const elsewhere = "/srv"
      const found = destinations(composeBinds(caller(elsewhere), []))
      assert.deepEqual(found, ["/tmp", "/var/tmp", path.join(folder, "home"), elsewhere])
    })

    it("does not bind a working directory that is seen already", () => {
      for (const cwd of [path.join(folder, "home"), "/tmp", "/var/tmp"])
        assert.deepEqual(destinations(composeBinds(caller(cwd), [])), [
          "/tmp",
          "/var/tmp",
          path.join(folder, "home"),
        ])
    })

    it("S17: binds a working directory whose name only starts like a bound one", () => {
      assert.ok(destinations(composeBinds(caller("/tmp2"), [])).includes("/tmp2"))
      assert.ok(destinations(composeBinds(caller("/etcetera"), [])).includes("/etcetera"))
      assert.ok(destinations(composeBinds(caller("/devel/x"), [])).includes("/devel/x"))
    })

    it("leaves the operating system's folders to the image", () => {
      for (const cwd of ["/", "/etc", "/usr", "/var", "/opt", "/proc/1", "/sys", "/dev", "/lib64"])
        assert.equal(destinations(composeBinds(caller(cwd), [])).includes(cwd), false, cwd)
    })

    it("binds a working directory in one of them", () => {
      for (const cwd of ["/var/scratch/ada", "/opt/data", "/usr/local/project"])
        assert.ok(destinations(composeBinds(caller(cwd), [])).includes(cwd), cwd)
    })

    it("lets the caller's own bind win its destination", () => {
      const own = [{ source: folder, destination: "/tmp", readOnly: true }]
      const found = composeBinds(caller("/tmp"), own)
      assert.deepEqual(
        found.filter(({ destination }) => destination === "/tmp"),
        own,
      )
    })

    it("binds no home that is missing, no folder, or the root", () => {
      for (const home of ["/", "/dev/null", path.join(folder, "missing")])
        assert.deepEqual(destinations(composeBinds({ ...caller("/"), home }, [])), ["/tmp", "/var/tmp"])
    })

    it("makes a home that was asked for and is nowhere: empty, and in memory", () => {
      const notices: string[] = []
      const onNotice = (text: string): unknown => notices.push(text)
      const found = composeBinds(caller("/"), [], { home: "/nowhere/at/all", onNotice })
      assert.deepEqual(found.at(-1), { destination: "/nowhere/at/all", mode: 0o700 })
      assert.match(notices.join(), /no folder \/nowhere\/at\/all on this machine/)
      assert.throws(() => composeBinds(caller("/"), [], { home: "/dev/null" }), { code: "ERR_RUN_OPTION" })
    })

    it("lies no home over the root, and takes it for one", () => {
      for (const home of ["/", "//", "/tmp/..", "/tmp:/"])
        for (const contain of [false, true]) {
          const found = destinations(composeBinds(caller("/"), [], { home, contain }))
          assert.deepEqual(found, ["/tmp", "/var/tmp"], home)
          assert.equal(homeOf(caller("/"), { home }).destination, "/")
        }
    })

    it("takes the working folder for a home that has no source", () => {
      const found = composeBinds(caller(path.join(folder, "data")), [], { home: ":/in" })
      assert.ok(
        found.some(
          ({ source, destination }) => source === path.join(folder, "data") && destination === "/in",
        ),
      )
      assert.throws(() => composeBinds(caller("/"), [], { home: "" }), { code: "ERR_RUN_OPTION" })
    })

    it("binds what a home that is a link leads to", () => {
      symlinkSync("home", path.join(folder, "link"))
      const found = composeBinds({ ...caller("/"), home: path.join(folder, "link") }, [])
      assert.deepEqual(found.at(-1), {
        source: path.join(folder, "home"),
        destination: path.join(folder, "link"),
        readOnly: false,
      })
    })
  })

  describe("folderAt", () => {
    it("asks the place that covers a path, the last one first", () => {
      const places = [
        { source: folder, destination: "/in", readOnly: false },
        { source: path.join(folder, "data"), destination: "/in/deep", readOnly: false },
        { destination: "/memory", mode: 0o700 },
      ]
      assert.equal(folderAt(places, "/in"), true)
      assert.equal(folderAt(places, "/in/home"), true)
      assert.equal(folderAt(places, "/in/missing"), false)
      assert.equal(folderAt(places, "/in/deep/home"), false)
      assert.equal(folderAt(places, "/memory"), true)
      assert.equal(folderAt(places, "/memory/x"), false)
      assert.equal(folderAt(places, "/other"), undefined)
      // S17
      assert.equal(folderAt(places, "/inner"), undefined)
      assert.equal(folderAt(places, "/in/deeper"), false)
    })
  })
})
