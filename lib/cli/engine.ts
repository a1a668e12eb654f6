import { InvalidArgumentError } from "commander"
import type { Engine } from "../index.ts"

export const engines: readonly Engine[] = ["auto", "kernel", "userspace", "memory"]

/** Reads `--engine`. */
export function parseEngine(text: string): Engine {
  const engine = engines.find((one) => one === text)
  if (engine === undefined) throw new InvalidArgumentError("It is auto, kernel, userspace or memory.")
  return engine
}
