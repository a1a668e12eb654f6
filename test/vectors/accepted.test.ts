// Images of other programs open, and list as expected/ says.
import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import { readFileSync } from "node:fs"
import path from "node:path"
import { serializeDescriptor, serializeHeader, DESCRIPTOR_SIZE, HEADER_SIZE } from "../../lib/sif/format.ts"
import {
  dump,
  headerJson,
  headerText,
  infoJson,
  infoText,
  listJson,
  listText,
  openSif,
} from "../../lib/file/sif.ts"
import { images, vector, vectorPath } from "./load.ts"

describe("accepted images", () => {
  for (const name of images) {
    it(`lists ${name} as expected`, async () => {
      await using image = await openSif(vector(name))
      const text = [
        listText(image),
        headerText(image),
        ...image.objects.map(({ id }) => infoText(image, id)),
      ].join("\n")
      const expected = readFileSync(vectorPath(`expected/${path.basename(name)}.txt`), "utf8")
      assert.equal(text, expected)
    })

    it(`gives the objects of ${name} as JSON that says the same`, async () => {
      await using image = await openSif(vector(name))
      assert.deepEqual(
        listJson(image),
        image.objects.map(({ id }) => infoJson(image, id)),
      )
      const copy = JSON.parse(JSON.stringify(headerJson(image))) as Record<string, unknown>
      assert.equal(copy["id"], image.header.id)
      assert.equal(copy["descriptorsTotal"], 48)
    })

    it(`dumps the data of every object of ${name}`, async () => {
      const bytes = vector(name)
      await using image = await openSif(bytes)
      for (const object of image.objects) {
        const pieces: Buffer[] = []
        for await (const piece of dump(image, object.id)) pieces.push(piece)
        const data = bytes.subarray(object.offset, object.offset + object.size)
        assert.ok(Buffer.concat(pieces).equals(data), `object ${object.id}`)
      }
    })
  }

  it("writes the header of every image again to the same bytes", async () => {
    for (const name of images) {
      const bytes = vector(name)
      await using image = await openSif(bytes)
      assert.deepEqual(serializeHeader(image.header), bytes.subarray(0, HEADER_SIZE), name)
    }
  })

  it("writes the descriptors of current libraries again to the same bytes", async () => {
    // Those of version 1 record the builder's IDs as owner.
    for (const name of images.filter((image) => !image.includes("legacy"))) {
      const bytes = vector(name)
      await using image = await openSif(bytes)
      for (const object of image.objects) {
        const at = image.header.tableOffset + object.slot * DESCRIPTOR_SIZE
        assert.deepEqual(
          serializeDescriptor({ ...object, time: object.created }),
          bytes.subarray(at, at + DESCRIPTOR_SIZE),
          `${name}, object ${object.id}`,
        )
      }
    }
  })

  it("finds the digest of an OCI blob in its extra area", async () => {
    await using image = await openSif(vector("sif/one-object-oci-blob.sif"))
    const [object] = image.objects
    assert.ok(object !== undefined)
    const data = await image.data(object, 4096)
    assert.equal(infoJson(image, 1).digest, `sha256:${createHash("sha256").update(data).digest("hex")}`)
  })

  it("opens an image from a file, and closes it", async () => {
    const image = await openSif(vectorPath("sif/one-group-signed-pgp.sif"))
    assert.ok(image.fd > 2)
    assert.equal(image.primary().id, 2)
    await image[Symbol.asyncDispose]()
  })
})
