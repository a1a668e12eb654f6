// Makes pkits.json.gz: the certification paths of NIST's Public Key Interoperability Test Suite (PKITS 1.0.1, sections 4.1 to 4.16),
// anew from its descriptions, with RSA keys of 2048 bits and signers who sign code. `node --import tsx pkits.ts` writes it.
// Verdicts are those of RFC 5280 for PKITS's default settings. Keys are made at random and thrown away.
import { generateKeyPairSync, type KeyObject } from "node:crypto"
import { writeFileSync } from "node:fs"
import path from "node:path"
import { gzipSync } from "node:zlib"
import {
  certificate as certificateOf,
  CRL_SIGN,
  distinguishedName,
  extension,
  extensionIds,
  general,
  generalizedTime,
  KEY_CERT_SIGN,
  utcTime,
  type CertificateSpec,
} from "../../support/certificates.ts"
import { bits, implicit, integer, oid, sequence, tagged, text, tlv } from "../../support/der.ts"

type Extra = Partial<CertificateSpec>
type Difference = "revocation" | "DSA"

interface Authority {
  readonly file: string
  readonly subject: Buffer
  readonly key: KeyObject
}

const certificates: Record<string, string> = {}
const tests: {
  readonly id: string
  readonly title: string
  /** RFC 5280's verdict. */
  readonly valid: boolean
  /** Why ours is the other one. */
  readonly difference?: Difference
  readonly signer: string
  /** From the root downwards. */
  readonly path: readonly string[]
}[] = []

/** As all of NIST's, they name the keys. */
const certificate = (spec: CertificateSpec): Buffer => certificateOf({ ...spec, keyIdentifiers: true })

const at = (name: string): Buffer => distinguishedName(`C=US/O=Test Certificates/CN=${name}`)
const UTF8 = 0x0c
const policy = (number: number): string => `2.16.840.1.101.3.2.1.48.${number}`
const [P1, P2, P3, P4, P5] = [1, 2, 3, 4, 5].map(policy) as [string, string, string, string, string]
const ANY = "2.5.29.32.0"

const newKey = (): { publicKey: KeyObject; privateKey: KeyObject } => generateKeyPairSync("rsa", { modulusLength: 2048 })
const signerKey = newKey().publicKey
const rootKey = newKey()
const root: Authority = { file: "Trust Anchor", subject: at("Trust Anchor"), key: rootKey.privateKey }

function keep(file: string, der: Buffer): void {
  if (file in certificates) throw new Error(file)
  certificates[file] = der.toString("base64")
}
keep(root.file, certificate({ subject: root.subject, issuer: root.subject, key: rootKey.publicKey, signer: root.key, ca: true }))

/** An authority below another one. */
function authority(name: string, above: Authority = root, extra: Extra = {}): Authority {
  const { publicKey, privateKey } = newKey()
  const subject = typeof extra.subject === "object" ? extra.subject : at(name)
  keep(name, certificate({ issuer: above.subject, key: publicKey, signer: above.key, ca: true, ...extra, subject }))
  return { file: name, subject, key: privateKey }
}

/** Another key of the same authority, certified by itself. */
const selfIssued = (name: string, of: Authority, extra: Extra = {}): Authority =>
  authority(name, of, { subject: of.subject, ...extra })

let section = ""
let count = 0
function begin(name: string): void {
  section = name
  count = 0
}

/** The next test of the section; the signer is certified by the last authority of the path, or what `extra` says. */
function test(title: string, above: readonly Authority[], extra: Extra = {}, difference?: Difference): void {
  const id = `${section}.${++count}`
  const issuer = above.at(-1) ?? root
  const der = certificate({ subject: at(`${title} Test${count}`), issuer: issuer.subject, key: signerKey, signer: issuer.key, ...extra })
  keep(`${id} signer`, der)
  const valid = !title.startsWith("Invalid") && !title.startsWith("Different Policies Test")
  tests.push({
    id,
    title,
    valid,
    ...(difference === undefined ? {} : { difference }),
    signer: `${id} signer`,
    path: above.map(({ file }) => file),
  })
}

/** The certificate with its signature changed. */
function spoil(file: string): void {
  const der = Buffer.from(certificates[file] ?? "", "base64")
  der[der.length - 5]! ^= 1
  certificates[file] = der.toString("base64")
}

/** Signers who are authorities themselves. */
const AUTHORITY: Extra = { ca: true, usages: ["1.3.6.1.5.5.7.3.3"], keyUsage: 0x80 | KEY_CERT_SIGN | CRL_SIGN }
const distributionPoint: Extra = {
  more: [
    extension(
      extensionIds.distributionPoints,
      sequence(sequence(tagged(0, tagged(0, general.directory("C=US/O=Test Certificates/OU=CRLs/CN=CRL"))))),
    ),
  ],
}

const good = authority("Good CA", root, { policies: [P1] })

