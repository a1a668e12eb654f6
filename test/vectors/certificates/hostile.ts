// Makes hostile.json.gz: paths to a signer of code, most of which break one rule. `node --import tsx hostile.ts` writes it.
// Keys are made at random and thrown away.
import { generateKeyPairSync, sign, type KeyObject } from "node:crypto"
import { writeFileSync } from "node:fs"
import path from "node:path"
import { gzipSync } from "node:zlib"
import {
  certificate,
  extension,
  extensionIds,
  general,
  generalizedTime,
  utcTime,
  type CertificateSpec,
} from "../../support/certificates.ts"
import { bits, implicit, integer, nothing, octets, oid, sequence, tagged, tlv } from "../../support/der.ts"

type Extra = Partial<CertificateSpec>
interface Pair {
  readonly publicKey: KeyObject
  readonly privateKey: KeyObject
}

const ec = (namedCurve: string = "P-256", paramEncoding: "named" | "explicit" = "named"): Pair =>
  generateKeyPairSync("ec", { namedCurve, paramEncoding })
const rsa = (modulusLength: number): Pair => generateKeyPairSync("rsa", { modulusLength })
const spkiOf = (key: KeyObject): Buffer => key.export({ type: "spki", format: "der" })

const [rootKey, middleKey, signerKey] = [ec(), ec(), ec()]
const ROOT = "O=Test/CN=root"
const MIDDLE = "O=Test/CN=middle"
const SIGNER = "O=Test/CN=signer"

const rootOf = (extra: Extra = {}): Buffer =>
  certificate({ subject: ROOT, issuer: ROOT, key: rootKey.publicKey, signer: rootKey.privateKey, ca: true, ...extra })
const middleOf = (extra: Extra = {}): Buffer =>
  certificate({ subject: MIDDLE, issuer: ROOT, key: middleKey.publicKey, signer: rootKey.privateKey, ca: true, ...extra })
const signerOf = (extra: Extra = {}): Buffer =>
  certificate({ subject: SIGNER, issuer: MIDDLE, key: signerKey.publicKey, signer: middleKey.privateKey, ...extra })

const root = rootOf()
const middle = middleOf()
const found: {
  readonly name: string
  readonly refused?: string
  readonly signer: string
  readonly intermediates: readonly string[]
  readonly roots: readonly string[]
}[] = []

function add(
  name: string,
  refused: string | undefined,
  signer: Buffer,
  intermediates: readonly Buffer[] = [middle],
  roots: readonly Buffer[] = [root],
): void {
  const text = (der: Buffer): string => der.toString("base64")
  found.push({
    name,
    ...(refused === undefined ? {} : { refused }),
    signer: text(signer),
    intermediates: intermediates.map(text),
    roots: roots.map(text),
  })
}

add("an ordinary one", undefined, signerOf())

