// Which keys of OpenPGP verify anything: the same that are let in elsewhere (lib/key/admission.ts). The OpenPGP library looks at
// the length of a modulus, and neither at exponents nor at curves.
import type { Key, KeyID, PublicKeyPacket, PublicSubkeyPacket } from "openpgp"
import { KeyError } from "../errors.ts"
import { checkSpki } from "../key/admission.ts"
import { encodeAsn1, make, type Asn1Node } from "../key/asn1.ts"
import { encodeIntegers } from "../key/der.ts"
import { MIN_MODULUS_BITS } from "../key/key-file.ts"

type Packet = PublicKeyPacket | PublicSubkeyPacket

const EC = "1.2.840.10045.2.1"
const RSA = "1.2.840.113549.1.1.1"
const ED25519 = "1.3.101.112"
const ED448 = "1.3.101.113"

/** As the OpenPGP library calls them; where one is missing its name is refused. */
const curves: Readonly<Record<string, string>> = {
  nistP256: "1.2.840.10045.3.1.7",
  nistP384: "1.3.132.0.34",
  nistP521: "1.3.132.0.35",
}

/** What a packet has of its key (RFC 9580, 5.5.5); the declarations lack it. */
interface Numbers {
  readonly n?: Uint8Array
  readonly e?: Uint8Array
  readonly Q?: Uint8Array
  readonly A?: Uint8Array
}

const spki = (algorithm: string, parameters: readonly Asn1Node[], key: Uint8Array): Buffer =>
  encodeAsn1(make.sequence(make.sequence(make.objectId(algorithm), ...parameters), make.bits(key)))

/** The key as SubjectPublicKeyInfo; undefined: of a kind that has none here. */
function spkiOf(packet: Packet): Buffer | undefined {
  const { n, e, Q, A } = packet.publicParams as Numbers
  const { algorithm, curve = "" } = packet.getAlgorithmInfo()
  if (n !== undefined && e !== undefined)
    return spki(RSA, [make.null()], encodeIntegers([Buffer.from(n), Buffer.from(e)]))
  if (A !== undefined) return spki(algorithm === "ed448" ? ED448 : ED25519, [], A)
  if (Q === undefined) return undefined
  // Behind a byte that says how it is encoded.
  if (curve === "ed25519Legacy") return spki(ED25519, [], Q.subarray(1))
  const id = curves[curve]
  return id === undefined ? undefined : spki(EC, [make.objectId(id)], Q)
}

function weaknessOfPacket(packet: Packet): string | undefined {
  const { algorithm, curve } = packet.getAlgorithmInfo()
  const bytes = spkiOf(packet)
  if (bytes === undefined) return `a key of the kind ${curve ?? algorithm} verifies nothing here`
  try {
    const { type, modulusBits } = checkSpki(bytes, "its key")
    return type === "rsa" && modulusBits < MIN_MODULUS_BITS
      ? `an RSA key of ${modulusBits} bits is too weak`
      : undefined
  } catch (error) {
    if (error instanceof KeyError) return error.message
    throw error
  }
}

/**
 * Why nothing is believed that this key has signed, or its subkey `signer`, since others than its owner could have signed it;
 * undefined: it may be. Other subkeys do not matter: anybody can add one to a copy of a key.
 */
export function weaknessOf(key: Key, signer?: KeyID): string | undefined {
  const [primary, ...subkeys] = key.getKeys().map(({ keyPacket }) => keyPacket as Packet)
  const signing = subkeys.filter((packet) => signer !== undefined && packet.getKeyID().equals(signer, true))
  for (const packet of primary === undefined ? [] : [primary, ...signing]) {
    const weakness = weaknessOfPacket(packet)
    if (weakness !== undefined) return weakness
  }
  return undefined
}
