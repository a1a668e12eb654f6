// What is said of the licences and the parts of others: NOTICE and the bill of materials, held against what is linked and installed.
import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import path from "node:path"
import { packageRoot, runProgram } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"

interface Component {
  readonly "bom-ref": string
  readonly name: string
  readonly version: string
  readonly purl?: string
  readonly licenses: readonly object[]
}
interface Bom {
  readonly bomFormat: string
  readonly serialNumber?: string
  readonly metadata: { readonly component: Component; readonly timestamp?: string }
  readonly components: readonly Component[]
  readonly dependencies: readonly { readonly ref: string; readonly dependsOn: readonly string[] }[]
}

describe("what is of others", () => {
  const read = (name: string): string => readFileSync(path.join(packageRoot, name), "utf8")
  const notice = read("NOTICE")
  const archives = [...read("scripts/static-libraries.sh").matchAll(/-l:(\S+?\.a)/g)].map(
    ([, name = ""]) => name,
  )
  const linked = JSON.parse(read("scripts/linked-libraries.json")) as readonly {
    readonly name: string
    readonly archive?: string
    readonly package?: string
  }[]
  const { packages } = JSON.parse(read("package-lock.json")) as {
    packages: Record<string, { readonly version: string; readonly dev?: true }>
  }
  const npm = Object.entries(packages).filter(([place, { dev }]) => place !== "" && dev !== true)

  it("stands in NOTICE, which is what scripts/notice.mjs makes", async () => {
    const check = await runProgram([process.execPath, "scripts/notice.mjs", "--check"], {
      as: "self",
      cwd: packageRoot,
    })
    assert.equal(check.status, 0, check.stderr)
    assert.ok(archives.length >= 6)
    for (const archive of archives) {
      const { name } = linked.find((row) => row.archive === archive) ?? assert.fail(archive)
      assert.ok(notice.includes(`  ${name} `), name)
    }
    for (const [place, { version }] of npm)
      assert.match(
        notice,
        new RegExp(`^  ${place.replace("node_modules/", "")} +${version.replaceAll(".", "\\.")} `, "m"),
      )
    for (const text of [
      "GNU LESSER GENERAL PUBLIC LICENSE",
      "GCC RUNTIME LIBRARY EXCEPTION",
      "TJ Holowaychuk",
      "Digital Bazaar",
    ])
      assert.ok(notice.includes(text), text)
  })

  it("stands in the bill of materials, with version, licence and a place in the tree, the same each time", async () => {
    const folder = newFolder("sbom")
    const made = await runProgram([process.execPath, "scripts/sbom.mjs", folder], {
      as: "self",
      cwd: packageRoot,
    })
    assert.equal(made.status, 0, made.stderr)
    const bom = JSON.parse(readFileSync(made.text.trim(), "utf8")) as Bom
    assert.equal(bom.bomFormat, "CycloneDX")
    assert.deepEqual([bom.serialNumber, bom.metadata.timestamp], [undefined, undefined])
    assert.equal(bom.metadata.component.name, "sifcrypt")
    const names = bom.components.map(({ name }) => name)
    for (const [place, { version }] of npm) {
      const name = place.replace("node_modules/", "")
      assert.equal(bom.components.find((one) => one.name === name)?.version, version, name)
    }
    for (const dev of ["typescript", "esbuild", "mocha"]) assert.ok(!names.includes(dev), dev)
    for (const { name, archive } of linked) if (archive !== undefined) assert.ok(names.includes(name), name)
    const refs = new Set(bom.components.map((one) => one["bom-ref"]))
    assert.equal(refs.size, bom.components.length)
    for (const one of bom.components) {
      assert.match(one.version, /\d/, one.name)
      assert.equal(one.licenses.length, 1, one.name)
    }
    const own = bom.dependencies.find(({ ref }) => ref === bom.metadata.component["bom-ref"])
    for (const ref of refs)
      assert.ok(
        ref.startsWith("linked:")
          ? own?.dependsOn.includes(ref)
          : bom.dependencies.some((one) => one.ref === ref),
      )
  })
})
