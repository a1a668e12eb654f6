// What an image says of itself: definition, labels, scripts. Of a plain image the objects beside the root file system say so,
// as the peers write them, else the root file system itself. Of an encrypted one what is inside the encryption counts: the
// objects that are sealed there, else the root file system; who has no key gets what lies beside it, and is told so.
import * as is from "../arguments.ts"
import type { LuksPolicy } from "../device/luks-header.ts"
import { Tree, type ReadableTree } from "../device/tree.ts"
import { KeyError, SifError } from "../errors.ts"
import {
  descriptionOf,
  INSPECT_NAME,
  metadataOutside,
  sealedDescription,
  type Description,
} from "../encryption/description.ts"
import { encryptionOf } from "../encryption/partition.ts"
import { plaintextOf, readFooter, readSealed } from "../encryption/sealed.ts"
import { plainRange, type Unlocked } from "../encryption/encryption-format.ts"
import { unlockPartition } from "../encryption/unlock.ts"
import { isJsonObject, parseJson } from "../json.ts"
import type { SifObject, SifPartition } from "../sif/format.ts"
import { SifImage } from "../sif/open.ts"
import { nameText } from "../printable.ts"
import type { Bytes } from "../units.ts"
import { openRows, type OpenOptions } from "./image.ts"
import type { Credentials } from "../encryption/credentials.ts"
import { checkBareOrigin, openImagePath, openRootTree } from "./image-root.ts"
import { checkOrigin, isVerified } from "./origin.ts"

/** What a SCIF app says of itself; what it lacks is undefined. */
export interface AppMetadata {
  readonly labels: Readonly<Record<string, string>>
  readonly runscript?: string
  readonly startscript?: string
  readonly test?: string
  readonly helpfile?: string
  /** Environment scripts by their paths inside. */
  readonly environment: Readonly<Record<string, string>>
}

/** What an image says of itself; what an image lacks, or was not asked for, is undefined or empty. */
export interface ImageMetadata extends AppMetadata {
  /** The definition file that it was built from. */
  readonly deffile?: string
  /** By their names. */
  readonly apps: Readonly<Record<string, AppMetadata>>
  /**
   * Where it was found: beside the root file system, inside the encryption, or in the root file system. Beside an encrypted
   * one (`objects`) it may be anybody's, unless {@link OpenOptions.verify} was given.
   */
  readonly origin: "objects" | "sealed" | "root"
}

type Texts = "deffile" | "runscript" | "startscript" | "test" | "helpfile"

const parts = ["deffile", "runscript", "startscript", "test", "helpfile", "environment", "labels"] as const

/** Something that an image says of itself. */
export type MetadataPart = (typeof parts)[number]

/** How it is read. */
export interface MetadataOptions extends OpenOptions {
  /** What is read, of the image and of its apps; default: all of it. */
  readonly parts?: readonly MetadataPart[] | undefined
  /** Of which apps; `names` reads nothing of them. Default: `all`. */
  readonly apps?: "all" | "names" | readonly string[] | undefined
}

const whichApps = is.oneOf("all", "names")
export const metadataRows: is.Rows<MetadataOptions> = {
  ...openRows,
  parts: is.list(is.oneOf(...parts)),
  apps: (value, name) => (Array.isArray(value) ? is.list(is.text)(value, name) : whichApps(value, name)),
}

/** All texts together that one call reads of an image. */
export const MAX_METADATA_SIZE: Bytes = 16 << 20
/** What a text or a name counts for at least: looking for one costs as well. */
const LEAST: Bytes = 1 << 10
/** Of a folder's listing, which is in memory as a whole. */
const MAX_LISTING: Bytes = 1 << 20
const FOLDER = "/.singularity.d"

/** Where each of them lies in the root file system. */
const files: Readonly<Record<Texts, string>> = {
  deffile: `${FOLDER}/Singularity`,
  runscript: `${FOLDER}/runscript`,
  startscript: `${FOLDER}/startscript`,
  test: `${FOLDER}/test`,
  helpfile: `${FOLDER}/runscript.help`,
}
const texts = Object.keys(files) as Texts[]
const APPS = "/scif/apps"
/** In the folder `scif` of an app. */
const appFiles: Readonly<Partial<Record<Texts, string>>> = {
  runscript: "runscript",
  startscript: "startscript",
  test: "test",
  helpfile: "runscript.help",
}

/** What is asked for, and how much may still be read of it. */
class Reading {
  readonly path: string
  readonly apps: NonNullable<MetadataOptions["apps"]>
  readonly #parts: readonly MetadataPart[] | undefined
  readonly #signal: AbortSignal | undefined
  #left = MAX_METADATA_SIZE

  constructor(path: string, { parts, apps = "all", signal }: MetadataOptions) {
    this.path = path
    this.apps = apps
    this.#parts = parts
    this.#signal = signal
  }

