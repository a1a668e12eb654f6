// Who to be at a registry, kept where Apptainer keeps it, or in another file like Docker's. What such a file has besides stays.
import { mkdir, realpath, stat } from "node:fs/promises"
import path from "node:path"
import * as is from "../arguments.ts"
import { callerEnvironment } from "../caller-environment.ts"
import { OciError } from "../errors.ts"
import { isJsonObject, type JsonObject } from "../json.ts"
import { lockFolder } from "../native/lock.ts"
import { parseRegistryHost } from "../oci/reference.ts"
import { TemporaryFile } from "../oci/temporary-file.ts"
import { tryCredential, type ClientOptions } from "./client.ts"
import { authFiles, helperAnswer, helperServer, hostKeys, readAuthFile, runHelper } from "./credentials.ts"

/** Where credentials are kept. */
export interface AuthFileOptions {
  /** As `docker login` writes it. Default: `REGISTRY_AUTH_FILE`, or Apptainer's file. */
  readonly authFile?: string | undefined
  /** Default: the caller's. */
  readonly environment?: Readonly<Record<string, string | undefined>> | undefined
  readonly signal?: AbortSignal | undefined
}

/** What {@link registryLogin} shows to whom. */
export interface RegistryLoginOptions
  extends AuthFileOptions, Pick<ClientOptions, "certFolder" | "noHttps" | "retryDelayMs" | "onNotice"> {
  /** `HOST[:PORT]`, also with `oras://` or `docker://` before it. */
  readonly registry: string
  readonly username: string
  /** Or a token that takes its place. The caller wipes it. */
  readonly password: Buffer
}

/** What {@link registryLogout} forgets. */
export interface RegistryLogoutOptions extends AuthFileOptions {
  /** `HOST[:PORT]`, also with `oras://` or `docker://` before it. */
  readonly registry: string
}

/** What {@link registryLogins} looks at. */
export interface RegistryLoginsOptions extends AuthFileOptions {
  /** Hears of credential helpers that do not work. */
  readonly onNotice?: ((text: string) => void) | undefined
}

/** A credential that is kept. */
export interface RegistryLogin {
  /** As its file calls it, which may have a part of the registry: `registry.example:5000/group`. */
  readonly registry: string
  /** undefined: the file does not say. */
  readonly username: string | undefined
  /** That it is in, or that names the helper. */
  readonly file: string
  /** That keeps it. */
  readonly helper: string | undefined
}

const files = { authFile: is.path, environment: is.variables, signal: is.abortSignal }
const checkLogins = is.shape<RegistryLoginsOptions>({ ...files, onNotice: is.callback })
const checkLogout = is.shape<RegistryLogoutOptions>({ ...files, registry: is.required(is.text) })
const checkLogin = is.shape<RegistryLoginOptions>({
  ...files,
  registry: is.required(is.text),
  username: is.required(is.text),
  password: is.required(is.buffer),
  certFolder: is.path,
  noHttps: is.flag,
  retryDelayMs: is.milliseconds,
  onNotice: is.callback,
})

type Environment = Readonly<Record<string, string | undefined>>

function writtenFile(authFile: string | undefined, environment: Environment): string {
  return authFile ?? (environment["REGISTRY_AUTH_FILE"] || authFiles(environment)[0])
}

/** Changes a file, one process at a time; its former content stays until the new one is whole. */
async function change(
  file: string,
  update: (config: JsonObject) => Promise<JsonObject | undefined>,
): Promise<void> {
  const folder = path.dirname(file)
  await mkdir(folder, { recursive: true, mode: 0o700 })
  // A link stays, and leads to what is changed.
  const target = await realpath(file).catch(() => file)
  await using lock = await lockFolder(path.dirname(target))
  if (lock === undefined)
    throw new OciError("ERR_OCI_CREDENTIALS", `${file} is being written by somebody else`, { path: file })
  const changed = await update((await readAuthFile(target, false)) ?? {})
  if (changed === undefined) return
  const bytes = Buffer.from(`${JSON.stringify(changed, undefined, "\t")}\n`)
  try {
    await using written = await TemporaryFile.create(path.dirname(target))
    // What root writes for somebody stays his.
    const former = process.geteuid?.() === 0 ? await stat(target).catch(() => undefined) : undefined
    if (former !== undefined) await written.file.chown(former.uid, former.gid)
    await written.write(bytes, 0)
    await written.publish(target)
  } finally {
    bytes.fill(0)
  }
}

