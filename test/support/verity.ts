// Images with a signed hash tree, and what is done to them.
import { generateKeyPairSync, type KeyObject } from "node:crypto"
import { closeSync, openSync, readSync, writeFileSync, writeSync } from "node:fs"
import path from "node:path"
import { sif, sign, type VerifyOptions } from "../../lib/index.ts"
import { isVerity } from "../../lib/sif/verity.ts"
import { seeded } from "./random.ts"
import { newFolder } from "./scratch.ts"

/** A signer, made once. */
interface Signer {
  readonly privateKey: KeyObject
  readonly publicKey: KeyObject
  /** The public key's file. */
  readonly file: string
}

let made: Signer | undefined
export function testSigner(): Signer {
  if (made === undefined) {
    const pair = generateKeyPairSync("ed25519")
    const file = path.join(newFolder("signer"), "public.pem")
    writeFileSync(file, pair.publicKey.export({ type: "spki", format: "pem" }))
    made = { ...pair, file }
  }
  return made
}

export const bySigner = (): VerifyOptions => ({ keys: [testSigner().publicKey] })

/** Signs an image as it is. */
export async function signAsItIs(image: string): Promise<void> {
  await sign(image, { key: testSigner().privateKey })
}

/** Gives the root partition a hash tree and signs everything. */
export async function signWithTree(image: string): Promise<void> {
  await sign(image, { key: testSigner().privateKey }, { tree: true })
}

/** Where partition and tree lie. */
export async function placesOf(
  image: string,
): Promise<{ readonly partition: sif.SifPartition; readonly tree: sif.SifObject }> {
  await using opened = await sif.openSif(image)
  const tree = opened.objects.find(isVerity)
  if (tree === undefined) throw new Error(`${image} has no hash tree`)
  return { partition: opened.primary(), tree }
}

/** Turns one bit of a file over. */
export function flipBit(file: string, at: number, bit: number = 0): void {
  const fd = openSync(file, "r+")
  try {
    const byte = Buffer.alloc(1)
    readSync(fd, byte, 0, 1, at)
    byte[0] = (byte[0] ?? 0) ^ (1 << bit)
    writeSync(fd, byte, 0, 1, at)
  } finally {
    closeSync(fd)
  }
}

let random: ReturnType<typeof seeded> | undefined

/** Turns over one random bit in each of `count` random blocks of a range, and tells which. */
export function flipBlocks(
  file: string,
  range: { readonly offset: number; readonly size: number },
  count: number,
): ReadonlySet<number> {
  const blocks = new Set<number>()
  random ??= seeded()
  while (blocks.size < count) blocks.add(random(Math.floor(range.size / 4096)))
  for (const block of blocks) flipBit(file, range.offset + block * 4096 + random(4096), random(8))
  return blocks
}
