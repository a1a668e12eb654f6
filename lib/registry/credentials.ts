// Whom to be at a registry: options, variables, the files of Docker, Podman and Apptainer, and credential helpers.
import path from "node:path"
import { readBounded } from "../bounded-file.ts"
import { callerEnvironment, programEnvironment } from "../caller-environment.ts"
import { OciError } from "../errors.ts"
import { isJsonObject, parseJson, type JsonObject } from "../json.ts"
import { ProgramFailure, runProgram } from "../outside-program.ts"
import type { Bytes } from "../units.ts"

/** A name with its password, or what stands for both. */
export type RegistryCredential =
  | { readonly kind: "password"; readonly username: string; readonly password: Buffer }
  /** To be exchanged for another. */
  | { readonly kind: "identity"; readonly token: Buffer }
  /** To be shown as it is. */
  | { readonly kind: "bearer"; readonly token: Buffer }

/** Where to look for a name and a password. */
export interface CredentialSearch {
  /** Given for this call; no other is looked for. */
  readonly credentials?: { readonly username: string; readonly password: Buffer }
  /** As `docker login` writes it; instead of all other files. */
  readonly authFile?: string
  /** Default: the caller's. */
  readonly environment?: Readonly<Record<string, string | undefined>>
  /** Ends a helper. */
  readonly signal?: AbortSignal | undefined
}

/** For what was written before it ended. */
const LINGER_MS = 1000
const HELPER_MS = 10_000
const MAX_HELPER_OUTPUT = 1 << 20

/** The keys that stand for a repository, the most particular first. */
export function credentialKeys(host: string, repository: string): string[] {
  const parts = repository.split("/")
  const deeper = parts.map((_, i) => parts.slice(0, parts.length - i).join("/"))
  return [...hostsOf(host).flatMap((one) => deeper.map((rest) => `${one}/${rest}`)), ...hostKeys(host)]
}

function hostsOf(host: string): string[] {
  return host === "docker.io" ? ["docker.io", "index.docker.io", "registry-1.docker.io"] : [host]
}

/** The keys that stand for all of a registry. */
export function hostKeys(host: string): string[] {
  return hostsOf(host).flatMap((one) => [
    one,
    `https://${one}`,
    `https://${one}/v1/`,
    `https://${one}/v2/`,
    `http://${one}`,
  ])
}

/** What a helper is asked about, and what a login is written under, as the peers do it. */
export function helperServer(host: string): string {
  return host === "docker.io" ? "https://index.docker.io/v1/" : host
}

/** What Docker's credential helpers do. */
export type HelperAction = "get" | "store" | "erase" | "list"

/**
 * Runs a credential helper, as Docker does.
 *
 * @returns What it prints, to be wiped; undefined: it knows nothing of what it is asked about.
 * @throws OciError `ERR_OCI_CREDENTIALS`; the signal's reason.
 */
export async function runHelper(
  suffix: string,
  action: HelperAction,
  input: string | Buffer,
  environment: Readonly<Record<string, string | undefined>>,
  signal: AbortSignal | undefined,
): Promise<Buffer | undefined> {
  if (!/^[A-Za-z0-9._-]+$/.test(suffix))
    throw new OciError("ERR_OCI_CREDENTIALS", `${JSON.stringify(suffix)} is no credential helper`)
  const program = `docker-credential-${suffix}`
  const answer = { isKnown: true }
  try {
    const output = await runProgram(program, [action], {
      env: programEnvironment(environment),
      input,
      limit: MAX_HELPER_OUTPUT,
      timeoutMs: HELPER_MS,
      errors: "ignore",
      killSignal: "SIGKILL",
      lingerMs: LINGER_MS,
      accepts: (status, text) => {
        answer.isKnown = status === 0
        return answer.isKnown || /credentials not found/.test(text.toString("utf8"))
      },
      signal,
    })
    return answer.isKnown ? output : undefined
  } catch (cause) {
    if (!(cause instanceof ProgramFailure)) throw cause
    const why =
      cause.why === "absent" ? `${program} ${cause.message}` : `${program} ${action} ${cause.message}`
    throw new OciError("ERR_OCI_CREDENTIALS", why, { cause })
  }
}

/** What a helper prints, as an object. */
export function helperAnswer(suffix: string, output: Buffer): JsonObject {
  try {
    const answer = parseJson(output.toString("utf8"))
    if (isJsonObject(answer)) return answer
  } catch {
    // Said below.
  } finally {
    output.fill(0)
  }
  throw new OciError("ERR_OCI_CREDENTIALS", `docker-credential-${suffix} did not answer with JSON`)
}

async function askHelper(
  suffix: string,
  server: string,
  environment: NodeJS.ProcessEnv,
  signal: AbortSignal | undefined,
): Promise<RegistryCredential | undefined> {
  const output = await runHelper(suffix, "get", server, environment, signal)
  if (output === undefined) return undefined
  const { Username: username, Secret: secret } = helperAnswer(suffix, output)
  if (typeof username !== "string" || typeof secret !== "string")
    throw new OciError("ERR_OCI_CREDENTIALS", `docker-credential-${suffix} gave no name and secret`)
  const password = Buffer.from(secret, "utf8")
  return username === "<token>"
    ? { kind: "identity", token: password }
    : { kind: "password", username, password }
}

