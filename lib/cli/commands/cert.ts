import path from "node:path"
import { InvalidArgumentError } from "commander"
import { certificate, forbidDumps } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { interruption } from "../interrupt.ts"
import { columns, jsonRow, print, printJson, printResult } from "../output.ts"
import { ask, askTwice, passwordFd, passwordFile, passwordSource } from "../passwords.ts"
import { inform, notice, printable } from "../terminal.ts"
import { count, DAYS, duration, flag, text } from "../values.ts"

/** What the API says of a value, in the words of the command line. */
function checked<T>(check: (text: string) => T): (text: string) => T {
  return (text) => {
    try {
      return check(text)
    } catch (error) {
      if (error instanceof RangeError) throw new InvalidArgumentError(`${error.message}.`)
      throw error
    }
  }
}

const subject = checked((text) => {
  certificate.checkCommonName(text)
  return text
})
const thumbprint = checked(certificate.parseThumbprint)

function factsText(facts: certificate.CertificateFacts): string {
  const { notBefore, notAfter } = facts
  const name = (text: string): string => printable(text.split("\n").join(", "))
  const date = (time: Date): string => time.toISOString().replace(/\.\d+Z$/, "Z")
  const now = new Date()
  const note = notAfter < now ? " (expired)" : notBefore > now ? " (not yet)" : ""
  return [
    `Subject:  ${name(facts.subject)}`,
    `Issuer:   ${name(facts.issuer)}`,
    `Serial:   ${facts.serial}`,
    `Valid:    ${date(notBefore)} to ${date(notAfter)}${note}`,
    `Key:      ${facts.keyType}${facts.modulusBits === 0 ? "" : `, ${facts.modulusBits} bits`}`,
    `SHA-1:    ${facts.sha1}`,
    `SHA-256:  ${facts.sha256}`,
    "",
  ].join("\n")
}

const create = command({
  name: "create",
  examples: [["key.pfx, key-public.pem and key-public-pkcs1.pem", "sifcrypt cert create --file-prefix key"]],
  summary: "make an RSA key pair with a certificate",
  description:
    "Makes an RSA key pair: P-public.pem (SPKI) and P-public-pkcs1.pem (PKCS#1, which Apptainer and Singularity " +
    "read) to build images with, and P.pfx (PKCS#12, under a password) with the private key and a self-signed " +
    "certificate to open them with. All three files appear, or none.",
  options: {
    filePrefix: ["--file-prefix <p>", "what the names of the files begin with", text, { required: true }],
    bits: ["--bits <n>", "size of the modulus (default 4096)", count(...certificate.limits.bits)],
    commonName: ["--subject <cn>", "common name in the certificate (default: the prefix)", subject],
    days: [
      "--days <n>",
      "how long the certificate is valid (default 365)",
      duration(DAYS, ...certificate.limits.days, DAYS.worth),
    ],
    legacy: ["--legacy", "encrypt P.pfx with 3DES and SHA-1, for readers from before 2019", flag],
    force: ["-F, --force", "replace existing files", flag],
    json: jsonRow,
    passwordFile: passwordFile("password", "P.pfx"),
    passwordFd: passwordFd("password", "P.pfx", "passwordFile"),
  },
  run: async (flags, _, command) => {
    forbidDumps()
    const { filePrefix, bits, days, legacy, force } = flags
    const commonName = flags.commonName ?? path.basename(filePrefix)
    try {
      certificate.checkCommonName(commonName)
    } catch (error) {
      if (!(error instanceof RangeError)) throw error
      command.error(`error: --subject is needed: ${error.message}`)
    }
    const result = await certificate.create({
      ...{ filePrefix, commonName, bits, legacy, force },
      password: passwordSource(flags.passwordFile, flags.passwordFd, askTwice),
      signal: interruption,
      days: days === undefined ? undefined : days / DAYS.worth,
    })
    if (flags.json === true) await print(`${JSON.stringify(result)}\n`)
    else
      await print(
        `Wrote:    ${[result.publicKey, result.publicKeyPkcs1, result.pfx].map(printable).join(", ")}\n` +
          factsText(result.certificate),
      )
  },
})

const info = command({
  name: "info",
  examples: [["of a key file under a password", "sifcrypt cert info key.pfx"]],
  summary: "what the certificates in a file say",
  description:
    "Shows subject, validity, key size and thumbprints of the certificates in a PEM, DER or PKCS#12 file. The " +
    "thumbprints are those that `openssl x509 -fingerprint` prints.",
  arguments: [["<file>", "PEM, DER or PKCS#12"]],
  options: {
    thumbprint: [
      "--thumbprint <hex>",
      "show the one that has it: SHA-256, or SHA-1 if only one has that",
      thumbprint,
    ],
    json: jsonRow,
    passwordFile: passwordFile("password", "a PKCS#12 file"),
    passwordFd: passwordFd("password", "a PKCS#12 file", "passwordFile"),
  },
  run: async ({ thumbprint, json, ...flags }, [file]) => {
    forbidDumps()
    const found = await certificate.info(file, {
      signal: interruption,
      password: passwordSource(flags.passwordFile, flags.passwordFd, ask),
      thumbprint,
    })
    await print(json === true ? `${JSON.stringify(found, null, 2)}\n` : found.map(factsText).join("\n"))
  },
})