function asError(file: string, cause: unknown): unknown {
  if (!(cause instanceof Error) || !("syscall" in cause)) return cause
  return new OciError("ERR_OCI_CREDENTIALS", `cannot write ${file}: ${cause.message}`, { path: file, cause })
}

/** Who keeps what a file says of a registry; undefined: the file itself. */
function helperOf({ credHelpers, credsStore }: JsonObject, host: string): string | undefined {
  const own = isJsonObject(credHelpers)
    ? hostKeys(host)
        .map((key) => credHelpers[key])
        .find((one) => typeof one === "string")
    : undefined
  const found = own ?? credsStore
  return typeof found === "string" && found !== "" ? found : undefined
}

/** What a file calls a registry, or a part of it. */
function entriesOf({ auths }: JsonObject, host: string): readonly string[] {
  const keys = hostKeys(host)
  const isOf = (name: string): boolean =>
    keys.some((key) => name === key || name.startsWith(key.endsWith("/") ? key : `${key}/`))
  return isJsonObject(auths) ? Object.keys(auths).filter(isOf) : []
}

function without({ auths }: JsonObject, names: readonly string[]): JsonObject {
  const all = isJsonObject(auths) ? auths : {}
  return Object.fromEntries(Object.entries(all).filter(([key]) => !names.includes(key)))
}

/**
 * Shows a name and a password to a registry, and keeps them if they are right: in a file, or with the credential helper
 * that the file names.
 *
 * @throws OciError `ERR_OCI_CREDENTIALS` where the registry refuses them or they cannot be kept; `ERR_OCI_REGISTRY`,
 * `ERR_OCI_REFERENCE`; the signal's reason.
 */
export async function registryLogin(given: RegistryLoginOptions): Promise<RegistryLogin> {
  const options = checkLogin(given, "options")
  const { username, environment = callerEnvironment(), signal, onNotice } = options
  const host = parseRegistryHost(options.registry)
  if (username === "" || username.includes(":"))
    throw new OciError(
      "ERR_OCI_CREDENTIALS",
      `${host}: ${JSON.stringify(username)} is no name for a registry`,
    )
  const file = writtenFile(options.authFile, environment)
  const password = Buffer.from(options.password)
  const bytes = Buffer.concat([Buffer.from(`${username}:`), password])
  try {
    const credentials = { username, password }
    const { certFolder, noHttps, retryDelayMs } = options
    const connection = { certFolder, noHttps, retryDelayMs, environment, signal, onNotice }
    if (!(await tryCredential(host, { ...connection, credentials })))
      onNotice?.(`${host} lets in everybody: nobody has looked at the password`)
    let helper: string | undefined
    await change(file, async (config) => {
      helper = helperOf(config, host)
      if (helper !== undefined) await store(helper, host, credentials, environment, signal)
      const entry = helper === undefined ? { auth: bytes.toString("base64") } : {}
      return { ...config, auths: { ...without(config, hostKeys(host)), [helperServer(host)]: entry } }
    }).catch((cause: unknown) => {
      throw asError(file, cause)
    })
    if (helper === undefined)
      onNotice?.(
        `the password is in ${file}, for whoever reads that: a credential helper (credsStore) would keep it elsewhere`,
      )
    return { registry: helperServer(host), username, file, helper }
  } finally {
    bytes.fill(0)
    password.fill(0)
  }
}

async function store(
  helper: string,
  host: string,
  { username, password }: { readonly username: string; readonly password: Buffer },
  environment: Environment,
  signal: AbortSignal | undefined,
): Promise<void> {
  const secret = password.toString("utf8")
  const input = Buffer.from(
    JSON.stringify({ ServerURL: helperServer(host), Username: username, Secret: secret }),
  )
  try {
    await runHelper(helper, "store", input, environment, signal)
  } finally {
    input.fill(0)
  }
}

