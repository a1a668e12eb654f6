import { InvalidArgumentError, type Command } from "commander"
import { forbidDumps, oci, type CredentialSource } from "../../index.ts"
import { command, type CommandRow, type FlagsOf } from "../command.ts"
import { credentialRows, keyPassword, KeyPasswords, layerCredentials } from "../credentials.ts"
import { writeDigestFile } from "../digest-file.ts"
import { interruption } from "../interrupt.ts"
import { gnuPgRows, inGnuPgHome, layerKeyRow, parseLayerKey, parseLayerRecipient } from "../layer-keys.ts"
import { columns, jsonRow, output, print, printJson, printLines, printResult, writeAll } from "../output.ts"
import { progressRow, withProgress } from "../progress.ts"
import { registryRows, withRegistryOptions } from "../registry.ts"
import { humanBytes, inform, isTerminal, notice } from "../terminal.ts"
import { BYTES, each, flag, parseInteger, size, text } from "../values.ts"

const names =
  "docker://[HOST/]REPOSITORY[:TAG|@DIGEST], oci:DIR[:NAME], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME], or store:NAME " +
  "for the images that are kept here"

const allRow = [
  "-a, --all",
  "everything that has the name, for whatever platforms, byte for byte",
  flag,
  { conflicts: ["platforms"] },
] as const
const platformRow = [
  "--platform <os/architecture>",
  "only what is for linux/amd64, linux/arm/v7, ... (repeatable; default: for this machine)",
  each(text),
] as const

/** Runs `work` with what it tells people meanwhile. */
async function telling<T>(
  label: string,
  work: (options: {
    readonly signal: AbortSignal
    readonly onNotice: (text: string) => void
    readonly onProgress: ((bytes: number, total: number) => void) | undefined
  }) => Promise<T>,
): Promise<T> {
  return await withProgress(label, (onProgress) =>
    work({ signal: interruption, onNotice: notice, onProgress }),
  )
}

/** What is said of one registry is not true of another, and a password not its business. */
function registriesOf(
  target: string,
  given: RegistryOptions,
): { oci: RegistryOptions; registry: ClientOptions } {
  const { authFile, certFolder, noHttps, credentials } = given
  const isToRegistry = target.startsWith("docker:")
  const from = { ...given, certFolder: undefined, noHttps: undefined, credentials: undefined }
  return { registry: { authFile, certFolder, noHttps, credentials }, oci: isToRegistry ? from : given }
}

type RegistryOptions = Parameters<Parameters<typeof withRegistryOptions>[3]>[0]
type ClientOptions = Pick<RegistryOptions, "authFile" | "certFolder" | "noHttps" | "credentials">

const save = command({
  name: "save",
  examples: [["for another machine", "sifcrypt image save --output alpine.tar alpine:3.20"]],
  summary: "write images that are kept here into an archive",
  description:
    "Writes the images NAME of the store into one archive, for load here and for other programs. Without --output it goes to standard " +
    "output.",
  arguments: [["<name...>", "images, as image list shows them"]],
  options: {
    output: ["-o, --output <file>", "the archive (default: standard output)", text],
    format: [
      "--format <format>",
      "oci-archive, or docker-archive for programs that know no other: of one platform each",
      ["oci-archive", "docker-archive"],
    ],
    all: allRow,
    platforms: platformRow,
    force: ["-f, --force", "replace the archive if it is there", flag],
    json: jsonRow,
    progress: progressRow,
  },
  run: async (flags, [images], made) => {
    const { output: file, format, all, platforms, force } = flags
    if (file === undefined && isTerminal(1))
      made.error("error: an archive is nothing for a terminal: --output FILE, or a pipe")
    const saved = await telling(`saving ${images.join(", ")}`, (work) =>
      oci.save({ names: images, output: file ?? output(), format, all, platforms, force, ...work }),
    )
    if (file === undefined) return
    await printResult(flags, saved, () => saved.map(({ digest }) => digest))
  },
})

