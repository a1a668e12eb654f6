// What callers pass, looked at when it is called: programs in plain JavaScript have no compiler to tell them. A leaf: imports
// nothing of ours.
import type { KeyObject } from "node:crypto"
import { types } from "node:util"

/**
 * Gives back a value as what it has to be.
 *
 * @param name - What to call it in messages: `options.force`.
 * @throws TypeError, or RangeError for a number out of its range. Neither repeats what was given: it may be a secret.
 */
export type Check<T> = (value: unknown, name: string) => T

/** A check of what cannot be left out. */
export type Required<T> = Check<T> & { readonly required: true }

/** A row for each property: one that the interface has and the table lacks does not compile, and one of another type neither. */
export type Rows<T> = {
  readonly [K in keyof T]-?: undefined extends T[K] ? Check<T[K]> : Required<T[K]>
}

/** The mistakes of a programmer, as Node has them. */
function invalid(message: string, code = "ERR_INVALID_ARG_TYPE"): TypeError {
  return Object.assign(new TypeError(message), { code })
}

/** Of the right type, and without sense here. */
export function invalidValue(message: string): TypeError {
  return invalid(message, "ERR_INVALID_ARG_VALUE")
}

function outOfRange(message: string): RangeError {
  return Object.assign(new RangeError(message), { code: "ERR_OUT_OF_RANGE" })
}

function kindOf(value: unknown): string {
  if (value === null) return "null"
  if (Array.isArray(value)) return "an array"
  if (typeof value === "object") return "an object of another kind"
  return typeof value === "undefined" ? "undefined" : `a ${typeof value}`
}

/** It has to be `what`. */
function wrongType(name: string, what: string, value: unknown): TypeError {
  return invalid(
    value === undefined ? `${name} is missing: it is ${what}` : `${name} is ${what}, not ${kindOf(value)}`,
  )
}

export const text: Check<string> = (value, name) => {
  if (typeof value !== "string") throw wrongType(name, "a string", value)
  return value
}

/** Of the host, of an image, or of a variable: not empty, and without the byte that ends it for the kernel. */
export const path: Check<string> = (value, name) => {
  if (text(value, name) === "") throw invalidValue(`${name} is empty`)
  if ((value as string).includes("\0")) throw invalidValue(`${name} has a NUL byte in it`)
  return value as string
}

export const flag: Check<boolean> = (value, name) => {
  if (typeof value !== "boolean") throw wrongType(name, "true or false", value)
  return value
}

/** Never a string: that cannot be wiped, and its encoding would be a guess. */
export const bytes: Check<Uint8Array> = (value, name) => {
  if (types.isUint8Array(value)) return value
  throw typeof value === "string"
    ? invalid(`${name} is bytes (a Uint8Array or Buffer), not a string: encode it, as Buffer.from(text) does`)
    : wrongType(name, "bytes (a Uint8Array or Buffer)", value)
}

export const buffer: Check<Buffer> = (value, name) => {
  const { buffer: memory, byteOffset, byteLength } = bytes(value, name)
  return Buffer.isBuffer(value) ? value : Buffer.from(memory, byteOffset, byteLength)
}

/** A finite number in a range. */
export function number(least: number, most: number = Number.MAX_VALUE): Check<number> {
  return (value, name) => {
    if (typeof value !== "number") throw wrongType(name, "a number", value)
    if (value >= least && value <= most) return value
    const upTo = most < Number.MAX_SAFE_INTEGER ? `${least} to ${most}` : `${least} or more`
    throw outOfRange(`${name} is ${upTo}, not ${value}`)
  }
}

/** A whole number in a range. */
export function whole(least: number, most: number = Number.MAX_SAFE_INTEGER): Check<number> {
  const inRange = number(least, most)
  return (value, name) => {
    if (Number.isInteger(inRange(value, name))) return value as number
    throw outOfRange(`${name} is a whole number, not ${String(value)}`)
  }
}

/** Bytes, entries, identifiers. */
export const count: Check<number> = whole(0)

/** setTimeout takes no more, and fires at once. */
export const MAX_MILLISECONDS: number = 2 ** 31 - 1
export const milliseconds: Check<number> = whole(0, MAX_MILLISECONDS)

/** Any function: what it takes and gives stays between its caller and the compiler. */
export const callback: Check<never> = (value, name) => {
  if (typeof value !== "function") throw wrongType(name, "a function", value)
  return value as never
}

/** One of the handles of this package. */
export function instance<T>(of: { readonly prototype: T }, what: string): Check<T> {
  return (value, name) => {
    if (value instanceof (of as abstract new (...args: never[]) => T)) return value
    throw wrongType(name, what, value)
  }
}

export const abortSignal: Check<AbortSignal> = instance(AbortSignal, "an AbortSignal")

export const keyObject: Check<KeyObject> = (value, name) => {
  if (types.isKeyObject(value)) return value
  throw wrongType(name, "a KeyObject", value)
}

