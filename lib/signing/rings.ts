// Where key rings lie: the user's own, the system's, and those that Apptainer and Singularity keep, which are used in place.
// A ring says whom to trust, so who else may write it is looked at whenever it is used.
import * as is from "../arguments.ts"
import { existsSync, lstatSync, statSync, type Stats } from "node:fs"
import path from "node:path"
import { SignatureError } from "../errors.ts"

/** What the system's administrator decides lies here: only root may write it, whoever asks. */
export const SYSTEM_FOLDER = "/etc/sifcrypt"
/** Where Apptainer keeps the same. */
export const APPTAINER_FOLDER = "/etc/apptainer"

const PUBLIC_RING = "pgp-public"
const SECRET_RING = "pgp-secret"
const GLOBAL_RING = "global-pgp-public"

const GROUP_AND_OTHERS = 0o077
const WRITABLE_BY_OTHERS = 0o022

/** An environment, of which `HOME` and the variables that name rings are looked at. */
export type RingEnvironment = Readonly<Record<string, string | undefined>>

/** The files of one ring. */
export interface RingFiles {
  readonly publicFile: string
  /** undefined: a ring without private keys. */
  readonly secretFile: string | undefined
}

function insecure(file: string, what: string): SignatureError {
  return new SignatureError("ERR_KEYRING_INSECURE", `${file} is not to be trusted: ${what}`, { path: file })
}

function octal(mode: number): string {
  return (mode & 0o7777).toString(8).padStart(4, "0")
}

/**
 * Nobody but this user may read or write it.
 *
 * @throws SignatureError `ERR_KEYRING_INSECURE`.
 */
export function checkPrivate(file: string, info: Stats): void {
  const user = process.geteuid?.() ?? 0
  if (info.uid !== user) throw insecure(file, `it belongs to user ${info.uid}, not to ${user}`)
  if ((info.mode & GROUP_AND_OTHERS) !== 0)
    throw insecure(file, `its mode is ${octal(info.mode)}, and it is nobody else's to read or write`)
}

/**
 * It belongs to root, and nobody else may write it.
 *
 * @throws SignatureError with `code`.
 */
export function checkSystem(
  file: string,
  info: Stats,
  code: "ERR_KEYRING_INSECURE" | "ERR_ECL_FILE" = "ERR_KEYRING_INSECURE",
): void {
  const fail = (what: string): SignatureError =>
    new SignatureError(code, `${file} is not to be trusted: ${what}`, { path: file })
  if (info.uid !== 0) throw fail(`it belongs to user ${info.uid}, not to root`)
  if ((info.mode & WRITABLE_BY_OTHERS) !== 0)
    throw fail(`its mode is ${octal(info.mode)}, so others than root may write it`)
}

/** Somebody else's ring: others may read it, but not write it. */
function checkPeers(file: string, info: Stats): void {
  if ((info.mode & WRITABLE_BY_OTHERS) !== 0)
    throw insecure(file, `its mode is ${octal(info.mode)}, so others may write it`)
}

function statIfThere(file: string): Stats | undefined {
  return statSync(file, { throwIfNoEntry: false })
}

/**
 * The folder of the user's own ring: `SIFCRYPT_KEYSDIR`, else `.sifcrypt/keys` in the home folder. It need not exist.
 *
 * @throws SignatureError `ERR_SIGNATURE_KEYRING` without either.
 */
export function keysFolder(env: RingEnvironment): string {
  const { SIFCRYPT_KEYSDIR: named, HOME: home } = env
  if (named !== undefined && named !== "") return path.resolve(named)
  if (home === undefined || home === "")
    throw new SignatureError(
      "ERR_SIGNATURE_KEYRING",
      "there is no key ring: neither SIFCRYPT_KEYSDIR nor HOME is set",
    )
  return path.join(home, ".sifcrypt", "keys")
}

/** The files of a ring in a folder. */
export function ringIn(folder: string): RingFiles & { readonly secretFile: string } {
  return { publicFile: path.join(folder, PUBLIC_RING), secretFile: path.join(folder, SECRET_RING) }
}

