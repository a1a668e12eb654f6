// Keys and passphrases for tests, made once in a run.
import { generateKeyPairSync } from "node:crypto"
import { writeFileSync } from "node:fs"
import path from "node:path"
import { newFolder } from "./scratch.ts"

export const passphrase = "correct horse battery staple"

export interface TestKeys {
  /** PKCS#1 files of one RSA pair. */
  readonly publicKey: string
  readonly privateKey: string
  /** The private key of another pair. */
  readonly otherPrivateKey: string
  readonly otherPublicKey: string
  readonly passphraseFile: string
  readonly wrongPassphraseFile: string
}

let keys: TestKeys | undefined

export function testKeys(): TestKeys {
  if (keys !== undefined) return keys
  const folder = newFolder("keys")
  const write = (name: string, content: string): string => {
    const file = path.join(folder, name)
    writeFileSync(file, content, { mode: 0o644 })
    return file
  }
  const pair = (name: string): { publicKey: string; privateKey: string } => {
    const made = generateKeyPairSync("rsa", {
      modulusLength: 2048,
      publicKeyEncoding: { type: "pkcs1", format: "pem" },
      privateKeyEncoding: { type: "pkcs1", format: "pem" },
    })
    return {
      publicKey: write(`${name}.pub.pem`, made.publicKey),
      privateKey: write(`${name}.pem`, made.privateKey),
    }
  }
  const other = pair("other")
  keys = {
    ...pair("key"),
    otherPrivateKey: other.privateKey,
    otherPublicKey: other.publicKey,
    passphraseFile: write("passphrase", `${passphrase}\n`),
    wrongPassphraseFile: write("wrong-passphrase", "tr0ub4dor&3\n"),
  }
  return keys
}
