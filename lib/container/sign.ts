// Signs an image with a key that is somewhere: in a key ring, in a file, with gpg-agent, or with another program.
import * as is from "../arguments.ts"
import type { KeyObject } from "node:crypto"
import type { PrivateKey } from "openpgp"
import { KeyError } from "../errors.ts"
import { MAX_KEY_FILE_SIZE, parseSigningKey } from "../key/key-file.ts"
import { gpgSigner } from "../signing/gpg.ts"
import { readKeyring, readSignerKey } from "../signing/keys.ts"
import { isLocked, SecretKeyring, unlockSecretKey, wipeSecretKey } from "../signing/openpgp.ts"
import { signSif, type SignReport, type SignTargets } from "../signing/sign.ts"
import { commandSigner, keySigner, openPgpSigner, type Signer } from "../signing/signer.ts"
import { KeyPassword } from "../encryption/credentials.ts"
import { copyOf, readSecretFile, secretSource, type SecretSource } from "../encryption/secret-sources.ts"

/** Whose signature it is to be. The first two are OpenPGP, the others DSSE. */
export type SigningKey =
  | {
      /** OpenPGP secret keys, paths or the bytes themselves; {@link userSecretKeyrings} finds the user's. */
      readonly secretKeyrings: readonly (string | Uint8Array)[]
      /** Index through all of them, from 0, or whole fingerprint; default: the only key that there is. */
      readonly select?: number | string
    }
  | {
      /** Sign with gpg, whose agent has the key and asks for its password. */
      readonly gpg: true
      /** Index among gpg's secret keys, from 0, or whole fingerprint; default: the only one that can sign. */
      readonly select?: number | string
    }
  /** RSA, ECDSA P-256, P-384, P-521, or Ed25519. */
  | { readonly key: KeyObject }
  /** A file with such a private key: PKCS#8, PKCS#1, SEC 1; protected by a password or not. */
  | { readonly keyPath: string }
  | {
      /** The public half, PEM. */
      readonly publicKeyPath: string
      /**
       * A command for /bin/sh that has the use of the private half. What is to be signed comes on its standard input; its standard
       * output is the bare signature: RSA PKCS#1 v1.5 with SHA-256, ECDSA with SHA-256 as DER, or Ed25519.
       */
      readonly command: string
    }

/** How {@link sign} signs. */
export interface SignOptions extends SignTargets {
  /** Of the key, where it is under one. It is read, or asked for, only if it is needed. */
  readonly password?: SecretSource | undefined
}

const pathOrBytes: is.Check<string | Uint8Array> = (value, name) =>
  typeof value === "string" ? is.path(value, name) : is.bytes(value, name)
/** An index, or a fingerprint. */
const select: is.Check<number | string> = (value, name) =>
  typeof value === "string" ? value : is.count(value, name)

type Form<K extends string> = Extract<SigningKey, Readonly<Record<K, unknown>>>

const signingKey = is.variants<SigningKey>({
  secretKeyrings: is.shape<Form<"secretKeyrings">>({
    secretKeyrings: is.required(is.list(pathOrBytes)),
    select,
  }),
  gpg: is.shape<Form<"gpg">>({ gpg: is.required(is.oneOf(true)), select }),
  key: is.shape<Form<"key">>({ key: is.required(is.keyObject) }),
  keyPath: is.shape<Form<"keyPath">>({ keyPath: is.required(is.path) }),
  publicKeyPath: is.shape<Form<"publicKeyPath">>({
    publicKeyPath: is.required(is.path),
    command: is.required(is.path),
  }),
})

const checkSign = is.shape<SignOptions>({
  groups: is.list(is.count),
  objects: is.list(is.count),
  tree: is.flag,
  time: is.count,
  password: secretSource,
  signal: is.abortSignal,
  onProgress: is.callback,
})

type Use = (signer: Signer) => Promise<SignReport>

/** The OpenPGP library keeps to the bytes of a ring: they are wiped when the signature is made. */
async function withOpenPgp(
  { secretKeyrings, select }: Extract<SigningKey, { readonly secretKeyrings: unknown }>,
  options: SignOptions,
  use: Use,
): Promise<SignReport> {
  const read: Buffer[] = []
  let key: PrivateKey | undefined
  try {
    const ring = new SecretKeyring()
    for (const [index, given] of secretKeyrings.entries()) {
      const origin = typeof given === "string" ? given : `key ring ${index + 1}`
      const bytes = typeof given === "string" ? await readKeyring(given) : copyOf(given)
      read.push(bytes)
      await ring.add(bytes, origin)
    }
    key = await ring.select(select)
    const chosen = key
    if (await isLocked(chosen)) {
      const origin = `the key ${chosen.getFingerprint().toUpperCase()}`
      using password = new KeyPassword(options.password)
      await password.unlock(origin, async (tried) => {
        if (tried === undefined)
          throw new KeyError("ERR_KEY_LOCKED", `${origin}: its password is needed and none was given`)
        await unlockSecretKey(chosen, tried, origin)
      })
    }
    return await use(openPgpSigner(chosen))
  } finally {
    if (key !== undefined) wipeSecretKey(key)
    for (const bytes of read) bytes.fill(0)
  }
}

async function fromFile(path: string, options: SignOptions): Promise<Signer> {
  const bytes = await readSecretFile(path, MAX_KEY_FILE_SIZE, options.signal)
  try {
    using password = new KeyPassword(options.password)
    return keySigner(await password.unlock(path, (tried) => parseSigningKey(bytes, path, tried)), path)
  } finally {
    bytes.fill(0)
  }
}

async function withSigner(by: SigningKey, options: SignOptions, use: Use): Promise<SignReport> {
  if ("secretKeyrings" in by) return await withOpenPgp(by, options, use)
  if ("gpg" in by) return await use(await gpgSigner(by.select, options.signal))
  if ("key" in by) return await use(keySigner(by.key, "the key"))
  if ("keyPath" in by) return await use(await fromFile(by.keyPath, options))
  return await use(
    commandSigner(await readSignerKey(by.publicKeyPath, options.signal), by.publicKeyPath, by.command),
  )
}

/**
 * Signs an image in place, as Apptainer and SingularityCE do: what is signed is its identity, the descriptors and data of its
 * objects (of an encrypted partition, the ciphertext). Somebody who signs at the same time is waited for. Whatever stops it,
 * the image has all of the new signatures or none.
 *
 * @throws SignatureError `ERR_SIGNATURE_KEYRING` when the key is not there or does not sign, `ERR_SIGNATURE_SIGN` when another
 * program fails, `ERR_SIGNATURE_MISSING` for a group or object that is not there, `ERR_SIGNATURE_TREE`; KeyError `ERR_KEY_LOCKED`,
 * `ERR_KEY_PASSPHRASE` and others of a key file; EnvironmentError `ERR_ENV_NO_PROGRAM` without gpg; SifError of a malformed
 * or full image, `ERR_SIF_BUSY`; the signal's reason; system errors.
 */
export async function sign(path: string, by: SigningKey, given: SignOptions = {}): Promise<SignReport> {
  is.path(path, "path")
  const key = signingKey(by, "by")
  const options = checkSign(given, "options")
  options.signal?.throwIfAborted()
  return await withSigner(key, options, (signer) => signSif(path, signer, options))
}
