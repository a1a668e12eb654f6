// Which objects of an image go along into the one that is made of it, and what becomes of their links.
import { isVerified } from "../container/origin.ts"
import { checkDescription } from "../encryption/description.ts"
import { isMetadata } from "../encryption/sealed.ts"
import { SignatureError } from "../errors.ts"
import { DataType, FileSystem, type SifLink, type SifObject } from "../sif/format.ts"
import { dataTypeName, partitionTypeName } from "../sif/names.ts"
import type { SifImage } from "../sif/open.ts"
import { isVerity } from "../sif/verity.ts"
import type { KeptObject } from "../sif/write.ts"
import type { SourceImage } from "../source/source.ts"

/** An object that goes along, and where to. */
export interface Passenger {
  /** That it comes from: the source, or what was sealed in it. */
  readonly image: SifImage
  readonly object: SifObject
  readonly place: KeptObject
}

/** What becomes of an image's objects. */
export interface Passengers {
  /** Its root file system. */
  readonly primary: Passenger
  /** Beside it, in the order of their slots. */
  readonly kept: readonly Passenger[]
  /** Inside the encryption. */
  readonly sealed: readonly Passenger[]
  /** Left out, as hash trees are: they are about bytes that change. */
  readonly signatures: readonly SifObject[]
}

/** As a notice names it. */
export function objectText({ type, name, partition }: SifObject): string {
  const what = partition === undefined ? dataTypeName(type) : `${partitionTypeName(partition.type)} partition`
  return name === "" ? what : `${what} ${name}`
}

/** Can it be read without a key? */
export function isReadable({ partition, type }: SifObject): boolean {
  const encrypted: readonly number[] = [FileSystem.encryptedSquashfs, FileSystem.gocryptfsSquashfs]
  return (
    type !== DataType.cryptoMessage && !(partition !== undefined && encrypted.includes(partition.fileSystem))
  )
}

/** Slots and IDs that are taken; whoever comes later gets others. */
class Places {
  readonly #slots = new Set<number>()
  readonly #ids = new Set<number>()

  take(slot: number, id: number): { readonly slot: number; readonly id: number } {
    const free = !this.#slots.has(slot) && !this.#ids.has(id)
    const place = free ? { slot, id } : this.#next()
    this.#slots.add(place.slot)
    this.#ids.add(place.id)
    return place
  }

  #next(): { readonly slot: number; readonly id: number } {
    let slot = 0
    while (this.#slots.has(slot) || this.#ids.has(slot + 1)) slot++
    return { slot, id: slot + 1 }
  }
}

/**
 * @param seal - Metadata goes into the encryption, but not what was put beside that of another: it would become its word.
 * @throws SifError `ERR_SIF_AMBIGUOUS` when objects say the same of the image, and which is right cannot be known;
 * SignatureError `ERR_SIGNATURE_MISSING` for an object that was not verified where that was demanded.
 */
export function choosePassengers(source: SourceImage, seal: boolean): Passengers {
  const { sif, primary, sealed, verify } = source
  checkDescription(sif, primary, sealed)
  const goes = (object: SifObject): boolean =>
    object.type === DataType.signature ||
    isVerity(object) ||
    (object.type === DataType.cryptoMessage && object.link.to === "object" && object.link.id === primary.id)
  const outer = sif.objects.filter((object) => !goes(object))
  const stranger = outer.find((object) => verify !== undefined && !isVerified(object, verify))
  if (stranger !== undefined)
    throw SignatureError.at(
      sif.path,
      "ERR_SIGNATURE_MISSING",
      `object ${stranger.id} of group ${stranger.group} would be copied and is not among what is to be verified`,
    )
  const inner = sealed?.objects ?? []
  const places = new Places()
  const outerIds = new Map<number, number>()
  const innerIds = new Map<number, number>()
  const placed = [
    ...outer.map((object) => ({ image: sif, object, ids: outerIds, others: innerIds })),
    ...inner.map((object) => ({ image: sealed ?? sif, object, ids: innerIds, others: outerIds })),
  ].map((entry) => {
    const place = places.take(entry.object.slot, entry.object.id)
    entry.ids.set(entry.object.id, place.id)
    return { ...entry, place }
  })
  const passengers = placed.map(({ image, object, ids, others, place }): Passenger => {
    // What a link pointed to may have gone.
    const id =
      object.link.to === "object" ? (ids.get(object.link.id) ?? others.get(object.link.id)) : undefined
    const none: SifLink = { to: "none" }
    const link =
      object.link.to !== "object" ? object.link : id === undefined ? none : { to: "object" as const, id }
    return { image, object, place: { ...place, link } }
  })
  const root = passengers.find(({ image, object }) => image === sif && object.id === primary.id)
  if (root === undefined) throw new TypeError("the image has no primary partition")
  const others = passengers.filter((passenger) => passenger !== root)
  const isSealed = ({ image, object }: Passenger): boolean =>
    seal && isMetadata(object) && (sealed === undefined || image === sealed)
  return {
    primary: root,
    kept: others.filter((one) => !isSealed(one)).sort((a, b) => a.place.slot - b.place.slot),
    sealed: others.filter(isSealed),
    signatures: sif.objects.filter(({ type }) => type === DataType.signature),
  }
}
