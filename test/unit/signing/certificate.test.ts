// Chains of certificates that OpenSSL made: which lead to a signer's key, and which do not and why.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { createPrivateKey, X509Certificate } from "node:crypto"
import { readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { openSif } from "../../../lib/sif/open.ts"
import { certifiedKey, type SignerCertificate } from "../../../lib/signing/certificate.ts"
import { verifySif } from "../../../lib/signing/verify.ts"
import { openssl } from "../../support/openssl.ts"
import { newFolder } from "../../support/scratch.ts"
import { envelope, metadataOf } from "../../support/signing.ts"
import { vector, vectorPath } from "../../vectors/load.ts"

const CA = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign"
const SIGNER = "keyUsage=critical,digitalSignature\nextendedKeyUsage=codeSigning"

describe("certifiedKey", () => {
  let folder: string
  const file = (name: string): string => path.join(folder, `${name}.pem`)

  interface Made {
    readonly issuer?: string
    readonly extensions: string
    readonly algorithm?: readonly string[]
    readonly digest?: string
    readonly padding?: "pss"
    /** From and to, as openssl x509 and ca have them: YYYYMMDDHHMMSSZ. */
    readonly dates?: readonly [string, string]
  }

  /** A certificate and its key in files of that name. */
  function make(name: string, made: Made): void {
    const {
      issuer = name,
      extensions,
      algorithm = ["EC", "ec_paramgen_curve:P-256"],
      digest = "sha256",
    } = made
    const [kind = "", ...options] = algorithm
    const settings = options.flatMap((option) => ["-pkeyopt", option])
    writeFileSync(`${file(name)}.key`, openssl(["genpkey", "-algorithm", kind, ...settings]), { mode: 0o600 })
    writeFileSync(`${file(name)}.ext`, extensions)
    const request = path.join(folder, `${name}.csr`)
    openssl(["req", "-new", "-key", `${file(name)}.key`, "-subj", `/O=Test/CN=${name}`, "-out", request])
    // openssl ca is the one that dates certificates at will.
    const [from, to] = made.dates ?? ["20200101000000Z", "21200101000000Z"]
    const database = path.join(folder, `${name}.db`)
    writeFileSync(database, "")
    writeFileSync(
      path.join(folder, "ca.cnf"),
      `[ca]\ndefault_ca=c\n[c]\ndatabase=${database}\nnew_certs_dir=${folder}\nrand_serial=yes\npolicy=p\n` +
        "default_md=sha256\nunique_subject=no\n[p]\norganizationName=optional\ncommonName=supplied\n",
    )
    const by = issuer === name ? ["-selfsign"] : ["-cert", file(issuer)]
    const key = ["-keyfile", `${file(issuer)}.key`, "-md", digest === "ed25519" ? "default" : digest]
    const padding = made.padding === undefined ? [] : ["-sigopt", `rsa_padding_mode:${made.padding}`]
    openssl([
      ...["ca", "-batch", "-notext", "-config", path.join(folder, "ca.cnf"), ...by, ...key, ...padding],
      ...["-startdate", from, "-enddate", to, "-extfile", `${file(name)}.ext`],
      ...["-in", request, "-out", file(name)],
    ])
  }

  function chain(
    leaf: string,
    intermediates: readonly string[] = ["middle"],
    root = "root",
  ): SignerCertificate {
    return {
      certificate: file(leaf),
      intermediates: Buffer.concat(intermediates.map((name) => readFileSync(file(name)))),
      roots: file(root),
    }
  }

  before(function () {
    this.timeout(60_000)
    folder = newFolder("certificates")
    const rsa = ["RSA", "rsa_keygen_bits:2048"]
    make("root", { extensions: CA })
    make("other-root", { extensions: CA })
    make("middle", { issuer: "root", extensions: CA })
    make("leaf", { issuer: "middle", extensions: SIGNER })
    make("rsa-leaf", { issuer: "middle", extensions: SIGNER, algorithm: rsa })
    make("ed25519-leaf", { issuer: "middle", extensions: SIGNER, algorithm: ["ED25519"] })
    make("direct", { issuer: "root", extensions: SIGNER })
    make("self", { extensions: SIGNER })
    make("any-usage", { issuer: "middle", extensions: "extendedKeyUsage=anyExtendedKeyUsage" })
    make("expired", { issuer: "middle", extensions: SIGNER, dates: ["20200101000000Z", "20210101000000Z"] })
    make("future", { issuer: "middle", extensions: SIGNER, dates: ["21000101000000Z", "21200101000000Z"] })
    make("server", { issuer: "middle", extensions: "extendedKeyUsage=serverAuth" })
    make("no-usage", { issuer: "middle", extensions: "keyUsage=digitalSignature" })
    make("encipher", {
      issuer: "middle",
      extensions: "keyUsage=keyEncipherment\nextendedKeyUsage=codeSigning",
    })
    make("weak", { issuer: "middle", extensions: SIGNER, algorithm: ["RSA", "rsa_keygen_bits:1024"] })
    make("sha1", { issuer: "middle", extensions: SIGNER, digest: "sha1" })
    make("rsa-middle", { issuer: "root", extensions: CA, algorithm: rsa })
    make("pss", { issuer: "rsa-middle", extensions: SIGNER, padding: "pss" })
    make("pss-sha1", { issuer: "rsa-middle", extensions: SIGNER, digest: "sha1", padding: "pss" })
    make("critical", { issuer: "middle", extensions: `${SIGNER}\n1.2.3.4=critical,ASN1:UTF8String:x` })
    make("below-leaf", { issuer: "leaf", extensions: SIGNER })
    make("below-any", { issuer: "any-usage", extensions: SIGNER })
    make("server-middle", { issuer: "root", extensions: `${CA}\nextendedKeyUsage=serverAuth` })
    make("below-server", { issuer: "server-middle", extensions: SIGNER })
    make("signless-middle", {
      issuer: "root",
      extensions: "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,cRLSign",
    })
    make("below-signless", { issuer: "signless-middle", extensions: SIGNER })
    make("last-middle", { issuer: "root", extensions: CA.replace("CA:TRUE", "CA:TRUE,pathlen:0") })
    make("below-last", { issuer: "last-middle", extensions: SIGNER })
    make("extra-middle", { issuer: "last-middle", extensions: CA })
    make("below-extra", { issuer: "extra-middle", extensions: SIGNER })
    make("named-middle", {
      issuer: "root",
      extensions: `${CA}\nnameConstraints=critical,permitted;DNS:example.org`,
    })
    make("below-named", {
      issuer: "named-middle",
      extensions: `${SIGNER}\nsubjectAltName=DNS:a.example.org`,
    })
    make("misnamed", { issuer: "named-middle", extensions: `${SIGNER}\nsubjectAltName=DNS:example.net` })
    make("old-middle", { issuer: "root", extensions: CA, dates: ["20200101000000Z", "20210101000000Z"] })
    make("below-old", { issuer: "old-middle", extensions: SIGNER })
  })

  const good: readonly (readonly [string, string, () => SignerCertificate])[] = [
    ["through an intermediate", "leaf", () => chain("leaf")],
    ["of an RSA key", "rsa-leaf", () => chain("rsa-leaf")],
    ["signed with RSA-PSS", "pss", () => chain("pss", ["rsa-middle"])],
    ["of an Ed25519 key", "ed25519-leaf", () => chain("ed25519-leaf")],
    ["directly from the root", "direct", () => chain("direct", ["middle"])],
    ["of a certificate that is trusted itself", "self", () => chain("self", ["middle"], "self")],
    ["for any usage", "any-usage", () => chain("any-usage")],
    ["below the last intermediate that is allowed", "below-last", () => chain("below-last", ["last-middle"])],
    ["of names that its issuer may certify", "below-named", () => chain("below-named", ["named-middle"])],
    [
      "among others that do not matter",
      "leaf",
      () => chain("leaf", ["old-middle", "server-middle", "middle"]),
    ],
    [
      "in one file",
      "leaf",
      () => ({
        certificate: Buffer.concat([readFileSync(file("leaf")), readFileSync(file("middle"))]),
        roots: file("root"),
      }),
    ],
    [
      "as DER",
      "direct",
      () => ({
        certificate: new X509Certificate(readFileSync(file("direct"))).raw,
        roots: new X509Certificate(readFileSync(file("root"))).raw,
      }),
    ],
  ]
  for (const [what, name, given] of good)
    it(`A28: follows a chain ${what}, as OpenSSL does`, async () => {
      const { key, subject } = await certifiedKey(given())
      assert.equal(subject, `O=Test, CN=${name}`)
      assert.ok(key.equals(new X509Certificate(readFileSync(file(name))).publicKey))
    })

  const bad: readonly (readonly [string, () => SignerCertificate, RegExp])[] = [
    ["without its intermediate", () => chain("leaf", ["server-middle"]), /no chain leads to a root/],
    ["to a root that is not trusted", () => chain("leaf", ["middle"], "other-root"), /no chain leads to a root/],
    ["whose root is only an intermediate", () => chain("leaf", ["middle", "root"], "other-root"), /no chain leads/],
    ["of a self-signed certificate", () => chain("self"), /no chain leads to a root/],
    ["that has expired", () => chain("expired"), /it has expired/],
    ["that is not valid yet", () => chain("future"), /it is not valid yet/],
    ["of a server's certificate", () => chain("server"), /it is not for signing code/],
    ["without a usage", () => chain("no-usage"), /it is not for signing code/],
    ["of a key that is not for signatures", () => chain("encipher"), /its key is not for signatures/],
    ["of a weak key", () => chain("weak"), /RSA key that is too weak/],
    ["S4: signed with SHA-1", () => chain("sha1"), /algorithm 1\.2\.840\.10045\.4\.1, which is not accepted/],
    ["S4: signed with SHA-1 in RSA-PSS", () => chain("pss-sha1", ["rsa-middle"]), /algorithm 1\.2\.840\.113549\.1\.1\.10, with parameters that are not accepted/],
    ["with an unknown critical extension", () => chain("critical"), /critical extension 1\.2\.3\.4/],
    ["by one who is no authority", () => chain("below-leaf", ["leaf", "middle"]), /CN=leaf is no authority/],
    ["by one without usages who is no authority", () => chain("below-any", ["any-usage", "middle"]), /CN=any-usage is no authority/],
    ["by an authority for servers", () => chain("below-server", ["server-middle"]), /CN=server-middle is not for signing code/],
    ["by an authority that signs none", () => chain("below-signless", ["signless-middle"]), /CN=signless-middle signs no certificates/],
    ["longer than allowed", () => chain("below-extra", ["extra-middle", "last-middle"]), /CN=extra-middle is one authority too many/],
    ["of a name that its issuer may not certify", () => chain("misnamed", ["named-middle"]), /CN=misnamed has a name that/],
    ["by an authority that has expired", () => chain("below-old", ["old-middle"]), /CN=old-middle has expired/],
  ] // prettier-ignore
  for (const [what, given, message] of bad)
    it(`A28: refuses a chain ${what}`, async () => {
      await assert.rejects(certifiedKey(given()), { code: "ERR_SIGNATURE_CERTIFICATE", message })
    })

  it("does not accept what was changed in a certificate", async () => {
    const changed = Buffer.from(new X509Certificate(readFileSync(file("direct"))).raw)
    const at = changed.indexOf("direct")
    changed.write("dIrect", at)
    await assert.rejects(certifiedKey({ certificate: changed, roots: file("root") }), {
      code: "ERR_SIGNATURE_CERTIFICATE",
    })
  })

  it("names files that hold no certificate, or are not there", async () => {
    await assert.rejects(certifiedKey({ certificate: `${file("leaf")}.key` }), {
      code: "ERR_SIGNATURE_CERTIFICATE",
      message: /leaf\.pem\.key: there is no certificate/,
    })
    await assert.rejects(certifiedKey({ certificate: "/nonexistent" }), { code: "ERR_SIGNATURE_KEYRING" })
  })

  it("ends soon among many authorities of one name", async () => {
    const twins = Array.from({ length: 300 }, () => readFileSync(file("old-middle")))
    const given = { certificate: file("below-old"), intermediates: Buffer.concat(twins), roots: file("root") }
    await assert.rejects(certifiedKey(given), { code: "ERR_SIGNATURE_CERTIFICATE" })
  })

  it("takes as much from a program as from a file, and no more than so much for all certificates together", async () => {
    const padded = Buffer.alloc(8 << 20, "\n")
    readFileSync(file("direct")).copy(padded)
    const given: SignerCertificate = { certificate: padded, roots: file("root") }
    await certifiedKey(given)
    await assert.rejects(certifiedKey({ ...given, certificate: Buffer.concat([padded, Buffer.of(0x0a)]) }), {
      code: "ERR_SIGNATURE_CERTIFICATE",
      message: /more than 8388608 bytes/,
    })
    await using image = await openSif(vectorPath("sif/one-group-signed-dsse.sif"))
    await assert.rejects(verifySif(image, { certificates: Array<SignerCertificate>(9).fill(given) }), {
      code: "ERR_SIGNATURE_CERTIFICATE",
      message: /more than 67108864 bytes/,
    })
  })

  it("agrees with openssl verify on what is good and what is not", () => {
    const verdict = (leaf: string, ...between: readonly string[]): boolean => {
      const untrusted = between.flatMap((name) => ["-untrusted", file(name)])
      try {
        execFileSync(
          "openssl",
          ["verify", "-purpose", "any", "-CAfile", file("root"), ...untrusted, file(leaf)],
          { stdio: "ignore" },
        )
        return true
      } catch {
        return false
      }
    }
    assert.equal(verdict("leaf", "middle"), true)
    assert.equal(verdict("below-last", "last-middle"), true)
    assert.equal(verdict("below-extra", "extra-middle", "last-middle"), false)
    assert.equal(verdict("below-leaf", "leaf", "middle"), false)
    assert.equal(verdict("below-old", "old-middle"), false)
  })

  it("A28: an image that its key signed verifies with the certificate alone", async () => {
    const key = createPrivateKey(readFileSync(`${file("leaf")}.key`))
    const image = vector("sif/one-group-signed-dsse.sif")
    const at = 4096 + 2 * 585
    const data = envelope(metadataOf(image, [1, 2]), key)
    const signed = Buffer.concat([image.subarray(0, Number(image.readBigInt64LE(at + 17))), data])
    signed.writeBigInt64LE(BigInt(data.length), at + 25)
    await using sif = await openSif(signed)
    const report = await verifySif(sif, { certificates: [chain("leaf")] })
    assert.equal(report.verified, true)
    assert.equal(report.signatures[0]?.name, "O=Test, CN=leaf")
    await assert.rejects(verifySif(sif, { certificates: [chain("leaf", ["middle"], "other-root")] }), {
      code: "ERR_SIGNATURE_CERTIFICATE",
    })
  })
})