begin("4.1")
test("Valid Signatures", [good], { policies: [P1] })
const badlySigned = authority("Bad Signed CA")
spoil(badlySigned.file)
test("Invalid CA Signature", [badlySigned])
test("Invalid EE Signature", [good])
spoil("4.1.3 signer")
const dsaKeys = generateKeyPairSync("dsa", { modulusLength: 2048, divisorLength: 256 })
const dsaAlgorithm = sequence(oid("2.16.840.1.101.3.4.3.2"))
keep("DSA CA", certificate({ subject: at("DSA CA"), issuer: root.subject, key: dsaKeys.publicKey, signer: root.key, ca: true }))
const dsa: Authority = { file: "DSA CA", subject: at("DSA CA"), key: dsaKeys.privateKey }
test("Valid DSA Signatures", [dsa], { signatureAlgorithm: dsaAlgorithm }, "DSA")
// The parameters are the issuer's: the key has none of its own.
const inheriting = generateKeyPairSync("dsa", { modulusLength: 2048, divisorLength: 256 })
keep(
  "DSA Parameters Inherited CA",
  certificate({
    subject: at("DSA Parameters Inherited CA"),
    issuer: dsa.subject,
    key: sequence(sequence(oid("1.2.840.10040.4.1")), bits(integer(4))),
    signer: dsa.key,
    signatureAlgorithm: dsaAlgorithm,
    ca: true,
  }),
)
const inherited: Authority = { file: "DSA Parameters Inherited CA", subject: at("DSA Parameters Inherited CA"), key: inheriting.privateKey }
test("Valid DSA Parameter Inheritance", [dsa, inherited], { signatureAlgorithm: dsaAlgorithm }, "DSA")
test("Invalid DSA Signature", [dsa], { signatureAlgorithm: dsaAlgorithm })
spoil("4.1.6 signer")

begin("4.2")
const notYet = authority("Bad notBefore Date CA", root, { notBefore: utcTime("470101120100Z") })
test("Invalid CA notBefore Date", [notYet])
test("Invalid EE notBefore Date", [good], { notBefore: utcTime("470101120100Z") })
test("Valid pre2000 UTC notBefore Date", [good], { notBefore: utcTime("500101120100Z") })
test("Valid GeneralizedTime notBefore Date", [good], { notBefore: generalizedTime("20020101120100Z") })
test("Invalid CA notAfter Date", [authority("Bad notAfter Date CA", root, { notAfter: utcTime("110101083000Z") })])
test("Invalid EE notAfter Date", [good], { notBefore: utcTime("100101083000Z"), notAfter: utcTime("110101083000Z") })
test("Invalid pre2000 UTC EE notAfter Date", [good], { notBefore: utcTime("970101120100Z"), notAfter: utcTime("990101120100Z") })
test("Valid GeneralizedTime notAfter Date", [good], { notAfter: generalizedTime("20500101120100Z") })

begin("4.3")
test("Invalid Name Chaining EE", [good], { issuer: at("Good CA Root") })
const ordering = authority("Name Ordering CA", root, {
  subject: distinguishedName("C=US/O=Test Certificates/OU=Organizational Unit Name 1/OU=Organizational Unit Name 2/CN=Name Ordering CA"),
})
test("Invalid Name Chaining Order", [ordering], {
  issuer: distinguishedName("C=US/O=Test Certificates/OU=Organizational Unit Name 2/OU=Organizational Unit Name 1/CN=Name Ordering CA"),
})
test("Valid Name Chaining Whitespace", [good], { issuer: distinguishedName("C=US/O=Test  Certificates/CN=Good     CA") })
test("Valid Name Chaining Whitespace", [good], { issuer: distinguishedName("C=US/O= Test Certificates /CN=   Good CA  ") })
test("Valid Name Chaining Capitalization", [good], { issuer: distinguishedName("C=US/O=Test Certificates/CN=GOOD CA") })
const withUid = authority("UID CA", root, { uniqueIds: [tlv(0x82, Buffer.from([0, 1, 2, 3]))] })
test("Valid Name Chaining UIDs", [withUid])
test("Valid RFC3280 Mandatory Attribute Types", [
  authority("RFC3280 Mandatory Attribute Types CA", root, {
    subject: distinguishedName("DC=gov/DC=testcertificates/ST=Maryland/serialNumber=345/dnQualifier=CA/C=US/O=Test Certificates"),
  }),
])
test("Valid RFC3280 Optional Attribute Types", [
  authority("RFC3280 Optional Attribute Types CA", root, {
    subject: distinguishedName(
      "C=US/O=Test Certificates/L=Gaithersburg/GN=John/initials=Q/SN=CA/pseudonym=Fictitious/generation=III/title=M.D./name=x",
    ),
  }),
])
const utf8Name = "C=US/O=Test Certificates/CN=UTF8String CA"
test("Valid UTF8String Encoded Names", [authority("UTF8String Encoded Names CA", root, { subject: distinguishedName(utf8Name, UTF8) })])
const rollover = authority("Rollover from PrintableString to UTF8String CA")
test("Valid Rollover from PrintableString to UTF8String", [rollover], {
  issuer: distinguishedName("C=US/O=Test Certificates/CN=Rollover from PrintableString to UTF8String CA", UTF8),
})
const insensitive = authority("UTF8String Case Insensitive Match CA", root, {
  subject: distinguishedName("C=US/O=Test Certificates/CN=UTF8String Case Insensitive Match CA", UTF8),
})
test("Valid UTF8String Case Insensitive Match", [insensitive], {
  issuer: distinguishedName("C=US/O=  test certificates  /CN=utf8string case  insensitive match CA", UTF8),
})