const load = command({
  name: "load",
  examples: [["what save or `docker save` wrote", "sifcrypt image load --input alpine.tar"]],
  summary: "keep the images of an archive here",
  description:
    "Adds the images of an archive to the store, by the names that they have in it: what save writes, oci-archive: of other programs, and " +
    "what docker save writes. Without --input it comes from standard input.",
  options: {
    input: ["-i, --input <file>", "the archive (default: standard input)", text],
    tmpFolder: ["--tmpdir <dir>", "for what comes from standard input (default TMPDIR)", text],
    json: jsonRow,
    progress: progressRow,
  },
  run: async (flags, _, made) => {
    const { input, tmpFolder } = flags
    if (input === undefined && isTerminal(0))
      made.error("error: an archive does not come from a terminal: --input FILE, or a pipe")
    const loaded = await telling("loading", (work) =>
      oci.load({ input: input ?? process.stdin, tmpFolder, ...work }),
    )
    await printResult(flags, loaded, () => loaded.map(({ name, digest }) => name ?? digest))
  },
})

function dayOf(created: string | undefined): string {
  return created?.slice(0, 10) ?? ""
}

const list = command({
  name: "list",
  examples: [["the images of the store", "sifcrypt image list"]],
  alias: "ls",
  summary: "images that are kept here",
  description:
    "Lists the images of the store, or of another place: oci:DIR, oci-archive:FILE or docker-archive:FILE.",
  arguments: [["[place]", "instead of the store"]],
  options: { json: jsonRow },
  run: async (flags, [place]) => {
    const images = await oci.list({ place, signal: interruption })
    const rows = images.map(
      ({ name = "<none>", digest, platforms, encrypted, created, damage, size: bytes }) => [
        name,
        digest.slice(0, 19),
        platforms.join(","),
        { all: "yes", some: "partly", none: "" }[encrypted],
        dayOf(created),
        damage === undefined ? humanBytes(bytes) : `damaged: ${damage}`,
      ],
    )
    const heading = ["NAME", "DIGEST", "PLATFORMS", "ENCRYPTED", "CREATED", "SIZE"]
    await printResult(flags, images, () => columns([heading, ...rows]))
  },
})

/** What people want to know of an image. */
function description(image: oci.InspectedImage): string[] {
  const { digest, mediaType, platforms, manifest } = image
  const facts = [
    ["Digest", digest],
    ["Type", mediaType],
    ["Platforms", platforms.join(", ")],
  ]
  if (manifest === undefined) return columns(facts.map(([key = "", value = ""]) => [`${key}:`, value]))
  const config = (manifest.config?.["config"] ?? {}) as Readonly<Record<string, unknown>>
  const of = (key: string): string => {
    const value = config[key]
    return value === undefined || value === null || value === "" ? "" : JSON.stringify(value)
  }
  facts.push(
    ...(manifest.digest === digest ? [] : [["Manifest", `${manifest.digest} (${manifest.platform ?? ""})`]]),
    ["Config", manifest.configDigest],
    ["Created", manifest.created ?? ""],
    ["Size", humanBytes(manifest.size)],
    ...["Entrypoint", "Cmd", "User", "WorkingDir", "Env", "Labels"].map((key) => [key, of(key)]),
    ...Object.entries(manifest.annotations).map(([key, value]) => ["Annotation", `${key}=${value}`]),
    ...manifest.layers.map((layer, i) => [
      `Layer ${i}`,
      `${layer.digest} ${humanBytes(layer.size)} ${layer.mediaType}`,
    ]),
  )
  return columns(
    facts.filter(([, value]) => value !== "").map(([key = "", value = ""]) => [`${key}:`, value]),
  )
}

const inspect = command({
  name: "inspect",
  examples: [["of an image at a registry", "sifcrypt image inspect docker://alpine:3.20"]],
  summary: "what an image is made of",
  description: `Shows manifest, configuration and layers of the image SOURCE: ${names}, or NAME alone. No layer is read.`,
  arguments: [["<source>", "the image"]],
  options: {
    platform: [
      "--platform <os/architecture>",
      "what of it is for linux/arm64, ... (default: for this machine)",
      text,
    ],
    raw: ["--raw", "print the index or manifest, byte for byte", flag, { conflicts: ["config", "json"] }],
    config: ["--config", "print the configuration, byte for byte", flag, { conflicts: ["raw", "json"] }],
    json: ["--json", "print as JSON", flag, { conflicts: ["raw", "config"] }],
    ...registryRows,
  },
  run: async (flags, [source], made) => {
    const { platform, raw, config, json } = flags
    const image = await withRegistryOptions(flags, source, undefined, (from) =>
      oci.inspect({ source, platform, oci: from, signal: interruption, onNotice: notice }),
    )
    if (raw === true) await writeAll(output(), [image.raw])
    else if (config === true) {
      const bytes = image.manifest?.rawConfig
      if (bytes !== undefined) await writeAll(output(), [bytes])
      else made.error("error: --config: the image has no configuration of a container for this machine")
    } else if (json === true) {
      const facts = {
        ...image,
        raw: undefined,
        manifest: image.manifest && { ...image.manifest, rawConfig: undefined },
      }
      await print(`${JSON.stringify(facts, null, 2)}\n`)
    } else await printLines(description(image))
  },
})

