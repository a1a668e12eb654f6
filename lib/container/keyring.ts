/**
 * Key rings as programs and the command use them: made, read and changed, with passwords from wherever they come.
 *
 * @packageDocumentation
 */
import * as is from "../arguments.ts"
import { writeTogether } from "../file/small-files.ts"
import { SignatureError } from "../errors.ts"
import {
  changePassword,
  exportKeys,
  exportRows,
  importKeys as importPlain,
  inspectKeys,
  newPair as makePair,
  pairRows,
  ringRows,
  type ExportOptions,
  type Imported,
  type KeyFacts,
  type NewPairOptions as PairOptions,
  type RingOptions,
} from "../signing/key-ring.ts"
import { newPassword, readPassword } from "../encryption/password.ts"
import { secretSource, type SecretSource } from "../encryption/secret-sources.ts"
import { readKeyring } from "../signing/keys.ts"

export {
  exportKeys,
  inspectKeys,
  keyTypes,
  list,
  parseFingerprint,
  remove,
  ringPath,
  rsaBits,
} from "../signing/key-ring.ts"
export type {
  ExportOptions,
  Imported,
  KeyFacts,
  KeyStatus,
  ListOptions,
  RemoveOptions,
  RingListing,
  RingOptions,
} from "../signing/key-ring.ts"
export { DEFAULT_KEY_SERVER, KEY_SERVER_TIMEOUT_MS, pull, push, search } from "../signing/key-server.ts"
export type { FoundKey, KeyServerOptions } from "../signing/key-server.ts"
export type { RingEnvironment } from "../signing/rings.ts"

/** A new key pair. */
export interface NewPairOptions extends Omit<PairOptions, "password"> {
  /** Of the private key. */
  readonly password?: SecretSource
  /** Without a password: whoever reads the file has the private key. */
  readonly plain?: boolean
}

/** A password that got lost on the way here is a mistake: who wants none says `plain`. */
const checkPair = is.shape<NewPairOptions>({ ...pairRows, password: secretSource, plain: is.flag })

/**
 * Makes a key pair in the user's own ring.
 *
 * @throws RangeError for a name, an address or a size that no key may have; KeyError for the password; SignatureError
 * `ERR_KEYRING_INSECURE`, `ERR_KEYRING_BUSY`, `ERR_KEYRING_WRITE`.
 */
export async function newPair(options: NewPairOptions): Promise<KeyFacts> {
  const { password: source, plain = false, ...rest } = checkPair(options, "options")
  if (plain) {
    if (source !== undefined) throw is.invalidValue("options.password and options.plain exclude each other")
    return await makePair(rest)
  }
  using password = await newPassword(source, rest.email)
  return await makePair({ ...rest, password: password.bytes })
}

/** How {@link readKeys} reads. */
export interface ReadKeysOptions {
  /** Ends the wait for a pipe. */
  readonly signal?: AbortSignal
}

const checkReadKeys = is.shape<ReadKeysOptions>({ signal: is.abortSignal })

/**
 * The bytes of a file of keys, for {@link importKeys}: a file, a device or a pipe.
 *
 * @throws SignatureError `ERR_SIGNATURE_KEYRING` when it cannot be read, or has more than a key ring has; the signal's reason.
 */
export async function readKeys(file: string, options: ReadKeysOptions = {}): Promise<Buffer> {
  const { signal } = checkReadKeys(options, "options")
  return await readKeyring(is.path(file, "file"), signal)
}

/** How {@link importKeys} imports. */
export interface ImportOptions extends RingOptions {
  /** Put private keys under a new password. */
  readonly newPassword?: SecretSource
  /** Of the private keys in the file; asked for only with `newPassword`. */
  readonly password?: SecretSource | undefined
}

const checkImport = is.shape<ImportOptions>({
  ...ringRows,
  newPassword: is.notUndefined(secretSource),
  password: secretSource,
})

/**
 * Adds keys to a ring. What is new in a key that is there already (a revocation, a longer validity) is added to it. Private keys
 * go to the secret file as they are or under a new password, and their public halves to the public one; the system's ring takes
 * public ones only.
 *
 * @param file - OpenPGP keys, armored or as packets, as GnuPG and Apptainer export them.
 * @param origin - What to call it in messages.
 * @throws SignatureError `ERR_SIGNATURE_KEYRING` for a file that holds none, and for a wrong password; `ERR_KEYRING_INSECURE`,
 * `ERR_KEYRING_BUSY`, `ERR_KEYRING_WRITE`; KeyError for a new password.
 */
export async function importKeys(
  file: Uint8Array,
  origin: string,
  options: ImportOptions = {},
): Promise<Imported[]> {
  const { newPassword: next, password: before, ...ring } = checkImport(options, "options")
  if (next === undefined) return await importPlain(file, origin, ring)
  const secret = (await inspectKeys(file, origin)).filter((key) => key.secret !== "none")
  if (secret.length === 0)
    throw new SignatureError(
      "ERR_SIGNATURE_KEYRING",
      `${origin} holds no private key to put under a password`,
      {
        path: origin,
      },
    )
  using old = secret.some((key) => key.secret === "protected")
    ? await readPassword(before, origin)
    : undefined
  using password = await newPassword(next, origin)
  const changed = await changePassword(file, origin, old?.bytes, password.bytes)
  try {
    return await importPlain(changed, origin, ring)
  } finally {
    changed.fill(0)
  }
}

/** How {@link exportFile} writes. */
export interface ExportFileOptions extends ExportOptions {
  /** Replace the file; it is kept until the new one is complete. Default false. */
  readonly force?: boolean | undefined
}

const checkExport = is.shape<ExportFileOptions>({ ...exportRows, force: is.flag })

const PUBLIC_MODE = 0o644
const PRIVATE_MODE = 0o600

/**
 * Writes keys to a file, which with private keys is its owner's alone.
 *
 * @throws BuildError `ERR_BUILD_EXISTS`, `ERR_BUILD_OUTPUT`; what {@link exportKeys} throws.
 */
export async function exportFile(
  file: string,
  fingerprints: readonly string[],
  options: ExportFileOptions = {},
): Promise<void> {
  is.path(file, "file")
  const { force = false, ...rest } = checkExport(options, "options")
  const bytes = await exportKeys(fingerprints, rest)
  try {
    const mode = rest.secret === true ? PRIVATE_MODE : PUBLIC_MODE
    await writeTogether([{ path: file, bytes, mode }], force)
  } finally {
    bytes.fill(0)
  }
}
