import { InvalidArgumentError } from "commander"
import type { Engine } from "../index.ts"

/** Reads `--engine`. */
export function parseEngine(text: string): Engine {
  if (text !== "auto" && text !== "kernel" && text !== "userspace" && text !== "memory")
    throw new InvalidArgumentError("It is auto, kernel, userspace or memory.")
  return text
}