const remove = command({
  name: "rm",
  examples: [["out of the store", "sifcrypt image rm alpine:3.20"]],
  alias: "remove",
  summary: "remove images that are kept here",
  description:
    "Removes the images NAME from the store, and what they were made of unless another one needs it, or somebody is reading it.",
  arguments: [["<name...>", "images, as image list shows them, or @DIGEST"]],
  options: { json: jsonRow },
  run: async (flags, [images]) => {
    const removed = await oci.remove({ names: images, signal: interruption })
    if (flags.json === true) await printJson(removed)
    else for (const { name, digest } of removed) inform(`removed ${name ?? digest}`)
  },
})

const layerRow = [
  "--layer <n>",
  "only this layer: 0 is the base, -1 the top (repeatable; default: all)",
  each(parseLayer),
] as const
const chosenPlatformRow = [
  "--platform <os/architecture>",
  "only the layers of what is for linux/amd64, ... (repeatable; default: all); the rest is copied as it is",
  each(text),
] as const
const keyRow = layerKeyRow("-k, --key <key>")
const digestRow = ["--digestfile <file>", "write the digest that the copy has into this file", text] as const
const decryptionKeyRow = [
  "--decryption-key <key>",
  "the same as --key",
  each(parseLayerKey),
  { hidden: true },
] as const

function parseLayer(word: string): number {
  const layer = parseInteger(word)
  if (Number.isNaN(layer)) throw new InvalidArgumentError("It is a number: 0 for the base, -1 for the top.")
  return layer
}

/** Of everything that makes another image of the layers of one. */
const conversionRows = {
  layers: layerRow,
  platforms: chosenPlatformRow,
  force: ["-f, --force", "replace an archive that is there", flag],
  ...gnuPgRows,
  json: jsonRow,
  progress: progressRow,
  ...registryRows,
} as const

type ConversionFlags = FlagsOf<
  typeof conversionRows & {
    readonly keys: typeof keyRow
    readonly decryptionKeys: typeof decryptionKeyRow
    readonly keyPassphraseFile: typeof credentialRows.keyPassphraseFile
    readonly digestfile: typeof digestRow
  }
>

/** Runs `convert` with all that is common, and what opens layers: keys that were named, or else what the environment names. */
async function converting(
  flags: ConversionFlags,
  doing: string,
  [source, target]: readonly [string, string],
  convert: (common: Omit<oci.DecryptImageOptions, "layers">) => Promise<oci.ConvertedImage>,
): Promise<void> {
  forbidDumps()
  using passwords = new KeyPasswords()
  const password = keyPassword(flags.keyPassphraseFile, passwords)
  const words = inGnuPgHome([...(flags.keys ?? []), ...(flags.decryptionKeys ?? [])], flags)
  const named = layerCredentials(words, password)
  const unlock: CredentialSource[] = named.length > 0 ? named : [{ environment: process.env, password }]
  const { platforms, force, digestfile } = flags
  const converted = await withRegistryOptions(flags, source, undefined, (given) =>
    telling(doing, (work) =>
      convert({ source, target, unlock, platforms, force, ...registriesOf(target, given), ...work }),
    ),
  )
  writeDigestFile(digestfile, converted.digest)
  await printResult(flags, converted, ({ digest }) => [digest])
}

const recipientRow = [
  "-r, --recipient <recipient>",
  "jwe:FILE, pkcs7:FILE, pgp:FILE or pkcs11:FILE of somebody who can decrypt it, pgp:NAME as GnuPG knows him, or " +
    "provider:NAME[:PARAMETER], a key provider (repeatable)",
  each(parseLayerRecipient),
] as const

