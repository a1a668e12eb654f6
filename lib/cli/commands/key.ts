import { createInterface } from "node:readline/promises"
import type { Command } from "commander"
import { forbidDumps, keyring, SignatureError } from "../../index.ts"
import { command, given, type CommandRow, type OptionRows } from "../command.ts"
import { interruption } from "../interrupt.ts"
import { errors, jsonRow, output, print, printJson, printLines, printResult, writeAll } from "../output.ts"
import { ask, askTwice, passwordFd, passwordFile, passwordSource } from "../passwords.ts"
import { inform, notice } from "../terminal.ts"
import { count, DAYS, duration, each, flag, SECONDS, text } from "../values.ts"

type RingFlags = Pick<keyring.RingOptions, "global" | "folder">
type ServerFlags = Pick<keyring.KeyServerOptions, "url" | "allowHttp" | "timeoutMs">

const MAX_FILE = 64 << 20

const ringRows: OptionRows<RingFlags> = {
  global: ["-g, --global", "the system's ring, which root writes, instead of your own", flag],
  folder: [
    "-d, --keysdir <dir>",
    "your own ring is there (default: SIFCRYPT_KEYSDIR, else ~/.sifcrypt/keys)",
    text,
  ],
}

function ringOptions(flags: RingFlags): keyring.RingOptions {
  return { env: process.env, ...given(ringRows, flags) }
}

const serverRows: OptionRows<ServerFlags> = {
  url: ["-u, --url <url>", `the key server (default ${keyring.DEFAULT_KEY_SERVER})`, text],
  allowHttp: ["--allow-http", "speak without TLS to a server that is not this machine", flag],
  timeoutMs: [
    "--timeout <seconds>",
    `how long to wait for it (default ${keyring.KEY_SERVER_TIMEOUT_MS / 1000})`,
    duration(SECONDS, 1, 9999),
  ],
}

function serverOptions(flags: ServerFlags): keyring.KeyServerOptions {
  return { env: process.env, signal: interruption, ...given(serverRows, flags) }
}

/** As the peers print times. */
function date(time: Date): string {
  return `${time.toISOString().slice(0, 19).replace("T", " ")} +0000 UTC`
}

/** The table of the peers, with what they do not tell: when a key ends, and whether it still counts. */
function keyLines(key: keyring.KeyFacts, index: number): string[] {
  const line = (name: string, value: string): string => `    ${`${name}:`.padEnd(18)} ${value}`
  const users = key.userIds.length === 0 ? ["(no user ID)"] : key.userIds
  return [
    ...users.map((user) => `${`${index})`.padEnd(3)} ${"User:".padEnd(18)} ${user}`),
    line("Creation time", date(key.created)),
    line("Fingerprint", key.fingerprint),
    line("Algorithm", key.algorithm),
    ...(key.bits === undefined ? [] : [line("Length (in bits)", String(key.bits))]),
    ...(key.expires === undefined ? [] : [line("Expires", date(key.expires))]),
    ...(key.status === "good" ? [] : [line("Status", key.status)]),
    ...(key.secret === "plain" ? [line("Password", "none: whoever reads the file can sign")] : []),
    "",
  ]
}

function listingLines(listings: readonly keyring.RingListing[], secret: boolean): string[] {
  return listings.flatMap(({ path, kind, keys, unreadable }) => [
    `${secret ? "Private" : "Public"} key listing (${path}):${kind === "peer" ? " used in place" : ""}`,
    "",
    ...keys.flatMap(keyLines),
    ...(unreadable === 0 ? [] : [`${unreadable} more of a kind that is not known here`]),
  ])
}

async function listRings(flags: RingFlags & { readonly secret?: true; readonly json?: true }): Promise<void> {
  const secret = flags.secret === true
  const listings = await keyring.list({ ...ringOptions(flags), secret })
  if (flags.json === true) await print(`${JSON.stringify(listings, null, 2)}\n`)
  else await printLines(listingLines(listings, secret))
}

/** What a question on the terminal is answered with; undefined: there is none. */
async function askLine(question: string): Promise<string | undefined> {
  if (!process.stdin.isTTY) return undefined
  const lines = createInterface({ input: process.stdin, output: errors() })
  try {
    return (await lines.question(question, { signal: interruption })).trim()
  } finally {
    lines.close()
  }
}

const { least, most } = keyring.rsaBits

