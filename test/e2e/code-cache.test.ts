// V8's code cache of the command: it is made at the first use, and it is code, so nobody else's is taken.
import assert from "node:assert/strict"
import {
  chmodSync,
  chownSync,
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { cli, idOf, isRoot, runProgram, sifcryptOk, type As, type Result } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

describe("the code cache", () => {
  const user = idOf("user")
  let home: string
  let hook: string

  const folder = (): string => path.join(home, ".cache", "sifcrypt", "code")
  const cacheOf = (name: string): string => {
    const found = readdirSync(folder()).filter((entry) => entry.startsWith(`${name}-`))
    assert.equal(found.length, 1, found.join(" "))
    return path.join(folder(), found[0] ?? "")
  }

  /** What V8 was given at the start: nothing, what it took, or what it refused. */
  const started = async (
    args: readonly string[] = ["--version"],
    env: Readonly<Record<string, string>> = {},
    as: As = "user",
  ): Promise<string> => {
    const command = [process.execPath, "--require", hook, cli, ...args]
    const result: Result = await runProgram(command, { as, env: { HOME: home, ...env } })
    assert.equal(result.status, 0, result.stderr)
    const [, said] = /^code cache: (\w+)\n$/m.exec(result.stderr) ?? assert.fail(result.stderr)
    return said ?? ""
  }

  before(() => {
    hook = path.join(newFolder("code-cache-hook"), "hook.cjs")
    writeFileSync(
      hook,
      `const vm = require("node:vm")
const { Script } = vm
vm.Script = class extends Script {
  constructor(source, options) {
    super(source, options)
    const said = options.cachedData === undefined ? "none" : this.cachedDataRejected ? "refused" : "taken"
    process.stderr.write("code cache: " + said + "\\n")
  }
}
`,
    )
  })

  beforeEach(() => {
    home = newFolder("code-cache-home", user)
  })

  it("is made at the first use, for its user alone, and taken from the next on", async () => {
    assert.equal(await started(), "none")
    for (const place of [path.join(home, ".cache"), path.dirname(folder()), folder()])
      assert.equal(statSync(place).mode & 0o777, 0o700, place)
    assert.equal(statSync(cacheOf("command")).mode & 0o777, 0o600)
    assert.equal(await started(), "taken")
  })

  it("is made by a command that becomes its payload, and grows with what other commands compile", async () => {
    const image = path.join(newFolder("code-cache", user), "image.sif")
    const env = { HOME: home }
    await sifcryptOk(["--version"], { env })
    const { size } = statSync(cacheOf("command"))
    await sifcryptOk(["build", image, makeRootTree()], { env })
    const grown = statSync(cacheOf("command"))
    assert.ok(grown.size > size)
    await sifcryptOk(["ls", "--help"], { env })
    await sifcryptOk(["exec", "--engine", "userspace", image, "/bin/echo"], { env })
    assert.equal(await started(["exec", "--engine", "userspace", image, "/bin/echo"]), "taken")
    const before = statSync(cacheOf("command"))
    await sifcryptOk(["build", "-F", image, makeRootTree()], { env })
    assert.equal(statSync(cacheOf("command")).ino, before.ino, "what is known is not written again")
  })

  it("is written once more after a day, for what other options compile", async () => {
    await started()
    const { ino } = statSync(cacheOf("command"))
    utimesSync(cacheOf("command"), 0, 0)
    assert.equal(await started(), "taken")
    assert.notEqual(statSync(cacheOf("command")).ino, ino)
  })

  it("of other releases is removed, but for a few", async () => {
    await started()
    const others = Array.from({ length: 12 }, (_, i) =>
      path.join(folder(), `run-${i.toString(16).padStart(64, "0")}.cache${i === 0 ? ".7" : ""}`),
    )
    others.forEach((other, i) => {
      writeFileSync(other, "")
      utimesSync(other, i + 1, i + 1)
    })
    writeFileSync(path.join(folder(), "another file"), "")
    utimesSync(cacheOf("command"), 0, 0)
    await started()
    assert.deepEqual(
      others.map((other) => existsSync(other)),
      [...others.keys()].map((i) => i >= 5),
    )
    assert.ok(existsSync(path.join(folder(), "another file")))
  })

  const spoils: Record<string, () => void> = {
    "a file that others may read": () => {
      chmodSync(cacheOf("command"), 0o644)
    },
    "a folder that others may look into": () => {
      chmodSync(folder(), 0o755)
    },
    "a folder above that others may write": () => {
      chmodSync(path.dirname(folder()), 0o770)
    },
    "a link": () => {
      const cache = cacheOf("command")
      renameSync(cache, path.join(home, "elsewhere"))
      symlinkSync(path.join(home, "elsewhere"), cache)
    },
    "bytes that changed": () => {
      const cache = cacheOf("command")
      const bytes = readFileSync(cache)
      bytes.writeUInt8(bytes.readUInt8(bytes.length - 1000) ^ 1, bytes.length - 1000)
      writeFileSync(cache, bytes)
    },
    "a folder that is a link": () => {
      const moved = path.join(home, "elsewhere")
      renameSync(folder(), moved)
      symlinkSync(moved, folder())
    },
    "half a file": () => {
      const cache = cacheOf("command")
      truncateSync(cache, statSync(cache).size / 2)
    },
    "an empty file": () => {
      truncateSync(cacheOf("command"), 0)
    },
    "a folder in its place": () => {
      const cache = cacheOf("command")
      rmSync(cache)
      mkdirSync(cache)
    },
  }
  if (isRoot) {
    // What another user gave to this one has nothing to do with how it came there.
    spoils["another user's file"] = () => {
      chownSync(cacheOf("command"), user + 1, user + 1)
    }
    spoils["another user's folder"] = () => {
      chownSync(folder(), user + 1, user + 1)
      chmodSync(folder(), 0o777)
    }
  }
  for (const [what, spoil] of Object.entries(spoils))
    it(`is not taken: ${what}`, async () => {
      await started()
      spoil()
      assert.equal(await started(), "none")
    })

  it("is that of one file: another release's under its name is not taken", async () => {
    const image = path.join(newFolder("code-cache", user), "image.sif")
    const env = { HOME: home }
    await sifcryptOk(["build", image, makeRootTree()], { env })
    const args = ["exec", "--engine", "userspace", image, "/bin/echo"]
    assert.equal(await started(args), "none")
    rmSync(cacheOf("run"))
    linkSync(
      cacheOf("command"),
      path.join(folder(), path.basename(cacheOf("command")).replace("command", "run")),
    )
    assert.equal(await started(args), "none")
  })

  it("is nowhere where there is no home, or another user's", async () => {
    assert.equal(await started(undefined, { HOME: "" }), "none")
    assert.equal(await started(undefined, { HOME: path.join(home, "none") }), "none")
    assert.equal(await started(undefined, { HOME: "home" }), "none")
    if (isRoot) {
      const other = newFolder("code-cache-other")
      chmodSync(other, 0o777)
      assert.equal(await started(undefined, { HOME: other }), "none")
      assert.deepEqual(readdirSync(other), [])
    }
    assert.deepEqual(readdirSync(home), [])
  })

  it("is not taken by root from the home of whoever called sudo, nor made there", async function () {
    if (!isRoot) skip(this, "only root can become somebody else")
    assert.equal(await started(undefined, undefined, "self"), "none")
    assert.deepEqual(readdirSync(home), [])
    await started()
    const { ino } = statSync(cacheOf("command"))
    assert.equal(await started(undefined, undefined, "self"), "none")
    assert.equal(statSync(cacheOf("command")).ino, ino)
  })

  it("is not taken from where another user's link leads, be that this one's alone", async function () {
    if (!isRoot) skip(this, "only root can make another user's link")
    const theirs = newFolder("code-cache-theirs", user + 1)
    chmodSync(theirs, 0o755)
    symlinkSync(path.join(home, ".cache"), path.join(theirs, ".cache"))
    await started()
    assert.equal(await started(undefined, { HOME: theirs }), "none")
    assert.equal(await started(), "taken")
  })

  it("is in XDG_CACHE_HOME, where that is", async () => {
    const place = newFolder("code-cache-xdg", user)
    await started(undefined, { XDG_CACHE_HOME: place })
    assert.equal(await started(undefined, { XDG_CACHE_HOME: place }), "taken")
    assert.deepEqual(readdirSync(home), [])
  })

  it("that has no room costs nothing but time", async () => {
    const limited = ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh", cli, "--version"]
    const result = await runProgram(limited, { env: { HOME: home } })
    assert.equal(result.status, 0, result.stderr)
    assert.match(result.text, /^sifcrypt version /)
    assert.deepEqual(readdirSync(folder()), [])
  })
})
