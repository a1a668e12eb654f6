// What both ends of a build on another machine say, and how it is looked at where it arrives. After the greetings:
//
//   here    build; then streams: definition, transfers, each base that is sent, the files
//   there   step, notice, progress, output; then built and the stream of the tree. Or failed, at any time
//
// Either end may go at any time, which undoes everything.
import * as is from "../arguments.ts"
import { definitionRows, type DefinitionOptions } from "../definition/definition-build.ts"
import { MAX_STAGES } from "../definition/definition-file.ts"
import type { SentTransfer } from "../definition/sent-files.ts"
import type { WireError } from "../definition/wire-error.ts"
import { parseJson } from "../json.ts"
import type { Channel } from "../remote/channel.ts"
import type { Bytes } from "../units.ts"
import { treeRows, type TreeOptions } from "./write-image.ts"

/** Raised with every change that the other side has to know of. */
export const PROTOCOL = 1

/** Of the names that %files matched, as JSON. */
export const MAX_TRANSFERS: Bytes = 64 << 20
/** Of the configuration of an OCI image. */
export const MAX_OCI_CONFIG: Bytes = 4 << 20
/** Of what is said to people. */
const MAX_TEXT = 64 << 10
const MAX_ARCHITECTURES = 64

/** The first message of either side. */
export interface Hello {
  readonly protocol: number
  readonly version: string
  /** By Go's names: the machine's own, and then those of which it runs programs as well. */
  readonly architectures: readonly string[]
}

/** How the tree is built and written: what means the same on any machine. */
export interface RemoteOptions
  extends
    Pick<
      DefinitionOptions,
      "sections" | "noTest" | "fixPermissions" | "scratch" | "scratchMemory" | "scratchDisk"
    >,
    Pick<TreeOptions, "compression" | "owner" | "sourceDateEpoch"> {
  readonly architecture: string
  readonly force: boolean
  /** Of the layers of bases that are fetched there. */
  readonly maxLayerBytes?: Bytes | undefined
}

/** What is to be built. */
export interface BuildRequest {
  readonly kind: "build"
  /** What the definition file is called. */
  readonly path: string
  readonly options: RemoteOptions
  /** Of each stage what its base is called here; empty: it is found there, or there is none. */
  readonly bases: readonly string[]
  readonly hasFiles: boolean
}

/** What a build tells. */
export type BuildReply =
  | { readonly kind: "step"; readonly text: string }
  | { readonly kind: "notice"; readonly text: string }
  | { readonly kind: "progress"; readonly bytes: Bytes; readonly total?: Bytes | undefined }
  | { readonly kind: "failed"; readonly error: WireError }
  | BuiltReply

/** It is built; the stream follows: `size` bytes of the tree, and before it that of the OCI configuration, if it has one. */
export interface BuiltReply {
  readonly kind: "built"
  readonly size: Bytes
  readonly entries: number
  readonly inputBytes: Bytes
  readonly hasOciConfig: boolean
}

const bounded: is.Check<string> = (value, name) => {
  const given = is.text(value, name)
  if (given.length > MAX_TEXT) throw new RangeError(`${name} has ${given.length} letters`)
  return given
}

const word: is.Check<string> = (value, name) => {
  const given = is.text(value, name)
  if (!/^[A-Za-z0-9._+-]{1,64}$/.test(given)) throw new RangeError(`${name} is no word`)
  return given
}

/** An architecture, maybe with a variant. */
const platform: is.Check<string> = (value, name) => {
  const given = is.text(value, name)
  if (!/^[A-Za-z0-9_]{1,32}(?:\/v\d{1,2})?$/.test(given)) throw new RangeError(`${name} is no architecture`)
  return given
}

const errorCode: is.Check<string> = (value, name) => {
  const given = is.text(value, name)
  if (!/^E[A-Z0-9_]{1,64}$/.test(given)) throw new RangeError(`${name} is no code`)
  return given
}

function atMost<T>(most: number, check: is.Check<T[]>): is.Check<T[]> {
  return (value, name) => {
    if (Array.isArray(value) && value.length > most)
      throw new RangeError(`${name} has ${value.length} entries`)
    return check(value, name)
  }
}