export function oneOf<const T extends string | number | boolean>(...values: readonly T[]): Check<T> {
  return (value, name) => {
    const found = values.find((one) => one === value)
    if (found !== undefined) return found
    const known = values.map((one) => JSON.stringify(one)).join(", ")
    throw typeof value === "string"
      ? invalidValue(`${name} is one of ${known}`)
      : wrongType(name, `one of ${known}`, value)
  }
}

/** A copy, so that it stays as it was looked at. A string is no list of its letters. */
export function list<T>(check: Check<T>): Check<T[]> {
  return (value, name) => {
    if (!Array.isArray(value)) throw wrongType(name, "an array", value)
    return Array.from(value, (one: unknown, index) => check(one, `${name}[${index}]`))
  }
}

/** A list of nothing would do nothing, which nobody asks for. */
export function filled<T>(check: Check<T[]>): Check<T[]> {
  return (value, name) => {
    const checked = check(value, name)
    if (checked.length === 0) throw invalidValue(`${name} is empty`)
    return checked
  }
}

/** A name to a string, or to nothing, as `process.env` is. A copy. */
export const variables: Check<Readonly<Record<string, string | undefined>>> = (value, name) => {
  if (Object.prototype.toString.call(value) !== "[object Object]")
    throw wrongType(name, "an object of strings, as process.env is", value)
  return Object.fromEntries(
    Object.entries(value as object).map(([key, one]: [string, unknown]) => [
      key,
      one === undefined ? undefined : text(one, `${name}.${key}`),
    ]),
  )
}

export function required<T>(check: Check<T>): Required<T> {
  return Object.assign((value: unknown, name: string) => check(value, name), { required: true as const })
}

/**
 * The value decides about secrecy or trust: naming it and giving undefined is a mistake, as of a variable that is not set, and not the
 * same as leaving it out.
 */
export function notUndefined<T>(check: Check<T>): Check<T> {
  return Object.assign((value: unknown, name: string) => check(value, name), { notUndefined: true as const })
}

/** Steps from one word to another, each a letter that is added, left out or changed. */
function distance(from: string, to: string): number {
  let row = Array.from({ length: to.length + 1 }, (_, i) => i)
  for (let i = 0; i < from.length; i++) {
    const next = [i + 1]
    for (let j = 0; j < to.length; j++)
      next.push(
        Math.min((row[j + 1] ?? 0) + 1, (next[j] ?? 0) + 1, (row[j] ?? 0) + Number(from[i] !== to[j])),
      )
    row = next
  }
  return row.at(-1) ?? 0
}

const MAX_SUGGESTED = 40

function unknownProperty(name: string, key: string, known: readonly string[]): TypeError {
  const asked = key.slice(0, MAX_SUGGESTED)
  const near = known
    .map((one) => ({ one, steps: distance(asked.toLowerCase(), one.toLowerCase()) }))
    .filter(({ one, steps }) => steps <= one.length / 3)
    .sort((a, b) => a.steps - b.steps)[0]
  const meant = near === undefined ? "" : `: did you mean ${JSON.stringify(near.one)}?`
  return invalid(
    `${name} has no property ${JSON.stringify(asked)}${meant} (known: ${known.join(", ")})`,
    "ERR_INVALID_ARG_VALUE",
  )
}

/** Written as `{ … }`, whichever realm it is of: what a class or another object would lend it is not looked at. */
function isPlain(value: unknown): value is Readonly<Record<string, unknown>> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return false
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === null || Object.getPrototypeOf(prototype) === null
}

type Row = Check<unknown> & { readonly required?: true; readonly notUndefined?: true }

/**
 * An object with these properties and no others. What it gives back has each of them as its own, undefined where it was left
 * out: it was read once, so a getter cannot change its mind, and nothing comes from a prototype that somebody added to.
 */
export function shape<T extends object>(rows: Rows<T>): Check<T> {
  const table = Object.entries(rows) as [string, Row][]
  const known = table.map(([key]) => key)
  return (value, name) => {
    if (!isPlain(value)) throw wrongType(name, "a plain object", value)
    for (const key of Object.getOwnPropertyNames(value))
      if (!known.includes(key)) throw unknownProperty(name, key, known)
    const checked = table.map(([key, check]) => {
      const own = Object.hasOwn(value, key)
      const given = own ? value[key] : undefined
      const wanted = check.required === true || (own && check.notUndefined === true)
      return [key, given === undefined && !wanted ? undefined : check(given, `${name}.${key}`)]
    })
    return Object.fromEntries(checked) as T
  }
}

/** One of several forms: the first one whose own property it has. */
export function variants<T>(forms: Readonly<Record<string, Check<T>>>): Check<T> {
  const known = Object.keys(forms)
  return (value, name) => {
    if (!isPlain(value)) throw wrongType(name, `an object with one of ${known.join(", ")}`, value)
    for (const [key, check] of Object.entries(forms)) if (Object.hasOwn(value, key)) return check(value, name)
    const [first] = Object.getOwnPropertyNames(value)
    throw first === undefined
      ? invalidValue(`${name} is empty: it has one of ${known.join(", ")}`)
      : unknownProperty(name, first, known)
  }
}
