import { InvalidArgumentError } from "commander"
import type { Engine } from "../index.ts"

/** Reads `--engine`. */
export function parseEngine(text: string): Engine {
  if (text !== "auto" && text !== "kernel" && text !== "userspace")
    throw new InvalidArgumentError("It is auto, kernel or userspace.")
  return text
}