const newPair = command({
  name: "newpair",
  examples: [["asked for its password", 'sifcrypt key newpair --name "Jane Doe" --email jane@example.org']],
  summary: "make a key pair to sign with",
  description:
    "Makes an OpenPGP key pair in your key ring, to sign images with. What is not given is asked for on the terminal. " +
    "The password is never an argument.",
  options: {
    name: ["-N, --name <name>", "whose key it is", text],
    email: ["-E, --email <address>", "the owner's address", text],
    comment: ["-C, --comment <text>", "what stands behind the name", text],
    bits: ["-b, --bit-length <n>", "size of an RSA key (default 4096)", count(least, most)],
    type: ["--type <type>", "rsa (default) or ed25519", keyring.keyTypes],
    days: ["--days <n>", "how long it is valid (default: for ever)", duration(DAYS, 1, 36_500)],
    push: ["-U, --push", "publish the public key on the key server as well", flag],
    noPush: ["--no-push", "do not (the default)", flag, { negates: "push" }],
    password: ["-P, --password <text>", "only '' is taken: no password at all", text],
    folder: ringRows.folder,
    json: ["--json", "print the key as JSON", flag],
    ...serverRows,
    passwordFile: passwordFile("password", "the private key"),
    passwordFd: passwordFd("password", "the private key", "passwordFile"),
  },
  run: async (flags, _, command: Command) => {
    forbidDumps()
    // What is an argument is no secret any more; it is not repeated.
    if (flags.password !== undefined && flags.password !== "")
      command.error(
        "error: a password that is an argument can be read by whoever lists the processes of this machine: " +
          "use --password-file, --password-fd, or be asked",
      )
    const { type, bits, days } = flags
    const name = flags.name ?? (await askLine("Enter your name (e.g., John Doe): "))
    const email = flags.email ?? (await askLine("Enter your email address (e.g., john@example.org): "))
    const comment =
      flags.comment ?? (flags.name === undefined ? await askLine("Enter optional comment: ") : "")
    if (name === undefined || email === undefined)
      command.error("error: --name and --email are needed where nobody can be asked")
    const made = await keyring
      .newPair({
        ...ringOptions(flags),
        ...{ name, email, type, bits },
        comment: comment ?? "",
        ...(flags.password === ""
          ? { plain: true }
          : { password: passwordSource(flags.passwordFile, flags.passwordFd, askTwice) }),
        validFor: days === undefined ? undefined : Math.floor(days / SECONDS.worth),
      })
      .catch((error: unknown) => {
        if (error instanceof RangeError) command.error(`error: ${error.message}`)
        throw error
      })
    if (made.secret === "plain")
      notice("no password protects the private key: whoever reads the file can sign")
    await printResult(flags, made, () => keyLines(made, 0))
    if (flags.push === true) {
      await keyring.push(made.fingerprint, serverOptions(flags), ringOptions(flags))
      inform(`published ${made.fingerprint}`)
    }
  },
})

const list = command({
  name: "list",
  examples: [["your own and those of the peers", "sifcrypt key list"]],
  summary: "list the keys of your key rings",
  description:
    "Lists your own key ring and those of Apptainer and Singularity, which are used where they are. An expired or revoked " +
    "key verifies nothing.",
  options: {
    secret: ["-s, --secret", "private keys instead of public ones", flag],
    json: jsonRow,
    ...ringRows,
  },
  run: listRings,
})

const globalList = command({
  name: "global",
  examples: [["of the whole machine", "sifcrypt key global"]],
  summary: "list the system's key ring",
  description:
    "Lists the keys in /etc/sifcrypt/global-pgp-public: every user's `verify` knows them, and the execution control list " +
    "knows no others. Root adds and removes with `key import -g`, `key pull -g` and `key remove -g`.",
  options: { json: jsonRow },
  run: async ({ json }) => {
    await listRings({ json, global: true })
  },
})

async function readKeys(file: string): Promise<Buffer> {
  if (file !== "-") return await keyring.readKeys(file, { signal: interruption })
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of process.stdin as AsyncIterable<Buffer>) {
    chunks.push(chunk)
    size += chunk.length
    if (size > MAX_FILE)
      throw new SignatureError("ERR_SIGNATURE_KEYRING", `standard input: more than ${MAX_FILE} bytes`)
  }
  return Buffer.concat(chunks)
}