// Keys
const infinity = sequence(sequence(oid("1.2.840.10045.2.1"), oid("1.2.840.10045.3.1.7")), bits(Buffer.of(0)))
add("a key at the point at infinity", "no point of its curve", signerOf({ key: infinity }))
add("an issuer's key at the point at infinity", "no point of its curve", signerOf(), [middleOf({ key: infinity })])
for (const curve of ["secp224r1", "prime192v1", "secp112r1", "brainpoolP256r1", "secp256k1"]) {
  add(`a key on ${curve}`, "an EC key on the curve", signerOf({ key: ec(curve).publicKey }))
  const weak = ec(curve)
  add(`an issuer's key on ${curve}`, "an EC key on the curve", signerOf({ signer: weak.privateKey }), [middleOf({ key: weak.publicKey })])
}
const explicit = ec("P-256", "explicit")
add("a key with parameters of its own", "parameters of its own", signerOf({ key: explicit.publicKey }))
add("an issuer's key with parameters of its own", "parameters of its own", signerOf({ signer: explicit.privateKey }), [
  middleOf({ key: explicit.publicKey }),
])
const rsa1024 = rsa(1024)
add("an RSA key of 1024 bits", "too weak", signerOf({ key: rsa1024.publicKey }))
add("an issuer's RSA key of 1024 bits", "too weak", signerOf({ signer: rsa1024.privateKey }), [middleOf({ key: rsa1024.publicKey })])
/** RSASSA-PSS with SHA-256 and 32 bytes of salt (RFC 4055, 3.1). */
const sha256 = sequence(oid("2.16.840.1.101.3.4.2.1"), nothing)
const pssAlgorithm = sequence(
  oid("1.2.840.113549.1.1.10"),
  sequence(tagged(0, sha256), tagged(1, sequence(oid("1.2.840.113549.1.1.8"), sha256)), tagged(2, integer(32))),
)
function pssSigned(key: KeyObject): Buffer {
  const unsigned = signerOf({ signatureAlgorithm: pssAlgorithm })
  // The body ends where the outer algorithm begins.
  const tbs = unsigned.subarray(4, 8 + unsigned.readUInt16BE(6))
  return sequence(tbs, pssAlgorithm, bits(sign("sha256", tbs, { key, padding: 6, saltLength: 32 })))
}
const pss1024 = generateKeyPairSync("rsa-pss", { modulusLength: 1024 })
const pss2048 = generateKeyPairSync("rsa-pss", { modulusLength: 2048 })
add("an issuer's RSA-PSS key of 1024 bits", "too weak", pssSigned(pss1024.privateKey), [middleOf({ key: pss1024.publicKey })])
add("an issuer's RSA-PSS key of 2048 bits", undefined, pssSigned(pss2048.privateKey), [middleOf({ key: pss2048.publicKey })])
const rsaSpki = (modulus: bigint, exponent: bigint): Buffer =>
  sequence(sequence(oid("1.2.840.113549.1.1.1"), nothing), bits(sequence(integer(modulus), integer(exponent))))
const modulus = (1n << 2047n) | 1n
for (const [what, exponent, why] of [
  ["the exponent 1", 1n, "hides nothing"],
  ["a huge exponent", (1n << 2046n) | 1n, "exponent of more than 64 bits"],
] as const)
  add(`an issuer's RSA key with ${what}`, why, signerOf(), [middleOf({ key: rsaSpki(modulus, exponent) })])

// Dates
for (const [what, date] of [
  ["without a zone", utcTime("400101000000")],
  ["without seconds", utcTime("2001010000Z")],
  ["with an offset", utcTime("200101000000+0000")],
  ["of a 13th month", utcTime("201301000000Z")],
  ["of a 30th of February", utcTime("200230000000Z")],
  ["of a 25th hour", utcTime("200101240000Z")],
  ["with a fraction of a second", generalizedTime("20200101000000.5Z")],
  ["of a year of two digits", generalizedTime("200101000000Z")],
  ["that is empty", utcTime("")],
  ["that is no time", integer(1)],
] as const) {
  add(`a notBefore ${what}`, "date", signerOf({ notBefore: date }))
  add(`a notAfter ${what}`, "date", signerOf({ notAfter: date }))
}
add("a notAfter in the year 49", "it has expired", signerOf({ notAfter: generalizedTime("00491231235959Z") }))
add("a notBefore in the year 49", undefined, signerOf({ notBefore: generalizedTime("00490101000000Z") }))
add("a notBefore in the year 9999", "not valid yet", signerOf({ notBefore: generalizedTime("99991231235959Z") }))