function fromEntry(entry: JsonObject, where: string): RegistryCredential | undefined {
  const { auth, username, password, identitytoken, registrytoken } = entry
  if (typeof registrytoken === "string" && registrytoken !== "")
    return { kind: "bearer", token: Buffer.from(registrytoken) }
  if (typeof identitytoken === "string" && identitytoken !== "")
    return { kind: "identity", token: Buffer.from(identitytoken) }
  if (typeof auth === "string" && auth !== "") {
    const decoded = Buffer.from(auth, "base64")
    const colon = decoded.indexOf(":")
    if (colon < 0) throw new OciError("ERR_OCI_CREDENTIALS", `${where}: an entry that is not NAME:PASSWORD`)
    // Docker ends a password with zero bytes that are not its own.
    let end = decoded.length
    while (end > colon + 1 && decoded[end - 1] === 0) end--
    return {
      kind: "password",
      username: decoded.subarray(0, colon).toString("utf8"),
      password: decoded.subarray(colon + 1, end),
    }
  }
  if (typeof username === "string" && typeof password === "string")
    return { kind: "password", username, password: Buffer.from(password) }
  return undefined
}

/** podman's and Docker's own have some KiB. */
const MAX_AUTH_FILE_SIZE: Bytes = 4 << 20

export async function readAuthFile(file: string, wanted: boolean): Promise<JsonObject | undefined> {
  let text: string
  try {
    text = (await readBounded(file, MAX_AUTH_FILE_SIZE)).toString("utf8")
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    if (!wanted && (code === "ENOENT" || code === "ENOTDIR" || code === "EACCES")) return undefined
    throw new OciError("ERR_OCI_CREDENTIALS", `cannot read ${file}: ${(cause as Error).message}`, {
      path: file,
      cause,
    })
  }
  let value: unknown
  try {
    value = parseJson(text)
  } catch (cause) {
    throw new OciError("ERR_OCI_CREDENTIALS", `${file} is no JSON`, { path: file, cause })
  }
  if (!isJsonObject(value))
    throw new OciError("ERR_OCI_CREDENTIALS", `${file} is no JSON object`, { path: file })
  return value
}

async function fromFile(
  config: JsonObject,
  file: string,
  host: string,
  keys: readonly string[],
  environment: NodeJS.ProcessEnv,
  signal: AbortSignal | undefined,
): Promise<RegistryCredential | undefined> {
  const { auths, credHelpers, credsStore } = config
  const helper = isJsonObject(credHelpers)
    ? keys.map((key) => credHelpers[key]).find((one) => typeof one === "string")
    : undefined
  if (typeof helper === "string") return await askHelper(helper, helperServer(host), environment, signal)
  for (const key of isJsonObject(auths) ? keys : []) {
    const entry = (auths as JsonObject)[key]
    const found = isJsonObject(entry) ? fromEntry(entry, file) : undefined
    if (found !== undefined) return found
  }
  if (typeof credsStore === "string" && credsStore !== "")
    return await askHelper(credsStore, helperServer(host), environment, signal)
  return undefined
}

/** Where credentials may be, in the order of docs/cli.md; the first one is Apptainer's, which `registry login` writes. */
export function authFiles(environment: Readonly<Record<string, string | undefined>>): [string, ...string[]] {
  const home = environment["HOME"] ?? "/"
  const folder = (name: string, otherwise: string): string => environment[name] || path.join(home, otherwise)
  const runtime = environment["XDG_RUNTIME_DIR"]
  return [
    path.join(folder("APPTAINER_CONFIGDIR", ".apptainer"), "docker-config.json"),
    path.join(folder("SINGULARITY_CONFIGDIR", ".singularity"), "docker-config.json"),
    path.join(folder("DOCKER_CONFIG", ".docker"), "config.json"),
    ...(runtime === undefined ? [] : [path.join(runtime, "containers", "auth.json")]),
    path.join(folder("XDG_CONFIG_HOME", ".config"), "containers", "auth.json"),
  ]
}

/**
 * Looks for a credential in the order of docs/cli.md.
 *
 * @returns undefined: there is none.
 * @throws OciError `ERR_OCI_CREDENTIALS` for files and helpers that do not work.
 */
export async function findCredential(
  search: CredentialSearch,
  host: string,
  repository: string,
): Promise<RegistryCredential | undefined> {
  const { credentials, authFile, environment = callerEnvironment(), signal } = search
  if (credentials !== undefined)
    return { kind: "password", username: credentials.username, password: Buffer.from(credentials.password) }
  const keys = credentialKeys(host, repository)
  const inFile = async (file: string, wanted: boolean): Promise<RegistryCredential | undefined> => {
    const config = await readAuthFile(file, wanted)
    return config === undefined ? undefined : await fromFile(config, file, host, keys, environment, signal)
  }
  const named = authFile ?? (environment["REGISTRY_AUTH_FILE"] || undefined)
  if (named !== undefined) return await inFile(named, true)
  for (const prefix of ["SIFCRYPT_", "APPTAINER_", "SINGULARITY_", ""]) {
    const username = environment[`${prefix}DOCKER_USERNAME`]
    const password = environment[`${prefix}DOCKER_PASSWORD`]
    if (username !== undefined && password !== undefined)
      return { kind: "password", username, password: Buffer.from(password) }
  }
  for (const file of authFiles(environment)) {
    const found = await inFile(file, false)
    if (found !== undefined) return found
  }
  return undefined
}

/** Overwrites its secret. */
export function wipeCredential(credential: RegistryCredential | undefined): void {
  if (credential === undefined) return
  if (credential.kind === "password") credential.password.fill(0)
  else credential.token.fill(0)
}