  wants(part: MetadataPart): boolean {
    return this.#parts?.includes(part) ?? true
  }

  /**
   * Before it is read.
   *
   * @throws SifError `ERR_SIF_TOO_LARGE`; the signal's reason.
   */
  take(size: Bytes): void {
    this.#signal?.throwIfAborted()
    this.#left -= Math.max(size, LEAST)
    if (this.#left < 0) this.refuse()
  }

  refuse(): never {
    throw SifError.at(
      this.path,
      "ERR_SIF_TOO_LARGE",
      `what was asked for of its metadata is more than the ${MAX_METADATA_SIZE} bytes that are read`,
    )
  }
}

/** The entries whose values are text. */
function textEntries(value: unknown): Record<string, string> {
  if (!isJsonObject(value)) return {}
  return Object.fromEntries(
    Object.entries(value).filter((entry): entry is [string, string] => typeof entry[1] === "string"),
  )
}

function parse(bytes: Buffer, path: string, what: string): unknown {
  try {
    return parseJson(bytes.toString("utf8"))
  } catch (cause) {
    throw SifError.at(path, "ERR_SIF_METADATA", `${what} is no JSON`, { cause })
  }
}

/** What of an object's attributes is text and asked for, under its own name. */
function textsOf(
  attributes: Readonly<Record<string, unknown>>,
  reading: Reading,
): Partial<Record<Texts, string>> {
  return Object.fromEntries(
    texts.flatMap((name) => {
      const value = attributes[name]
      return typeof value === "string" && reading.wants(name) ? [[name, value]] : []
    }),
  )
}

function partsOf(
  attributes: Readonly<Record<string, unknown>>,
  reading: Reading,
): AppMetadata & { deffile?: string } {
  return {
    ...textsOf(attributes, reading),
    labels: reading.wants("labels") ? textEntries(attributes["labels"]) : {},
    environment: reading.wants("environment") ? textEntries(attributes["environment"]) : {},
  }
}

function appsOf(value: unknown, reading: Reading): Record<string, AppMetadata> {
  const { apps: wanted } = reading
  const found = isJsonObject(value) ? Object.entries(value) : []
  return Object.fromEntries(
    found
      .filter(([name]) => typeof wanted === "string" || wanted.includes(name))
      .map(([name, app]) => [name, partsOf(wanted !== "names" && isJsonObject(app) ? app : {}, reading)]),
  )
}

async function fromObjects(
  image: SifImage,
  { inspect, definition }: Description,
  origin: ImageMetadata["origin"],
  reading: Reading,
): Promise<ImageMetadata | undefined> {
  if (inspect === undefined) return undefined
  const read = (object: typeof inspect): Promise<Buffer> => {
    reading.take(object.size)
    return image.data(object, MAX_METADATA_SIZE)
  }
  const outer = parse(await read(inspect), image.path, INSPECT_NAME)
  const data = isJsonObject(outer) ? outer["data"] : undefined
  const attributes = isJsonObject(data) && isJsonObject(data["attributes"]) ? data["attributes"] : {}
  const found = { ...partsOf(attributes, reading), apps: appsOf(attributes["apps"], reading), origin }
  if (found.deffile !== undefined || definition === undefined || !reading.wants("deffile")) return found
  return { ...found, deffile: (await read(definition)).toString("utf8") }
}

/** Texts in a root file system. */
class TreeTexts {
  readonly #tree: ReadableTree
  readonly #reading: Reading

  constructor(tree: ReadableTree, reading: Reading) {
    this.#tree = tree
    this.#reading = reading
  }

  async #file(inside: string): Promise<string | undefined> {
    const found = await this.#tree.find(inside, true)
    this.#reading.take(found?.type === "file" ? found.size : 0)
    return found?.type === "file"
      ? (await this.#tree.read(inside, 0, found.size)).toString("utf8")
      : undefined
  }

  async #names(folder: string): Promise<string[]> {
    const found = await this.#tree.find(folder, true)
    if (found?.type !== "directory") return []
    if (found.size > MAX_LISTING) this.#reading.refuse()
    const names = await this.#tree.list(folder)
    return names.map(({ name }) => {
      this.#reading.take(name.length)
      return nameText(name)
    })
  }

  async #labels(inside: string): Promise<Record<string, string>> {
    const text = this.#reading.wants("labels") ? await this.#file(inside) : undefined
    return text === undefined ? {} : textEntries(parse(Buffer.from(text), this.#reading.path, inside))
  }

  async #environment(folder: string): Promise<Record<string, string>> {
    const environment: Record<string, string> = {}
    for (const name of this.#reading.wants("environment") ? await this.#names(folder) : []) {
      const inside = `${folder}/${name}`
      const text = inside.endsWith(".sh") ? await this.#file(inside) : undefined
      if (text !== undefined) environment[inside] = text
    }
    return environment
  }