const convert = command({
  name: "convert",
  examples: [["a private key, under a new password", "sifcrypt cert convert --to pkcs8 key.pfx key.pem"]],
  summary: "write a key in another form",
  description:
    "Writes the key in INPUT to OUTPUT in another form. A private key is written under a password that is asked " +
    "for, or in the clear with --plain; its file is readable by its owner only.",
  arguments: [
    ["<input>", "a key file of any form"],
    ["<output>", "the file to write"],
  ],
  options: {
    to: [
      "--to <form>",
      "pkcs1, pkcs8 (SPKI for a public key), pem (with certificates) or pfx",
      certificate.forms,
      { required: true },
    ],
    plain: ["--plain", "write a private key without a password", flag],
    certificateFile: ["--certificate <file>", "certificate for pfx, where INPUT has none", text],
    legacy: ["--legacy", "encrypt a pfx with 3DES and SHA-1, for readers from before 2019", flag],
    force: ["-F, --force", "replace an existing output", flag],
    json: jsonRow,
    newPasswordFile: passwordFile("new-password", "OUTPUT"),
    newPasswordFd: passwordFd("new-password", "OUTPUT", "newPasswordFile"),
    passwordFile: passwordFile("password", "INPUT"),
    passwordFd: passwordFd("password", "INPUT", "passwordFile"),
  },
  run: async (flags, [input, output], command) => {
    forbidDumps()
    const { to, plain, legacy, force, certificateFile } = flags
    if (to === "pfx" && plain === true) command.error("error: a pfx is always under a password, not --plain")
    const result = await certificate.convert({
      ...{ input, output, to, plain, legacy, force, certificateFile },
      signal: interruption,
      password: passwordSource(flags.passwordFile, flags.passwordFd, ask),
      newPassword: passwordSource(flags.newPasswordFile, flags.newPasswordFd, askTwice),
    })
    if (result.key === "private" && plain === true)
      notice(`${printable(output)} holds a private key that nothing protects`)
    if (flags.json === true) await print(`${JSON.stringify(result)}\n`)
  },
})

/** One line for each. */
function storedLines(stored: readonly certificate.StoredCertificate[]): string[] {
  const plain = (thumbprint: string): string => thumbprint.replaceAll(":", "").toLowerCase()
  const rows = stored.map(({ sha256, sha1, notAfter, subject }) => [
    plain(sha256),
    plain(sha1),
    notAfter.toISOString().slice(0, 10),
    subject.split("\n").join(", "),
  ])
  return columns([["SHA-256", "SHA-1", "UNTIL", "SUBJECT"], ...rows])
}

const add = command({
  name: "add",
  examples: [["where batch submit finds it", "sifcrypt cert add key.pfx"]],
  summary: "keep a key with its certificate for batch jobs",
  description:
    "Puts a PKCS#12 file into your certificate store, where `batch submit` finds the keys of encrypted images. It stays under " +
    "its password there. Prints the certificate's SHA-256 thumbprint.",
  arguments: [["<file>", "PKCS#12, as `cert create` makes it"]],
  options: {
    json: jsonRow,
    passwordFile: passwordFile("password", "FILE"),
    passwordFd: passwordFd("password", "FILE", "passwordFile"),
  },
  run: async ({ json, ...flags }, [file]) => {
    forbidDumps()
    const password = passwordSource(flags.passwordFile, flags.passwordFd, ask)
    const stored = await certificate.add({ file, password })
    await printResult({ json }, stored, ({ sha256 }) => [sha256.replaceAll(":", "").toLowerCase()])
    if (!stored.added) inform(`${printable(file)}: the store has this certificate already`)
  },
})

const list = command({
  name: "list",
  examples: [["with the thumbprints", "sifcrypt cert list"]],
  summary: "the keys that are kept for batch jobs",
  description: "Lists your certificate store with the thumbprints. No password is asked for.",
  options: { json: jsonRow },
  run: async (flags) => {
    await printResult(flags, await certificate.listStored(), storedLines)
  },
})

const del = command({
  name: "del",
  examples: [
    ["by the thumbprint that list shows", "sifcrypt cert del 0123456789ABCDEF0123456789ABCDEF01234567"],
  ],
  summary: "forget keys",
  description:
    "Takes certificates with their keys out of your certificate store: all that are named, or none.",
  arguments: [["<thumbprint...>", "SHA-256, or SHA-1 if only one has that"]],
  options: { json: jsonRow },
  run: async ({ json }, [thumbprints]) => {
    const removed = await certificate.remove(thumbprints.map((one) => thumbprint(one)))
    if (json === true) await printJson(removed)
  },
})

export const cert: CommandRow = {
  name: "cert",
  heading: "Signatures",
  summary: "make, show, convert and keep keys and certificates",
  description:
    "Makes key pairs with certificates, shows what certificates say, converts key files, and keeps those for batch jobs.",
  commands: [create, info, convert, add, list, del],
}
