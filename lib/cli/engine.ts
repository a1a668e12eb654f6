import type { Engine } from "../index.ts"

/** Reads `--engine`. */
export function parseEngine(text: string): Engine {
  if (text !== "auto" && text !== "kernel" && text !== "userspace")
    throw new RangeError(`the engine is auto, kernel or userspace, not ${text}`)
  return text
}
