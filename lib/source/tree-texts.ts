// What a tree says of itself in the files of /.singularity.d and of its apps, to a limit.
import type { ReadableTree } from "../device/tree.ts"
import { TreeError } from "../errors.ts"
import { parseJson } from "../json.ts"
import { nameText } from "../printable.ts"
import type { Bytes } from "../units.ts"
import type { AppDescription, ImageDescription } from "./metadata-files.ts"

/** All together: what is longer nobody would read of the image. */
const MAX_TEXTS: Bytes = 16 << 20
/** What looking for one counts for at least. */
const LEAST: Bytes = 1 << 10
const PIECE: Bytes = 1 << 20
const APPS = "/scif/apps"

/** Where texts are read; links inside lead to where they would if it were the root. */
export interface Texts {
  /** undefined: there is no such file. */
  size(file: string): Promise<Bytes | undefined>
  read(file: string, size: Bytes): Promise<string | undefined>
  /** What is in a folder; nothing where there is none. */
  names(folder: string): Promise<string[]>
}

/** Those of a tree that is open. */
export class TreeTexts implements Texts {
  readonly #tree: ReadableTree

  constructor(tree: ReadableTree) {
    this.#tree = tree
  }

  async size(file: string): Promise<Bytes | undefined> {
    const info = await this.#tree.find(file, true)
    return info?.type === "file" ? info.size : undefined
  }

  async read(file: string, size: Bytes): Promise<string> {
    const pieces: Buffer[] = []
    for (let at = 0; at < size; at += PIECE)
      pieces.push(await this.#tree.read(file, at, Math.min(PIECE, size - at)))
    return Buffer.concat(pieces).toString("utf8")
  }

  async names(folder: string): Promise<string[]> {
    if ((await this.#tree.find(folder, true))?.type !== "directory") return []
    return (await this.#tree.list(folder)).map(({ name }) => nameText(name))
  }
}

/** Reads texts until there are too many. */
export class TextReader {
  readonly #texts: Texts
  #left = MAX_TEXTS

  constructor(texts: Texts) {
    this.#texts = texts
  }

  /** @throws TreeError, `ERR_TREE_FORMAT` where all that were read are too much. */
  async text(file: string): Promise<string | undefined> {
    const size = await this.#texts.size(file)
    this.#left -= Math.max(size ?? 0, LEAST)
    if (this.#left < 0)
      throw new TreeError(
        "ERR_TREE_FORMAT",
        `${file}: with it there are more than ${MAX_TEXTS} bytes of metadata`,
      )
    return size === undefined ? undefined : await this.#texts.read(file, size)
  }

  /** @throws TreeError; SyntaxError. */
  async labels(folder: string): Promise<Record<string, string>> {
    const value = parseJson((await this.text(`${folder}/labels.json`)) ?? "{}")
    return Object.fromEntries(
      Object.entries(value ?? {}).filter((entry): entry is [string, string] => typeof entry[1] === "string"),
    )
  }

  async #app(name: string): Promise<AppDescription> {
    const folder = `${APPS}/${name}/scif`
    const environment: [string, string][] = []
    for (const file of ["01-base.sh", "90-environment.sh"].map((script) => `${folder}/env/${script}`)) {
      const text = await this.text(file)
      if (text !== undefined) environment.push([file, text])
    }
    return {
      labels: await this.labels(folder),
      environment: Object.fromEntries(environment),
      runscript: await this.text(`${folder}/runscript`),
      startscript: await this.text(`${folder}/startscript`),
      test: await this.text(`${folder}/test`),
      helpfile: await this.text(`${folder}/runscript.help`),
    }
  }

  /** @throws TreeError; SyntaxError of labels of apps. */
  async scripts(): Promise<Omit<ImageDescription, "definition" | "labels" | "ociConfig">> {
    const apps: [string, AppDescription][] = []
    for (const name of await this.#texts.names(APPS)) apps.push([name, await this.#app(name)])
    const text = (file: string): Promise<string | undefined> => this.text(`/.singularity.d/${file}`)
    return {
      runscript: await text("runscript"),
      startscript: await text("startscript"),
      test: await text("test"),
      help: await text("runscript.help"),
      environment: await text("env/90-environment.sh"),
      ociEnvironment: await text("env/10-docker2singularity.sh"),
      apps: Object.fromEntries(apps),
    }
  }
}
