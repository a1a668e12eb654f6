// For whom the layers of OCI images are encrypted, as callers name them.
import { createPublicKey, type KeyObject } from "node:crypto"
import { types } from "node:util"
import * as is from "../arguments.ts"
import { KeyError } from "../errors.ts"
import { admitKey } from "../key/admission.ts"
import {
  checkRecipient,
  checkRsa,
  MAX_KEY_FILE_SIZE,
  parseLayerRecipient,
  parseRecipientCertificate,
} from "../key/key-file.ts"
import type { LayerRecipients } from "../ocicrypt/layer-recipients.ts"
import type { CertifiedKey } from "../ocicrypt/pkcs7.ts"
import { isTokenFile } from "../ocicrypt/token-file.ts"
import { readTokenRecipient } from "./token-keys.ts"
import { readPgpRecipients } from "../ocicrypt/pgp.ts"
import { exportGnuPgKey, gnuPgSource, type GnuPgSource } from "./gnupg-keys.ts"
import { findProviders, keyProviderSource, type KeyProviderSource } from "./key-providers.ts"
import { readSecret, secretSource, type SecretSource } from "./secret-sources.ts"

/** Somebody who shall be able to decrypt layers, and the scheme that he reads. */
export type LayerRecipient =
  /** A public key, RSA or EC on P-256, P-384 or P-521, in any form that a recipient's of a SIF has; or the key itself. */
  | { readonly jwe: SecretSource | KeyObject }
  /** An X.509 certificate of an RSA key. */
  | { readonly pkcs7: SecretSource }
  /** OpenPGP public keys, armored or not. */
  | { readonly pgp: SecretSource }
  | GnuPgSource
  /** A key in a PKCS#11 token, as a key file of ocicrypt names it, or its public half: RSA. */
  | { readonly pkcs11: SecretSource }
  /** Whoever a key provider wraps for. */
  | KeyProviderSource

type Kind<K extends string> = Extract<LayerRecipient, Readonly<Record<K, unknown>>>

const layerRecipient = is.variants<LayerRecipient>({
  jwe: is.shape<Kind<"jwe">>({
    jwe: is.required((value, name) => (types.isKeyObject(value) ? value : secretSource(value, name))),
  }),
  pkcs7: is.shape<Kind<"pkcs7">>({ pkcs7: is.required(secretSource) }),
  pgp: is.shape<Kind<"pgp">>({ pgp: is.required(secretSource) }),
  pkcs11: is.shape<Kind<"pkcs11">>({ pkcs11: is.required(secretSource) }),
  provider: keyProviderSource,
  gnupg: gnuPgSource,
})

/**
 * A list that names somebody.
 *
 * @throws KeyError `ERR_KEY_MISSING`.
 */
export const layerRecipientList: is.Check<LayerRecipient[]> = (value, name) => {
  const recipients = value === undefined ? [] : is.list(layerRecipient)(value, name)
  if (recipients.length === 0) throw new KeyError("ERR_KEY_MISSING", `${name} was given and names nobody`)
  return recipients
}

async function fileOf(
  source: SecretSource,
  what: string,
  signal: AbortSignal | undefined,
): Promise<{ readonly bytes: Buffer; readonly origin: string }> {
  const found = await readSecret(source, { limit: MAX_KEY_FILE_SIZE, what, signal })
  if (found === undefined) throw new KeyError("ERR_KEY_MISSING", `${what}: there is nobody to ask`)
  return found
}

function objectOf(key: KeyObject, origin: string): KeyObject {
  admitKey(key, origin)
  const half = key.type === "private" ? createPublicKey(key) : key
  return half.asymmetricKeyType === "ec" ? half : checkRecipient(checkRsa(half, origin), origin)
}

/**
 * Reads their keys.
 *
 * @throws KeyError.
 */
export async function resolveLayerRecipients(
  recipients: readonly LayerRecipient[],
  signal?: AbortSignal,
): Promise<LayerRecipients> {
  const keys: KeyObject[] = []
  const certificates: CertifiedKey[] = []
  const pgpKeys: LayerRecipients["pgpKeys"][number][] = []
  const tokenKeys: KeyObject[] = []
  const providers: KeyProviderSource[] = []
  for (const [index, recipient] of recipients.entries()) {
    if ("provider" in recipient) {
      providers.push(recipient)
      continue
    }
    const what = `recipient ${index + 1}`
    if ("gnupg" in recipient) {
      pgpKeys.push(
        ...(await readPgpRecipients(
          await exportGnuPgKey(recipient, signal),
          `gpg's ${String(recipient.gnupg)}`,
        )),
      )
      continue
    }
    if ("jwe" in recipient && types.isKeyObject(recipient.jwe)) {
      keys.push(objectOf(recipient.jwe, what))
      continue
    }
    const source =
      "jwe" in recipient
        ? (recipient.jwe as SecretSource)
        : "pkcs7" in recipient
          ? recipient.pkcs7
          : "pgp" in recipient
            ? recipient.pgp
            : recipient.pkcs11
    const { bytes, origin } = await fileOf(source, what, signal)
    try {
      if ("jwe" in recipient) keys.push(await parseLayerRecipient(bytes, origin))
      else if ("pkcs7" in recipient) certificates.push(await parseRecipientCertificate(bytes, origin))
      else if ("pgp" in recipient) pgpKeys.push(...(await readPgpRecipients(bytes, origin)))
      else if (isTokenFile(bytes))
        tokenKeys.push(checkRecipient(await readTokenRecipient(bytes, origin, signal), origin))
      else tokenKeys.push(checkRecipient(checkRsa(await parseLayerRecipient(bytes, origin), origin), origin))
    } finally {
      // A private key names a recipient, too.
      bytes.fill(0)
    }
  }
  return { keys, certificates, pgpKeys, tokenKeys, providers: await findProviders(providers, signal) }
}
