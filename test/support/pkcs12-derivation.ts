// The key derivation of RFC 7292, B.2, word for word: what OpenSSL's is compared with, and hostile files are made with.
import { hash } from "node:crypto"

function repeated(bytes: Buffer, block: number): Buffer {
  const filled = Buffer.alloc(Math.ceil(bytes.length / block) * block)
  for (let at = 0; at < filled.length; at++) filled[at] = bytes[at % bytes.length] ?? 0
  return filled
}

export function deriveByTheBook(
  algorithm: string,
  wide: Buffer,
  salt: Buffer,
  purpose: number,
  iterations: number,
  size: number,
): Buffer {
  const block = algorithm === "sha384" || algorithm === "sha512" ? 128 : 64
  // D, S and P of the RFC in one buffer; S and P are what it calls I.
  const input = Buffer.concat([Buffer.alloc(block, purpose), repeated(salt, block), repeated(wide, block)])
  const parts: Buffer[] = []
  for (let done = 0; done < size; done += parts.at(-1)?.length ?? size) {
    let digest = hash(algorithm, input, "buffer")
    for (let round = 1; round < iterations; round++) digest = hash(algorithm, digest, "buffer")
    parts.push(digest)
    const addend = repeated(digest, block)
    for (let at = block; at < input.length; at += block) {
      let carry = 1
      for (let index = block - 1; index >= 0; index--) {
        carry += (input[at + index] ?? 0) + (addend[index] ?? 0)
        input[at + index] = carry & 0xff
        carry >>= 8
      }
    }
  }
  return Buffer.concat(parts).subarray(0, size)
}
