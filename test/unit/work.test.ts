// Work for few bytes: each parser gets four times as much of one thing, and takes about four times as long, not sixteen.
import assert from "node:assert/strict"
import { parseDefinition } from "../../lib/definition/definition-file.ts"
import { expandGlob } from "../../lib/definition/glob.ts"
import { parseCsv } from "../../lib/cli/csv.ts"
import { parseStrictJson } from "../../lib/device/strict-json.ts"
import { BuildError } from "../../lib/errors.ts"
import { pemBlocks } from "../../lib/key/pem.ts"
import { parseChallenges } from "../../lib/registry/authorization.ts"
import { parseConfig, parseDocument } from "../../lib/oci/manifest.ts"
import { parseReference } from "../../lib/oci/reference.ts"
import { staticExports } from "../../lib/runtime/environment.ts"
import { DataType, serializeDescriptor, serializeHeader } from "../../lib/sif/format.ts"
import { openSif } from "../../lib/sif/open.ts"
import { keysIn } from "../../lib/signing/key-packets.ts"
import { parseClearSigned } from "../../lib/signing/openpgp.ts"
import { verifySif, type VerifyOptions } from "../../lib/signing/verify.ts"
import { newFolder } from "../support/scratch.ts"
import { mkdirSync } from "node:fs"
import path from "node:path"

/** Milliseconds of this process, the better of two: what else the machine does counts for little. */
async function processorTime(work: () => unknown): Promise<number> {
  let best = Infinity
  for (let round = 0; round < 2; round++) {
    const before = process.cpuUsage()
    try {
      await work()
    } catch {
      // A refusal takes no longer than an answer may.
    }
    const { user, system } = process.cpuUsage(before)
    best = Math.min(best, (user + system) / 1000)
  }
  return best
}

/** Quadratic work shows as sixteen times as much; what takes no time at all is not compared. */
async function assertLinear<T>(
  make: (count: number) => T,
  work: (made: T) => unknown,
  count: number,
): Promise<void> {
  const [few, many] = [make(count), make(4 * count)]
  let [fewMs, manyMs] = [Infinity, Infinity]
  // What is quadratic is so in each of them; a collection of garbage is not.
  for (let attempt = 0; attempt < 5 && !(manyMs < 8 * fewMs + 50); attempt++) {
    fewMs = await processorTime(() => work(few))
    manyMs = Math.min(manyMs, await processorTime(() => work(many)))
  }
  assert.ok(
    manyMs < 8 * fewMs + 50,
    `${count}: ${fewMs.toFixed(1)} ms, four times as much: ${manyMs.toFixed(1)} ms`,
  )
}

/** An image of empty objects. */
function imageOf(objects: readonly { group: number; type?: number; toGroup?: number }[]): Buffer {
  const dataOffset = 4096 + objects.length * 585
  const header = serializeHeader({
    launchScript: "#!/usr/bin/env run-singularity\n",
    version: "01",
    arch: "02",
    id: "11111111-1111-1111-1111-111111111111",
    created: 0,
    modified: 0,
    free: 0,
    total: objects.length,
    tableOffset: 4096,
    tableSize: objects.length * 585,
    dataOffset,
    dataSize: 0,
  })
  const records = objects.map(({ group, type = DataType.generic, toGroup }, index) =>
    serializeDescriptor({
      type,
      id: index + 1,
      group,
      link: toGroup === undefined ? { to: "none" } : { to: "group", group: toGroup },
      offset: dataOffset,
      size: 0,
      paddedSize: 0,
      time: 0,
      name: "x",
      extra: Buffer.alloc(0),
    }),
  )
  return Buffer.concat([header, Buffer.alloc(4096 - header.length), ...records, Buffer.alloc(16)])
}

const numbers = (count: number): number[] => Array.from({ length: count }, (_, index) => index + 1)