function outcomeText({ fingerprint, userIds, secret, outcome }: keyring.Imported): string {
  const what = { added: "added", updated: "brought up to date", unchanged: "was there already" }[outcome]
  return `${fingerprint} ${userIds[0] ?? ""}: ${secret ? "private key, " : ""}${what}`
}

const importKeys = command({
  name: "import",
  examples: [["a public key that GnuPG exported", "sifcrypt key import jane.asc"]],
  summary: "add the keys in a file to your key ring",
  description:
    "Adds the keys in FILE, as GnuPG or Apptainer export them, armored or not. Whose key is in the ring is trusted by " +
    "`verify`: compare the fingerprint with its owner's. Private keys are kept under the password they have.",
  arguments: [["<file>", "the file of keys; - is standard input"]],
  options: {
    newPassword: ["--new-password", "put private keys under a new password", flag],
    json: jsonRow,
    newPasswordFile: passwordFile("new-password", "the private keys from now on"),
    newPasswordFd: passwordFd("new-password", "the private keys from now on", "newPasswordFile"),
    ...ringRows,
    passwordFile: passwordFile("password", "the private keys in FILE"),
    passwordFd: passwordFd("password", "the private keys in FILE", "passwordFile"),
  },
  run: async (flags, [file]) => {
    forbidDumps()
    const bytes = await readKeys(file)
    const { newPasswordFile, newPasswordFd } = flags
    const renew = flags.newPassword === true || newPasswordFile !== undefined || newPasswordFd !== undefined
    try {
      const imported = await keyring.importKeys(bytes, file, {
        ...ringOptions(flags),
        password: passwordSource(flags.passwordFile, flags.passwordFd, ask),
        ...(renew ? { newPassword: passwordSource(newPasswordFile, newPasswordFd, askTwice) } : {}),
      })
      await printResult(flags, imported, () => imported.map(outcomeText))
    } finally {
      bytes.fill(0)
    }
  },
})

/** The one key there is, where none is named. */
async function onlyKey(options: keyring.RingOptions & { readonly secret: boolean }): Promise<string> {
  const listings = await keyring.list(options)
  const all = new Set(listings.flatMap(({ keys }) => keys.map(({ fingerprint }) => fingerprint)))
  const [only] = all
  if (only !== undefined && all.size === 1) return only
  const path = keyring.ringPath(options)
  throw new SignatureError(
    "ERR_KEYRING_NO_KEY",
    all.size === 0
      ? `there are no keys in ${path}`
      : `there are ${all.size} keys: --key FINGERPRINT names one`,
  )
}

const exportKeys = command({
  name: "export",
  examples: [
    [
      "a public key, as text",
      "sifcrypt key export --armor --key 0123456789ABCDEF0123456789ABCDEF01234567 jane.asc",
    ],
  ],
  summary: "write a key to a file",
  description:
    "Writes keys of your key ring, or of those of Apptainer and Singularity, to FILE. Private keys stay under the password " +
    "they have, and their file is readable by its owner only.",
  arguments: [["<file>", "the file to write; - is standard output"]],
  options: {
    armor: ["-a, --armor", "as text", flag],
    secret: ["-s, --secret", "the private key instead of the public one", flag],
    keys: ["-k, --key <fingerprint>", "which one, unless there is only one (repeatable)", each(text)],
    force: ["-F, --force", "replace FILE", flag],
    json: jsonRow,
    ...ringRows,
  },
  run: async (flags, [file], command) => {
    forbidDumps()
    if (flags.json === true && file === "-")
      command.error("error: --json: standard output is for the key itself")
    const { secret = false, armor, force } = flags
    const ring = { ...ringOptions(flags), secret }
    const fingerprints = flags.keys ?? [await onlyKey(ring)]
    if (file !== "-") {
      await keyring.exportFile(file, fingerprints, { ...ring, armor, force })
      if (flags.json === true) await printJson({ output: file, fingerprints })
      return
    }
    const bytes = await keyring.exportKeys(fingerprints, { ...ring, armor })
    await writeAll(output(), [bytes])
    bytes.fill(0)
  },
})

