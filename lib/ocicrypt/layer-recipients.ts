// For whom layers are encrypted.
import type { KeyObject } from "node:crypto"
import type { PublicKey } from "openpgp"
import { messagesOf, schemesOf, type Annotations } from "./annotations.ts"
import { jweRecipients, wrapJwe } from "./jwe.ts"
import type { KeyProvider } from "./key-provider.ts"
import { writeLayerKey, type LayerKey } from "./layer-key.ts"
import { pgpRecipients, wrapPgp } from "./pgp.ts"
import { wrapPkcs11 } from "./pkcs11.ts"
import { pkcs7Recipients, wrapPkcs7, type CertifiedKey } from "./pkcs7.ts"

/** Public keys, which were looked at. */
export interface LayerRecipients {
  /** RSA, EC. */
  readonly keys: readonly KeyObject[]
  readonly certificates: readonly CertifiedKey[]
  /** @internal */
  readonly pgpKeys: readonly PublicKey[]
  /** RSA keys of tokens. */
  readonly tokenKeys: readonly KeyObject[]
  readonly providers: readonly KeyProvider[]
}

/** Wraps a layer's key for all of them: one message a scheme. */
export async function wrapLayerKey(
  key: LayerKey,
  recipients: LayerRecipients,
): Promise<ReadonlyMap<string, readonly Buffer[]>> {
  const { keys, certificates, pgpKeys, tokenKeys, providers } = recipients
  const secret = writeLayerKey(key)
  try {
    const wrapped = new Map<string, readonly Buffer[]>()
    if (keys.length > 0) wrapped.set("jwe", [await wrapJwe(secret, keys)])
    if (certificates.length > 0) wrapped.set("pkcs7", [wrapPkcs7(secret, certificates)])
    if (pgpKeys.length > 0) wrapped.set("pgp", [await wrapPgp(secret, pgpKeys)])
    if (tokenKeys.length > 0) wrapped.set("pkcs11", [wrapPkcs11(secret, tokenKeys)])
    for (const provider of providers) wrapped.set(`provider.${provider.name}`, [await provider.wrap(secret)])
    return wrapped
  } finally {
    secret.fill(0)
  }
}

/**
 * For whom a layer's key is wrapped, as far as everybody can see.
 *
 * @throws OciError `ERR_OCI_FORMAT`, `ERR_OCI_LIMIT`.
 */
export async function describeRecipients(annotations: Annotations, what: string): Promise<string[]> {
  const found: string[] = []
  for (const scheme of schemesOf(annotations)) {
    const known = { jwe: jweRecipients, pkcs7: pkcs7Recipients, pgp: pgpRecipients }[scheme]
    if (known === undefined) found.push(`[${scheme}]`)
    else
      for (const message of messagesOf(annotations, scheme, what)) found.push(...(await known(message, what)))
  }
  return found.sort()
}
