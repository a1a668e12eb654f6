// Where key providers are: the file that OCICRYPT_KEYPROVIDER_CONFIG names, as ocicrypt reads it. What it names gets layer keys, so nobody
// but root and the user himself may have written it, or what is started.
import { isIP } from "node:net"
import path from "node:path"
import { KeyError } from "../errors.ts"
import { isJsonObject, parseJson, type JsonObject } from "../json.ts"
import type { Bytes } from "../units.ts"
import { TrustedFiles } from "./trusted-file.ts"

/** How a service is spoken to over TLS: files with certificates and a key, and who it has to be. */
export interface ServiceTls {
  readonly rootCaFile: string | undefined
  readonly certFile: string | undefined
  readonly keyFile: string | undefined
  readonly serverName: string | undefined
}

/** A program, or a service. */
export type ProviderEntry =
  | {
      /** Without links. */
      readonly path: string
      /** What it is called, by which some programs know what to be. */
      readonly argv0?: string
      readonly args: readonly string[]
    }
  | { readonly host: string; readonly port: number; readonly tls: ServiceTls | undefined }
  | { readonly socket: string }

const MAX_SIZE: Bytes = 1 << 20
const MAX_ARGUMENTS = 1000
const VARIABLE = "OCICRYPT_KEYPROVIDER_CONFIG"

const files = new TrustedFiles("ERR_KEY_PROVIDER")

function refuse(file: string, why: string, cause?: unknown): KeyError {
  return files.refuse(file, why, cause)
}

const isText = (value: unknown): value is string =>
  typeof value === "string" && value !== "" && !value.includes("\0")

async function readCommand(command: unknown, what: string): Promise<ProviderEntry> {
  const { path: program, args = [] } = isJsonObject(command) ? command : {}
  if (!isText(program) || !path.isAbsolute(program))
    throw refuse(what, `its cmd has no absolute path: {"path": "/usr/bin/…", "args": […]}`)
  const list = args ?? []
  if (
    !Array.isArray(list) ||
    list.length > MAX_ARGUMENTS ||
    !list.every((one) => typeof one === "string" && !one.includes("\0"))
  )
    throw refuse(what, "the args of its cmd are no list of strings")
  try {
    return { path: await files.checkPlace(program), argv0: program, args: list as string[] }
  } catch (cause) {
    if (cause instanceof KeyError) throw cause
    throw refuse(what, `its program ${program} is not there`, cause)
  }
}

function readTls(given: unknown, what: string): ServiceTls | undefined {
  if (given === undefined || given === null) return undefined
  if (!isJsonObject(given)) throw refuse(what, "its grpc-tls is no object")
  if (given["insecure-skip-verify"] === true)
    throw refuse(
      what,
      "insecure-skip-verify would give the keys of layers to whoever answers: root-ca-file names whom to believe",
    )
  const file = (name: string): string | undefined => {
    const value = given[name]
    if (value === undefined || value === null || value === "") return undefined
    if (isText(value)) return value
    throw refuse(what, `${name} of its grpc-tls is no string`)
  }
  return {
    rootCaFile: file("root-ca-file"),
    certFile: file("cert-file"),
    keyFile: file("key-file"),
    serverName: file("server-name"),
  }
}

const isLoopback = (host: string): boolean =>
  host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."))

function readService(address: unknown, tls: ServiceTls | undefined, what: string): ProviderEntry {
  if (!isText(address)) throw refuse(what, "its grpc is no address: HOST:PORT or unix:/PATH")
  const [, socket] = /^unix:(?:\/\/)?(\/.+)$/s.exec(address) ?? []
  if (socket !== undefined) {
    if (tls !== undefined)
      throw refuse(what, "its grpc is a socket of this machine, for which there is no grpc-tls")
    return { socket }
  }
  const [, six, name = six, digits = ""] =
    /^(?:dns:\/\/\/)?(?:\[([0-9a-f:.]+)\]|([\w.-]+)):(\d{1,5})$/i.exec(address) ?? []
  const port = Number(digits)
  if (name === undefined || port < 1 || port > 65_535)
    throw refuse(what, "its grpc is no address: HOST:PORT or unix:/PATH")
  if (tls === undefined && !isLoopback(name))
    throw refuse(
      what,
      `${name} is not this machine, and the keys of layers go nowhere without TLS: grpc-tls says how`,
    )
  return { host: name, port, tls }
}

/** Names that annotations can have in them. */
const NAME = /^[\w.-]{1,128}$/

async function readProviders(file: string): Promise<JsonObject> {
  let value: unknown
  const text = await files.read(file, MAX_SIZE)
  try {
    value = parseJson(text)
  } catch (cause) {
    throw refuse(file, `it is no JSON: ${(cause as Error).message}`, cause)
  }
  const providers = isJsonObject(value) ? value["key-providers"] : undefined
  if (!isJsonObject(providers)) throw refuse(file, `it has no object "key-providers"`)
  return providers
}

/**
 * Looks up what a provider is.
 *
 * @param file - Default: the one that `OCICRYPT_KEYPROVIDER_CONFIG` of the environment names.
 * @throws KeyError `ERR_KEY_PROVIDER`.
 */
export async function findProvider(
  name: string,
  file: string | undefined,
  environment: Readonly<Record<string, string | undefined>>,
): Promise<ProviderEntry> {
  const named = file ?? environment[VARIABLE] ?? ""
  if (named === "")
    throw new KeyError(
      "ERR_KEY_PROVIDER",
      `provider:${name} was named, and ${VARIABLE} names no file that says what it is`,
    )
  const providers = await readProviders(named)
  const what = `${named}: ${name}`
  const entry = NAME.test(name) && Object.hasOwn(providers, name) ? providers[name] : undefined
  if (!isJsonObject(entry)) {
    const known = Object.keys(providers).slice(0, 20).join(", ")
    throw refuse(what, `there is no such key provider (known: ${known === "" ? "none" : known})`)
  }
  const { cmd, grpc } = entry
  if (cmd !== undefined && cmd !== null) return await readCommand(cmd, what)
  if (grpc !== undefined && grpc !== null) return readService(grpc, readTls(entry["grpc-tls"], what), what)
  throw refuse(what, "it has neither cmd nor grpc")
}
