import path from "node:path"
import { InvalidArgumentError, Option, type Command } from "commander"
import { certificate, forbidDumps } from "../../index.ts"
import { interruption } from "../interrupt.ts"
import { print } from "../output.ts"
import { addPasswordOptions, ask, askTwice, passwordSource } from "../passwords.ts"
import { notice, printable } from "../terminal.ts"
import { count, DAYS, duration } from "../values.ts"

interface PasswordFlags {
  readonly passwordFile?: string
  readonly passwordFd?: number
}

interface CreateFlags extends PasswordFlags {
  readonly filePrefix: string
  readonly bits?: number
  readonly subject?: string
  /** Milliseconds. */
  readonly days?: number
  readonly legacy?: true
  readonly force?: true
  readonly json?: true
}

interface InfoFlags extends PasswordFlags {
  readonly thumbprint?: string
  readonly json?: true
}

interface ConvertFlags extends PasswordFlags {
  readonly to: certificate.Form
  readonly plain?: true
  readonly certificate?: string
  readonly newPasswordFile?: string
  readonly newPasswordFd?: number
  readonly legacy?: true
  readonly force?: true
  readonly json?: true
}

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

function subject(text: string): string {
  certificate.checkCommonName(text)
  return text
}

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

function addCreate(cert: Command): void {
  const command = cert
    .command("create")
    .summary("make an RSA key pair with a certificate")
    .description(
      "Makes an RSA key pair: P-public.pem (SPKI) and P-public-pkcs1.pem (PKCS#1, which Apptainer and Singularity " +
        "read) to build images with, and P.pfx (PKCS#12, under a password) with the private key and a self-signed " +
        "certificate to open them with. All three files appear, or none.",
    )
    .requiredOption("--file-prefix <p>", "what the names of the files begin with")
    .option("--bits <n>", "size of the modulus (default 4096)", count(...certificate.limits.bits))
    .option("--subject <cn>", "common name in the certificate (default: the prefix)", checked(subject))
    .option(
      "--days <n>",
      "how long the certificate is valid (default 365)",
      duration(DAYS, ...certificate.limits.days, DAYS.worth),
    )
    .option("--legacy", "encrypt P.pfx with 3DES and SHA-1, for readers from before 2019")
    .option("-F, --force", "replace existing files")
    .option("--json", "print the result as JSON")
  addPasswordOptions(command, "password", "P.pfx").action(async (flags: CreateFlags) => {
    forbidDumps()
    const { filePrefix, bits, days } = flags
    const commonName = flags.subject ?? path.basename(filePrefix)
    try {
      certificate.checkCommonName(commonName)
    } catch (error) {
      if (!(error instanceof RangeError)) throw error
      command.error(`error: --subject is needed: ${error.message}`)
    }
    const result = await certificate.create({
      filePrefix,
      commonName,
      password: passwordSource(flags.passwordFile, flags.passwordFd, askTwice),
      legacy: flags.legacy === true,
      force: flags.force === true,
      signal: interruption,
      bits,
      days: days === undefined ? undefined : days / DAYS.worth,
    })
    if (flags.json === true) await print(`${JSON.stringify(result)}\n`)
    else
      await print(
        `Wrote:    ${[result.publicKey, result.publicKeyPkcs1, result.pfx].map(printable).join(", ")}\n` +
          factsText(result.certificate),
      )
  })
}

function addInfo(cert: Command): void {
  const command = cert
    .command("info")
    .summary("what the certificates in a file say")
    .description(
      "Shows subject, validity, key size and thumbprints of the certificates in a PEM, DER or PKCS#12 file. The " +
        "thumbprints are those that `openssl x509 -fingerprint` prints.",
    )
    .argument("<file>", "PEM, DER or PKCS#12")
    .option(
      "--thumbprint <hex>",
      "show the one that has it: SHA-256, or SHA-1 if only one has that",
      checked(certificate.parseThumbprint),
    )
    .option("--json", "print JSON")
  addPasswordOptions(command, "password", "a PKCS#12 file").action(async (file: string, flags: InfoFlags) => {
    forbidDumps()
    const { thumbprint } = flags
    const found = await certificate.info(file, {
      signal: interruption,
      password: passwordSource(flags.passwordFile, flags.passwordFd, ask),
      thumbprint,
    })
    await print(flags.json === true ? `${JSON.stringify(found, null, 2)}\n` : found.map(factsText).join("\n"))
  })
}

function addConvert(cert: Command): void {
  const command = cert
    .command("convert")
    .summary("write a key in another form")
    .description(
      "Writes the key in INPUT to OUTPUT in another form. A private key is written under a password that is asked " +
        "for, or in the clear with --plain; its file is readable by its owner only.",
    )
    .argument("<input>", "a key file of any form")
    .argument("<output>", "the file to write")
    .addOption(
      new Option("--to <form>", "pkcs1, pkcs8 (SPKI for a public key), pem (with certificates) or pfx")
        .choices(certificate.forms)
        .makeOptionMandatory(),
    )
    .option("--plain", "write a private key without a password")
    .option("--certificate <file>", "certificate for pfx, where INPUT has none")
    .option("--legacy", "encrypt a pfx with 3DES and SHA-1, for readers from before 2019")
    .option("-F, --force", "replace an existing output")
    .option("--json", "print the result as JSON")
  addPasswordOptions(command, "new-password", "OUTPUT")
  addPasswordOptions(command, "password", "INPUT").action(
    async (input: string, output: string, flags: ConvertFlags) => {
      forbidDumps()
      const { to } = flags
      if (to === "pfx" && flags.plain === true)
        command.error("error: a pfx is always under a password, not --plain")
      const result = await certificate.convert({
        signal: interruption,
        input,
        output,
        to,
        password: passwordSource(flags.passwordFile, flags.passwordFd, ask),
        newPassword: passwordSource(flags.newPasswordFile, flags.newPasswordFd, askTwice),
        plain: flags.plain === true,
        legacy: flags.legacy === true,
        force: flags.force === true,
        certificateFile: flags.certificate,
      })
      if (result.key === "private" && flags.plain === true)
        notice(`${printable(output)} holds a private key that nothing protects`)
      if (flags.json === true) await print(`${JSON.stringify(result)}\n`)
    },
  )
}

export function addCertCommands(program: Command): void {
  const command = program
    .command("cert")
    .summary("make, show and convert keys and certificates")
    .description("Makes key pairs with certificates, shows what certificates say, and converts key files.")
  addCreate(command)
  addInfo(command)
  addConvert(command)
}
