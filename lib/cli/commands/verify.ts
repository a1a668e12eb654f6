import type { Command } from "commander"
import * as api from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { exitCodes } from "../exit-codes.ts"
import { interruption } from "../interrupt.ts"
import { print, printLines } from "../output.ts"
import { ids, keyringPaths, keyServerOption, requiredSigners } from "../signers.ts"
import { keepHeapSmall } from "../small-heap.ts"
import { progressRow, withProgress } from "../progress.ts"
import { notice } from "../terminal.ts"
import { each, flag, text } from "../values.ts"

function required(wanted: readonly string[] = ["any"], command: Command): api.SignersRequired {
  const [only] = wanted
  if (wanted.length === 1 && (only === "any" || only === "all")) return only
  if (wanted.includes("any") || wanted.includes("all"))
    command.error("error: --require is any, all, or fingerprints")
  return requiredSigners(wanted)
}

function signatureLines(report: api.SignatureReport, asked: boolean): string[] {
  const where = (asked ? "[REMOTE]" : "[LOCAL]").padEnd(18)
  const { id, kind, group, signer, name, keyId, time, status, failures } = report
  const when = time === undefined ? "" : `, ${time.toISOString()}`
  return [
    `Signature ${id} (${kind}) of group ${group}: ${status === "valid" ? "good" : status}${when}`,
    ...(signer === undefined || name === undefined ? [] : [`${where} Signing entity: ${name}`]),
    ...(signer === undefined ? [] : [`${where} Fingerprint: ${signer}`]),
    ...(signer === undefined && keyId !== undefined ? [`  It says it is by the key ${keyId}`] : []),
    ...failures.map(({ object, reason }) => `  ${object === undefined ? "" : `object ${object}: `}${reason}`),
  ]
}

/** What the report covers, in the peers' table. */
function objectTable(image: api.sif.SifImage, report: api.VerifyReport): string[] {
  const covered = new Set(report.signatures.flatMap(({ objects }) => objects))
  const shown = api.sif.listJson(image).filter(({ id }) => covered.has(id))
  return [
    "Objects verified:",
    "ID  |GROUP   |LINK    |TYPE",
    "------------------------------------------------",
    ...shown.map(({ id, group, link, type }) => {
      const to = link.to === "none" ? "NONE" : link.to === "object" ? String(link.id) : `${link.group} (G)`
      return `${String(id).padEnd(4)}|${String(group).padEnd(8)}|${to.padEnd(8)}|${type}`
    }),
  ]
}

/** The peers' words for what they report as JSON, beside our own. */
function peersJson(image: api.sif.SifImage, report: api.VerifyReport): object {
  const types = new Map(api.sif.listJson(image).map(({ id, type }) => [id, type]))
  const good = report.signatures.filter(({ status }) => status === "valid")
  return {
    Signatures: new Set(good.map(({ id }) => id)).size,
    SignerKeys: good.flatMap(({ kind, signer, name, objects }) =>
      objects.map((id) => {
        const pgp = kind !== "dsse"
        return {
          Signer: {
            Partition: types.get(id) ?? "",
            Name: pgp ? (name ?? "unknown") : "unknown",
            Fingerprint: pgp ? (signer ?? "").toLowerCase() : "",
            KeyLocal: pgp,
            KeyCheck: pgp,
            DataCheck: true,
          },
        }
      }),
    ),
  }
}

async function printReport(
  path: string,
  report: api.VerifyReport,
  json: boolean,
  asked: boolean,
): Promise<void> {
  await using image = await api.sif.openSif(path)
  if (json) {
    await print(`${JSON.stringify({ ...report, ...peersJson(image, report) }, null, 2)}\n`)
    return
  }
  await printLines([
    ...report.signatures.flatMap((one) => signatureLines(one, asked)),
    ...(report.verified ? objectTable(image, report) : []),
    ...(report.verified ? [`Verified: ${path} is signed by ${report.signers.join(", ")}`] : []),
  ])
}

export const verify: CommandRow = command({
  name: "verify",
  examples: [
    ["by anybody whose key is known", "sifcrypt verify image.sif"],
    ["by one signer's key", "sifcrypt verify --key signer.pem image.sif"],
  ],
  heading: "Signatures",
  summary: "verify the signatures of an image",
  description:
    "Verifies the signatures of IMAGE (OpenPGP and DSSE): who signed it, and that it was not changed since. Everything in the " +
    "image must be signed, and at least one signer's key must be known: from --key, --certificate, --keyring, or the key rings " +
    "that your programs keep for you. No key server is asked unless --keyserver names one.",
  arguments: [["<image>", "the image to verify"]],
  options: {
    keyPaths: ["--key <file>", "public key of a signer, PEM (repeatable)", each(text)],
    certificate: ["--certificate <file>", "certificate of a signer, which must be for signing code", text],
    intermediates: ["--certificate-intermediates <file>", "certificates between it and a root", text],
    roots: ["--certificate-roots <file>", "certificates that are trusted (default: the system's)", text],
    keyring: ["--keyring <file>", "OpenPGP public keys of signers (repeatable)", each(text)],
    groups: ["-g, --group-id <group>", "verify this group only (repeatable)", ids],
    objects: ["-i, --sif-id <id>", "verify this object only (repeatable)", ids, { conflicts: ["groups"] }],
    all: ["-a, --all", "with --legacy-insecure: every object, not just the primary partition", flag],
    legacy: [
      "--legacy-insecure",
      "count the signatures from before Singularity 3.6, which do not protect header and descriptors, and no others",
      flag,
    ],
    local: ["-l, --local", "use local keys only (the default)", flag, { conflicts: ["keyserver"] }],
    keyserver: [
      "--keyserver <url>",
      "ask this key server for the keys of signers that are not known, and for revocations of those that are",
      text,
    ],
    require: [
      "--require <signers>",
      "any (default): a known signer; all: nobody else has signed; or a fingerprint (repeatable)",
      each(text),
      { suggested: ["any", "all"] },
    ],
    json: ["-j, --json", "print the report as JSON", flag],
    progress: progressRow,
  },
  run: async (flags, [image], command) => {
    const { certificate, intermediates, roots, keyserver } = flags
    if (certificate === undefined && (intermediates ?? roots) !== undefined)
      command.error("error: --certificate is needed for its intermediates and roots")
    keepHeapSmall()
    const report = await withProgress(
      `verifying ${image}`,
      (onProgress) =>
        api.verify(image, {
          keyPaths: flags.keyPaths,
          keyringPaths: keyringPaths(flags.keyring),
          ...keyServerOption(keyserver),
          certificates: certificate === undefined ? [] : [{ certificate, intermediates, roots }],
          require: required(flags.require, command),
          signal: interruption,
          onProgress,
          groups: flags.groups,
          objects: flags.objects,
          legacy: flags.legacy && (flags.all ? "all" : "primary"),
        }),
      `read ${image}`,
    )
    if (!report.verified) process.exitCode = exitCodes.signature
    if (report.insecure)
      notice("insecure: old signatures do not show whether header and descriptors were changed")
    await printReport(image, report, flags.json === true, keyserver !== undefined)
    for (const { object, reason } of report.failures)
      notice(`not verified: ${object === undefined ? "" : `object ${object}: `}${reason}`)
  },
})
