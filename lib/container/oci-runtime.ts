// An OCI runtime whose containers may have an image for a root: crun, which gets to see that mounted.
import {
  appendFileSync,
  closeSync,
  existsSync,
  openSync,
  readlinkSync,
  realpathSync,
  statSync,
} from "node:fs"
import path from "node:path"
import * as is from "../arguments.ts"
import { readBounded, TooLarge } from "../bounded-file.ts"
import { callerEnvironment, callerOpenFiles, programEnvironment } from "../caller-environment.ts"
import { Credentials, type CredentialSource } from "../encryption/credentials.ts"
import { RunError } from "../errors.ts"
import { ownFolder } from "../native/private-folder.ts"
import { ProgramFailure, runProgram } from "../outside-program.ts"
import { checkArchitecture } from "../runtime/architecture.ts"
import { bundleFile, bundleWords } from "../runtime/bundle.ts"
import { engineName, withEngine, type Startable } from "../runtime/engine.ts"
import { becomeStarter } from "../runtime/handover.ts"
import { callerIdentity } from "../runtime/identity.ts"
import {
  ANNOTATIONS,
  BundleConfig,
  isMadeOfImage,
  MAX_CONFIG,
  type Annotations,
} from "../runtime/oci-bundle.ts"
import { logLine, RuntimeCall, withOwnFeatures } from "../runtime/oci-words.ts"
import { preservedDescriptors } from "../runtime/preserved.ts"
import { findProgram } from "../runtime/program.ts"
import { startStarter } from "../runtime/starter.ts"
import { cacheArgument, launchOf, type ConcreteEngine } from "../runtime/starter-protocol.ts"
import { idMapArguments, oneId, subordinateIds, type IdMaps } from "../runtime/subordinate-ids.ts"
import { userKeyrings } from "../signing/rings.ts"
import type { Bytes, Milliseconds } from "../units.ts"
import { Image, openPath, openRows, type OpenOptions } from "./image.ts"

const checkOptions = is.shape<OpenOptions>(openRows)
const checkWords = is.list(is.text)

const MAX_FEATURES: Bytes = 1 << 20
const PATIENCE_MS: Milliseconds = 10_000

/** What of this process the runtime gets. */
interface Inherited {
  /** In which namespaces it is, by descriptors; none: in this process's own. */
  readonly namespaces: readonly { readonly word: "user-fd" | "mount-fd"; readonly fd: number }[]
  readonly preserved: readonly number[]
}

/** Descriptors above the standard ones that are the container's: sockets that somebody listens at are among them. */
function preservedOf(call: RuntimeCall): number {
  const numbers = [call.preserved, callerEnvironment()["LISTEN_FDS"]].map((word = "") =>
    /^\d{1,4}$/.test(word) ? Number(word) : 0,
  )
  return Math.max(...numbers)
}

async function becomeRuntime(
  words: readonly string[],
  { namespaces, preserved }: Inherited,
  signal: AbortSignal | undefined,
): Promise<void> {
  const openFiles = callerOpenFiles()
  await becomeStarter(
    [
      "enter",
      ...namespaces.map(({ word, fd }) => `--${word}=${fd}`),
      ...(openFiles === undefined ? [] : [`--open-files=${openFiles}`]),
      "--",
      findProgram("crun", "it runs the container"),
      ...words,
    ],
    Object.entries(programEnvironment()).map(([name, value = ""]) => `${name}=${value}`),
    [...preserved, ...namespaces.map(({ fd }) => fd)],
    () => signal?.aborted === true,
  )
  signal?.throwIfAborted()
}

async function readConfig(file: string, signal: AbortSignal | undefined): Promise<BundleConfig> {
  try {
    return new BundleConfig(file, await readBounded(file, MAX_CONFIG, { signal }))
  } catch (cause) {
    signal?.throwIfAborted()
    if (cause instanceof RunError) throw cause
    const why = cause instanceof TooLarge ? `it has ${cause.message}` : (cause as Error).message
    throw RunError.at(file, "ERR_RUN_BUNDLE", why, { cause })
  }
}

