// `sifcrypt map`: of images that were made here, on a terminal, in a pipe, as JSON and as a picture.
import assert from "node:assert/strict"
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs"
import path from "node:path"
import type { ImageMap, MapPart } from "../../lib/index.ts"
import { sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { draw, pictureFolder, pictures } from "../support/pictures.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { typing } from "../support/terminal.ts"
import { makeRootTree } from "../support/trees.ts"

describe("map", () => {
  const folder = newFolder("map", userId)
  const keys = testKeys()
  const image = path.join(folder, "image.sif")
  const outer = path.join(folder, "gocryptfs.sif")
  before(async () => {
    const tree = makeRootTree()
    await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree])
    await sifcryptOk(["build", "--pem-path", keys.publicKey, "--format", "gocryptfs", outer, tree])
  })

  const mapOf = async (file: string): Promise<ImageMap> =>
    JSON.parse((await sifcryptOk(["map", "--json", file])).text) as ImageMap
  const kindsOf = (parts: readonly MapPart[] = []): string[] =>
    parts.map(({ kind, name }) => `${kind}: ${name}`)

  it("is as long as the file, as JSON", async () => {
    const map = await mapOf(image)
    const { size } = statSync(image)
    assert.equal(map.size, size)
    assert.equal(
      map.parts.reduce((sum, part) => sum + part.size, 0),
      size,
    )
    const partition = map.parts.find(({ kind }) => kind === "encrypted")
    assert.equal(partition?.parts.at(-1)?.name, "payload")
  })

  it("finds the configuration of gocryptfs inside its squashfs", async () => {
    const map = await mapOf(outer)
    const partition = map.parts.find(({ kind }) => kind === "encrypted")
    assert.equal(partition?.problem, undefined)
    const config = partition?.parts.find(({ name }) => name === "gocryptfs.conf") ?? assert.fail()
    const bytes = readFileSync(outer).subarray(config.offset, config.offset + config.size)
    assert.match(bytes.toString("latin1"), /^\{[^]*"EncryptedKey"[^]*\}\n$/)
    assert.ok(kindsOf(partition?.parts).includes("encrypted: payload"))
  })

  it("draws what the documentation shows: node --import tsx test/support/pictures.ts", async () => {
    assert.deepEqual(
      readdirSync(pictureFolder).sort(),
      Object.keys(pictures)
        .map((name) => `${name}.svg`)
        .sort(),
    )
    for (const name of Object.keys(pictures))
      assert.equal(readFileSync(path.join(pictureFolder, `${name}.svg`), "utf8"), await draw(name), name)
  })

  it("has bars and colours on a terminal, none of them where they are not wanted, and lines in a pipe", async () => {
    const shown = async (env: Readonly<Record<string, string>>): Promise<string> =>
      (await sifcryptOk(["map", image], { ...typing(""), env: { TERM: "xterm", ...env } })).text
    assert.match(await shown({}), /\[\S*\[34m█/)
    for (const plain of [{ NO_COLOR: "1" }, { TERM: "dumb" }] as Record<string, string>[]) {
      const text = await shown(plain)
      assert.match(text, /\[=+\.+=+/)
      assert.ok(!text.includes("\u001b["), text)
    }
    const { text } = await sifcryptOk(["map", image])
    assert.match(text, /^ +0 +128 B {2}= {2}SIF header, version 01$/m)
    assert.doesNotMatch(text, /^\[/m)
  })

  it("writes a picture whole or not at all, and replaces a file only if it is told to", async () => {
    const picture = path.join(folder, "picture.svg")
    await sifcryptOk(["map", "--svg", picture, image])
    const svg = readFileSync(picture, "utf8")
    assert.match(svg, /^<svg xmlns=[^]*keyslot 0[^]*<\/svg>\n$/)
    writeFileSync(picture, "mine")
    const refused = await sifcrypt(["map", "-o", picture, image])
    assert.equal(refused.status, 23, refused.stderr)
    assert.equal(readFileSync(picture, "utf8"), "mine")
    await sifcryptOk(["map", "-F", "-o", picture, image])
    assert.equal(readFileSync(picture, "utf8"), svg)
    const nowhere = path.join(folder, "none.svg")
    assert.equal((await sifcrypt(["map", "-o", nowhere, picture])).status, 21)
    assert.equal(existsSync(nowhere), false)
    assert.deepEqual(readdirSync(folder).sort(), ["gocryptfs.sif", "image.sif", "picture.svg"])
  })
})
