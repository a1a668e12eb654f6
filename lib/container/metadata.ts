// What an image says of itself: definition, labels, scripts. From the objects beside the root file system as the peers write
// them, or from those sealed inside the encryption, or from the root file system.
import type { LuksPolicy } from "../device/luks-header.ts"
import { Tree } from "../device/tree.ts"
import { SifError } from "../errors.ts"
import { DataType } from "../sif/format.ts"
import { openSif, type SifImage } from "../sif/open.ts"
import type { Bytes } from "../units.ts"
import type { OpenOptions } from "./image.ts"
import { checkOrigin } from "./origin.ts"
import { partitionKind } from "../encryption/partition.ts"
import { plaintextOf, readFooter, readSealed } from "../encryption/sealed.ts"
import { plainRange, unlockPartition, wipeUnlocked } from "../encryption/unlock.ts"

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

/** What {@link readMetadata} finds; what an image lacks is undefined. */
export interface ImageMetadata extends AppMetadata {
  /** The definition file that it was built from. */
  readonly deffile?: string
  /** By their names. */
  readonly apps: Readonly<Record<string, AppMetadata>>
  /** Where it was found: readable by anyone, inside the encryption, or in the root file system. */
  readonly origin: "objects" | "sealed" | "root"
}

const OBJECT_NAME = "inspect-metadata.json"
const MAX_SIZE: Bytes = 16 << 20
const FOLDER = "/.singularity.d"

type Texts = "deffile" | "runscript" | "startscript" | "test" | "helpfile"

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
const MAX_APPS = 1000
/** In the folder `scif` of an app. */
const appFiles: Readonly<Record<Exclude<Texts, "deffile">, string>> = {
  runscript: "runscript",
  startscript: "startscript",
  test: "test",
  helpfile: "runscript.help",
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value)
}

/** The entries whose values are text. */
function textEntries(value: unknown): Record<string, string> {
  if (!isRecord(value)) return {}
  return Object.fromEntries(
    Object.entries(value).filter((entry): entry is [string, string] => typeof entry[1] === "string"),
  )
}

function parse(bytes: Buffer, path: string, what: string): unknown {
  try {
    return JSON.parse(bytes.toString("utf8"))
  } catch (cause) {
    throw new SifError("ERR_SIF_METADATA", `${path}: ${what} is no JSON`, { path, cause })
  }
}

/** What of an object's attributes is text, under its own name. */
function textsOf(attributes: Readonly<Record<string, unknown>>): Partial<Record<Texts, string>> {
  return Object.fromEntries(
    texts.flatMap((name) => (typeof attributes[name] === "string" ? [[name, attributes[name]]] : [])),
  )
}

function appsOf(value: unknown): Record<string, AppMetadata> {
  if (!isRecord(value)) return {}
  return Object.fromEntries(
    Object.entries(value).map(([name, app]) => {
      const attributes = isRecord(app) ? app : {}
      const labels = textEntries(attributes["labels"])
      return [name, { ...textsOf(attributes), labels, environment: textEntries(attributes["environment"]) }]
    }),
  )
}

async function fromObjects(
  image: SifImage,
  origin: ImageMetadata["origin"],
): Promise<ImageMetadata | undefined> {
  const object = image.objects.find(({ type, name }) => type === DataType.json && name === OBJECT_NAME)
  const definition = image.objects.find(({ type }) => type === DataType.definition)
  if (object === undefined) return undefined
  const outer = parse(await image.data(object, MAX_SIZE), image.path, OBJECT_NAME)
  const data = isRecord(outer) ? outer["data"] : undefined
  const attributes = isRecord(data) && isRecord(data["attributes"]) ? data["attributes"] : {}
  const deffile =
    definition === undefined ? {} : { deffile: (await image.data(definition, MAX_SIZE)).toString("utf8") }
  return {
    ...deffile,
    ...textsOf(attributes),
    labels: textEntries(attributes["labels"]),
    environment: textEntries(attributes["environment"]),
    apps: appsOf(attributes["apps"]),
    origin,
  }
}

