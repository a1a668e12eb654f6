// Signatures from before Singularity 3.6: a digest over data, and nothing about the header or the descriptors (CVE-2020-13847).
import type { SifObject } from "../sif/format.ts"
import type { Digest } from "./digest.ts"
import type { ClearSigned } from "./openpgp.ts"

const title = "SIFHASH:\n"

/** Is the text of a clear-signed message one of these? */
export function isLegacy({ text }: ClearSigned): boolean {
  return text.startsWith(title)
}

/** Node's names for the hash types of signature objects that are taken (SIF specification): SHA-256, SHA-384, SHA-512. */
const algorithms: Readonly<Record<number, { readonly algorithm: string; readonly digits: number }>> = {
  1: { algorithm: "sha256", digits: 64 },
  2: { algorithm: "sha384", digits: 96 },
  3: { algorithm: "sha512", digits: 128 },
}

/** The digest that is signed, by the algorithm that the object's descriptor names; undefined: not in a form that is taken. */
export function legacyDigest({ text }: ClearSigned, object: SifObject): Digest | undefined {
  const hex = text.slice(title.length).replace(/\n$/, "")
  const found = algorithms[object.extra.readInt32LE(0)]
  if (found?.digits !== hex.length || !/^[0-9a-f]+$/.test(hex)) return undefined
  return { algorithm: found.algorithm, value: Buffer.from(hex, "hex") }
}