  async #parts(
    folder: string,
    named: Readonly<Partial<Record<Texts, string>>>,
  ): Promise<AppMetadata & { deffile?: string }> {
    const found: Partial<Record<Texts, string>> = {}
    for (const [part, file] of Object.entries(named) as [Texts, string][]) {
      const text = this.#reading.wants(part) ? await this.#file(file) : undefined
      if (text !== undefined) found[part] = text
    }
    return {
      ...found,
      labels: await this.#labels(`${folder}/labels.json`),
      environment: await this.#environment(`${folder}/env`),
    }
  }

  async #app(name: string): Promise<AppMetadata> {
    if (this.#reading.apps === "names") return { labels: {}, environment: {} }
    const folder = `${APPS}/${name}/scif`
    const named = Object.entries(appFiles).map(([part, file]) => [part, `${folder}/${file}`])
    return await this.#parts(folder, Object.fromEntries(named) as Partial<Record<Texts, string>>)
  }

  async #apps(): Promise<Record<string, AppMetadata>> {
    const { apps: wanted } = this.#reading
    if (wanted.length === 0) return {}
    const apps: [string, AppMetadata][] = []
    for (const name of await this.#names(APPS))
      if (typeof wanted === "string" || wanted.includes(name)) apps.push([name, await this.#app(name)])
    return Object.fromEntries(apps)
  }

  async all(): Promise<ImageMetadata> {
    return { ...(await this.#parts(FOLDER, files)), apps: await this.#apps(), origin: "root" }
  }
}

/** What is inside the encryption, if there is one. */
async function fromInside(
  image: SifImage,
  primary: SifPartition,
  unlocked: Unlocked | undefined,
  reading: Reading,
): Promise<ImageMetadata> {
  using tree = await Tree.open(plainRange(image, primary, unlocked), image.path)
  const plaintext = plaintextOf(tree)
  const footer = unlocked === undefined ? undefined : await readFooter(plaintext, image.path)
  const sealed = await readSealed(plaintext, footer, image.path)
  const found =
    sealed === undefined
      ? undefined
      : await fromObjects(sealed, sealedDescription(sealed, primary), "sealed", reading)
  return found ?? (await new TreeTexts(tree, reading).all())
}

/**
 * Reads what an image says of itself, at most {@link MAX_METADATA_SIZE} of it. Without its key an encrypted image says what
 * lies beside its encryption, if there is something; with its key that is not looked at. Of objects that `verify` does not
 * verify nothing is returned.
 *
 * @throws SifError `ERR_SIF_AMBIGUOUS`, `ERR_SIF_TOO_LARGE`, `ERR_SIF_METADATA` and others; KeyError, LuksError,
 * GocryptfsError, EnvironmentError, TreeError, SignatureError; the signal's reason.
 */
export async function readPathMetadata(
  path: string,
  options: MetadataOptions,
  credentials: Credentials,
): Promise<ImageMetadata> {
  const { kdfLimits, onDerivation, onNotice, requireEncrypted, signal, verify } = options
  signal?.throwIfAborted()
  await using image = await openImagePath(path)
  const reading = new Reading(path, options)
  if (!(image instanceof SifImage)) {
    checkBareOrigin(image, options)
    using tree = await openRootTree(image, undefined)
    return await new TreeTexts(tree, reading).all()
  }
  const primary = await checkOrigin(image, image.primary(), options)
  const counts = verify === undefined ? undefined : (object: SifObject) => isVerified(object, verify)
  const outside = (): Promise<ImageMetadata | undefined> =>
    fromObjects(image, descriptionOf(image, primary, counts), "objects", reading)
  if (encryptionOf(primary) === undefined)
    return (await outside()) ?? (await fromInside(image, primary, undefined, reading))
  const policy: LuksPolicy = { limits: kdfLimits, onDerivation }
  let unlocked: Unlocked
  try {
    unlocked = await unlockPartition(image, primary, credentials, policy, signal)
  } catch (error) {
    // What lies outside is plain.
    const noKey = requireEncrypted !== true && error instanceof KeyError && error.code === "ERR_KEY_MISSING"
    const stated = noKey ? await outside() : undefined
    if (stated === undefined) throw error
    if (verify === undefined)
      onNotice?.(
        `${path} is encrypted, and no key was given: this is what lies outside of its encryption, where anybody may have put it`,
      )
    return stated
  }
  try {
    const ignored = metadataOutside(image).map(({ id }) => id)
    if (ignored.length > 0)
      onNotice?.(
        `${path}: what lies outside of its encryption, where anybody may have put it, does not count: object ${ignored.join(", ")}`,
      )
    return await fromInside(image, primary, unlocked, reading)
  } finally {
    unlocked.dataKey.wipe()
  }
}
