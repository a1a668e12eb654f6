// The form of a compose file, by the Compose specification's own schema (schema/compose-spec.json), unchanged.
import { Validator, type OutputUnit, type Schema } from "@cfworker/json-schema"
import { readFileSync } from "node:fs"
import path from "node:path"
import { packageRoot } from "../native/load.ts"
import { withoutResets } from "./merge.ts"
import { deepest, errorAt, plain, type Mapping } from "./tree.ts"

/** Of one list: the validator compares each with each where nothing may be there twice. Of one mapping: services, networks, variables. */
const MAX_ITEMS = 2000

let validator: Validator | undefined

function theValidator(): Validator {
  if (validator === undefined) {
    const file = path.join(packageRoot, "schema", "compose-spec.json")
    validator = new Validator(JSON.parse(readFileSync(file, "utf8")) as Schema, "7")
  }
  return validator
}

function partsOf({ instanceLocation }: OutputUnit): string[] {
  return instanceLocation
    .split("/")
    .slice(1)
    .map((part) => decodeURIComponent(part).replaceAll("~1", "/").replaceAll("~0", "~"))
}

/** What is wrong in the words of whoever wrote the file. */
function messageOf({ keyword, error }: OutputUnit): string {
  const [, name] = /^Property "(.*)" does not match/.exec(error) ?? []
  if (keyword === "additionalProperties" && name !== undefined)
    return `the Compose specification has no key ${name} here`
  return error.replace(/^Instance /, "it ").replace(/\.$/, "")
}

function checkSizes(tree: Mapping): void {
  const stack: {
    readonly tree: Mapping["entries"] extends ReadonlyMap<string, infer T> ? T : never
    readonly path: string
  }[] = [{ tree, path: "" }]
  for (let next = stack.pop(); next !== undefined; next = stack.pop()) {
    const { tree: one, path: name } = next
    if (one.kind === "list") {
      if (one.items.length > MAX_ITEMS) throw errorAt(one.at, name, `more than ${MAX_ITEMS} entries`)
      for (const [i, item] of one.items.entries()) stack.push({ tree: item, path: `${name}[${i}]` })
    } else if (one.kind === "map") {
      if (one.entries.size > MAX_ITEMS) throw errorAt(one.at, name, `more than ${MAX_ITEMS} entries`)
      for (const [key, item] of one.entries)
        stack.push({ tree: item, path: name === "" ? key : `${name}.${key}` })
    }
  }
}

/**
 * Looks at a file as it is written.
 *
 * @throws ComposeError `ERR_COMPOSE_FILE`, at what is wrong the deepest.
 */
export function checkSchema(file: Mapping): void {
  checkSizes(file)
  const { valid, errors } = theValidator().validate(plain(withoutResets(file)))
  if (valid) return
  const levels = (unit: OutputUnit): number =>
    partsOf(unit).length + (unit.keyword === "additionalProperties" ? 1 : 0)
  const [first] = errors
  const worst = errors
    .filter(({ keyword }) => keyword !== "$ref" && keyword !== "false")
    .reduce((most, unit) => (most === undefined || levels(unit) >= levels(most) ? unit : most), first)
  if (worst === undefined) throw errorAt(file.at, "", "it is not as the Compose specification has it")
  const parts = partsOf(worst)
  const [, name] = /^Property "(.*)" does not match/.exec(worst.error) ?? []
  const { tree, path: at } = deepest(file, name === undefined ? parts : [...parts, name])
  throw errorAt(tree.at, at, messageOf(worst))
}