begin("4.4")
const REVOCATION = "revocation"
const invalidRevocation: Readonly<Record<string, string>> = {
  1: "Invalid Missing CRL", 2: "Invalid Revoked CA", 3: "Invalid Revoked EE", 4: "Invalid Bad CRL Signature", 5: "Invalid Bad CRL Issuer Name",
  6: "Invalid Wrong CRL", 8: "Invalid Unknown CRL Entry Extension", 9: "Invalid Unknown CRL Extension", 10: "Invalid Unknown CRL Extension",
  11: "Invalid Old CRL nextUpdate", 12: "Invalid pre2000 CRL nextUpdate", 15: "Invalid Negative Serial Number", 18: "Invalid Long Serial Number",
  20: "Invalid Separate Certificate and CRL Keys", 21: "Invalid Separate Certificate and CRL Keys",
} // prettier-ignore
const validRevocation: Readonly<Record<string, string>> = {
  7: "Valid Two CRLs", 13: "Valid GeneralizedTime CRL nextUpdate", 14: "Valid Negative Serial Number", 16: "Valid Long Serial Number",
  17: "Valid Long Serial Number", 19: "Valid Separate Certificate and CRL Keys",
} // prettier-ignore
const certifying = authority("Separate Certificate and CRL Keys CA", root, { keyUsage: KEY_CERT_SIGN })
for (let number = 1; number <= 21; number++) {
  const title = validRevocation[number] ?? invalidRevocation[number] ?? ""
  const serial = title.includes("Negative")
    ? tlv(2, Buffer.of(0xff))
    : title.includes("Long")
      ? tlv(2, Buffer.concat([Buffer.of(0x12), Buffer.alloc(18, number), Buffer.of(0x18)]))
      : undefined
  test(
    title,
    [title.includes("Separate") ? certifying : good],
    serial === undefined ? {} : { serial },
    number in invalidRevocation ? REVOCATION : undefined,
  )
}

begin("4.5")
const newKeyAuthority = authority("Basic Self-Issued New Key CA")
const oldWithNew = selfIssued("Basic Self-Issued New Key OldWithNew CA", newKeyAuthority)
test("Valid Basic Self-Issued Old With New", [newKeyAuthority, oldWithNew])
test("Invalid Basic Self-Issued Old With New", [newKeyAuthority, oldWithNew], {}, REVOCATION)
const oldKeyAuthority = authority("Basic Self-Issued Old Key CA")
const newWithOld = selfIssued("Basic Self-Issued Old Key NewWithOld CA", oldKeyAuthority)
test("Valid Basic Self-Issued New With Old", [oldKeyAuthority, newWithOld])
test("Valid Basic Self-Issued New With Old", [oldKeyAuthority])
test("Invalid Basic Self-Issued New With Old", [oldKeyAuthority], {}, REVOCATION)
const crlKeyAuthority = authority("Basic Self-Issued CRL Signing Key CA", root, { keyUsage: KEY_CERT_SIGN })
const crlKey = selfIssued("Basic Self-Issued CRL Signing Key CRL Cert", crlKeyAuthority, { keyUsage: CRL_SIGN, ca: true, basicConstraints: null })
test("Valid Basic Self-Issued CRL Signing Key", [crlKeyAuthority])
test("Invalid Basic Self-Issued CRL Signing Key", [crlKeyAuthority], {}, REVOCATION)
test("Invalid Basic Self-Issued CRL Signing Key", [crlKeyAuthority, crlKey])

