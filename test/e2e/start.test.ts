// What the command loads before it does something: half of the time that `exec` takes to start goes by with that.
import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { cli } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"

const folder = newFolder("start")
const observer = path.join(folder, "observer.cjs")
const output = path.join(folder, "output")
/** Modules of Node that something is done with; none is needed to know what is to be done. */
const late = [
  "child_process",
  "crypto",
  "dns",
  "fs/promises",
  "http",
  "https",
  "net",
  "tls",
  "worker_threads",
  "zlib",
]

/** The modules of Node that were there at the end. */
function loaded(words: readonly string[]): string[] {
  // A file: for a pipe Node loads what it has for sockets.
  const fd = openSync(output, "w")
  const { status, stderr } = spawnSync(
    process.execPath,
    ["--require", observer, "--", cli, "+", ...words.map((word) => word.replace(/^(?=[-+])/, "+"))],
    { encoding: "utf8", stdio: ["ignore", fd, "pipe"] },
  )
  closeSync(fd)
  assert.equal(status, 0, stderr)
  assert.match(readFileSync(output, "utf8"), /^Usage: /m)
  return JSON.parse(stderr) as string[]
}

before(() => {
  writeFileSync(
    observer,
    `process.on("exit", () => require("node:fs").writeSync(2, JSON.stringify(require("node:process").moduleLoadList
      .filter((name) => name.startsWith("NativeModule ")).map((name) => name.slice(13)))))`,
  )
})

describe("the command, before it does something", () => {
  for (const command of ["exec", "run", "shell", "build", "ls", "push"])
    it(`loads no module of Node that ${command} --help has no use for`, () => {
      const found = loaded([command, "--help"])
      assert.ok(found.includes("fs"), found.join(" "))
      assert.deepEqual(
        late.filter((name) => found.includes(name)),
        [],
      )
    })

  it("starts no program but Node, by whatever environment it is started", () => {
    const programs = path.join(folder, "programs")
    const started = path.join(folder, "started")
    mkdirSync(programs)
    symlinkSync(process.execPath, path.join(programs, "node"))
    for (const name of ["tr", "grep"])
      writeFileSync(path.join(programs, name), `#!/bin/sh\necho ${name} >>${started}\n`, { mode: 0o755 })
    for (const [env, withAny] of [
      [{}, false],
      [{ PWD: folder }, false],
      [{ PWD: "/nowhere" }, true], // the shell puts another one in its place
      [{ "a.b": "1" }, true],
    ] as const) {
      const { status, stderr } = spawnSync("/bin/dash", [cli, "--version"], {
        cwd: folder,
        encoding: "utf8",
        env: { HOME: folder, PATH: programs, ...env },
      })
      assert.equal(status, 0, stderr)
      assert.equal(existsSync(started), withAny, JSON.stringify(env))
      rmSync(started, { force: true })
    }
  })
})