const encryptionKeysRow = [
  "--encryption-key <recipient>",
  "the same as --recipient",
  each(parseLayerRecipient),
  { hidden: true },
] as const
const encryptLayersRow = [
  "--encrypt-layer <n>",
  "the same as --layer",
  each(parseLayer),
  { hidden: true },
] as const

async function encryptImage(
  flags: ConversionFlags &
    FlagsOf<{
      readonly recipients: typeof recipientRow
      readonly encryptionKeys: typeof encryptionKeysRow
      readonly encryptLayers: typeof encryptLayersRow
    }>,
  source: string,
  target: string,
  made: Command,
): Promise<void> {
  const { encryptLayers = [], encryptionKeys = [], keys } = flags
  const recipients = inGnuPgHome([...(flags.recipients ?? []), ...encryptionKeys], flags)
  if (recipients.length === 0) made.error("error: --recipient says who shall be able to decrypt it")
  const chosen = [...(flags.layers ?? []), ...encryptLayers]
  const layers = chosen.length === 0 ? undefined : chosen
  await converting(flags, `encrypting ${source}`, [source, target], ({ unlock, ...common }) =>
    oci.encrypt({ ...common, recipients, layers, unlock: keys && unlock }),
  )
}

async function decryptImage(flags: ConversionFlags, source: string, target: string): Promise<void> {
  await converting(flags, `decrypting ${source}`, [source, target], (common) =>
    oci.decrypt({ ...common, layers: flags.layers }),
  )
}

const copy = command({
  name: "copy",
  examples: [
    ["from a registry into the store", "sifcrypt image copy docker://alpine:3.20 store:alpine:3.20"],
    ["to a registry", "sifcrypt image copy store:alpine:3.20 docker://registry.example/alpine:3.20"],
  ],
  alias: "cp",
  summary: "copy an image as it is",
  description:
    `Copies the image SOURCE to TARGET: ${names}. No byte of it changes, so its digest stays; what is there is not sent again. What ` +
    "else a registry, a folder or the store has stays there; an archive is a new one, and a docker-archive: is an oci-archive: as well. " +
    "With --encryption-key or --decryption-key it is encrypt or decrypt.",
  arguments: [
    ["<source>", "the image"],
    ["<target>", "where to; store: alone takes the source's name"],
  ],
  options: {
    all: allRow,
    platforms: platformRow,
    force: ["-f, --force", "replace an archive that is there", flag],
    digestfile: digestRow,
    chunkSize: [
      "--chunk-size <size>",
      "send in requests of so many bytes, for proxies that take no larger ones",
      size(BYTES, 1, Number.MAX_SAFE_INTEGER),
    ],
    encryptionKeys: encryptionKeysRow,
    encryptLayers: encryptLayersRow,
    decryptionKeys: decryptionKeyRow,
    keyPassphraseFile: credentialRows.keyPassphraseFile,
    ...gnuPgRows,
    preserveDigests: ["--preserve-digests", "accepted: no digest changes anyway", flag, { hidden: true }],
    json: jsonRow,
    progress: progressRow,
    ...registryRows,
  },
  run: async (flags, [source, target], made) => {
    const { all, platforms, force, chunkSize, encryptionKeys, decryptionKeys } = flags
    if (encryptionKeys !== undefined && decryptionKeys !== undefined)
      made.error("error: --encryption-key and --decryption-key: image recipients rotate encrypts anew")
    if ((encryptionKeys ?? decryptionKeys) !== undefined && platforms !== undefined)
      made.error("error: --platform: image encrypt and image decrypt say what it means there")
    if (encryptionKeys !== undefined) {
      await encryptImage({ ...flags, platforms }, source, target, made)
      return
    }
    if (decryptionKeys !== undefined) {
      await decryptImage({ ...flags, platforms }, source, target)
      return
    }
    const copied = await withRegistryOptions(flags, source, undefined, (given) => {
      const { registry, oci: from } = registriesOf(target, given)
      return telling(`copying ${source}`, (work) =>
        oci.copy({
          ...{ source, target, all, platforms, force, oci: from },
          registry: { ...registry, chunkSize },
          ...work,
        }),
      )
    })
    writeDigestFile(flags.digestfile, copied.digest)
    await printResult(flags, copied, ({ digest }) => [digest])
  },
})

