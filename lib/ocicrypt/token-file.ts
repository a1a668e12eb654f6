// What names a key in a PKCS#11 token, and the module that leads there: the key files of ocicrypt, which are YAML, and the file that says
// which modules may be loaded.
import { readdirSync, statSync } from "node:fs"
import path from "node:path"
import { readBounded } from "../bounded-file.ts"
import { KeyError } from "../errors.ts"
import { isJsonObject, type JsonObject } from "../json.ts"
import { allocateSecret } from "../key/secret.ts"
import type { Bytes } from "../units.ts"
import { TrustedFiles } from "./trusted-file.ts"

const files = new TrustedFiles("ERR_KEY_TOKEN")
const MAX_SIZE: Bytes = 64 << 10
const MAX_PIN: Bytes = 1024

/** A key in a token. */
export interface TokenKeyFile {
  /** Of the `pkcs11:` URI what names the key, without its type. */
  readonly key: string
  readonly modulePath: string | undefined
  readonly moduleName: string | undefined
  /** The caller wipes it. */
  readonly pin: Buffer | undefined
  /** Where the PIN is. */
  readonly pinFile: string | undefined
  /** For the module. */
  readonly env: Readonly<Record<string, string>>
}

/** Is it a key file of ocicrypt's for PKCS#11? */
export function isTokenFile(file: Buffer): boolean {
  return file.length <= MAX_SIZE && /^\s*["']?pkcs11["']?\s*:/m.test(file.toString("utf8"))
}

async function parseYaml(text: string, origin: string): Promise<JsonObject> {
  const { parse } = await import("yaml")
  try {
    // Nor a warning of it.
    const value: unknown = parse(text, { maxAliasCount: 0, logLevel: "error" })
    if (isJsonObject(value)) return value
  } catch {
    // Its message would show the line, in which a PIN may stand.
  }
  throw new KeyError("ERR_KEY_FORMAT", `${origin}: it is no YAML`)
}

/** Attributes of RFC 7512: names to values, as they are written. */
function attributes(text: string, separator: string, origin: string): ReadonlyMap<string, string> {
  const found = new Map<string, string>()
  for (const part of text === "" ? [] : text.split(separator)) {
    const [, name, value] = /^([a-z-]+)=([\w.~%:[\]@!$'()*+,&/?|-]*)$/i.exec(part) ?? []
    if (name === undefined || value === undefined || found.has(name))
      throw new KeyError("ERR_KEY_FORMAT", `${origin}: its pkcs11: URI is none`)
    found.set(name, value)
  }
  return found
}

function decoded(value: string | undefined, origin: string): string | undefined {
  try {
    return value === undefined ? undefined : decodeURIComponent(value)
  } catch {
    throw new KeyError("ERR_KEY_FORMAT", `${origin}: its pkcs11: URI is none`)
  }
}

/** Variables for the module; none that would have the program load something else. */
function moduleEnvironment(value: unknown, origin: string): Record<string, string> {
  const env = isJsonObject(value) ? (value["env"] ?? {}) : {}
  if (!isJsonObject(env))
    throw new KeyError("ERR_KEY_FORMAT", `${origin}: the env of its module is no list of variables`)
  return Object.fromEntries(
    Object.entries(env).map(([name, one]) => {
      if (
        !/^[A-Za-z_]\w*$/.test(name) ||
        /^(?:LD_|OPENSSL_|GCONV_PATH$|PATH$|PKCS11_MODULE_PATH$)/.test(name) ||
        typeof one !== "string"
      )
        throw new KeyError(
          "ERR_KEY_FORMAT",
          `${origin}: the variable ${name.slice(0, 64)} is not for a module`,
        )
      return [name, one]
    }),
  )
}

/** What names a key, in this order. */
const keyAttributes = ["token", "manufacturer", "model", "serial", "slot-id", "object", "id"]

/**
 * Reads a key file.
 *
 * @throws KeyError `ERR_KEY_FORMAT`.
 */
export async function parseTokenFile(file: Buffer, origin: string): Promise<TokenKeyFile> {
  const { pkcs11, module } = await parseYaml(file.toString("utf8"), origin)
  const uri = isJsonObject(pkcs11) ? pkcs11["uri"] : undefined
  const [, names, query = ""] =
    typeof uri === "string" ? (/^pkcs11:([^?]*)(?:\?(.*))?$/s.exec(uri) ?? []) : []
  if (names === undefined) throw new KeyError("ERR_KEY_FORMAT", `${origin}: it has no pkcs11: URI`)
  const named = attributes(names, ";", origin)
  const queried = attributes(query, "&", origin)
  if (!named.has("object") && !named.has("id"))
    throw new KeyError("ERR_KEY_FORMAT", `${origin}: its pkcs11: URI names no key: object or id`)
  const pinText = decoded(queried.get("pin-value"), origin)
  const pin = pinText === undefined ? undefined : allocateSecret(Buffer.byteLength(pinText))
  pin?.write(pinText ?? "")
  const source = decoded(queried.get("pin-source"), origin)
  const [, pinFile] = source === undefined ? [] : (/^(?:file:(?:\/\/)?)?(\/[^|]*)$/s.exec(source) ?? [])
  if (source !== undefined && pinFile === undefined)
    throw new KeyError("ERR_KEY_FORMAT", `${origin}: the pin-source of its pkcs11: URI is no file`)
  return {
    key: keyAttributes
      .flatMap((name) => (named.has(name) ? [`${name}=${named.get(name) ?? ""}`] : []))
      .join(";"),
    modulePath: decoded(queried.get("module-path"), origin),
    moduleName: decoded(queried.get("module-name"), origin),
    pin,
    pinFile,
    env: moduleEnvironment(module, origin),
  }
}

/** The PIN that a key file leads to, without a line end at its end. The caller wipes it. */
export async function readPin(file: string): Promise<Buffer> {
  try {
    const read = await readBounded(file, MAX_PIN)
    const end = read.at(-1) === 0x0a ? read.length - 1 : read.length
    return read.subarray(0, end)
  } catch (cause) {
    throw new KeyError("ERR_KEY_MISSING", `cannot read the PIN ${file}: ${(cause as Error).message}`, {
      path: file,
      cause,
    })
  }
}

interface ModulePolicy {
  readonly directories: readonly string[]
  readonly allowed: readonly string[]
}

const triplets: Partial<Record<NodeJS.Architecture, string>> = {
  x64: "x86_64-linux-gnu",
  arm64: "aarch64-linux-gnu",
  arm: "arm-linux-gnueabihf",
  ppc64: "powerpc64le-linux-gnu",
  s390x: "s390x-linux-gnu",
}
/** Where distributions have modules. */
const usual = ["/usr/lib64/pkcs11/", "/usr/lib/pkcs11/", "/usr/local/lib/pkcs11/", "/usr/lib/softhsm/"]

function readList(value: unknown, origin: string): string[] {
  if (value === undefined || value === null) return []
  if (!Array.isArray(value) || !value.every((one) => typeof one === "string" && path.isAbsolute(one)))
    throw new KeyError("ERR_KEY_FORMAT", `${origin}: it has a list that is none of absolute paths`)
  return value as string[]
}

type Environment = Readonly<Record<string, string | undefined>>

/** Which modules may be loaded, as ocicrypt looks for it; undefined: nothing says so. */
async function modulePolicy(environment: Environment): Promise<ModulePolicy | undefined> {
  const { OCICRYPT_CONFIG: named = "", XDG_CONFIG_HOME: config = "", HOME: home = "" } = environment
  if (named === "internal") {
    const triplet = triplets[process.arch]
    const directories = [...usual, ...(triplet === undefined ? [] : [`/usr/lib/${triplet}/`])]
    return { directories, allowed: directories }
  }
  const places = [
    named,
    ...(config === "" ? [] : [path.join(config, "ocicrypt.conf")]),
    ...(home === "" ? [] : [path.join(home, ".config/ocicrypt.conf")]),
    "/etc/ocicrypt.conf",
  ]
  const file = places.find((one) => one !== "" && statSync(one, { throwIfNoEntry: false }) !== undefined)
  if (file === undefined) return undefined
  const { pkcs11 } = await parseYaml(await files.read(file, MAX_SIZE), file)
  const rows = isJsonObject(pkcs11) ? pkcs11 : {}
  return {
    directories: readList(rows["module-directories"], file),
    allowed: readList(rows["allowed-module-paths"], file),
  }
}

/** A file that is named, or one in a folder that is. */
function isAllowed(module: string, { allowed }: ModulePolicy): boolean {
  return allowed.some(
    (one) => one === module || (one.endsWith("/") && path.dirname(module) === path.resolve(one)),
  )
}

function modulesIn(folder: string, name: string): string[] {
  const wanted = name.toLowerCase()
  try {
    return readdirSync(folder)
      .filter((file) => {
        const at = file.toLowerCase().indexOf(wanted)
        const behind = file.charAt(at + wanted.length)
        return at >= 0 && (behind === "" || behind === ".")
      })
      .sort()
      .map((file) => path.join(folder, file))
  } catch {
    return [] // there is no such folder
  }
}

/**
 * The module that a key file names, if it may be loaded.
 *
 * @throws KeyError `ERR_KEY_TOKEN`.
 */
export async function findModule(
  { modulePath, moduleName }: Pick<TokenKeyFile, "modulePath" | "moduleName">,
  environment: Environment,
  origin: string,
): Promise<string> {
  const policy = await modulePolicy(environment)
  if (policy === undefined)
    throw new KeyError(
      "ERR_KEY_TOKEN",
      `${origin}: no file says which PKCS#11 modules may be loaded: OCICRYPT_CONFIG names one, or is "internal" for those of the system`,
    )
  const info = modulePath === undefined ? undefined : statSync(modulePath, { throwIfNoEntry: false })
  const folders = modulePath === undefined ? policy.directories : [modulePath]
  const found =
    modulePath !== undefined && info?.isFile() === true
      ? [modulePath]
      : moduleName === undefined
        ? []
        : folders.flatMap((folder) => modulesIn(folder, moduleName))
  const module = found.find((one) => path.isAbsolute(one) && isAllowed(one, policy))
  if (module !== undefined) return await files.checkPlace(module)
  throw new KeyError(
    "ERR_KEY_TOKEN",
    found[0] === undefined
      ? `${origin}: the PKCS#11 module that it names is not there`
      : `${origin}: the PKCS#11 module ${found[0]} may not be loaded: allowed-module-paths of the file of OCICRYPT_CONFIG has what may`,
  )
}
