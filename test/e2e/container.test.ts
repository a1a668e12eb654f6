// Dockerfile.test as Debian's buildah reads it, up to where the project itself is built (scripts/container-test.sh goes on from there, which
// takes half an hour): on a base whose system is this machine's, so nothing is fetched.
import assert from "node:assert/strict"
import { mkdirSync, readFileSync, symlinkSync } from "node:fs"
import path from "node:path"
import { isRoot, packageRoot, runProgram, type Result } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"

describe("Dockerfile.test", () => {
  const store = newFolder("buildah")
  const image = "localhost/machine"
  // What a base would have in it.
  const [, ofNode = "usr"] = process.execPath.split(path.sep)
  const folders = new Set(["/usr", "/etc", "/var/lib/dpkg", `/${ofNode}`])
  const system = [...folders].flatMap((folder) => ["--volume", `${folder}:${folder}:ro`])

  const buildah = async (...args: string[]): Promise<Result> => {
    const places = ["--root", `${store}/store`, "--runroot", `${store}/run`, "--storage-driver", "vfs"]
    const env = { BUILDAH_ISOLATION: "chroot" }
    return await runProgram(["buildah", ...places, ...args], {
      as: "self",
      cwd: packageRoot,
      env,
      timeoutMs: 120_000,
    })
  }
  const buildahOk = async (...args: string[]): Promise<string> => {
    const result = await buildah(...args)
    assert.equal(result.status, 0, `${args.join(" ")}: ${result.stderr}`)
    return result.text.trim()
  }

  before(async function () {
    if (!isRoot) skip(this, "a base of this machine's folders takes mounts")
    const base = newFolder("base")
    for (const folder of ["usr", "etc", "var/lib/dpkg", "proc", "sys", "dev", "tmp", "run", "root"])
      mkdirSync(path.join(base, folder), { recursive: true })
    for (const link of ["bin", "sbin", "lib", "lib64"]) symlinkSync(`usr/${link}`, path.join(base, link))
    await buildahOk("from", "--name", "base", "scratch")
    await buildahOk("copy", "--quiet", "base", base, "/")
    await buildahOk("commit", "--quiet", "base", "localhost/base")
  })

  it("is built, with the Node.js of the base and the packages that are there", async () => {
    const build = ["bud", "--target", "machine", "--build-arg", "BASE=localhost/base", ...system]
    const told = await buildahOk(...build, "-f", "Dockerfile.test", "-t", image, ".")
    assert.match(told, new RegExp(`^${process.version}$`, "m"))
    const stages = [
      ...readFileSync(path.join(packageRoot, "Dockerfile.test"), "utf8").matchAll(/^FROM .* AS (\w+)$/gm),
    ]
    assert.deepEqual(
      stages.map(([, name]) => name),
      ["machine", "test"],
    )
  })

  it("runs tests", async () => {
    await buildahOk("from", "--name", "tests", image)
    const mocha = [
      "node_modules/.bin/mocha",
      "--reporter",
      "dot",
      "test/unit/units.test.ts",
      "test/unit/sif/*.test.ts",
    ]
    const told = await buildahOk(
      "run",
      ...system,
      "--volume",
      `${packageRoot}:/sifcrypt:ro`,
      "tests",
      "--",
      ...mocha,
    )
    assert.match(told, /^ +\d+ passing/m)
    assert.doesNotMatch(told, /failing/)
  })
})
