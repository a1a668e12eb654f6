// Programs that depend on the package and are bundled, with the setting that docs/guide/library.md names: it stays outside.
import assert from "node:assert/strict"
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { build as esbuild } from "esbuild"
import { rollup } from "rollup"
import { packageRoot, runProgram } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

const consumer = `import { build, open, sif } from "sifcrypt"
import { greeting } from "./part.mjs"

async function main() {
  const [output, source] = process.argv.slice(2)
  await build({ output, source })
  const table = await sif.openSif(output)
  console.log(greeting, table.objects.length)
  await table[Symbol.asyncDispose]()
  const image = await open(output, { purpose: "read" })
  console.log((await image.readFile("/data/hello")).toString())
  await image.close()
}

main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
`

describe("a program that is bundled", () => {
  let folder: string
  let entry: string
  let tree: string
  before(() => {
    folder = newFolder("bundlers")
    entry = path.join(folder, "consumer.mjs")
    tree = makeRootTree()
    writeFileSync(entry, consumer)
    writeFileSync(path.join(folder, "part.mjs"), 'export const greeting = "objects:"\n')
    mkdirSync(path.join(folder, "node_modules"))
    symlinkSync(packageRoot, path.join(folder, "node_modules", "sifcrypt"))
  })

  const works = async (bundle: string): Promise<void> => {
    assert.doesNotMatch(readFileSync(bundle, "utf8"), /part\.mjs"/)
    const result = await runProgram([process.execPath, bundle, `${bundle}.sif`, tree], {
      as: "self",
      cwd: folder,
    })
    assert.equal(result.status, 0, result.stderr)
    assert.match(result.text, /^objects: 1\nhello\n/)
  }

  for (const [format, extension] of [
    ["esm", "mjs"],
    ["cjs", "cjs"],
  ] as const) {
    it(`works when esbuild made it, as ${format}`, async () => {
      const outfile = path.join(folder, `esbuild.${extension}`)
      const external = ["sifcrypt"]
      await esbuild({ entryPoints: [entry], outfile, format, bundle: true, platform: "node", external })
      await works(outfile)
    })

    it(`works when rollup made it, as ${format}`, async () => {
      const file = path.join(folder, `rollup.${extension}`)
      const bundle = await rollup({ input: entry, external: ["sifcrypt"] })
      await bundle.write({ file, format })
      await bundle.close()
      await works(file)
    })
  }
})