async function fileIn(tree: Tree, inside: string, path: string): Promise<string | undefined> {
  const found = await tree.find(inside, true)
  if (found?.type !== "file") return undefined
  if (found.size > MAX_SIZE)
    throw new SifError(
      "ERR_SIF_TOO_LARGE",
      `${path}: ${inside} has ${found.size} bytes, more than ${MAX_SIZE}`,
      {
        path,
      },
    )
  return (await tree.read(inside, 0, found.size)).toString("utf8")
}

async function labelsIn(tree: Tree, inside: string, path: string): Promise<Record<string, string>> {
  const text = await fileIn(tree, inside, path)
  return text === undefined ? {} : textEntries(parse(Buffer.from(text), path, inside))
}

async function namesIn(tree: Tree, folder: string): Promise<string[]> {
  if ((await tree.find(folder, true))?.type !== "directory") return []
  return (await tree.list(folder)).map(({ name }) => name.toString("utf8"))
}

async function environmentIn(tree: Tree, folder: string, path: string): Promise<Record<string, string>> {
  const environment: Record<string, string> = {}
  for (const name of await namesIn(tree, folder)) {
    const inside = `${folder}/${name}`
    const text = inside.endsWith(".sh") ? await fileIn(tree, inside, path) : undefined
    if (text !== undefined) environment[inside] = text
  }
  return environment
}

async function appIn(tree: Tree, name: string, path: string): Promise<AppMetadata> {
  const folder = `${APPS}/${name}/scif`
  const found: Partial<Record<Texts, string>> = {}
  for (const [key, file] of Object.entries(appFiles) as [Exclude<Texts, "deffile">, string][]) {
    const text = await fileIn(tree, `${folder}/${file}`, path)
    if (text !== undefined) found[key] = text
  }
  return {
    ...found,
    labels: await labelsIn(tree, `${folder}/labels.json`, path),
    environment: await environmentIn(tree, `${folder}/env`, path),
  }
}

async function fromTree(tree: Tree, path: string): Promise<ImageMetadata> {
  const found: Partial<Record<Texts, string>> = {}
  for (const name of texts) {
    const text = await fileIn(tree, files[name], path)
    if (text !== undefined) found[name] = text
  }
  const apps: Record<string, AppMetadata> = {}
  for (const name of (await namesIn(tree, APPS)).slice(0, MAX_APPS))
    apps[name] = await appIn(tree, name, path)
  return {
    ...found,
    labels: await labelsIn(tree, `${FOLDER}/labels.json`, path),
    environment: await environmentIn(tree, `${FOLDER}/env`, path),
    apps,
    origin: "root",
  }
}

/**
 * Reads what an image says of itself. A key is needed where that is kept inside the encryption.
 *
 * @throws SifError, KeyError, LuksError, GocryptfsError, EnvironmentError, TreeError.
 */
export async function readMetadata(path: string, options: OpenOptions = {}): Promise<ImageMetadata> {
  const { credentials = {}, kdfLimits, signal } = options
  signal?.throwIfAborted()
  await using image = await openSif(path)
  const primary = await checkOrigin(image, image.primary(), options)
  const outside = await fromObjects(image, "objects")
  if (outside !== undefined) return outside
  const policy: LuksPolicy = { limits: kdfLimits }
  const encrypted = partitionKind(primary) !== "squashfs"
  const unlocked = encrypted ? await unlockPartition(image, primary, credentials, policy, signal) : undefined
  try {
    using tree = await Tree.open(plainRange(image, primary, unlocked), path)
    const plaintext = plaintextOf(tree)
    const footer = encrypted ? await readFooter(plaintext, path) : undefined
    const sealed = await readSealed(plaintext, footer, path)
    const inside = sealed === undefined ? undefined : await fromObjects(sealed, "sealed")
    return inside ?? (await fromTree(tree, path))
  } finally {
    wipeUnlocked(unlocked)
  }
}
