// The config.json of an OCI bundle whose root is an image: what it says of that, and what an OCI runtime gets instead.
import { randomBytes } from "node:crypto"
import path from "node:path"
import { RunError } from "../errors.ts"
import { isJsonObject, parseJson, type JsonObject } from "../json.ts"
import type { Bytes } from "../units.ts"
import type { IdRange } from "./subordinate-ids.ts"

/** Of annotations that are ours. */
export const ANNOTATIONS = "org.sifcrypt."

/** native/starter/session.cc takes no larger file. */
export const MAX_CONFIG: Bytes = 4 << 20

/** A place is looked for among all that come before it. */
const MAX_MOUNTS = 4096

const names = ["image", "key", "key-passphrase-file", "passphrase-file", "signer", "engine"] as const

/** What annotations say of the image, and of what opens it. */
export type Annotations = Readonly<Partial<Record<(typeof names)[number], string>>>

interface IdMapping {
  readonly containerID: number
  readonly hostID: number
  readonly size: number
}

function broken(file: string, what: string, cause?: unknown): RunError {
  return RunError.at(file, "ERR_RUN_BUNDLE", what, { cause })
}

function isIdMapping(value: unknown): value is IdMapping {
  return (
    isJsonObject(value) &&
    ["containerID", "hostID", "size"].every((key) => {
      const number = value[key]
      return Number.isInteger(number) && Number(number) >= 0 && Number(number) <= 0xffff_ffff
    })
  )
}

/**
 * Did an engine make the root of an image? Then the annotations are the image's, too, and anybody may have made that. podman's roots
 * are at STORE/DRIVER/…/ID, for bundles at STORE/DRIVER-containers/ID/userdata.
 *
 * @param bundle - As `root`, without links.
 */
export function isMadeOfImage(bundle: string, root: string): boolean {
  const store = /^(.*)\/[^/]+-containers\/[^/]+\/userdata$/.exec(bundle)?.[1]
  return (
    (store !== undefined && root.startsWith(`${store}/`)) ||
    /\/[0-9a-f]{64}(?:\/(?:merged|diff))?$/.test(root)
  )
}

/** A bundle's configuration. */
export class BundleConfig {
  readonly #file: string
  readonly #value: JsonObject
  /** In front of numbers that would not be the same as JavaScript's: the largest of all is a limit that many set. */
  readonly #mark: string

  /**
   * @param file - Where it is, for messages.
   * @throws RunError `ERR_RUN_BUNDLE`.
   */
  constructor(file: string, content: Uint8Array) {
    this.#file = file
    this.#mark = randomBytes(16).toString("hex")
    let value: unknown
    try {
      // Of other bytes the runtime would get something else than there is.
      const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(content)
      parseJson(text)
      value = parseJson(
        text.replaceAll(/"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g, (word) =>
          word.startsWith('"') || String(Number(word)) === word ? word : `"${this.#mark}${word}"`,
        ),
      )
    } catch (cause) {
      throw broken(file, `it is no valid JSON: ${(cause as Error).message}`, cause)
    }
    if (!isJsonObject(value)) throw broken(file, "it is no object")
    this.#value = value
  }

  #part(name: string): JsonObject {
    const part = this.#value[name] ?? {}
    if (!isJsonObject(part)) throw broken(this.#file, `${name} is no object`)
    return part
  }

  get annotations(): Annotations {
    const ours = Object.entries(this.#part("annotations")).filter(([name]) => name.startsWith(ANNOTATIONS))
    return Object.fromEntries(
      ours.map(([name, value]) => {
        const short = name.slice(ANNOTATIONS.length)
        if (!names.some((known) => known === short))
          throw broken(this.#file, `the annotation ${name} is not known: ${names.join(", ")}`)
        if (typeof value !== "string" || value === "" || value.includes("\0"))
          throw broken(this.#file, `the annotation ${name} is no text`)
        const isPath = short !== "signer" && short !== "engine"
        if (isPath && !path.isAbsolute(value))
          throw broken(this.#file, `the annotation ${name} is no absolute path: ${value}`)
        return [short, value]
      }),
    )
  }

  /** As it says, from the bundle on; undefined: it does not. */
  get root(): string | undefined {
    const { path: root } = this.#part("root")
    if (root !== undefined && typeof root !== "string") throw broken(this.#file, "root.path is no text")
    return root
  }

  #mappings(name: string): readonly IdMapping[] {
    const list = this.#part("linux")[name] ?? []
    if (!Array.isArray(list) || !list.every(isIdMapping))
      throw broken(this.#file, `linux.${name} is no list of id mappings`)
    return list
  }

  /** Does its user namespace have more than one id? */
  get hasManyIds(): boolean {
    return ["uidMappings", "gidMappings"].some((name) => {
      const [first, ...others] = this.#mappings(name)
      return others.length > 0 || (first?.size ?? 1) > 1
    })
  }

  #mapped(name: string, ids: readonly IdRange[]): readonly IdMapping[] {
    return this.#mappings(name).map((mapping) => {
      const { hostID, size } = mapping
      const range = ids.find(({ outside, count }) => hostID >= outside && hostID + size <= outside + count)
      if (range === undefined)
        throw broken(
          this.#file,
          `linux.${name} has ids of the machine that are not yours: ${hostID}, ${size} of them`,
        )
      return { ...mapping, hostID: range.inside + hostID - range.outside }
    })
  }

  /** Where something is mounted, and what: a path, or nothing for a file system of the kernel's. */
  get places(): readonly (readonly [destination: string, source: string])[] {
    const { mounts = [] } = this.#value
    if (!Array.isArray(mounts)) throw broken(this.#file, "mounts is no list")
    if (mounts.length > MAX_MOUNTS)
      throw broken(this.#file, `it has ${mounts.length} mounts, more than ${MAX_MOUNTS}`)
    return mounts.flatMap((mount: unknown) => {
      if (!isJsonObject(mount) || typeof mount["destination"] !== "string") return []
      const { destination, type, source, options = [] } = mount
      if ([destination, source].some((place) => typeof place === "string" && place.includes("\0")))
        throw broken(this.#file, "a mount has a zero byte in its name")
      const isBind =
        type === "bind" ||
        (Array.isArray(options) && ["bind", "rbind"].some((word) => options.includes(word)))
      const inside = path.posix.resolve("/", destination)
      const isPath = isBind && typeof source === "string" && path.isAbsolute(source)
      return inside === "/" ? [] : [[inside, isPath ? source : ""] as const]
    })
  }

  /**
   * The same with another root.
   *
   * @param ids - Of the user namespace that the runtime is in; undefined: the caller's own.
   */
  withRoot(
    root: string,
    ids: { readonly uids: readonly IdRange[]; readonly gids: readonly IdRange[] } | undefined,
  ): string {
    const linux = this.#part("linux")
    const mapped =
      ids === undefined
        ? {}
        : {
            ...(linux["uidMappings"] === undefined
              ? {}
              : { uidMappings: this.#mapped("uidMappings", ids.uids) }),
            ...(linux["gidMappings"] === undefined
              ? {}
              : { gidMappings: this.#mapped("gidMappings", ids.gids) }),
          }
    const text = JSON.stringify({
      ...this.#value,
      root: { ...this.#part("root"), path: root },
      ...(this.#value["linux"] === undefined ? {} : { linux: { ...linux, ...mapped } }),
    })
    return text.replaceAll(new RegExp(`"${this.#mark}([^"]*)"`, "g"), "$1")
  }
}