/** The ring of the system. */
export function globalRing(folder: string = SYSTEM_FOLDER): RingFiles {
  return { publicFile: path.join(folder, GLOBAL_RING), secretFile: undefined }
}

function checkRing(files: readonly (string | undefined)[], check: (file: string, info: Stats) => void): void {
  const [named = ""] = files
  const folder = path.dirname(named)
  const info = statIfThere(folder)
  if (info === undefined) return
  if (!info.isDirectory()) throw insecure(folder, "it is no folder")
  check(folder, info)
  for (const file of files) {
    const found = file === undefined ? undefined : lstatSync(file, { throwIfNoEntry: false })
    if (file === undefined || found === undefined) continue
    if (!found.isFile()) throw insecure(file, "it is no regular file")
    check(file, found)
  }
}

/**
 * Looks at who may read and write the folder and the files of a ring of ours.
 *
 * @throws SignatureError `ERR_KEYRING_INSECURE`.
 */
export function checkOwnRing({ publicFile, secretFile }: RingFiles): void {
  checkRing([publicFile, secretFile], checkPrivate)
}

/** The same for the system's. */
export function checkGlobalRing({ publicFile }: RingFiles): void {
  checkRing([publicFile], checkSystem)
}

/** The rings of Apptainer and Singularity for this user, those that exist. They are read and used, never written. */
export function peerRings(env: RingEnvironment): (RingFiles & { readonly secretFile: string })[] {
  const home = env["HOME"]
  const below = (...names: readonly string[]): string | undefined =>
    home === undefined || home === "" ? undefined : path.join(home, ...names)
  const folders: (string | undefined)[] = [
    env["APPTAINER_KEYSDIR"] ?? below(".apptainer", "keys"),
    env["SINGULARITY_KEYSDIR"] ?? below(".singularity", "keys"),
    env["SINGULARITY_SYPGPDIR"] ?? below(".singularity", "sypgp"),
  ]
  const named = folders.filter((folder): folder is string => folder !== undefined && folder !== "")
  return [...new Set(named)]
    .map(ringIn)
    .filter((ring) => existsSync(ring.publicFile) || existsSync(ring.secretFile))
}

/** Of the own ring, of the system's where it has one, and of the peers', where it is there. */
function userFiles(given: RingEnvironment, which: keyof RingFiles): string[] {
  const env = is.variables(given, "env")
  const isNamed = (env["SIFCRYPT_KEYSDIR"] ?? env["HOME"] ?? "") !== ""
  const own = isNamed ? [ringIn(keysFolder(env))] : []
  own.forEach(checkOwnRing)
  const system = which === "publicFile" ? [globalRing()] : []
  system.forEach(checkGlobalRing)
  const found = [...own, ...system].flatMap((ring) => ring[which] ?? []).filter((file) => existsSync(file))
  for (const { [which]: file } of peerRings(env)) {
    const info = statIfThere(file)
    if (info === undefined) continue
    checkPeers(file, info)
    found.push(file)
  }
  return found
}

/**
 * The public key rings of this user, those that exist: the own one, the system's, and those of Apptainer and Singularity.
 *
 * @param given - For `HOME`, `SIFCRYPT_KEYSDIR`, `APPTAINER_KEYSDIR`, `SINGULARITY_KEYSDIR` and `SINGULARITY_SYPGPDIR`.
 * @throws SignatureError `ERR_KEYRING_INSECURE` for one that somebody else may write, or the own one if somebody else may
 * read it.
 */
export function userKeyrings(given: RingEnvironment): string[] {
  return userFiles(given, "publicFile")
}

/**
 * The secret key rings beside {@link userKeyrings}, those that exist. An index of a key counts through them in this order.
 *
 * @param given - As there.
 * @throws SignatureError `ERR_KEYRING_INSECURE`.
 */
export function userSecretKeyrings(given: RingEnvironment): string[] {
  return userFiles(given, "secretFile")
}