const hello = is.shape<Hello>({
  protocol: is.required(is.whole(0)),
  version: is.required(word),
  architectures: is.required(atMost(MAX_ARCHITECTURES, is.list(word))),
})

const { sections, noTest, fixPermissions, scratch, scratchMemory, scratchDisk } = definitionRows
const { compression, owner, sourceDateEpoch } = treeRows

const request = is.shape<BuildRequest>({
  kind: is.required(is.oneOf("build")),
  path: is.required(bounded),
  options: is.required(
    is.shape<RemoteOptions>({
      ...{ sections, noTest, fixPermissions, scratch, scratchMemory, scratchDisk },
      ...{ compression, owner, sourceDateEpoch },
      architecture: is.required(platform),
      force: is.required(is.flag),
      maxLayerBytes: is.count,
    }),
  ),
  bases: is.required(atMost(MAX_STAGES, is.list(bounded))),
  hasFiles: is.required(is.flag),
})

const wireError = is.shape<WireError>({
  name: is.required(word),
  code: errorCode,
  message: is.required(bounded),
  path: bounded,
  errno: is.whole(-4096),
  syscall: bounded,
  limit: is.oneOf("layers", "memory"),
})

const replies: Readonly<Record<string, is.Check<BuildReply>>> = {
  ...Object.fromEntries(
    (["step", "notice"] as const).map((kind) => [
      kind,
      is.shape<{ readonly kind: typeof kind; readonly text: string }>({
        kind: is.required(is.oneOf(kind)),
        text: is.required(bounded),
      }),
    ]),
  ),
  progress: is.shape<Extract<BuildReply, { readonly kind: "progress" }>>({
    kind: is.required(is.oneOf("progress")),
    bytes: is.required(is.count),
    total: is.count,
  }),
  failed: is.shape<Extract<BuildReply, { readonly kind: "failed" }>>({
    kind: is.required(is.oneOf("failed")),
    error: is.required(wireError),
  }),
  built: is.shape<BuiltReply>({
    kind: is.required(is.oneOf("built")),
    size: is.required(is.count),
    entries: is.required(is.count),
    inputBytes: is.required(is.count),
    hasOciConfig: is.required(is.flag),
  }),
}

const transfers = is.list(
  is.shape<SentTransfer>({ source: is.required(is.path), names: is.required(is.list(is.path)) }),
)

/** What another machine said, as what it has to be. */
function checked<T>(channel: Channel, check: is.Check<T>, value: unknown, name: string): T {
  try {
    return check(value, name)
  } catch (cause) {
    throw channel.wrong((cause as Error).message, cause)
  }
}

/** The number comes first: whatever else another version says need not be understood. */
export function protocolOf(
  channel: Channel,
  value: unknown,
): { readonly protocol: number; readonly version: string } {
  const { protocol, version } = (value ?? {}) as Partial<Hello>
  return {
    protocol: checked(channel, is.whole(0), protocol, "protocol"),
    version: checked(channel, word, version, "version"),
  }
}

export function checkHello(channel: Channel, value: unknown): Hello {
  return checked(channel, hello, value, "hello")
}

export function checkRequest(channel: Channel, value: unknown): BuildRequest {
  return checked(channel, request, value, "request")
}

export function checkReply(channel: Channel, value: unknown): BuildReply {
  const kind = (value as { readonly kind?: unknown } | null)?.kind
  const check = typeof kind === "string" && Object.hasOwn(replies, kind) ? replies[kind] : undefined
  if (check === undefined) throw channel.wrong("a message of no kind that there is")
  return checked(channel, check, value, "reply")
}

export function checkTransfers(channel: Channel, bytes: Buffer): SentTransfer[] {
  let value: unknown
  try {
    value = parseJson(bytes.toString("utf8"))
  } catch (cause) {
    throw channel.wrong("the names of files are no JSON", cause)
  }
  return checked(channel, transfers, value, "transfers")
}

/** As it goes into a message: cut to what the other side takes. */
export function told(text: string): string {
  return text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT - 1)}…` : text
}
