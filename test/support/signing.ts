// Signs images as the peers do, for tests of verification: metadata, DSSE envelope, signature object. Written from the format's
// description and without the code under test.
import { createHash, sign, type KeyObject } from "node:crypto"
import { readFileSync } from "node:fs"
import { sif } from "../../lib/index.ts"

const sha256 = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex")
const TABLE = 4096
const RECORD = 585

/** The signed text for the objects of group 1 of an image with the usual layout. */
export function metadataOf(image: Buffer, ids: readonly number[]): string {
  const records = ids.map((id) => image.subarray(TABLE + (id - 1) * RECORD, TABLE + id * RECORD))
  const lowest = Math.min(...ids)
  const objects = records.map((record, index) => {
    const relative = Buffer.from([1, (ids[index] ?? 0) - lowest, 0, 0, 0])
    const parts = [
      record.subarray(0, 4),
      relative,
      record.subarray(13, 17),
      record.subarray(25, 33),
      record.subarray(41, 49),
      record.subarray(57),
    ]
    const at = Number(record.readBigInt64LE(17))
    const data = image.subarray(at, at + Number(record.readBigInt64LE(25)))
    return {
      relativeId: (ids[index] ?? 0) - lowest,
      descriptorDigest: `sha256:${sha256(Buffer.concat(parts))}`,
      objectDigest: `sha256:${sha256(data)}`,
    }
  })
  const header = Buffer.concat([image.subarray(0, 45), image.subarray(48, 64)])
  return JSON.stringify({ version: 1, header: { digest: `sha256:${sha256(header)}` }, objects })
}

/** An envelope around `text`, as one signer makes it. */
export function envelope(text: string, privateKey: KeyObject, keyid = ""): Buffer {
  const type = "application/vnd.sylabs.sif-metadata+json"
  const signed = Buffer.from(`DSSEv1 ${type.length} ${type} ${Buffer.byteLength(text)} ${text}`)
  const algorithm = privateKey.asymmetricKeyType === "ed25519" ? null : "sha256"
  const sig = sign(algorithm, signed, privateKey).toString("base64")
  return Buffer.from(
    JSON.stringify({
      payloadType: type,
      payload: Buffer.from(text).toString("base64"),
      signatures: [{ keyid, sig }],
    }),
  )
}

/** Adds a signature object for group 1 to an image. */
export async function addSignature(
  file: string,
  data: Buffer,
  entity: Buffer = Buffer.alloc(0),
): Promise<number> {
  const extra = Buffer.alloc(384)
  extra.writeInt32LE(1) // SHA-256
  entity.copy(extra, 4)
  return await sif.addObject(
    file,
    { type: sif.DataType.signature, extra, link: { to: "group", group: 1 } },
    data,
  )
}

/** Signs objects of group 1. */
export async function signDsse(file: string, privateKey: KeyObject, ids: readonly number[]): Promise<number> {
  return await addSignature(file, envelope(metadataOf(readFileSync(file), ids), privateKey))
}
