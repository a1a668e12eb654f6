// What opens layers of OCI images, and whom they are for, as words: FILE, FILE:file=PASSWORD-FILE, provider:NAME; jwe:FILE and the like.
import { existsSync } from "node:fs"
import { InvalidArgumentError } from "commander"
import { KeyError, type KeyProviderSource, type LayerRecipient } from "../index.ts"
import type { OptionRow, OptionRows } from "./command.ts"
import { parseDescriptor, type LayerKeyWord } from "./credentials.ts"
import { each, text } from "./values.ts"

const PROVIDER = "provider:"
const PGP = "pgp:"

/** NAME or NAME:PARAMETER; of the latter everything is the parameter's. */
function parseProvider(word: string): KeyProviderSource {
  const [, provider = "", parameter] = /^([\w.-]+)(?::(.*))?$/s.exec(word.slice(PROVIDER.length)) ?? []
  if (provider === "") throw new InvalidArgumentError("It is provider:NAME or provider:NAME:PARAMETER.")
  return parameter === undefined ? { provider } : { provider, parameter }
}

function passwordRefused(file: string): KeyError {
  // What stands there is not repeated.
  return new KeyError(
    "ERR_KEY_LOCKED",
    `--key ${file}:… has a password in it, and a command line is everybody's to read: ${file}:file=PASSWORD-FILE or ${file}:fd=N`,
  )
}

/** A name that is there is the whole name, whatever stands in it. */
export function parseLayerKey(word: string): LayerKeyWord {
  if (existsSync(word)) return { file: word }
  if (word.startsWith(PROVIDER)) return parseProvider(word)
  if (word.startsWith(PGP)) return { gnupg: word === PGP ? true : word.slice(PGP.length) }
  const [, file = "", kind, value = ""] = /^(.+?):(?:(file|filename|fd|pass)=)?(.*)$/s.exec(word) ?? []
  if (kind === "fd") return { file, password: { fd: parseDescriptor(value) } }
  if ((kind === "file" || kind === "filename") && value !== "") return { file, password: { file: value } }
  if (kind === "pass" || existsSync(file)) throw passwordRefused(file)
  return { file: word }
}

const layerKeyHelp =
  "private key that opens encrypted layers: RSA, EC or OpenPGP; its password's file behind :file=, or descriptor behind :fd=; or " +
  "provider:NAME[:PARAMETER], a key provider, or pgp:[NAME], of GnuPG's"

/** `--key`, as commands have it. */
export function layerKeyRow(flags: string): OptionRow<readonly LayerKeyWord[]> {
  return [flags, `${layerKeyHelp} (repeatable)`, each(parseLayerKey)]
}

/** Somebody whom layers are encrypted for. */
export function parseLayerRecipient(word: string): LayerRecipient {
  if (word.startsWith(PROVIDER)) return parseProvider(word)
  const [, scheme = "", file] = /^(jwe|pkcs7|pgp|pkcs11):(.+)$/s.exec(word) ?? []
  if (file === undefined)
    throw new InvalidArgumentError(
      "It is jwe:PUBLIC-KEY, pkcs7:CERTIFICATE, pgp:KEYS or pkcs11:KEY, each the name of a file, pgp:NAME as GnuPG knows it, or provider:NAME[:PARAMETER].",
    )
  if (scheme === "pgp" && !file.includes("/") && !existsSync(file)) return { gnupg: file }
  return { [scheme]: { file } } as unknown as LayerRecipient
}

/** Where GnuPG's keys are. */
export interface GnuPgFlags {
  readonly gpgHome?: string
}

export const gnuPgRows: OptionRows<GnuPgFlags> = {
  gpgHome: [
    "--gpg-homedir <dir>",
    "GnuPG's folder, for keys of pgp:NAME (default: GNUPGHOME, or its own)",
    text,
  ],
}

/** Of words, those that are GnuPG's are in its folder that was named. */
export function inGnuPgHome<T extends object>(words: readonly T[], { gpgHome }: GnuPgFlags): readonly T[] {
  return gpgHome === undefined
    ? words
    : words.map((word) => ("gnupg" in word ? { ...word, homeFolder: gpgHome } : word))
}