begin("4.6")
test("Invalid Missing basicConstraints", [authority("Missing basicConstraints CA", root, { basicConstraints: null })])
const notCa = sequence()
test("Invalid cA False", [authority("basicConstraints Critical cA False CA", root, { basicConstraints: notCa })])
test("Invalid cA False", [authority("basicConstraints Not Critical cA False CA", root, { basicConstraints: notCa, basicConstraintsCritical: false })])
test("Valid basicConstraints Not Critical", [authority("basicConstraints Not Critical CA", root, { basicConstraintsCritical: false })])
const length0 = authority("pathLenConstraint0 CA", root, { pathLength: 0 })
const length0sub = authority("pathLenConstraint0 subCA", length0)
test("Invalid pathLenConstraint", [length0, length0sub])
test("Invalid pathLenConstraint", [length0, length0sub], AUTHORITY)
test("Valid pathLenConstraint", [length0])
test("Valid pathLenConstraint", [length0], AUTHORITY)
const length6 = authority("pathLenConstraint6 CA", root, { pathLength: 6 })
const length6sub0 = authority("pathLenConstraint6 subCA0", length6, { pathLength: 0 })
const length6sub00 = authority("pathLenConstraint6 subsubCA00", length6sub0, { pathLength: 0 })
test("Invalid pathLenConstraint", [length6, length6sub0, length6sub00])
test("Invalid pathLenConstraint", [length6, length6sub0, length6sub00], AUTHORITY)
const length6sub1 = authority("pathLenConstraint6 subCA1", length6, { pathLength: 1 })
const length6sub11 = authority("pathLenConstraint6 subsubCA11", length6sub1, { pathLength: 1 })
const length6sub11x = authority("pathLenConstraint6 subsubsubCA11X", length6sub11)
test("Invalid pathLenConstraint", [length6, length6sub1, length6sub11, length6sub11x])
test("Invalid pathLenConstraint", [length6, length6sub1, length6sub11, length6sub11x], AUTHORITY)
const length6sub4 = authority("pathLenConstraint6 subCA4", length6, { pathLength: 4 })
const length6sub41 = authority("pathLenConstraint6 subsubCA41", length6sub4, { pathLength: 1 })
const length6sub41x = authority("pathLenConstraint6 subsubsubCA41X", length6sub41)
test("Valid pathLenConstraint", [length6, length6sub4, length6sub41, length6sub41x])
test("Valid pathLenConstraint", [length6, length6sub4, length6sub41, length6sub41x], AUTHORITY)
const length0self = selfIssued("pathLenConstraint0 Self-Issued CA", length0)
test("Valid Self-Issued pathLenConstraint", [length0, length0self])
test("Invalid Self-Issued pathLenConstraint", [length0, length0self, authority("pathLenConstraint0 subCA2", length0self)])
const length1 = authority("pathLenConstraint1 CA", root, { pathLength: 1 })
const length1self = selfIssued("pathLenConstraint1 Self-Issued CA", length1)
const length1sub = authority("pathLenConstraint1 subCA", length1self)
test("Valid Self-Issued pathLenConstraint", [length1, length1self, length1sub, selfIssued("pathLenConstraint1 Self-Issued subCA", length1sub)])

begin("4.7")
test("Invalid keyUsage Critical keyCertSign False", [authority("keyUsage Critical keyCertSign False CA", root, { keyUsage: CRL_SIGN })])
test("Invalid keyUsage Not Critical keyCertSign False", [
  authority("keyUsage Not Critical keyCertSign False CA", root, { keyUsage: CRL_SIGN, keyUsageCritical: false }),
])
test("Valid keyUsage Not Critical", [authority("keyUsage Not Critical CA", root, { keyUsageCritical: false })])
test("Invalid keyUsage Critical cRLSign False", [authority("keyUsage Critical cRLSign False CA", root, { keyUsage: KEY_CERT_SIGN })], {}, REVOCATION)
test(
  "Invalid keyUsage Not Critical cRLSign False",
  [authority("keyUsage Not Critical cRLSign False CA", root, { keyUsage: KEY_CERT_SIGN, keyUsageCritical: false })],
  {},
  REVOCATION,
)

const required = (...policies: readonly string[]): Extra => ({ policies, requireExplicitPolicy: 0 })
const asserted = (...policies: readonly string[]): Extra => ({ policies })
const notice = (words: string): Buffer =>
  sequence(sequence(oid("1.3.6.1.5.5.7.2.2"), sequence(text(0x1a, words))))

begin("4.8")
const same1: Extra = asserted(P1)
test("All Certificates Same Policy", [good], same1)
test("All Certificates No Policies", [authority("No Policies CA")])
test("Different Policies", [good, authority("Policies P2 subCA", good, asserted(P2))], asserted(P2))
const goodSub = authority("Good subCA", good, required(P1))
test("Different Policies Test", [good, goodSub], asserted(P2))
test("Different Policies Test", [good, authority("Policies P2 subCA2", good, required(P2))], same1)
const p1234 = authority("Policies P1234 CA", root, required(P1, P2, P3, P4))
const p1234sub = authority("Policies P1234 subCAP123", p1234, asserted(P1, P2, P3))
test("Overlapping Policies", [p1234, p1234sub, authority("Policies P1234 subsubCAP123P12", p1234sub, asserted(P1, P2))], { ...AUTHORITY, ...same1 })
const p123 = authority("Policies P123 CA", root, required(P1, P2, P3))
const p123sub = authority("Policies P123 subCAP12", p123, asserted(P1, P2))
test("Different Policies Test", [p123, p123sub, authority("Policies P123 subsubCAP12P1", p123sub, asserted(P1))], { ...AUTHORITY, ...asserted(P2) })
const p12 = authority("Policies P12 CA", root, required(P1, P2))
const p12sub = authority("Policies P12 subCAP1", p12, asserted(P1))
test("Different Policies Test", [p12, p12sub, authority("Policies P12 subsubCAP1P2", p12sub, asserted(P2))], { ...AUTHORITY, ...same1 })
const p123subsub = authority("Policies P123 subsubCAP12P2", p123sub, asserted(P2))
test("Different Policies Test", [p123, p123sub, p123subsub, authority("Policies P123 subsubsubCAP12P2P1", p123subsub, asserted(P1))], same1)
test("All Certificates Same Policies", [p12], asserted(P1, P2))
const anyPolicy = authority("anyPolicy CA", root, required(ANY))
test("All Certificates AnyPolicy", [anyPolicy], asserted(ANY))
test("Different Policies Test", [authority("Policies P3 CA", root, required(P3))], same1)
test("All Certificates Same Policies", [p123], asserted(P1, P2, P3))
test("AnyPolicy", [anyPolicy], same1)
test("User Notice Qualifier", [], { ...same1, qualifiers: [notice("q1: it is to be told")] })
test("User Notice Qualifier", [good], { ...asserted(P1, P2), qualifiers: [notice("q1"), notice("q2")] })
test("User Notice Qualifier", [good], { ...asserted(ANY), qualifiers: [notice("q3")] })
test("User Notice Qualifier", [p12], { ...asserted(P1, ANY), qualifiers: [notice("q4"), notice("q5")] })
test("User Notice Qualifier", [], { ...same1, qualifiers: [notice("long ".repeat(60))] })
test("CPS Pointer Qualifier", [good], {
  ...same1,
  qualifiers: [sequence(sequence(oid("1.3.6.1.5.5.7.2.1"), text(0x16, "http://csrc.nist.gov/groups/ST/crypto_apps_infra/csor/pki_registration.html#PKITest")))],
})

