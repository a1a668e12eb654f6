// What --mount takes: `type=bind,source=SRC,destination=DST[,ro][,nonested]`, one CSV record for each bind.
import { RunError, type BindSpec } from "../index.ts"
import { parseCsv } from "./csv.ts"

/** Each key under the names that it may have. */
const keys: Readonly<
  Record<string, "type" | "source" | "destination" | "ro" | "nonested" | "imageSource" | "imageId">
> = {
  type: "type",
  source: "source",
  src: "source",
  destination: "destination",
  dst: "destination",
  target: "destination",
  ro: "ro",
  readonly: "ro",
  nonested: "nonested",
  "image-src": "imageSource",
  id: "imageId",
}

/** @throws RunError `ERR_RUN_BIND`. */
export function parseMountSpec(text: string): BindSpec {
  const refuse = (why: string, cause?: unknown): RunError =>
    new RunError("ERR_RUN_BIND", `mount ${text}: ${why}`, { cause })
  const values = new Map<string, string>()
  let fields: readonly string[]
  try {
    fields = parseCsv(text)
  } catch (cause) {
    throw refuse((cause as Error).message, cause)
  }
  for (const field of fields) {
    const equals = field.indexOf("=")
    const name = (equals < 0 ? field : field.slice(0, equals)).trim().toLowerCase()
    const key = keys[name]
    if (key === undefined) throw refuse(`${name} is no key of a mount`)
    const isFlag = key === "ro" || key === "nonested"
    if (equals < 0 && !isFlag) throw refuse(`${name} needs a value`)
    const value = equals < 0 ? "true" : field.slice(equals + 1)
    if (isFlag && value !== "true" && value !== "false") throw refuse(`${name} is true or false`)
    values.set(key, value)
  }
  const type = values.get("type") ?? ""
  if (type !== "bind") throw refuse(`type ${JSON.stringify(type)} is not supported, only bind is`)
  const source = values.get("source") ?? ""
  const destination = values.get("destination") ?? ""
  if (source === "") throw refuse("no source")
  if (destination === "") throw refuse("no destination")
  const imageSource = values.get("imageSource")
  const imageId = values.get("imageId")
  if (imageId !== undefined && !/^\d{1,9}$/.test(imageId))
    throw refuse(`${imageId} is no number of a partition`)
  return {
    source,
    destination,
    ...(imageSource === undefined ? {} : { imageSource }),
    ...(imageId === undefined ? {} : { imageId: Number(imageId) }),
    readOnly: values.get("ro") === "true",
    nested: values.get("nonested") !== "true",
  }
}
