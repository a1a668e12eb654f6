// Name constraints (RFC 5280, 4.2.1.10): which names an authority may have certified.
import { DerError, DerReader, DerTag, type DerValue } from "../key/der.ts"
import { ascii, isWithin, readName, type Name } from "../key/x509.ts"

/** GeneralName (RFC 5280, 4.2.1.6), told apart by its tag. */
type GeneralName =
  | { readonly form: "rfc822Name" | "dNSName" | "uniformResourceIdentifier"; readonly text: string }
  | { readonly form: "directoryName"; readonly name: Name }
  | { readonly form: "iPAddress"; readonly bytes: Buffer }
  /** A form that no constraint is applied to here. */
  | { readonly form: "other"; readonly tag: number }

/** otherName, x400Address, ediPartyName and registeredID: that they are what they should be. */
const otherForms: Readonly<Record<number, (content: Buffer) => void>> = {
  0xa0: (content) => {
    const reader = new DerReader(content)
    reader.oid()
    const value = reader.explicit(0)
    value?.any()
    value?.end()
    reader.end()
    if (value === undefined) throw new DerError("a name in it has no value")
  },
  0xa3: (content) => new DerReader(content),
  0xa5: (content) => {
    const reader = new DerReader(content)
    reader.explicit(0)
    if (reader.explicit(1) === undefined) throw new DerError("a name in it has no value")
    reader.end()
  },
  0x88: (content) => new DerReader(Buffer.concat([Buffer.of(DerTag.oid, content.length), content])).oid(),
}

function text(content: Buffer): string {
  const found = ascii(content)
  if (/\p{Cc}/u.test(found)) throw new DerError("a name in it has control characters")
  return found
}

/** Reads a GeneralName. */
export function readGeneralName({ tag, content }: DerValue): GeneralName {
  switch (tag) {
    case 0x81:
      return { form: "rfc822Name", text: text(content) }
    case 0x82:
      return { form: "dNSName", text: text(content) }
    case 0x86:
      return { form: "uniformResourceIdentifier", text: text(content) }
    case 0x87:
      return { form: "iPAddress", bytes: content }
    case 0xa4: {
      // A CHOICE, so that its tag is explicit.
      const inside = new DerReader(content)
      const name = readName(inside.value(DerTag.sequence).content)
      inside.end()
      return { form: "directoryName", name }
    }
    default:
      if (!(tag in otherForms)) throw new DerError("a name in it is of no known form")
      otherForms[tag]?.(content)
      return { form: "other", tag }
  }
}

/** GeneralNames: at least one. */
export function readGeneralNames(bytes: Buffer): readonly GeneralName[] {
  const names: GeneralName[] = []
  const reader = DerReader.sequence(bytes)
  do names.push(readGeneralName(reader.any()))
  while (!reader.isAtEnd)
  return names
}

/** What an authority's certificate says. */
export interface NameConstraints {
  readonly permitted: readonly GeneralName[]
  readonly excluded: readonly GeneralName[]
}

const MINIMUM = 0x80
const MAXIMUM = 0x81
const PERMITTED = 0xa0
const EXCLUDED = 0xa1

function readSubtrees(value: DerValue | undefined): readonly GeneralName[] {
  if (value === undefined) return []
  const bases: GeneralName[] = []
  const reader = new DerReader(value.content)
  do {
    const subtree = reader.sequence()
    const base = readGeneralName(subtree.any())
    // "minimum MUST be zero, and maximum MUST be absent"; DER leaves the zero out.
    if (subtree.optional(MINIMUM) !== undefined || subtree.optional(MAXIMUM) !== undefined)
      throw new DerError("it constrains names to a depth")
    subtree.end()
    if (base.form === "iPAddress" && base.bytes.length !== 8 && base.bytes.length !== 32)
      throw new DerError("it constrains addresses to no network")
    bases.push(base)
  } while (!reader.isAtEnd)
  return bases
}

export function readNameConstraints(bytes: Buffer): NameConstraints {
  const reader = DerReader.sequence(bytes)
  const permitted = readSubtrees(reader.optional(PERMITTED))
  const excluded = readSubtrees(reader.optional(EXCLUDED))
  reader.end()
  if (permitted.length + excluded.length === 0) throw new DerError("it constrains nothing")
  return { permitted, excluded }
}

/** Host names are compared without regard to case, and without the dot of the root. */
const hostOf = (name: string): string => name.toLowerCase().replace(/\.$/, "")

/** Of mail and URIs: `.example.org` is all below that domain, `example.org` that very host. */
function isHostWithin(host: string, constraint: string): boolean {
  if (constraint.startsWith(".")) return host.endsWith(constraint)
  return host === constraint
}