// Constraints that are not critical count as much
const outside = "may not certify"
const elsewhere: Extra = { alternativeNames: [general.dns("example.net")] }
const constrained = middleOf({ permitted: [general.dns("example.org")], nameConstraintsCritical: false })
add("a name outside of constraints that are not critical", outside, signerOf(elsewhere), [constrained])
const policyless = "under no policy"
add("no policy where one is required, not critically", policyless, signerOf(), [
  middleOf({ requireExplicitPolicy: 0, policyConstraintsCritical: false }),
])
add("no policy where a root requires one", policyless, signerOf(), [middle], [rootOf({ requireExplicitPolicy: 0 })])
add("a name outside of a root's constraints", outside, signerOf(elsewhere), [middle], [rootOf({ permitted: [general.dns("example.org")] })])
add("one authority more than a root allows", "one authority too many", signerOf(), [middle], [rootOf({ pathLength: 0 })])
add("an address outside of its network", outside, signerOf({ alternativeNames: [general.ip([10, 1, 0, 1])] }), [
  middleOf({ permitted: [general.ip([10, 0, 0, 0, 255, 255, 0, 0])] }),
])
add("an address of IPv6 in an excluded network", outside, signerOf({ alternativeNames: [general.ip(Array<number>(16).fill(1))] }), [
  middleOf({ excluded: [general.ip(Array<number>(32).fill(0))] }),
])
add("a URI without a host", outside, signerOf({ alternativeNames: [general.uri("urn:x")] }), [
  middleOf({ excluded: [general.uri("example.org")] }),
])
const otherName = tagged(0, oid("1.2.3"), tagged(0, nothing))
add("a name of a form that nothing here can compare", outside, signerOf({ alternativeNames: [otherName] }), [
  middleOf({ excluded: [otherName] }),
])
add("an excluded name in other letters", outside, signerOf({ alternativeNames: [general.dns("A.EXAMPLE.ORG.")] }), [
  middleOf({ excluded: [general.dns("example.org")] }),
])
add("constraints to a depth", "to a depth", signerOf(), [
  middleOf({ more: [extension(extensionIds.nameConstraints, sequence(tagged(0, sequence(general.dns("x"), implicit(0, Buffer.of(1))))))] }),
])
add("constraints that constrain nothing", "constrains nothing", signerOf(), [
  middleOf({ more: [extension(extensionIds.nameConstraints, sequence())] }),
])

// What is no certificate
const bare: Extra = { keyUsage: null, usages: null }
const anything = extension("1.2.3.4", nothing)
add("extensions in version 1", "extensions, which", signerOf({ version: 1 }))
add("extensions in version 2", "extensions, which", signerOf({ version: 2 }))
add("unique identifiers in version 1", "unique identifiers", signerOf({ ...bare, version: 1, uniqueIds: [tlv(0x81, Buffer.of(0, 1))] }))
add("an unknown extension twice", "1.2.3.4 twice", signerOf({ more: [anything, anything] }))
add("a critical extension that nobody knows", "critical extension 1.2.3.4", signerOf({ more: [extension("1.2.3.4", nothing, true)] }))
const falsehood = sequence(oid("1.2.3.4"), tlv(1, Buffer.of(0)), octets(nothing))
add("an extension that says it is not critical", "truth value", signerOf({ more: [falsehood] }))
const whole = signerOf()
const content = whole.subarray(4)
add("a BER length around all", "something else|not DER", tlv(0x30, content, { minimal: false }))
add("bytes behind the DER", "not DER|behind", Buffer.concat([whole, Buffer.of(0)]))
add("a value behind the DER", "behind", Buffer.concat([whole, nothing]))
add("a value behind the signature", "behind", tlv(0x30, Buffer.concat([content, nothing])))
add("two signature algorithms", "two signature algorithms", signerOf({ outerAlgorithm: sequence(oid("1.2.840.10045.4.3.3")) }))
add("a serial number with zeros in front", "no DER", signerOf({ serial: tlv(2, Buffer.of(0, 0, 1)) }))
add("a version that is written though it need not be", "version", signerOf({ ...bare, version: 1, serial: Buffer.concat([tagged(0, integer(0)), integer(1)]) }))
add("cut short", "not DER", whole.subarray(0, -1))
add("nothing", "missing|not DER|something", Buffer.alloc(0))
add("no subject and no other name", "names nobody", signerOf({ subject: sequence() }))
add("no subject, and another name that is not critical", "names nobody", signerOf({ subject: sequence(), ...elsewhere }))
add("a signature with SHA-1", "not accepted", signerOf({ signatureAlgorithm: sequence(oid("1.2.840.10045.4.1")), hash: "sha1" }))
add("a signature algorithm with parameters", "not accepted", signerOf({ signatureAlgorithm: sequence(oid("1.2.840.10045.4.3.2"), nothing) }))
add("an authority of version 1", "no authority", signerOf(), [middleOf({ ...bare, version: 1, basicConstraints: null })])