/** The image that is the root; undefined: the root is a folder, as of any bundle. */
function imageOf(config: BundleConfig, file: string, bundle: string): string | undefined {
  const { annotations } = config
  const root = path.resolve(bundle, config.root ?? "rootfs")
  if (Object.keys(annotations).length > 0) {
    const real = (place: string): string => (existsSync(place) ? realpathSync(place) : place)
    if (isMadeOfImage(real(bundle), real(root)))
      throw RunError.at(
        file,
        "ERR_RUN_BUNDLE",
        "its annotations may be those of the image that its root was made of; what names an image of yours needs a root of yours, as podman's --rootfs FOLDER",
      )
  }
  const { image } = annotations
  if (image !== undefined) return image
  return statSync(root, { throwIfNoEntry: false })?.isFile() === true ? root : undefined
}

function credentialsOf(annotations: Annotations): readonly CredentialSource[] {
  const { key, "key-passphrase-file": password, "passphrase-file": passphrase } = annotations
  return [
    ...(key === undefined
      ? []
      : [{ key: { file: key }, ...(password === undefined ? {} : { password: { file: password } }) }]),
    ...(passphrase === undefined ? [] : [{ passphrase: { file: passphrase } }]),
  ]
}

function openOptions(annotations: Annotations, options: OpenOptions): OpenOptions {
  const given = credentialsOf(annotations)
  const unlock = given.length > 0 ? given : options.unlock
  const { signer } = annotations
  if (signer === undefined) return { ...options, unlock }
  const { verify = { keyringPaths: userKeyrings(process.env) } } = options
  const others = Array.isArray(verify.require) ? (verify.require as readonly string[]) : []
  return { ...options, unlock, verify: { ...verify, require: [...others, ...signer.split(",")] } }
}

/** The ids that an ordinary user's runtime has; undefined: it has the caller's. */
function idsOf(config: BundleConfig): { readonly maps: IdMaps; readonly isOne: boolean } | undefined {
  const { uid, gid, name } = callerIdentity()
  if (uid === 0) return undefined
  const many = config.hasManyIds ? subordinateIds(name, uid, gid) : undefined
  return { maps: many ?? oneId(uid, gid), isOne: many === undefined }
}

/** Namespaces in which the image is mounted, and the runtime's configuration lies. They are held by these descriptors alone. */
async function prepare(
  startable: Startable,
  engine: ConcreteEngine,
  session: string,
  config: BundleConfig,
): Promise<Inherited["namespaces"]> {
  const ids = idsOf(config)
  const { uid, gid } = callerIdentity()
  const starter = startStarter({
    launch: launchOf({
      command: "prepare",
      engine,
      source: startable.source,
      args: [
        `--session=${session}`,
        cacheArgument(),
        // In a user namespace with one id everything else would be nobody's.
        ...(ids?.isOne === true ? [`--owner=${uid}:${gid}`] : []),
        ...(ids === undefined || ids.isOne ? [] : idMapArguments(ids.maps)),
      ],
    }),
    bundle: Promise.resolve(
      Buffer.concat([
        bundleFile("config.json", 0o600, config.withRoot(path.join(session, "root"), ids?.maps)),
        bundleFile("places", 0o600, bundleWords(config.places.flat())),
      ]),
    ),
    attached: true,
    stdio: ["ignore", "ignore", "inherit"],
  })
  const pid = await starter.ready
  const open = (kind: "user" | "mnt"): number => openSync(`/proc/${pid}/ns/${kind}`, "r")
  const isOwn = readlinkSync(`/proc/${pid}/ns/user`) === readlinkSync("/proc/self/ns/user")
  const namespaces = [
    ...(isOwn ? [] : [{ word: "user-fd" as const, fd: open("user") }]),
    { word: "mount-fd" as const, fd: open("mnt") },
  ]
  starter.release()
  await starter.ended
  return namespaces
}

