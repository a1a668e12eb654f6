// Variables that stand for options: ours, and those of the peers.
import { InvalidArgumentError } from "commander"
import { truth } from "./values.ts"

/** In the order in which they count. */
export const prefixes = ["SIFCRYPT_", "APPTAINER_", "SINGULARITY_"] as const

/** The first of these variables that says something, behind any of the prefixes. */
export function variable(...names: readonly string[]): string | undefined {
  return prefixes
    .flatMap((prefix) => names.map((name) => process.env[prefix + name]))
    .find((value) => value !== undefined && value.trim() !== "")
    ?.trim()
}

/** The same for one that is true or false. */
export function truthVariable(...names: readonly string[]): boolean | undefined {
  const value = variable(...names)
  if (value === undefined) return undefined
  const said = truth(value)
  if (said === undefined)
    throw new InvalidArgumentError(`the variable ${names[0] ?? ""} is true or false, not '${value}'`)
  return said
}