const encrypt = command({
  name: "encrypt",
  examples: [
    [
      "for the key of a public key file",
      "sifcrypt image encrypt --recipient jwe:key-public.pem store:app docker://registry.example/app:1",
    ],
  ],
  summary: "encrypt the layers of an image",
  description:
    "Copies the image SOURCE to TARGET, its layers encrypted for each RECIPIENT. skopeo, podman, buildah, nerdctl and imgcrypt decrypt it. " +
    "Layers that are encrypted already get more " +
    "recipients with --key. What everybody can still read: configuration, sizes and number of the layers, and the digests of their contents.",
  arguments: [
    ["<source>", "the image"],
    ["<target>", "where to"],
  ],
  options: {
    recipients: recipientRow,
    encryptionKeys: encryptionKeysRow,
    encryptLayers: encryptLayersRow,
    keys: keyRow,
    keyPassphraseFile: credentialRows.keyPassphraseFile,
    ...conversionRows,
  },
  run: (flags, [source, target], made) => encryptImage(flags, source, target, made),
})

const decrypt = command({
  name: "decrypt",
  examples: [
    [
      "with its private key",
      "sifcrypt image decrypt --key key.pem docker://registry.example/app:1 store:app",
    ],
  ],
  summary: "decrypt the layers of an image",
  description:
    "Copies the image SOURCE to TARGET, its layers decrypted: by whichever program it was encrypted. No byte of a layer is written before all " +
    "of it was verified. build takes encrypted images as they are, without anything plain on a disk.",
  arguments: [
    ["<source>", "the image"],
    ["<target>", "where to"],
  ],
  options: {
    keys: keyRow,
    decryptionKeys: decryptionKeyRow,
    keyPassphraseFile: credentialRows.keyPassphraseFile,
    strict: [
      "--strict",
      "accepted: no layer is taken for decrypted that cannot be verified",
      flag,
      { hidden: true },
    ],
    certificates: ["--dec-recipient <recipient>", "accepted: keys are enough", each(text), { hidden: true }],
    ...conversionRows,
  },
  run: (flags, [source, target]) => decryptImage(flags, source, target),
})

const layerinfo = command({
  name: "layerinfo",
  examples: [
    ["which layers are encrypted, and for whom", "sifcrypt image layerinfo docker://registry.example/app:1"],
  ],
  summary: "which layers of an image are encrypted, and for whom",
  description:
    "Lists the layers of the image SOURCE, the schemes that their keys are wrapped in, and for whom, as far as that can be seen. No key is " +
    "needed, and no layer is read.",
  arguments: [["<source>", "the image"]],
  options: {
    layers: layerRow,
    platforms: [
      "--platform <os/architecture>",
      "only those of what is for linux/amd64, ... (repeatable; default: all)",
      each(text),
    ],
    json: jsonRow,
    // imgcrypt's, for whom key ids are names that GnuPG knows.
    asIds: ["-n", "show key ids, as is done anyway", flag, { hidden: true }],
    gpgHomedir: ["--gpg-homedir <dir>", "not looked at: key ids are shown", text, { hidden: true }],
    ...registryRows,
  },
  run: async (flags, [source]) => {
    const { layers, platforms } = flags
    const found = await withRegistryOptions(flags, source, undefined, (from) =>
      oci.layerInfo({ source, layers, platforms, oci: from, signal: interruption, onNotice: notice }),
    )
    const rows = found.map(({ index, digest, platform, size: bytes, schemes, recipients }) => [
      ...[String(index), digest, platform, String(bytes), schemes.join(","), recipients.join(", ")],
    ])
    // As the peers' table of layers.
    const heading = ["#", "DIGEST", "PLATFORM", "SIZE", "ENCRYPTION", "RECIPIENTS"]
    await printResult(flags, found, () => columns([heading, ...rows], "   ", "right"))
  },
})