function closeAll(namespaces: Inherited["namespaces"]): void {
  for (const { fd } of namespaces) closeSync(fd)
}

async function makeContainer(
  words: readonly string[],
  call: RuntimeCall,
  options: OpenOptions,
): Promise<void> {
  const { signal } = options
  const count = preservedOf(call)
  const file = path.resolve(call.bundle, call.config)
  const config = await readConfig(file, signal)
  const { annotations } = config
  const name = imageOf(config, file, call.bundle)
  if (name === undefined) {
    await becomeRuntime(words, { namespaces: [], preserved: preservedDescriptors(count) }, signal)
    return
  }
  const wanted = engineName(annotations.engine ?? "auto", `${file}: ${ANNOTATIONS}engine`)
  const opening = openOptions(annotations, options)
  using credentials = new Credentials(opening.unlock)
  await using image = await openPath(name, opening, credentials)
  const session = ownFolder("oci")
  const inherited = await Image.use(
    image,
    async (startable) => {
      if (startable.source.folder !== undefined)
        throw new RunError("ERR_RUN_BUNDLE", `${name} is a folder: root.path names those`, { path: name })
      checkArchitecture(name, startable.architecture ?? "unknown")
      return {
        preserved: preservedDescriptors(count, startable.source.fd),
        namespaces: await withEngine(wanted, startable, (engine) =>
          prepare(startable, engine, session, config),
        ),
      }
    },
    ({ namespaces }) => {
      closeAll(namespaces)
      return Promise.resolve()
    },
  )
  try {
    await becomeRuntime(call.withConfig(path.join(session, "config.json")), inherited, signal)
  } finally {
    closeAll(inherited.namespaces)
  }
}

async function features(words: readonly string[], signal: AbortSignal | undefined): Promise<string> {
  const said = await runProgram(findProgram("crun", "it runs the container"), words, {
    env: programEnvironment(),
    limit: MAX_FEATURES,
    timeoutMs: PATIENCE_MS,
    signal,
  }).catch((cause: unknown) => {
    // Of before 1.9: it does not know the word.
    if (cause instanceof ProgramFailure && cause.complaint !== "") return undefined
    throw cause
  })
  return withOwnFeatures(said?.toString("utf8"), ANNOTATIONS)
}

/**
 * Does what an OCI runtime is asked for on its command line, which is crun's: this process becomes crun. A bundle whose root is the
 * file of an image, or whose annotation `org.sifcrypt.image` names one, gets that mounted for a root, in a mount namespace that
 * nobody else sees.
 *
 * @param words - Behind the program's name.
 * @returns What is to be written to standard output, and nothing else is to be done; it does not return where this process has
 * become crun.
 * @throws What `open` throws for the image; RunError `ERR_RUN_BUNDLE`; DeviceError, EnvironmentError; the signal's reason.
 */
export async function becomeOciRuntime(words: readonly string[], given: OpenOptions = {}): Promise<string> {
  const options = checkOptions(given, "options")
  const call = new RuntimeCall(checkWords(words, "words"))
  if (call.command === "features") return await features(words, options.signal)
  if (call.makesContainer) await makeContainer(words, call, options)
  else await becomeRuntime(words, { namespaces: [], preserved: [] }, options.signal)
  return ""
}

/**
 * Writes why a container was not made where an OCI runtime is told to: what starts containers shows that.
 *
 * @param words - As for {@link becomeOciRuntime}.
 */
export function logForOciEngine(words: readonly string[], message: string): void {
  const call = new RuntimeCall(checkWords(words, "words"))
  const said = is.text(message, "message")
  const { log = "" } = call
  const [, kind = "file", place = ""] = /^(?:(file|journald|syslog):)?(.*)$/s.exec(log) ?? []
  if (kind !== "file" || place === "") return
  try {
    appendFileSync(place, logLine(said, call.logsJson, new Date()), { mode: 0o600 })
  } catch {
    // Standard error has it, too.
  }
}