const remove = command({
  name: "remove",
  examples: [["out of your own ring", "sifcrypt key remove 0123456789ABCDEF0123456789ABCDEF01234567"]],
  summary: "remove a key from your key ring",
  description: "Removes a key from your own key ring; the rings of others are left alone.",
  arguments: [["<fingerprint>", "the whole fingerprint"]],
  options: {
    public: ["-p, --public", "the public key (the default)", flag],
    secret: ["-s, --secret", "the private key", flag, { conflicts: ["public"] }],
    both: ["-b, --both", "both", flag, { conflicts: ["public", "secret"] }],
    json: jsonRow,
    ...ringRows,
  },
  run: async (flags, [fingerprint]) => {
    const what = flags.both === true ? "both" : flags.secret === true ? "secret" : "public"
    await keyring.remove(fingerprint, { ...ringOptions(flags), what })
    if (flags.json === true)
      await printJson({ fingerprint: keyring.parseFingerprint(fingerprint), removed: what })
  },
})

const pull = command({
  name: "pull",
  examples: [["from the key server", "sifcrypt key pull 0123456789ABCDEF0123456789ABCDEF01234567"]],
  summary: "fetch a key from a key server",
  description:
    "Fetches a public key and adds it to your key ring, where `verify` trusts it: compare the fingerprint with its owner's.",
  arguments: [["<fingerprint>", "the whole fingerprint: a short key ID can be forged"]],
  options: { json: ["--json", "print the key as JSON", flag], ...serverRows, ...ringRows },
  run: async (flags, [fingerprint]) => {
    const { imported, key: facts } = await keyring.pull(fingerprint, serverOptions(flags), ringOptions(flags))
    const told = { ...facts, outcome: imported.outcome }
    await printResult(flags, told, () => [outcomeText(imported), ...keyLines(facts, 0)])
  },
})

const push = command({
  name: "push",
  examples: [["to the key server", "sifcrypt key push 0123456789ABCDEF0123456789ABCDEF01234567"]],
  summary: "publish a public key on a key server",
  description: "Publishes a public key, for everybody and for good: most servers forget nothing.",
  arguments: [["<fingerprint>", "the whole fingerprint"]],
  options: { json: jsonRow, ...serverRows, ...ringRows },
  run: async (flags, [fingerprint]) => {
    await keyring.push(fingerprint, serverOptions(flags), ringOptions(flags))
    const whole = keyring.parseFingerprint(fingerprint)
    if (flags.json === true) await printJson({ fingerprint: whole })
    else inform(`published ${whole}`)
  },
})

const search = command({
  name: "search",
  examples: [["by address", "sifcrypt key search jane@example.org"]],
  summary: "ask a key server which keys it has",
  description:
    "Asks a key server for keys by name, address, fingerprint or key ID. What it answers is not verified: anybody can write " +
    "any name into a key.",
  arguments: [["<text>", "a name, an address, a fingerprint or a key ID"]],
  options: {
    longList: ["-l, --long-list", "with times, sizes and every user ID", flag],
    json: jsonRow,
    ...serverRows,
  },
  run: async (flags, [text]) => {
    const found = await keyring.search(text, serverOptions(flags))
    if (flags.json === true) {
      await print(`${JSON.stringify(found, null, 2)}\n`)
      return
    }
    if (found.length === 0)
      throw new SignatureError("ERR_KEYRING_NO_KEY", `the key server has no key for ${text}`)
    const lines = found.flatMap((one) => {
      const bits = one.bits === undefined ? "" : ` ${one.bits}`
      const end = one.status === "good" ? "" : `  (${one.status})`
      const short = one.id.length < 40 ? "  (short key ID: cannot be pulled)" : ""
      if (flags.longList !== true)
        return [`${one.id}  ${one.algorithm}${bits}  ${one.userIds[0] ?? ""}${end}${short}`]
      return [
        `${one.id}${end}${short}`,
        `    Algorithm:         ${one.algorithm}${bits}`,
        ...(one.created === undefined ? [] : [`    Creation time:     ${date(one.created)}`]),
        ...(one.expires === undefined ? [] : [`    Expires:           ${date(one.expires)}`]),
        ...one.userIds.map((user) => `    User:              ${user}`),
      ]
    })
    await printLines(lines)
  },
})

export const key: CommandRow = {
  name: "key",
  heading: "Signatures",
  summary: "the keys that images are signed with",
  description:
    "OpenPGP keys that sign images, in a key ring of your own: $SIFCRYPT_KEYSDIR, else ~/.sifcrypt/keys. The rings of " +
    "Apptainer and Singularity are read and used where they are. Only a full fingerprint names a key.",
  commands: [newPair, list, globalList, importKeys, exportKeys, remove, pull, push, search],
}