begin("4.9")
/** An authority and three below it, `RE` where they require a policy. */
function explicitly(name: string, numbers: readonly (number | undefined)[]): Authority[] {
  const found: Authority[] = []
  for (const [depth, number] of numbers.entries())
    found.push(
      authority(`requireExplicitPolicy${name} ${"sub".repeat(depth)}CA`, found.at(-1) ?? root, {
        policies: [P1],
        ...(number === undefined ? {} : { requireExplicitPolicy: number }),
      }),
    )
  return found
}
const none = undefined
test("Valid requireExplicitPolicy", explicitly("10", [10, none, none, none]))
test("Valid requireExplicitPolicy", explicitly("5", [5, none, none, none]))
test("Invalid requireExplicitPolicy", explicitly("4", [4, none, none, none]))
test("Valid requireExplicitPolicy", explicitly("0", [0, none, none, none]), same1)
test("Invalid requireExplicitPolicy", explicitly("7", [7, 2, 4, none]))
const explicit2 = authority("requireExplicitPolicy2 CA", root, { requireExplicitPolicy: 2 })
const explicit2self = selfIssued("requireExplicitPolicy2 Self-Issued CA", explicit2)
test("Valid Self-Issued requireExplicitPolicy", [explicit2, explicit2self])
const explicit2sub = authority("requireExplicitPolicy2 subCA", explicit2self)
test("Invalid Self-Issued requireExplicitPolicy", [explicit2, explicit2self, explicit2sub])
test("Invalid Self-Issued requireExplicitPolicy", [explicit2, explicit2self, explicit2sub, selfIssued("requireExplicitPolicy2 Self-Issued subCA", explicit2sub)])

begin("4.10")
const map1to2 = authority("Mapping 1to2 CA", root, { ...required(P1), mappings: [[P1, P2]] })
test("Valid Policy Mapping", [map1to2], asserted(P2))
test("Invalid Policy Mapping", [map1to2], same1)
const map1to3 = authority("P12 Mapping 1to3 CA", root, { ...required(P1, P2), mappings: [[P1, P3]] })
const map1to3sub = authority("P12 Mapping 1to3 subCA", map1to3, { ...asserted(P2, P5), mappings: [[P2, P4]] })
const map1to3subsub = authority("P12 Mapping 1to3 subsubCA", map1to3sub, { ...asserted(P4), mappings: [[P4, P5]] })
test("Valid Policy Mapping", [map1to3, map1to3sub, map1to3subsub], asserted(P5))
test("Invalid Policy Mapping", [map1to3, map1to3sub, map1to3subsub], asserted(P4))
const map1to234 = authority("P1 Mapping 1to234 CA", root, { ...required(P1), mappings: [[P1, P2], [P1, P3], [P1, P4]] }) // prettier-ignore
const map1to234sub = authority("P1 Mapping 1to234 subCA", map1to234, { ...asserted(P2, P3, P4), mappings: [[P2, P5]] })
test("Valid Policy Mapping", [map1to234, map1to234sub], asserted(P5))
test("Valid Policy Mapping", [map1to234, map1to234sub], asserted(P3))
test("Invalid Mapping From anyPolicy", [authority("Mapping From anyPolicy CA", root, { ...required(ANY), mappings: [[ANY, P1]] })], same1)
test("Invalid Mapping To anyPolicy", [authority("Mapping To anyPolicy CA", root, { ...required(P1), mappings: [[P1, ANY]] })], same1)
const anyMap = authority("PanyPolicy Mapping 1to2 CA", root, { ...required(ANY), mappings: [[P1, P2]] })
test("Valid Policy Mapping", [anyMap], same1)
const goodAnyMap = authority("Good subCA PanyPolicy Mapping 1to2 CA", good, { ...required(ANY), mappings: [[P1, P2]] })
test("Invalid Policy Mapping", [good, goodAnyMap], same1)
test("Valid Policy Mapping", [good, goodAnyMap], asserted(P2))
test("Valid Policy Mapping", [map1to3], { ...asserted(ANY, P3), qualifiers: [notice("q7"), notice("q8")] })
const p1anyMap = authority("P1anyPolicy Mapping 1to2 CA", root, {
  ...required(P1, ANY),
  mappings: [[P1, P2]],
  qualifiers: [notice("q9"), notice("q10")],
})
test("Valid Policy Mapping", [p1anyMap], asserted(P2))
test("Valid Policy Mapping", [p1anyMap], same1)