// What was refused, and is good
add("no subject, and another name that is critical", undefined, signerOf({ subject: sequence(), ...elsewhere, alternativeNamesCritical: true }))
add("a name within critical constraints", undefined, signerOf({ alternativeNames: [general.dns("a.example.org")] }), [
  middleOf({ permitted: [general.dns("example.org")], excluded: [general.dns("b.example.org")] }),
])
add("a policy where one is required", undefined, signerOf({ policies: ["1.2.3"] }), [middleOf({ policies: ["1.2.3"], requireExplicitPolicy: 0 })])
const numbers = (count: number): readonly number[] => Array.from({ length: count }, (_, at) => at)
add("a hundred extensions", undefined, signerOf({ more: numbers(100).map((at) => extension(`1.2.3.${at}`, nothing)) }))
add("a hundred usages", undefined, signerOf({ usages: [...numbers(100).map((at) => `1.2.3.${at}`), "1.3.6.1.5.5.7.3.3"] }))
add("a hundred names", undefined, signerOf({ alternativeNames: numbers(100).map((at) => general.dns(`${at}.example.org`)) }))
const long: Buffer[] = []
for (const at of numbers(12))
  long.push(
    middleOf({
      subject: at === 11 ? MIDDLE : `O=Test/CN=${at}`,
      issuer: at === 0 ? ROOT : `O=Test/CN=${at - 1}`,
      signer: at === 0 ? rootKey.privateKey : middleKey.privateKey,
    }),
  )
add("twelve authorities above it", undefined, signerOf(), long)
add("a root of version 1", undefined, signerOf(), [middle], [rootOf({ ...bare, version: 1, basicConstraints: null })])
for (const curve of ["P-384", "P-521"]) {
  const strong = ec(curve)
  add(`an issuer's key on ${curve}`, undefined, signerOf({ signer: strong.privateKey }), [middleOf({ key: strong.publicKey })])
}
const ed25519 = generateKeyPairSync("ed25519")
add("an issuer's Ed25519 key", undefined, signerOf({ signer: ed25519.privateKey }), [middleOf({ key: ed25519.publicKey })])
const short = spkiOf(middleKey.publicKey)
const at = short.length - 65
const compressed = sequence(
  sequence(oid("1.2.840.10045.2.1"), oid("1.2.840.10045.3.1.7")),
  bits(Buffer.concat([Buffer.of(2 + (short[short.length - 1]! & 1)), short.subarray(at + 1, at + 33)])),
)
add("an issuer's compressed key", undefined, signerOf(), [middleOf({ key: compressed })])
const bad = [
  middleOf({ key: infinity }),
  middleOf({ key: rsaSpki(modulus, (1n << 2046n) | 1n) }),
  middleOf({ key: ec("secp224r1").publicKey }),
  middleOf({ notAfter: utcTime("210101000000Z") }),
  middleOf({ notAfter: utcTime("210101000000") }),
  middleOf({ more: numbers(100).map((number) => extension(`1.2.3.${number}`, nothing)), basicConstraints: sequence() }),
  middleOf({ more: [extension(extensionIds.policyMappings, nothing)] }),
  middleOf({ permitted: [general.directory("O=Other")] }),
  Buffer.from("no certificate at all"),
]
add("bad authorities before the good one", undefined, signerOf(), [...bad, middle])
add("only bad authorities", ".", signerOf(), bad)

// What costs: each has to be looked at, and none has signed.
const large = numbers(60).map((number) => middleOf({ key: rsaSpki((1n << 16383n) | BigInt(2 * number + 1), 0x1_0000_0001n) }))
add("below one of many authorities with large keys", ".", signerOf(), large)

const file = path.join(import.meta.dirname, "hostile.json.gz")
writeFileSync(file, gzipSync(JSON.stringify(found), { level: 9 }))
