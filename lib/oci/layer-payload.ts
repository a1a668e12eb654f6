// What containerd tells a stream processor about the layer that it is to decrypt: imgcrypt's payload, a message of Protocol Buffers (Any)
// around JSON. The keys in it never become strings.
import { OciError } from "../errors.ts"
import { isJsonObject, parseJson } from "../json.ts"
import { takeSecrets } from "../key/secret-json.ts"
import { ProtobufError, readFields } from "../ocicrypt/protobuf.ts"
import type { Bytes } from "../units.ts"
import { parseDescriptor, type Descriptor } from "./manifest.ts"

export const MAX_PAYLOAD: Bytes = 4 << 20
const TYPE = "io.containerd.ocicrypt.v1.Payload"
const WHAT = "the payload"
const MAX_KEYS = 256

/** A key and its password, if it has one. */
export interface PayloadKey {
  readonly key: Buffer
  readonly password: Buffer | undefined
}

export interface LayerPayload {
  readonly layer: Descriptor
  /** All that {@link wipePayload} wipes: keys, their passwords, and passwords that no key is for. */
  readonly secrets: readonly Buffer[]
  /** Of any kind that opens layers. */
  readonly keys: readonly PayloadKey[]
  /** Key providers with their parameters. */
  readonly providers: readonly { readonly provider: string; readonly parameter: string }[]
}

/** Parameters of other kinds, which no layer is opened with here, and no names of providers. */
const others: ReadonlySet<string> = new Set([
  ...["pubkeys", "x509s", "gpg-client", "gpg-client-version", "gpg-recipients", "gpg-pubkeyringfile"],
  ...["pkcs11-pubkeys", "pkcs11-config"],
])
const keyLists = [
  ["privkeys", "privkeys-passwords"],
  ["gpg-privatekeys", "gpg-privatekeys-passwords"],
  ["pkcs11-yamls", undefined],
] as const
const isKeyList = (name: string): boolean => keyLists.some((names) => names.some((one) => one === name))

function malformed(why: string, cause?: unknown): OciError {
  return new OciError("ERR_OCI_FORMAT", `${WHAT}: ${why}`, { cause })
}

/** @param taken - Gets them, too. */
function secretsOf(json: Buffer, name: string, taken: Buffer[]): Buffer[] {
  const found = takeSecrets(json, ["DecryptConfig", "Parameters", name])
  if (found === undefined) throw malformed(`${name} is no list of base64`)
  for (const secret of found) taken.push(secret)
  if (found.length > MAX_KEYS) throw malformed(`${name} has more than ${MAX_KEYS}`)
  return found
}

function keysOf(json: Buffer, taken: Buffer[]): PayloadKey[] {
  return keyLists.flatMap(([name, passwordsName]) => {
    const passwords = passwordsName === undefined ? [] : secretsOf(json, passwordsName, taken)
    return secretsOf(json, name, taken).map((key, i) => {
      const password = passwords[i]
      return { key, password: password === undefined || password.length === 0 ? undefined : password }
    })
  })
}

function providersOf(parameters: unknown): LayerPayload["providers"] {
  if (parameters === undefined || parameters === null) return []
  if (!isJsonObject(parameters)) throw malformed("its parameters are no object")
  return Object.entries(parameters).flatMap(([provider, list]) => {
    if (others.has(provider) || isKeyList(provider)) return []
    const texts: unknown[] = Array.isArray(list) ? list.slice(0, MAX_KEYS) : []
    return texts.flatMap((text) =>
      typeof text === "string" ? [{ provider, parameter: Buffer.from(text, "base64").toString("utf8") }] : [],
    )
  })
}

/**
 * Reads it; it is overwritten.
 *
 * @throws OciError `ERR_OCI_FORMAT`.
 */
export function readLayerPayload(message: Buffer): LayerPayload {
  const secrets: Buffer[] = []
  try {
    const fields = readFields(message)
    const type = fields.get(1)?.toString("utf8") ?? ""
    if (type.split("/").at(-1) !== TYPE)
      throw malformed(`it is of type ${JSON.stringify(type.slice(0, 100))}`)
    const json = fields.get(2) ?? Buffer.alloc(0)
    const keys = keysOf(json, secrets)
    const value = parseJson(json.toString("utf8"))
    if (!isJsonObject(value)) throw malformed("it is no JSON object")
    const config = value["DecryptConfig"]
    const providers = isJsonObject(config) ? providersOf(config["Parameters"]) : []
    const layer = parseDescriptor(value["Descriptor"], `${WHAT}: the layer`)
    return { layer, secrets, keys, providers }
  } catch (cause) {
    wipePayload({ secrets })
    if (cause instanceof OciError) throw cause
    const why = cause instanceof ProtobufError ? cause.message : "it is no JSON"
    throw malformed(why, cause)
  } finally {
    message.fill(0)
  }
}

/** When its keys were used. */
export function wipePayload({ secrets }: Pick<LayerPayload, "secrets">): void {
  for (const secret of secrets) secret.fill(0)
}