/**
 * Forgets what is kept for a registry and for parts of it (`HOST/group`), in a file and with the credential helper that it names.
 *
 * @returns Was there something? And the other files that have something for it, which stays.
 * @throws OciError `ERR_OCI_CREDENTIALS`, `ERR_OCI_REFERENCE`; the signal's reason.
 */
export async function registryLogout(
  given: RegistryLogoutOptions,
): Promise<{ readonly file: string; readonly found: boolean; readonly others: readonly string[] }> {
  const options = checkLogout(given, "options")
  const { environment = callerEnvironment(), signal } = options
  const host = parseRegistryHost(options.registry)
  const file = writtenFile(options.authFile, environment)
  const found = await hasLogin(file, host, environment, signal)
  let helper: string | undefined
  if (found)
    await change(file, (config) => {
      helper = helperOf(config, host)
      return Promise.resolve({ ...config, auths: without(config, entriesOf(config, host)) })
    }).catch((cause: unknown) => {
      throw asError(file, cause)
    })
  // After the file, which forgets whatever its helper does; and under no lock, as it may take its time.
  if (helper !== undefined) await runHelper(helper, "erase", helperServer(host), environment, signal)
  const others: string[] = []
  for (const other of options.authFile === undefined ? authFiles(environment) : [])
    // What is wrong there is nothing that went wrong here.
    if (other !== file && (await hasLogin(other, host, environment, signal).catch(() => false)))
      others.push(other)
  return { file, found, others }
}

function usernameIn({ auth, username }: JsonObject): string | undefined {
  if (typeof username === "string") return username
  if (typeof auth !== "string" || auth === "") return undefined
  const bytes = Buffer.from(auth, "base64")
  const colon = bytes.indexOf(":")
  try {
    return colon < 0 ? undefined : bytes.toString("utf8", 0, colon)
  } finally {
    bytes.fill(0)
  }
}

async function hasLogin(
  file: string,
  host: string,
  environment: Environment,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  const config = (await readAuthFile(file, false)) ?? {}
  if (entriesOf(config, host).length > 0) return true
  const helper = helperOf(config, host)
  const kept = helper && (await runHelper(helper, "get", helperServer(host), environment, signal))
  if (!Buffer.isBuffer(kept)) return false
  kept.fill(0)
  return true
}

/** What a file and its helpers keep. A helper that does not work is told of. */
async function loginsOf(
  file: string,
  environment: Environment,
  { signal, onNotice }: RegistryLoginsOptions,
): Promise<RegistryLogin[]> {
  const config = (await readAuthFile(file, false)) ?? {}
  const { auths, credHelpers, credsStore } = config
  const found = new Map<string, RegistryLogin>()
  for (const [registry, entry] of Object.entries(isJsonObject(auths) ? auths : {}))
    // An empty one says that a helper has it.
    if (isJsonObject(entry) && Object.keys(entry).length > 0)
      found.set(registry, { registry, username: usernameIn(entry), file, helper: undefined })
  const named = isJsonObject(credHelpers) ? Object.values(credHelpers) : []
  const helpers = [...named, credsStore].filter((one) => typeof one === "string" && one !== "")
  for (const helper of new Set(helpers as string[])) {
    let kept: JsonObject = {}
    try {
      const output = await runHelper(helper, "list", "", environment, signal)
      if (output !== undefined) kept = helperAnswer(helper, output)
    } catch (error) {
      if (!(error instanceof OciError)) throw error
      onNotice?.(`${file}: ${error.message}`)
    }
    for (const [registry, username] of Object.entries(kept))
      found.set(registry, {
        registry,
        username: typeof username === "string" ? username : undefined,
        file,
        helper,
      })
  }
  return [...found.values()]
}

/**
 * Who to be at which registry, by all files that are looked at; not what the password is.
 *
 * @throws OciError `ERR_OCI_CREDENTIALS`; the signal's reason.
 */
export async function registryLogins(given: RegistryLoginsOptions = {}): Promise<RegistryLogin[]> {
  const options = checkLogins(given, "options")
  const { authFile, environment = callerEnvironment() } = options
  const only = authFile ?? (environment["REGISTRY_AUTH_FILE"] || undefined)
  const logins: RegistryLogin[] = []
  for (const file of only === undefined ? authFiles(environment) : [only])
    logins.push(...(await loginsOf(file, environment, options)))
  return logins
}
