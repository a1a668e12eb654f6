// The examples of README.md and the guides, run as somebody would who copies them: from the package by its name, with real keys and
// a real root file system, as an ordinary user.
import assert from "node:assert/strict"
import { chownSync, cpSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { cli, idOf, packageRoot, runProgram, sifcryptOk, type Result } from "../support/cli.ts"
import { examples, pages } from "../support/examples.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

/** What the pages say is there: the package, a root file system, and, where they do not make them, keys. */
function place(without: "nothing" | "keys" | "keys and rootfs"): string {
  const folder = newFolder("examples", idOf("nobody"))
  if (without !== "keys and rootfs") {
    const tree = makeRootTree()
    writeFileSync(path.join(tree, "etc", "motd"), "the message of the day\n")
    cpSync(tree, path.join(folder, "rootfs"), { recursive: true, verbatimSymlinks: true })
  }
  writeFileSync(path.join(folder, "package.json"), '{ "type": "module" }\n')
  mkdirSync(path.join(folder, "node_modules"))
  symlinkSync(packageRoot, path.join(folder, "node_modules", "sifcrypt"))
  if (without === "nothing") {
    const { privateKey, publicKey } = testKeys()
    const key = path.join(folder, "key.pem")
    writeFileSync(key, readFileSync(privateKey), { mode: 0o600 })
    chownSync(key, idOf("nobody"), idOf("nobody"))
    writeFileSync(path.join(folder, "key-public.pem"), readFileSync(publicKey))
  }
  return folder
}

/** Runs modules one after the other in one process. */
async function runModules(folder: string, modules: readonly string[], extension: string): Promise<Result> {
  const names = modules.map((text, i) => {
    const kind = text.includes("require(") ? "cjs" : extension
    writeFileSync(path.join(folder, `example-${i}.${kind}`), text)
    return `./example-${i}.${kind}`
  })
  writeFileSync(
    path.join(folder, "all.mjs"),
    names.map((name) => `console.log("== ${name}")\nawait import("${name}")\n`).join(""),
  )
  const loader = path.join(packageRoot, "node_modules", "tsx", "dist", "loader.mjs")
  const options = extension === "mts" ? ["--import", loader] : []
  return await runProgram([process.execPath, ...options, "all.mjs"], { as: "nobody", cwd: folder })
}

async function runScript(folder: string, script: string): Promise<Result> {
  const command = `sifcrypt() { '${process.execPath}' '${cli}' "$@"; }\n`
  writeFileSync(path.join(folder, "script"), `set -eu -o pipefail\n${command}${script}`)
  return await runProgram(["bash", "script"], { as: "nobody", cwd: folder })
}

describe("the examples", () => {
  it("are there", () => {
    assert.equal(pages.length, 5)
    assert.ok(pages.flatMap((page) => examples(page, "ts")).length >= 9)
    assert.ok(pages.flatMap((page) => examples(page, "js")).length >= 3)
    assert.ok(pages.flatMap((page) => examples(page, "sh")).length >= 10)
  })

  for (const [page, shows] of [
    ["README.md", [/^the message of the day$/m, /^\/etc\/passwd \d+$/m, /^0 \d+$/m]],
    [
      "docs/guide/library.md",
      [
        /^\d+ names in \d+ bytes$/m,
        /^file 23 \/etc\/motd$/m,
        /^0 from outside\n\d+$/m,
        /^userspace \[\s+'bin'/m,
        /^that is no key: /m,
        /^1$/m,
        /^\d+ bytes of \d+ are encrypted$/m,
      ],
    ],
  ] as const) {
    it(`in TypeScript do what ${page} says`, async () => {
      const folder = place("nothing")
      if (page === "README.md") {
        // What its definition file is made of is on the network; the program is the same.
        await sifcryptOk(["build", path.join(folder, "base.sif"), path.join(folder, "rootfs")], {
          as: "nobody",
        })
        writeFileSync(path.join(folder, "cow.def"), "Bootstrap: localimage\nFrom: base.sif\n")
      }
      const result = await runModules(folder, examples(page, "ts"), "mts")
      assert.equal(result.status, 0, result.stderr)
      for (const line of shows) assert.match(result.text, line)
    })

    it(`in JavaScript do what ${page} says`, async () => {
      const folder = place("nothing")
      const image = path.join(folder, "image.sif")
      const key = path.join(folder, "key-public.pem")
      await sifcryptOk(["build", "--pem-path", key, image, path.join(folder, "rootfs")], { as: "nobody" })
      const result = await runModules(folder, examples(page, "js"), "mjs")
      assert.equal(result.status, 0, result.stderr)
      assert.match(result.text, /^the message of the day$/m)
      if (page === "docs/guide/library.md") assert.match(result.text, /Encrypted squashfs/)
    })
  }

  for (const [page, without] of [
    ["README.md", "nothing"],
    ["docs/guide/first-image.md", "keys and rootfs"],
    ["docs/guide/keys.md", "keys"],
  ] as const)
    it(`on the command line do what ${page} says`, async () => {
      const result = await runScript(place(without), examples(page, "sh").join("\n"))
      assert.equal(result.status, 0, result.text + result.stderr)
    })
})
