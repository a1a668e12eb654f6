// What an image's OCI configuration says about running it as a service: how it is asked whether it is well, and how it is told to end.
import { Tree, type ReadableTree } from "../device/tree.ts"
import { plaintextOf, readFooter, readSealed } from "../encryption/sealed.ts"
import { isJsonObject, parseJson } from "../json.ts"
import { DataType, type SifObject, type SifPartition } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import type { Bytes } from "../units.ts"
import { signalNamed, type HealthCheck, type ServiceOptions } from "./service.ts"

/** A SIF, and which of its objects count. */
export interface Described {
  readonly sif: SifImage
  readonly root: SifPartition
  readonly counts: (object: SifObject) => boolean
}

type ImageService = Pick<ServiceOptions, "health" | "stopSignal">

const NAME = "oci-config.json"
const MAX_CONFIG: Bytes = 1 << 20
const MAX_WORDS = 1024
const NANOSECONDS = 1_000_000
const MAX_MS = 86_400_000

/** Nanoseconds; 0 and nothing are the default. */
function time(value: unknown): number | undefined {
  if (value === undefined || value === 0) return undefined
  if (typeof value !== "number" || !(value > 0)) throw new TypeError("a time is no number")
  return Math.min(MAX_MS, Math.max(1, Math.round(value / NANOSECONDS)))
}

/** As `Healthcheck` of Docker's images has it. undefined: nothing is asked. */
export function parseHealthcheck(value: unknown): HealthCheck | undefined {
  if (value === undefined || value === null) return undefined
  if (!isJsonObject(value)) throw new TypeError("it is no object")
  const { Test: test, Interval, Timeout, StartPeriod, Retries: retries } = value
  if (test === undefined || test === null) return undefined
  if (!Array.isArray(test) || test.length > MAX_WORDS || !test.every((word) => typeof word === "string"))
    throw new TypeError("its test is no list of words")
  const [kind, ...words] = test
  if (kind === undefined || kind === "NONE") return undefined
  if (words.length === 0 || (kind !== "CMD" && (kind !== "CMD-SHELL" || words.length > 1)))
    throw new TypeError("its test is neither CMD nor CMD-SHELL")
  if (
    retries !== undefined &&
    !(Number.isInteger(retries) && (retries as number) >= 0 && (retries as number) <= 1000)
  )
    throw new TypeError("its retries are no number")
  return {
    command: kind === "CMD" ? words : ["/bin/sh", "-c", ...words],
    intervalMs: time(Interval),
    timeoutMs: time(Timeout),
    startPeriodMs: time(StartPeriod),
    retries: retries === 0 ? undefined : (retries as number | undefined),
  }
}

export function parseStopSignal(value: unknown): NodeJS.Signals | undefined {
  if (value === undefined || value === "") return undefined
  if (typeof value !== "string") throw new TypeError("it is no word")
  const found = signalNamed(value)
  if (found === undefined) throw new TypeError(`there is no signal ${value.slice(0, 32)} here`)
  return found
}

async function configOf(
  { sif, root, counts }: Described,
  encrypted: boolean,
  tree: ReadableTree | undefined,
): Promise<Buffer | undefined> {
  let image: SifImage | undefined = sif
  if (encrypted) {
    // Beside an encrypted root anybody can have put one.
    if (!(tree instanceof Tree)) return undefined
    const plaintext = plaintextOf(tree)
    image = await readSealed(plaintext, await readFooter(plaintext, sif.path), sif.path)
  }
  const object = image?.objects.find(
    (one) =>
      one.type === DataType.json &&
      one.name === NAME &&
      one.group === root.group &&
      (encrypted || counts(one)),
  )
  return object === undefined ? undefined : await image?.data(object, MAX_CONFIG)
}

/**
 * What it says; nothing where it says nothing. What makes no sense is told and left out.
 *
 * @throws SifError.
 */
export async function imageService(
  described: Described,
  encrypted: boolean,
  tree: ReadableTree | undefined,
  onNotice: ((text: string) => void) | undefined,
): Promise<ImageService> {
  const bytes = await configOf(described, encrypted, tree)
  if (bytes === undefined) return {}
  const read = <T>(what: string, parse: () => T): T | undefined => {
    try {
      return parse()
    } catch (error) {
      onNotice?.(
        `${described.sif.path}: ${what} of its OCI configuration is left out: ${(error as Error).message}`,
      )
      return undefined
    }
  }
  const config = read("all", () => parseJson(bytes.toString("utf8")))
  if (!isJsonObject(config)) return {}
  return {
    health: read("the health check", () => parseHealthcheck(config["Healthcheck"])),
    stopSignal: read("the stop signal", () => parseStopSignal(config["StopSignal"])),
  }
}
