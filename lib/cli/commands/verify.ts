import { InvalidArgumentError, type Command } from "commander"
import { sif, verify, type SignatureReport, type SignersRequired } from "../../index.ts"
import { exitCodes } from "../exit-codes.ts"
import { interruption } from "../interrupt.ts"
import { print } from "../output.ts"
import { collect, keyringPaths, requiredSigners } from "../signers.ts"
import { notice, printable, Progress } from "../terminal.ts"

interface VerifyFlags {
  readonly key?: string[]
  readonly keyring?: string[]
  readonly groupId?: number[]
  readonly sifId?: number[]
  readonly require?: string[]
  readonly json?: true
}

function parseId(text: string, earlier: number[] | undefined): number[] {
  const value = /^\d{1,9}$/.test(text) ? Number(text) : 0
  if (value < 1) throw new InvalidArgumentError("It is a positive number.")
  return [...(earlier ?? []), value]
}

function required(flags: VerifyFlags, command: Command): SignersRequired {
  const { require: wanted = ["any"] } = flags
  const [only] = wanted
  if (wanted.length === 1 && (only === "any" || only === "all")) return only
  if (wanted.includes("any") || wanted.includes("all"))
    command.error("error: --require is any, all, or fingerprints")
  return requiredSigners(wanted)
}

function signatureLines(report: SignatureReport): string[] {
  const { id, kind, group, signer, time, status, failures } = report
  const when = time === undefined ? "" : `, ${time.toISOString()}`
  return [
    `Signature ${id} (${kind}) of group ${group}: ${status === "valid" ? "good" : status}${when}`,
    ...(signer === undefined ? [] : [`  Fingerprint: ${signer}`]),
    ...failures.map(({ object, reason }) => `  ${object === undefined ? "" : `object ${object}: `}${reason}`),
  ]
}

export function addVerifyCommand(program: Command): void {
  const command = program
    .command("verify")
    .summary("verify the signatures of an image")
    .description(
      "Verifies the signatures of IMAGE (OpenPGP and DSSE): who signed it, and that it was not changed since. Everything in the " +
        "image must be signed, and at least one signer's key must be known: from --key, --keyring, or the key rings that Apptainer " +
        "and Singularity keep for you. Signatures from before Singularity 3.6 protect data only and count for nothing.",
    )
    .argument("<image>", "the image to verify")
    .option("--key <file>", "public key of a signer, PEM (repeatable)", collect)
    .option("--keyring <file>", "OpenPGP public keys of signers (repeatable)", collect)
    .option("-g, --group-id <group>", "verify this group only (repeatable)", parseId)
    .option("-i, --sif-id <id>", "verify this object only (repeatable)", parseId)
    .option(
      "--require <signers>",
      "any (default): a known signer; all: nobody else has signed; or a fingerprint (repeatable)",
      collect,
    )
    .option("--json", "print the report as JSON")
  command.action(async (image: string, flags: VerifyFlags) => {
    if (flags.groupId !== undefined && flags.sifId !== undefined)
      command.error("error: --group-id and --sif-id exclude each other")
    const progress = new Progress(`verifying ${image}`)
    const report = await verify(image, {
      keyPaths: flags.key ?? [],
      keyringPaths: keyringPaths(flags.keyring),
      require: required(flags, command),
      signal: interruption,
      onProgress: (bytes) => {
        progress.update(bytes)
      },
      ...(flags.groupId === undefined ? {} : { groups: flags.groupId }),
      ...(flags.sifId === undefined ? {} : { objects: flags.sifId }),
    }).finally(() => {
      progress.done()
    })
    if (!report.verified) process.exitCode = exitCodes.signature
    if (flags.json === true) {
      await print(`${JSON.stringify(report)}\n`)
      return
    }
    const lines = report.signatures.flatMap(signatureLines)
    if (report.verified) {
      await using opened = await sif.openSif(image)
      const covered = new Set(report.signatures.flatMap(({ objects }) => objects))
      const types = new Map(sif.listJson(opened).map(({ id, type }) => [id, type]))
      lines.push(
        "Objects verified:",
        ...[...covered].sort((a, b) => a - b).map((id) => `  ${id} ${types.get(id) ?? ""}`),
      )
    }
    if (lines.length > 0) await print(`${lines.map(printable).join("\n")}\n`)
    if (report.verified)
      await print(`Verified: ${printable(image)} is signed by ${report.signers.join(", ")}\n`)
    else
      for (const { object, reason } of report.failures)
        notice(printable(`not verified: ${object === undefined ? "" : `object ${object}: `}${reason}`))
  })
}