begin("4.11")
const inhibit = (number: number, ...policies: readonly string[]): Extra => ({ ...required(...policies), inhibitPolicyMapping: number })
const inhibit0 = authority("inhibitPolicyMapping0 CA", root, inhibit(0, P1))
test("Invalid inhibitPolicyMapping", [inhibit0, authority("inhibitPolicyMapping0 subCA", inhibit0, { policies: [P1], mappings: [[P1, P2]] })], asserted(P1, P2))
const inhibit1 = authority("inhibitPolicyMapping1 P12 CA", root, inhibit(1, P1, P2))
const inhibit1sub = authority("inhibitPolicyMapping1 P12 subCA", inhibit1, { policies: [P1, P2], mappings: [[P1, P3], [P2, P4]] }) // prettier-ignore
test("Valid inhibitPolicyMapping", [inhibit1, inhibit1sub], asserted(P3))
const inhibit1subsub = authority("inhibitPolicyMapping1 P12 subsubCA", inhibit1sub, { policies: [P3, P4], mappings: [[P3, P5]] })
test("Invalid inhibitPolicyMapping", [inhibit1, inhibit1sub, inhibit1subsub], asserted(P5))
test("Valid inhibitPolicyMapping", [inhibit1, inhibit1sub, inhibit1subsub], asserted(P4))
const inhibit5 = authority("inhibitPolicyMapping5 CA", root, inhibit(5, P1))
const inhibit5sub = authority("inhibitPolicyMapping5 subCA", inhibit5, { policies: [P1], inhibitPolicyMapping: 1 })
const inhibit5subsub = authority("inhibitPolicyMapping5 subsubCA", inhibit5sub, asserted(P1))
test(
  "Invalid inhibitPolicyMapping",
  [inhibit5, inhibit5sub, inhibit5subsub, authority("inhibitPolicyMapping5 subsubsubCA", inhibit5subsub, { policies: [P1], mappings: [[P1, P2]] })],
  asserted(P2),
)
const inhibit1sub5 = authority("inhibitPolicyMapping1 P12 subCAIPM5", inhibit1, { policies: [P1, P2], inhibitPolicyMapping: 5 })
test(
  "Invalid inhibitPolicyMapping",
  [inhibit1, inhibit1sub5, authority("inhibitPolicyMapping1 P12 subsubCAIPM5", inhibit1sub5, { policies: [P1, P2], mappings: [[P1, P3]] })],
  asserted(P3),
)
const only1 = authority("inhibitPolicyMapping1 P1 CA", root, inhibit(1, P1))
const only1self = selfIssued("inhibitPolicyMapping1 P1 Self-Issued CA", only1, asserted(P1))
const only1sub = authority("inhibitPolicyMapping1 P1 subCA", only1self, { policies: [P1], mappings: [[P1, P2]] })
const only1path = [only1, only1self, only1sub]
test("Valid Self-Issued inhibitPolicyMapping", only1path, asserted(P2))
const only1subsub = authority("inhibitPolicyMapping1 P1 subsubCA", only1sub, { policies: [P2], mappings: [[P2, P3]] })
test("Invalid Self-Issued inhibitPolicyMapping", [...only1path, only1subsub], asserted(P3))
test("Invalid Self-Issued inhibitPolicyMapping", [...only1path, only1subsub], asserted(P2))
const only1subself = selfIssued("inhibitPolicyMapping1 P1 Self-Issued subCA", only1sub, { policies: [P2], mappings: [[P2, P3]] })
test("Invalid Self-Issued inhibitPolicyMapping", [...only1path, only1subself], asserted(P3))
test("Invalid Self-Issued inhibitPolicyMapping", [...only1path, only1subself], asserted(P2))