describe("work for few bytes", () => {
  const images: Record<string, (count: number) => Buffer> = {
    groups: (count) => imageOf(numbers(count).map((group) => ({ group }))),
    "objects in one group": (count) => imageOf(numbers(count).map(() => ({ group: 1 }))),
    "groups with a signature each": (count) =>
      imageOf(
        numbers(count).flatMap((group) => [
          { group },
          { group: 0, type: DataType.signature, toGroup: group },
        ]),
      ),
    "objects in no group": (count) => imageOf(numbers(count).map(() => ({ group: 0 }))),
  }
  const options: Record<string, (count: number) => VerifyOptions> = {
    verify: () => ({}),
    "verify --sif-id, for each,": (count) => ({ objects: numbers(count) }),
    "verify --legacy-insecure --all": () => ({ legacy: "all" }),
  }
  for (const [how, optionsFor] of Object.entries(options))
    for (const [what, make] of Object.entries(images))
      it(`${how} is linear in ${what}`, async () => {
        await assertLinear(
          (count) => ({ bytes: make(count), options: optionsFor(count) }),
          async ({ bytes, options: asked }) => {
            await using image = await openSif(bytes)
            await verifySif(image, asked)
          },
          1000,
        )
      })

  const definition = (text: string): unknown => parseDefinition(text, { path: "x.def" })
  const lines = (line: string) => (count: number) => line.repeat(count)
  const texts: Record<string, readonly [(count: number) => string, (text: string) => unknown, number]> = {
    "comments before a definition's first header": [
      lines("#\n"),
      (text) => definition(`${text}Bootstrap: x`),
      5000,
    ],
    "lines that a header's value is continued on": [
      lines("x\\\n"),
      (text) => definition(`Bootstrap: ${text}`),
      30_000,
    ],
    "percent signs, with a line separator behind them": [
      lines("%"),
      (text) => definition(`${text} x\u2028y`),
      300,
    ],
    "transfers of %files": [
      lines("a b\n"),
      (text) => definition(`Bootstrap: localimage\nFrom: x\n%files\n${text}`),
      5000,
    ],
    "quotes of %files": [lines(`"a' `), (text) => definition(`Bootstrap: x\n%files\n${text}`), 3000],
    "stages of a definition": [lines("Bootstrap: x\nFrom: y\n"), definition, 30],
    "templates of a definition": [
      lines("{{ a }} "),
      (text) => definition(`Bootstrap: x\n%arguments\na=b\n%post\n${text}`),
      3000,
    ],
    "labels of a definition": [lines("a b\n"), (text) => definition(`Bootstrap: x\n%labels\n${text}`), 5000],
    "fields of a mount": [lines(`"a""b",`), (text) => parseCsv(`${text}c`), 5000],
    "values of JSON": [lines("[],"), (text) => parseStrictJson(`[${text}[]]`), 1000],
    "names of JSON": [
      (count) =>
        numbers(count)
          .map((index) => `"${index}":0`)
          .join(),
      (text) => parseStrictJson(`{${text}}`),
      1000,
    ],
    "letters of a JSON text without an end": [lines("a"), (text) => parseStrictJson(`"${text}`), 5000],
    "beginnings of PEM blocks": [
      lines("-----BEGIN X-----\n"),
      (text) => [...pemBlocks(Buffer.from(text))],
      5000,
    ],
    "challenges of a registry": [lines(`a b="c\\"d", `), parseChallenges, 5000],
    "letters of a challenge": [lines("a"), parseChallenges, 5000],
    "blanks of a challenge": [(count) => `a${" ".repeat(count)}`, parseChallenges, 5000],
    "parts of an image's name": [lines("a/"), (text) => parseReference(`docker://${text}a`), 5000],
    "dashes of an image's name": [lines("-"), (text) => parseReference(`docker://a${text}`), 5000],
    "at signs of a layout's name": [lines("@1"), (text) => parseReference(`oci:x${text}x`), 5000],
    "lines of a clear-signed message": [
      lines("a \t\n"),
      (text) =>
        parseClearSigned(
          Buffer.from(
            `-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n${text}-----BEGIN PGP SIGNATURE-----\n\nx\n-----END PGP SIGNATURE-----\n`,
          ),
        ),
      5000,
    ],
    "beginnings of armored keys": [
      lines("-----BEGIN PGP PUBLIC KEY BLOCK-----\n"),
      (text) => keysIn(Buffer.from(text), "ring"),
      5000,
    ],
    "exports of an image": [lines(`export A="\${A:-"b"}"\n`), staticExports, 3000],
    "layers of a manifest": [
      (count) =>
        JSON.stringify({
          schemaVersion: 2,
          config: descriptor,
          layers: numbers(count).map(() => descriptor),
        }),
      (text) => parseDocument(Buffer.from(text), undefined, "manifest"),
      2000,
    ],
    "labels of a configuration": [
      (count) =>
        JSON.stringify({
          config: { Labels: Object.fromEntries(numbers(count).map((index) => [`l${index}`, "v"])) },
          rootfs: { diff_ids: [] },
        }),
      (text) => parseConfig(Buffer.from(text), "configuration"),
      3000,
    ],
  }
  const descriptor = { mediaType: "x", digest: `sha256:${"0".repeat(64)}`, size: 1 }
  for (const [what, [make, parse, count]] of Object.entries(texts))
    it(`is linear in ${what}`, async () => {
      await assertLinear(make, parse, count)
    })

  it("takes as many transfers as a definition has lines for", () => {
    const text = `Bootstrap: localimage\nFrom: x\n%files\n${"a b\n".repeat(150_000)}`
    const { stages } = parseDefinition(text, { path: "x.def" })
    assert.equal(stages[0]?.files[0]?.transfers.length, 150_000)
  })

  it("ends where a pattern leads to the same folders in too many ways", async () => {
    const folder = newFolder("globs")
    mkdirSync(path.join(folder, ...Array.from({ length: 20 }, () => "a")), { recursive: true })
    const pattern = `${"**/a/".repeat(8)}b`
    await assert.rejects(
      expandGlob(pattern, { resolve: async (name) => await Promise.resolve(path.join(folder, name)) }, 5000),
      (error: unknown) => error instanceof BuildError && error.code === "ERR_BUILD_SOURCE",
    )
  })
})
