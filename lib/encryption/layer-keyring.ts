// The keys that open encrypted layers of OCI images: those of the same credentials that open encrypted SIF images. Passphrases open no
// layer.
import type { KeyObject } from "node:crypto"
import type { PrivateKey } from "openpgp"
import { overwritingFreed } from "../device/process.ts"
import { KeyError } from "../errors.ts"
import { admitKey } from "../key/admission.ts"
import { parseSigningKey } from "../key/key-file.ts"
import type { LayerKeyring } from "../oci/encrypted-layers.ts"
import { LayerKeys } from "../ocicrypt/layer-keys.ts"
import { isPgpFile, readPgpKeys } from "../ocicrypt/pgp.ts"
import { isTokenFile } from "../ocicrypt/token-file.ts"
import type { TokenKey } from "../ocicrypt/token-key.ts"
import { openTokenKey } from "./token-keys.ts"
import { isExplicit, type Credentials, type KeyPassword } from "./credentials.ts"
import type { GnuPgKeys } from "../ocicrypt/gnupg.ts"
import { findGnuPgKeys } from "./gnupg-keys.ts"
import { findProviders, type KeyProviderSource } from "./key-providers.ts"

async function unlockPgp(key: PrivateKey, origin: string, password: Buffer | undefined): Promise<PrivateKey> {
  if (key.isDecrypted()) return key
  if (password === undefined)
    throw new KeyError(
      "ERR_KEY_LOCKED",
      `${origin}: an OpenPGP private key; its password is needed and none was given`,
    )
  const { decryptKey } = await import("openpgp")
  try {
    // The library takes passwords as strings only, which nobody can wipe.
    return await decryptKey({ privateKey: key, passphrase: password.toString("utf8") })
  } catch (cause) {
    throw new KeyError("ERR_KEY_PASSPHRASE", `${origin}: this is not the password of the OpenPGP key`, {
      cause,
    })
  }
}

async function readPgp(file: Buffer, origin: string, password: KeyPassword): Promise<PrivateKey[]> {
  const keys: PrivateKey[] = []
  for (const key of (await readPgpKeys(file, origin)) ?? [])
    keys.push(await password.unlock(origin, (tried) => unlockPgp(key, origin, tried)))
  return keys
}

async function readKeys(credentials: Credentials, signal: AbortSignal | undefined): Promise<LayerKeys> {
  const keys: KeyObject[] = []
  const pgpKeys: PrivateKey[] = []
  const gnuPgKeys: GnuPgKeys[] = []
  const tokens: TokenKey[] = []
  const providers: KeyProviderSource[] = []
  let publicOnly: KeyError | undefined
  for (const given of await credentials.read(signal)) {
    const { origin } = given
    if (given.kind === "layers") {
      if ("provider" in given.source) providers.push(given.source)
      else gnuPgKeys.push(await findGnuPgKeys(given.source, signal))
    } else if (given.kind === "object") {
      if (given.key.type !== "private")
        publicOnly ??= new KeyError(
          "ERR_KEY_PUBLIC",
          `${origin}: a private key is needed, found a ${given.key.type} key`,
        )
      else keys.push(admitKey(given.key, origin))
    } else if (given.kind === "key") {
      const { bytes, password } = given
      if (isTokenFile(bytes)) {
        const token = await openTokenKey(bytes, origin, password, signal)
        credentials.adopt(token)
        tokens.push(token)
      } else if (isPgpFile(bytes)) pgpKeys.push(...(await readPgp(bytes, origin, password)))
      else
        try {
          keys.push(await password.unlock(origin, (tried) => parseSigningKey(bytes, origin, tried)))
        } catch (error) {
          // The certificate that belongs to a key, as the peers want it for PKCS#7.
          if (!(error instanceof KeyError) || error.code !== "ERR_KEY_PUBLIC") throw error
          publicOnly ??= error
        }
    }
  }
  if (
    keys.length + pgpKeys.length + gnuPgKeys.length + tokens.length + providers.length === 0 &&
    publicOnly !== undefined
  )
    throw publicOnly
  return new LayerKeys({
    keys,
    pgpKeys,
    gnuPgKeys,
    tokens,
    providers: await findProviders(providers, signal),
  })
}

/**
 * What opens layers, read when the first image needs it.
 *
 * @param isNamed - These credentials were named for this image.
 */
export function layerKeyring(
  credentials: Credentials,
  { isNamed, signal }: { readonly isNamed: boolean; readonly signal?: AbortSignal | undefined },
): LayerKeyring {
  let opened: Promise<LayerKeys> | undefined
  return {
    isNamed: isNamed && credentials.sources.some(isExplicit),
    open: () => (opened ??= overwritingFreed(() => readKeys(credentials, signal))),
  }
}