begin("4.12")
const noAny = (number: number): Extra => ({ ...required(P1), inhibitAnyPolicy: number })
const noAny0 = authority("inhibitAnyPolicy0 CA", root, noAny(0))
test("Invalid inhibitAnyPolicy", [noAny0], asserted(ANY))
test("Valid inhibitAnyPolicy", [noAny0], asserted(ANY, P1))
const noAny1 = authority("inhibitAnyPolicy1 CA", root, noAny(1))
const noAny1sub = authority("inhibitAnyPolicy1 subCA1", noAny1, asserted(ANY))
test("inhibitAnyPolicy", [noAny1, noAny1sub], same1)
test("Invalid inhibitAnyPolicy", [noAny1, noAny1sub], asserted(ANY))
const noAny5 = authority("inhibitAnyPolicy5 CA", root, noAny(5))
const noAny5sub = authority("inhibitAnyPolicy5 subCA", noAny5, { policies: [P1], inhibitAnyPolicy: 1 })
test("Invalid inhibitAnyPolicy", [noAny5, noAny5sub, authority("inhibitAnyPolicy5 subsubCA", noAny5sub, asserted(P1))], asserted(ANY))
test("Invalid inhibitAnyPolicy", [noAny1, authority("inhibitAnyPolicy1 subCAIAP5", noAny1, { policies: [P1], inhibitAnyPolicy: 5 })], asserted(ANY))
const noAny1self = selfIssued("inhibitAnyPolicy1 Self-Issued CA", noAny1, asserted(P1))
const noAny1sub2 = authority("inhibitAnyPolicy1 subCA2", noAny1self, asserted(ANY))
const noAny1path = [noAny1, noAny1self, noAny1sub2]
test("Valid Self-Issued inhibitAnyPolicy", noAny1path, same1)
test("Invalid Self-Issued inhibitAnyPolicy", [...noAny1path, authority("inhibitAnyPolicy1 subsubCA2", noAny1sub2, asserted(ANY))], same1)
test("Valid Self-Issued inhibitAnyPolicy", [...noAny1path, selfIssued("inhibitAnyPolicy1 Self-Issued subCA2", noAny1sub2, asserted(ANY))], same1)
test("Invalid Self-Issued inhibitAnyPolicy", noAny1path, { ...AUTHORITY, ...asserted(ANY), subject: noAny1sub2.subject })

