// Whatever opens the layers of images: keys of files, and providers that were named. All of an image's layers are opened through one.
import type { KeyObject } from "node:crypto"
import type { PrivateKey } from "openpgp"
import { ContainerError, KeyError, type ErrorCode } from "../errors.ts"
import { messagesOf, schemesOf, type Annotations } from "./annotations.ts"
import { Attempts } from "./attempts.ts"
import type { GnuPgKeys } from "./gnupg.ts"
import { unwrapJwe } from "./jwe.ts"
import type { KeyProvider } from "./key-provider.ts"
import { readLayerKey, type LayerKey } from "./layer-key.ts"
import { unwrapPgp } from "./pgp.ts"
import { unwrapPkcs11 } from "./pkcs11.ts"
import type { TokenKey } from "./token-key.ts"
import { unwrapPkcs7 } from "./pkcs7.ts"

/** What there is to open layers with. */
export interface LayerKeySet {
  /** Private keys: RSA, EC. */
  readonly keys: readonly KeyObject[]
  /** @internal */
  readonly pgpKeys: readonly PrivateKey[]
  /** Of GnuPG, those that the user has named. */
  readonly gnuPgKeys: readonly GnuPgKeys[]
  /** Keys in tokens. */
  readonly tokens: readonly TokenKey[]
  /** Those that the user has named, and no others: an image names whom it likes. */
  readonly providers: readonly KeyProvider[]
}

/** What is one message's failure. A provider has no other way to say that it is for somebody else. */
const passable: ReadonlySet<ErrorCode> = new Set(["ERR_OCI_FORMAT", "ERR_KEY_PROVIDER", "ERR_KEY_GNUPG"])

export class LayerKeys {
  readonly #set: LayerKeySet
  readonly #attempts = new Attempts()

  constructor(given: Partial<LayerKeySet>) {
    const { keys = [], pgpKeys = [], gnuPgKeys = [], tokens = [], providers = [] } = given
    this.#set = { keys, pgpKeys, gnuPgKeys, tokens, providers }
  }

  /**
   * The key of a layer. The caller disposes it.
   *
   * @param what - The layer, for messages.
   * @throws KeyError `ERR_KEY_MISSING`, `ERR_KEY_MISMATCH`, `ERR_KEY_PROVIDER`; OciError `ERR_OCI_FORMAT`, `ERR_OCI_LIMIT`, `ERR_OCI_WORK`.
   */
  async unwrap(annotations: Annotations, what: string): Promise<LayerKey> {
    const schemes = schemesOf(annotations)
    // Whoever may add a recipient may not lock the others out by a message that nobody can read.
    let broken: ContainerError | undefined
    for (const scheme of schemes)
      for (const message of this.#canTry(scheme) ? messagesOf(annotations, scheme, what) : [])
        try {
          const secret = await this.#unwrap(scheme, message, what)
          if (secret !== undefined) return readLayerKey(secret, what)
        } catch (error) {
          if (!(error instanceof ContainerError && passable.has(error.code))) throw error
          broken ??= error
        }
    const wrapped = `its key is wrapped by ${schemes.length === 0 ? "nothing" : schemes.join(", ")}`
    if (Object.values(this.#set).every((list: readonly unknown[]) => list.length === 0))
      throw new KeyError("ERR_KEY_MISSING", `${what} is encrypted and no key was given: ${wrapped}`)
    if (broken !== undefined) throw broken
    throw new KeyError("ERR_KEY_MISMATCH", `${what}: none of the keys opens it: ${wrapped}`)
  }

  #canTry(scheme: string): boolean {
    return (
      ["jwe", "pkcs7", "pgp", "pkcs11"].includes(scheme) ||
      this.#set.providers.some(({ name }) => scheme === `provider.${name}`)
    )
  }

  async #unwrap(scheme: string, message: Buffer, what: string): Promise<Buffer | undefined> {
    const { keys, pgpKeys, gnuPgKeys, tokens, providers } = this.#set
    if (scheme === "jwe") return await unwrapJwe(message, keys, this.#attempts, what)
    if (scheme === "pkcs7") return unwrapPkcs7(message, keys, this.#attempts, what)
    if (scheme === "pgp") {
      let secret = await unwrapPgp(message, pgpKeys, this.#attempts, what)
      for (const one of gnuPgKeys) {
        this.#attempts.take(1, what)
        secret ??= await one.unwrap(message, what)
      }
      return secret
    }
    if (scheme === "pkcs11") return await unwrapPkcs11(message, keys, tokens, this.#attempts, what)
    const provider = providers.find(({ name }) => scheme === `provider.${name}`)
    this.#attempts.take(1, what)
    return await provider?.unwrap(message)
  }
}
