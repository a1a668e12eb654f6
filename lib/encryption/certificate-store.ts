// A user's certificates with their private keys, each as a PKCS#12 file under its password and named by its thumbprint. The certificate
// lies beside it, so that what is there can be listed without a password.
import { mkdirSync, readdirSync, statSync } from "node:fs"
import { rm } from "node:fs/promises"
import path from "node:path"
import * as is from "../arguments.ts"
import { readBounded } from "../bounded-file.ts"
import { KeyError } from "../errors.ts"
import { writeTogether } from "../file/small-files.ts"
import { byThumbprint, certificateFacts, type CertificateFacts } from "../key/certificate.ts"
import { MAX_KEY_FILE_SIZE } from "../key/key-file.ts"
import { isCertifiedBy, MAX_CERTIFICATE_SIZE } from "../key/x509.ts"
import { checkPrivate } from "../signing/rings.ts"
import { readPassword } from "./password.ts"
import { readSecretFile, secretSource, type SecretSource } from "./secret-sources.ts"
import type * as pkcs12 from "../key/pkcs12.ts"

// A function of its own: where TypeScript translates `using` it forgets to name the compiled file.
const pkcs12Reader = (): Promise<typeof pkcs12> => import("../key/pkcs12.ts")

const PRIVATE_MODE = 0o600

/** Where a store lies. */
export interface StoreOptions {
  /** Default: `SIFCRYPT_CERTSDIR`, else `.sifcrypt/certificates` in the home folder. */
  readonly folder?: string | undefined
  /** Where to look for these; default: `process.env`. */
  readonly environment?: Readonly<Record<string, string | undefined>> | undefined
}

/** A certificate of the store. */
export interface StoredCertificate extends CertificateFacts {
  /** The PKCS#12 file. */
  readonly pfx: string
}

/** What {@link add} adds. */
export interface AddOptions extends StoreOptions {
  /** PKCS#12. */
  readonly file: string
  /** Of the file, there as here. */
  readonly password: SecretSource
}

const storeRows = { folder: is.path, environment: is.variables }
const checkAdd = is.shape<AddOptions>({
  ...storeRows,
  file: is.required(is.path),
  password: is.required(secretSource),
})
const checkStore = is.shape<StoreOptions>(storeRows)
const thumbprints = is.list(is.text)

function folderOf({ folder, environment = process.env }: StoreOptions): string {
  if (folder !== undefined) return path.resolve(folder)
  const { SIFCRYPT_CERTSDIR: named, HOME: home } = environment
  if (named !== undefined && named !== "") return path.resolve(named)
  if (home === undefined || home === "")
    throw new KeyError(
      "ERR_KEY_MISSING",
      "there is no store of certificates: neither SIFCRYPT_CERTSDIR nor HOME is set",
    )
  return path.join(home, ".sifcrypt", "certificates")
}

/** The folder, which nobody else may look into; undefined: there is none yet. */
function storeOf(options: StoreOptions): string | undefined {
  const folder = folderOf(options)
  const info = statSync(folder, { throwIfNoEntry: false })
  if (info === undefined) return undefined
  checkPrivate(folder, info)
  return folder
}

const hexOf = (thumbprint: string): string => thumbprint.replaceAll(":", "").toLowerCase()

/**
 * Puts a private key with its certificate into the store.
 *
 * @returns The certificate; `added` is false where it was there already.
 * @throws KeyError `ERR_KEY_FORMAT`, `ERR_KEY_PASSPHRASE`, `ERR_KEY_MISSING` without a certificate of the key, or without a password;
 * SignatureError `ERR_KEYRING_INSECURE` where others may look into the store; BuildError `ERR_BUILD_OUTPUT`.
 */
export async function add(given: AddOptions): Promise<StoredCertificate & { readonly added: boolean }> {
  const { file, password: source, ...where } = checkAdd(given, "options")
  const bytes = await readSecretFile(file, MAX_KEY_FILE_SIZE)
  const { isPkcs12, parsePkcs12 } = await pkcs12Reader()
  if (!isPkcs12(bytes)) {
    bytes.fill(0)
    throw KeyError.at(file, "ERR_KEY_FORMAT", "it is no PKCS#12 file, as `cert convert --to pfx` makes one")
  }
  using password = await readPassword(source, file)
  if (password === undefined || password.length === 0)
    throw KeyError.at(file, "ERR_KEY_MISSING", "the store keeps what is under a password, and none was given")
  const { key, certificates } = await parsePkcs12(bytes, password.bytes, file)
  const der = certificates.find((one) => isCertifiedBy(key, one))
  if (der === undefined)
    throw KeyError.at(file, "ERR_KEY_MISSING", "there is no certificate of the key in it")
  const facts = certificateFacts(der, file)
  const folder = folderOf(where)
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  checkPrivate(folder, statSync(folder))
  const stored = path.join(folder, hexOf(facts.sha256))
  const pfx = `${stored}.pfx`
  const known = statSync(pfx, { throwIfNoEntry: false }) !== undefined
  if (!known)
    await writeTogether(
      [
        { path: `${stored}.cer`, bytes: der, mode: PRIVATE_MODE },
        { path: pfx, bytes, mode: PRIVATE_MODE },
      ],
      true,
    )
  return { ...facts, pfx, added: !known }
}

/**
 * The certificates of the store, by their names.
 *
 * @throws SignatureError `ERR_KEYRING_INSECURE`; KeyError `ERR_KEY_DAMAGED`.
 */
export async function listStored(given: StoreOptions = {}): Promise<StoredCertificate[]> {
  const folder = storeOf(checkStore(given, "options"))
  if (folder === undefined) return []
  const found: StoredCertificate[] = []
  for (const name of readdirSync(folder).sort()) {
    const hex = /^([0-9a-f]{64})\.pfx$/.exec(name)?.[1]
    if (hex === undefined) continue
    const file = path.join(folder, `${hex}.cer`)
    const facts = certificateFacts(await readBounded(file, MAX_CERTIFICATE_SIZE), file)
    if (hexOf(facts.sha256) !== hex)
      throw KeyError.at(file, "ERR_KEY_DAMAGED", "it is another certificate than its name says")
    found.push({ ...facts, pfx: path.join(folder, name) })
  }
  return found
}

/**
 * Takes certificates with their keys out of the store: all of them, or none.
 *
 * @param wanted - Thumbprints, SHA-256, or SHA-1 if only one certificate has that.
 * @throws As {@link listStored}; KeyError `ERR_KEY_MISMATCH`; RangeError for what is no thumbprint.
 */
export async function remove(
  wanted: readonly string[],
  given: StoreOptions = {},
): Promise<StoredCertificate[]> {
  const names = thumbprints(wanted, "wanted")
  const options = checkStore(given, "options")
  const stored = await listStored(options)
  const found = names.map((one) => byThumbprint(stored, one))
  for (const { pfx } of found) {
    // The key first: what has no key is not listed.
    await rm(pfx, { force: true })
    await rm(pfx.replace(/pfx$/, "cer"), { force: true })
  }
  return found
}