/** RFC 3986, 3.2.2: the host of an authority; undefined: there is none, or it is an address. */
function uriHost(uri: string): string | undefined {
  const [, host] = /^[a-z][a-z0-9+.-]*:\/\/(?:[^/?#]*@)?([^/?#:@[\]]+)(?::\d*)?(?:[/?#]|$)/i.exec(uri) ?? []
  return host === undefined || /^[\d.]+$/.test(host) ? undefined : hostOf(host)
}

function isMailWithin(address: string, constraint: string): boolean {
  const at = address.lastIndexOf("@")
  const host = hostOf(address.slice(at + 1))
  const wanted = constraint.lastIndexOf("@")
  // The part before the @ is its host's to compare, who may tell upper from lower case.
  if (wanted >= 0)
    return (
      address.slice(0, at) === constraint.slice(0, wanted) && host === hostOf(constraint.slice(wanted + 1))
    )
  return isHostWithin(host, hostOf(constraint))
}

function isAddressWithin(address: Buffer, network: Buffer): boolean {
  const size = network.length / 2
  if (address.length !== 4 && address.length !== 16) throw new Inapplicable()
  return (
    address.length === size &&
    address.every((byte, at) => ((byte ^ (network[at] ?? 0)) & (network[size + at] ?? 0)) === 0)
  )
}

/** A name that no constraint of its form can be applied to, so that it is within none and excluded by all. */
class Inapplicable extends Error {}

/** Is the name within the subtree? Both are of one form. */
function matches(name: GeneralName, base: GeneralName): boolean {
  if (name.form === "directoryName" && base.form === "directoryName") return isWithin(name.name, base.name)
  if (name.form === "iPAddress" && base.form === "iPAddress") return isAddressWithin(name.bytes, base.bytes)
  if (name.form === "rfc822Name" && base.form === "rfc822Name") {
    if (!/^[^@]+@[^@]+$/.test(name.text)) throw new Inapplicable()
    return base.text === "" || isMailWithin(name.text, base.text)
  }
  if (name.form === "dNSName" && base.form === "dNSName") {
    const host = hostOf(name.text)
    const domain = hostOf(base.text).replace(/^\./, "")
    return domain === "" || (host === domain && !base.text.startsWith(".")) || host.endsWith(`.${domain}`)
  }
  if (name.form === "uniformResourceIdentifier" && base.form === "uniformResourceIdentifier") {
    const host = uriHost(name.text)
    if (host === undefined) throw new Inapplicable()
    return isHostWithin(host, hostOf(base.text))
  }
  // Of a form whose constraints are not applied: a certificate with such a name is refused.
  throw new Inapplicable()
}

/** What comparing costs, in comparisons of short names. */
function weight(name: GeneralName): number {
  if (name.form === "directoryName") return 1 + name.name.relativeNames.length
  return "text" in name ? 1 + name.text.length / 32 : 1
}

const isOfForm = (one: GeneralName, other: GeneralName): boolean =>
  one.form === other.form && (one.form !== "other" || (other.form === "other" && one.tag === other.tag))

/**
 * Is the name within the permitted subtrees of each authority that has some of its form, and within no excluded one?
 *
 * @param spend - Hears of the comparisons before they are made.
 */
export function isPermitted(
  name: GeneralName,
  constraints: readonly NameConstraints[],
  spend: (comparisons: number) => void,
): boolean {
  const own = weight(name)
  for (const { permitted, excluded } of constraints)
    for (const base of [...permitted, ...excluded]) spend(isOfForm(name, base) ? own + weight(base) : 1)
  try {
    return constraints.every(({ permitted, excluded }) => {
      const ofForm = permitted.filter((base) => isOfForm(name, base))
      if (ofForm.length > 0 && !ofForm.some((base) => matches(name, base))) return false
      return !excluded.some((base) => isOfForm(name, base) && matches(name, base))
    })
  } catch (error) {
    if (error instanceof Inapplicable) return false
    throw error
  }
}

/** The names that a certificate certifies: its subject, and its alternative names or else the addresses in the subject. */
export function namesOf(
  subject: Name,
  alternatives: readonly GeneralName[] | undefined,
): readonly GeneralName[] {
  const own: readonly GeneralName[] =
    subject.relativeNames.length === 0 ? [] : [{ form: "directoryName", name: subject }]
  const others: readonly GeneralName[] =
    alternatives ?? subject.emailAddresses.map((address) => ({ form: "rfc822Name", text: address }))
  return [...own, ...others]
}
