// What the files of one form give to key-file.ts: keys that were found, not read yet; and how the failures are told.
import type { KeyObject } from "node:crypto"
import { KeyError } from "../errors.ts"
import type { Certificate } from "./x509.ts"

/** A key within a file. */
export interface FoundKey {
  /** For messages: `a PKCS#8 private key`. */
  readonly what: string
  readonly half: "public" | "private"
  /** A password is needed to read it. */
  readonly locked: boolean
  /**
   * @throws KeyError `ERR_KEY_DAMAGED`, `ERR_KEY_TYPE`, `ERR_KEY_UNSUPPORTED`; `ERR_KEY_PASSPHRASE` when the password
   * is not this key's.
   */
  read(password: Buffer | undefined): KeyObject | Promise<KeyObject>
  /** The public half of a locked key, where no password is needed for that. */
  readonly readPublic?: () => KeyObject
  /** The certificate that the public key is in. */
  readonly certificate?: () => Certificate
}

/** What a file holds. */
export interface FoundKeys {
  readonly keys: readonly FoundKey[]
  /** What is no key, for messages. */
  readonly others: readonly string[]
}

export function damaged(origin: string, what: string, cause?: unknown): KeyError {
  return new KeyError("ERR_KEY_DAMAGED", `${origin}: ${what} is damaged or cut short`, { cause })
}

export function unsupported(origin: string, what: string, cause?: unknown): KeyError {
  return new KeyError("ERR_KEY_UNSUPPORTED", `${origin}: ${what}, which is not supported`, { cause })
}

export function wrongType(origin: string, found: string): KeyError {
  return new KeyError("ERR_KEY_TYPE", `${origin}: an RSA key is needed, found ${found}`)
}

export function wrongPassword(origin: string, what: string, cause?: unknown): KeyError {
  return new KeyError("ERR_KEY_PASSPHRASE", `${origin}: this is not the password of ${what}`, { cause })
}

/** The code of an error of OpenSSL or Node. */
export function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : ""
}