const changes = [
  {
    name: "add",
    examples: [
      [
        "a colleague",
        "sifcrypt image recipients add --key key.pem --recipient jwe:colleague-public.pem docker://registry.example/app:1",
      ],
    ],
    change: "add",
    summary: "give somebody else the keys of the layers",
    description:
      "Wraps the keys of the encrypted layers of the image SOURCE for RECIPIENT as well, and writes it to TARGET, or in its place. No byte of " +
      "a layer changes, so a registry gets none of them again.",
  },
  {
    name: "remove",
    examples: [
      [
        "nobody else from now on",
        "sifcrypt image recipients remove --key key.pem --recipient jwe:key-public.pem docker://registry.example/app:1",
      ],
    ],
    change: "replace",
    summary: "leave the keys of the layers to some",
    description:
      "Wraps the keys of the encrypted layers of the image SOURCE for RECIPIENT and nobody else, and writes it to TARGET, or in its place. " +
      "Whoever is not named any more still decrypts what he has got: the keys stay the same. rotate changes them.",
  },
  {
    name: "rotate",
    examples: [
      [
        "under new keys",
        "sifcrypt image recipients rotate --key key.pem --recipient jwe:key-public.pem docker://registry.example/app:1",
      ],
    ],
    change: "rotate",
    summary: "encrypt the layers anew, for some",
    description:
      "Encrypts the encrypted layers of the image SOURCE anew, under keys that RECIPIENT has and nobody else, and writes it to TARGET, or in " +
      "its place. Nothing plain is written on the way.",
  },
] as const

const recipientChanges = changes.map(({ change, ...row }) =>
  command({
    ...row,
    arguments: [
      ["<source>", "the image"],
      ["[target]", "where to (default: in its place)"],
    ],
    options: {
      recipients: recipientRow,
      keys: keyRow,
      decryptionKeys: decryptionKeyRow,
      keyPassphraseFile: credentialRows.keyPassphraseFile,
      ...(change === "add"
        ? {}
        : {
            dropUnknown: [
              "--drop-unknown",
              "also who has the key in a scheme that is not known here",
              flag,
            ] as const,
          }),
      ...conversionRows,
    },
    run: async (flags, [source, target = source], made) => {
      const { layers } = flags
      const recipients = inGnuPgHome(flags.recipients ?? [], flags)
      const { dropUnknown } = flags as { readonly dropUnknown?: boolean }
      if (recipients.length === 0) made.error("error: --recipient says who shall be able to decrypt it")
      await converting(flags, `changing ${target}`, [source, target], (common) =>
        oci.changeRecipients({ ...common, change, recipients, dropUnknown, layers }),
      )
    },
  }),
)

const listRecipients = command({
  name: "list",
  examples: [["for whom, without a key", "sifcrypt image recipients list docker://registry.example/app:1"]],
  alias: "ls",
  summary: "for whom the layers are encrypted",
  description:
    "Lists for whom the layers of the image SOURCE are encrypted, as far as that can be seen, and how many layers. No key is needed.",
  arguments: [["<source>", "the image"]],
  options: { json: jsonRow, ...registryRows },
  run: async (flags, [source]) => {
    const layers = await withRegistryOptions(flags, source, undefined, (from) =>
      oci.layerInfo({ source, oci: from, signal: interruption, onNotice: notice }),
    )
    const encrypted = layers.filter((layer) => layer.encrypted)
    const counts = new Map<string, number>()
    for (const { recipients } of encrypted)
      for (const one of new Set(recipients)) counts.set(one, (counts.get(one) ?? 0) + 1)
    const found = [...counts].sort().map(([recipient, count]) => ({ recipient, layers: count }))
    const rows = found.map((one) => [one.recipient, `${one.layers} of ${layers.length}`])
    await printResult(flags, found, () => columns([["RECIPIENT", "LAYERS"], ...rows]))
  },
})

const recipients: CommandRow = {
  name: "recipients",
  summary: "for whom the layers of an image are encrypted: list, add, remove, rotate",
  description: "Lists and changes for whom the encrypted layers of an image are.",
  commands: [listRecipients, ...recipientChanges],
}

export const image: CommandRow = {
  name: "image",
  heading: "Registries",
  summary: "OCI images: copy, keep, inspect, encrypt",
  description:
    "OCI and Docker images as they are, without a SIF being built of them. The images that are kept here are in a folder of yours, which " +
    "is an image layout: SIFCRYPT_STOREDIR, or sifcrypt/images in XDG_DATA_HOME.",
  commands: [copy, save, load, list, inspect, remove, encrypt, decrypt, layerinfo, recipients],
}
