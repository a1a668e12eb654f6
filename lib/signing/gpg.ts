// Signs through GnuPG: the secret key stays with gpg-agent, on a smart card perhaps, and gpg asks for its password.
import { SignatureError } from "../errors.ts"
import { parseListing, type ListedKey } from "../ocicrypt/gnupg.ts"
import type { Bytes } from "../units.ts"
import { Keyring } from "./openpgp.ts"
import { runSigner } from "./program.ts"
import { checkClearSigned, type MadeSignature, type Signer } from "./signer.ts"

const MAX_OUTPUT: Bytes = 16 << 20
const quiet = ["--batch", "--no-tty", "--quiet"] as const

async function gpg(
  args: readonly string[],
  input: Uint8Array = Buffer.alloc(0),
  signal?: AbortSignal,
): Promise<Buffer> {
  return await runSigner(["gpg", ...quiet, ...args], "gpg", input, MAX_OUTPUT, signal)
}

/**
 * Signs with a key of the user's gpg-agent.
 *
 * @param which - The primary key's index among gpg's secret keys, or its whole fingerprint; undefined: the only usable one.
 * @throws SignatureError `ERR_SIGNATURE_KEYRING`, `ERR_SIGNATURE_SIGN`; EnvironmentError `ERR_ENV_NO_PROGRAM`.
 */
export async function gpgSigner(which: number | string | undefined, signal?: AbortSignal): Promise<Signer> {
  const refuse = (what: string): SignatureError => new SignatureError("ERR_SIGNATURE_KEYRING", what)
  const listing = await gpg(["--with-colons", "--list-secret-keys"], undefined, signal)
  const keys = parseListing(listing.toString("utf8"))
  const usable = keys.filter(({ validity, signs }) => signs && !/^[reid]/.test(validity))
  let chosen: ListedKey | undefined
  if (typeof which === "string") {
    const wanted = which.replaceAll(/[\s:]/g, "").toUpperCase()
    chosen = keys.find(({ fingerprint }) => fingerprint === wanted)
    if (chosen === undefined) throw refuse(`gpg has no secret key with the fingerprint ${which}`)
  } else if (which !== undefined) {
    chosen = keys[which]
    if (chosen === undefined)
      throw refuse(`gpg has no secret key ${which}: it has ${keys.length}, counted from 0`)
  } else {
    if (usable.length === 0) throw refuse("gpg has no secret key that signs")
    if (usable.length > 1)
      throw refuse(
        `gpg has ${usable.length} secret keys, and one has to be chosen: ${usable.map(({ fingerprint }) => fingerprint).join(", ")}`,
      )
    chosen = usable[0]
  }
  const name = chosen?.fingerprint ?? ""
  return {
    kind: "openpgp",
    name,
    entity: Buffer.from(name, "hex"),
    async sign(text, _time, interrupted): Promise<MadeSignature> {
      const options = ["--local-user", name, "--no-comments", "--no-emit-version", "--digest-algo", "SHA256"]
      const message = await gpg([...options, "--clear-sign"], Buffer.from(text), interrupted)
      const keyring = new Keyring()
      await keyring.add(await gpg(["--export", name], undefined, interrupted), "the key that gpg exports")
      const data = Buffer.from(message.toString("latin1").replace(/\n+$/, ""), "latin1")
      return await checkClearSigned(data, text, keyring, name)
    },
  }
}