begin("4.13")
const tree = (...units: readonly string[]): string => `C=US/O=Test Certificates${units.map((unit) => `/OU=${unit}`).join("")}`
const within = (place: string, name: string): Extra => ({ subject: distinguishedName(`${place}/CN=${name}`) })
const subtree1 = tree("permittedSubtree1")
const subtree2 = tree("permittedSubtree2")
const excluded1 = tree("excludedSubtree1")
const excluded2 = tree("excludedSubtree2")
const directories = (...places: readonly string[]): Buffer[] => places.map(general.directory)
const mail = (address: string): Extra => ({ alternativeNames: [general.mail(address)] })
const dn1 = authority("nameConstraints DN1 CA", root, { permitted: directories(subtree1) })
test("Valid DN nameConstraints", [dn1], within(subtree1, "1"))
test("Invalid DN nameConstraints", [dn1], within(excluded1, "2"))
test("Invalid DN nameConstraints", [dn1], { ...within(subtree1, "3"), alternativeNames: directories(`${excluded1}/CN=3`) })
test("Valid DN nameConstraints", [dn1], { ...within(subtree1, "4"), ...mail("4@testcertificates.gov") })
const dn2 = authority("nameConstraints DN2 CA", root, { permitted: directories(subtree1, subtree2) })
test("Valid DN nameConstraints", [dn2], { ...within(subtree1, "5"), alternativeNames: directories(`${subtree2}/CN=5`) })
const dn3 = authority("nameConstraints DN3 CA", root, { excluded: directories(excluded1) })
test("Valid DN nameConstraints", [dn3], within(subtree1, "6"))
test("Invalid DN nameConstraints", [dn3], within(excluded1, "7"))
const dn4 = authority("nameConstraints DN4 CA", root, { excluded: directories(excluded1, excluded2) })
test("Invalid DN nameConstraints", [dn4], within(excluded1, "8"))
test("Invalid DN nameConstraints", [dn4], within(excluded2, "9"))
const within1 = tree("permittedSubtree1", "excludedSubtree1")
const dn5 = authority("nameConstraints DN5 CA", root, { permitted: directories(subtree1), excluded: directories(within1) })
test("Invalid DN nameConstraints", [dn5], within(within1, "10"))
test("Valid DN nameConstraints", [dn5], within(subtree1, "11"))
const deeper = tree("permittedSubtree1", "permittedSubtree2")
const dn1sub1 = authority("nameConstraints DN1 subCA1", dn1, { ...within(subtree1, "subCA1"), permitted: directories(deeper) })
test("Invalid DN nameConstraints", [dn1, dn1sub1], within(subtree1, "12"))
const dn1sub2 = authority("nameConstraints DN1 subCA2", dn1, { ...within(subtree1, "subCA2"), permitted: directories(subtree2) })
test("Invalid DN nameConstraints", [dn1, dn1sub2], within(subtree1, "13"))
test("Valid DN nameConstraints", [dn1, dn1sub2], { subject: sequence(), ...mail("14@testcertificates.gov"), alternativeNamesCritical: true })
const dn3sub1 = authority("nameConstraints DN3 subCA1", dn3, { ...within(subtree1, "subCA1"), excluded: directories(excluded2) })
test("Invalid DN nameConstraints", [dn3, dn3sub1], within(excluded1, "15"))
test("Invalid DN nameConstraints", [dn3, dn3sub1], within(excluded2, "16"))
const dn3sub2 = authority("nameConstraints DN3 subCA2", dn3, { ...within(subtree1, "subCA2"), permitted: directories(tree()) })
test("Invalid DN nameConstraints", [dn3, dn3sub2], within(excluded1, "17"))
test("Valid DN nameConstraints", [dn3, dn3sub2], within(subtree1, "18"))
test("Valid Self-Issued DN nameConstraints", [dn1, selfIssued("nameConstraints DN1 Self-Issued CA", dn1)], within(subtree1, "19"))
test("Invalid Self-Issued DN nameConstraints", [dn1], { ...AUTHORITY, subject: dn1.subject })
const mail1 = authority("nameConstraints RFC822 CA1", root, { permitted: [general.mail(".testcertificates.gov")] })
test("Valid RFC822 nameConstraints", [mail1], mail("Test21EE@mailserver.testcertificates.gov"))
test("Invalid RFC822 nameConstraints", [mail1], mail("Test22EE@testcertificates.gov"))
const mail2 = authority("nameConstraints RFC822 CA2", root, { permitted: [general.mail("testcertificates.gov")] })
test("Valid RFC822 nameConstraints", [mail2], mail("Test23EE@testcertificates.gov"))
test("Invalid RFC822 nameConstraints", [mail2], mail("Test24EE@mailserver.testcertificates.gov"))
const mail3 = authority("nameConstraints RFC822 CA3", root, { excluded: [general.mail("testcertificates.gov")] })
test("Valid RFC822 nameConstraints", [mail3], mail("Test25EE@mailserver.testcertificates.gov"))
test("Invalid RFC822 nameConstraints", [mail3], mail("Test26EE@testcertificates.gov"))
const dn1sub3 = authority("nameConstraints DN1 subCA3", dn1, { ...within(subtree1, "subCA3"), permitted: [general.mail("testcertificates.gov")] })
test("Valid DN and RFC822 nameConstraints", [dn1, dn1sub3], { ...within(subtree1, "27"), ...mail("Test27EE@testcertificates.gov") })
test("Invalid DN and RFC822 nameConstraints", [dn1, dn1sub3], { ...within(subtree1, "28"), ...mail("Test28EE@invalidcertificates.gov") })
test("Invalid DN and RFC822 nameConstraints", [dn1, dn1sub3], {
  subject: distinguishedName(`${subtree1}/CN=29/emailAddress=Test29EE@invalidcertificates.gov`),
})
const host = (name: string): Extra => ({ alternativeNames: [general.dns(name)] })
const dns1 = authority("nameConstraints DNS1 CA", root, { permitted: [general.dns("testcertificates.gov")] })
test("Valid DNS nameConstraints", [dns1], host("testserver.testcertificates.gov"))
test("Invalid DNS nameConstraints", [dns1], host("testserver.invalidcertificates.gov"))
const dns2 = authority("nameConstraints DNS2 CA", root, { excluded: [general.dns("invalidcertificates.gov")] })
test("Valid DNS nameConstraints", [dns2], host("testserver.testcertificates.gov"))
test("Invalid DNS nameConstraints", [dns2], host("testserver.invalidcertificates.gov"))
const uri = (address: string): Extra => ({ alternativeNames: [general.uri(address)] })
const uri1 = authority("nameConstraints URI1 CA", root, { permitted: [general.uri(".testcertificates.gov")] })
test("Valid URI nameConstraints", [uri1], uri("http://testserver.testcertificates.gov/index.html"))
test("Invalid URI nameConstraints", [uri1], uri("http://testcertificates.gov/invalid.html"))
const uri2 = authority("nameConstraints URI2 CA", root, { excluded: [general.uri("invalidcertificates.gov")] })
test("Valid URI nameConstraints", [uri2], uri("http://testserver.invalidcertificates.gov/index.html"))
test("Invalid URI nameConstraints", [uri2], uri("ftp://invalidcertificates.gov:21/test37/"))
test("Invalid DNS nameConstraints", [dns1], host("mytestcertificates.gov"))

/** Sections whose paths are good, and whose CRLs decide. */
function byRevocation(name: string, title: string, verdicts: string): void {
  begin(name)
  for (const verdict of verdicts)
    test(`${verdict === "V" ? "Valid" : "Invalid"} ${title}`, [good], distributionPoint, verdict === "V" ? undefined : REVOCATION)
}
byRevocation("4.14", "distributionPoint", "VIIVVIVIIVIIVVIIIVVIIVIVVIIVVVIIVII")
byRevocation("4.15", "delta-CRL", "IVIIVIVVII")

begin("4.16")
const unknown = (critical: boolean): Extra => ({ more: [extension("2.16.840.1.101.2.1.12.2", implicit(0, Buffer.of(1)), critical)] })
test("Valid Unknown Not Critical Certificate Extension", [], unknown(false))
test("Invalid Unknown Critical Certificate Extension", [], unknown(true))

const file = path.join(import.meta.dirname, "pkits.json.gz")
writeFileSync(file, gzipSync(JSON.stringify({ root: root.file, tests, certificates }), { level: 9 }))
