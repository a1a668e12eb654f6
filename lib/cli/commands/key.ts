import { createInterface } from "node:readline/promises"
import { Option, type Command } from "commander"
import { forbidDumps, keyring, SignatureError } from "../../index.ts"
import { interruption } from "../interrupt.ts"
import { errors, output, print, writeAll } from "../output.ts"
import { addPasswordOptions, ask, askTwice, passwordSource } from "../passwords.ts"
import { notice, printable } from "../terminal.ts"
import { collect, count, DAYS, duration, SECONDS } from "../values.ts"

interface RingFlags {
  readonly global?: true
  readonly keysdir?: string
  readonly json?: true
}

interface ServerFlags {
  readonly url?: string
  readonly allowHttp?: true
  /** Milliseconds. */
  readonly timeout?: number
}

const MAX_FILE = 64 << 20

function addRingOptions(command: Command): Command {
  return command
    .option("-g, --global", "the system's ring, which root writes, instead of your own")
    .option(
      "-d, --keysdir <dir>",
      "your own ring is there (default: SIFCRYPT_KEYSDIR, else ~/.sifcrypt/keys)",
    )
}

function ringOptions({ global, keysdir }: RingFlags): keyring.RingOptions {
  return {
    env: process.env,
    global,
    folder: keysdir,
  }
}

function addServerOptions(command: Command): Command {
  return command
    .option("-u, --url <url>", `the key server (default ${keyring.DEFAULT_KEY_SERVER})`)
    .option("--allow-http", "speak without TLS to a server that is not this machine")
    .option(
      "--timeout <seconds>",
      `how long to wait for it (default ${keyring.KEY_SERVER_TIMEOUT_MS / 1000})`,
      duration(SECONDS, 1, 9999),
    )
}

function serverOptions({ url, allowHttp, timeout }: ServerFlags): keyring.KeyServerOptions {
  return {
    env: process.env,
    signal: interruption,
    url,
    allowHttp,
    timeoutMs: timeout,
  }
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

function listingText(listings: readonly keyring.RingListing[], secret: boolean): string {
  const lines = listings.flatMap(({ path, kind, keys, unreadable }) => [
    `${secret ? "Private" : "Public"} key listing (${path}):${kind === "peer" ? " used in place" : ""}`,
    "",
    ...keys.flatMap(keyLines),
    ...(unreadable === 0 ? [] : [`${unreadable} more of a kind that is not known here`]),
  ])
  return lines.map((line) => `${printable(line)}\n`).join("")
}

async function listRings(flags: RingFlags & { readonly secret?: true }): Promise<void> {
  const secret = flags.secret === true
  const listings = await keyring.list({ ...ringOptions(flags), secret })
  if (flags.json === true) await print(`${JSON.stringify(listings, null, 2)}\n`)
  else await print(listingText(listings, secret))
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

interface PairFlags extends RingFlags, ServerFlags {
  readonly name?: string
  readonly email?: string
  readonly comment?: string
  readonly bitLength?: number
  readonly type?: "rsa" | "ed25519"
  /** Milliseconds. */
  readonly days?: number
  readonly push?: boolean
  readonly password?: string
  readonly passwordFile?: string
  readonly passwordFd?: number
}

function addNewPair(key: Command): void {
  const { least, most } = keyring.rsaBits
  const command: Command = key
    .command("newpair")
    .summary("make a key pair to sign with")
    .description(
      "Makes an OpenPGP key pair in your key ring, to sign images with. What is not given is asked for on the terminal. " +
        "The password is never an argument.",
    )
    .option("-N, --name <name>", "whose key it is")
    .option("-E, --email <address>", "the owner's address")
    .option("-C, --comment <text>", "what stands behind the name")
    .option("-b, --bit-length <n>", "size of an RSA key (default 4096)", count(least, most))
    .addOption(new Option("--type <type>", "rsa (default) or ed25519").choices(keyring.keyTypes))
    .option("--days <n>", "how long it is valid (default: for ever)", duration(DAYS, 1, 36_500))
    .option("-U, --push", "publish the public key on the key server as well")
    .option("--no-push", "do not (the default)")
    .option("-P, --password <text>", "only '' is taken: no password at all")
    .option(
      "-d, --keysdir <dir>",
      "your own ring is there (default: SIFCRYPT_KEYSDIR, else ~/.sifcrypt/keys)",
    )
    .option("--json", "print the key as JSON")
  addPasswordOptions(addServerOptions(command), "password", "the private key").action(
    async (flags: PairFlags) => {
      forbidDumps()
      // What is an argument is no secret any more; it is not repeated.
      if (flags.password !== undefined && flags.password !== "")
        command.error(
          "error: a password that is an argument can be read by whoever lists the processes of this machine: " +
            "use --password-file, --password-fd, or be asked",
        )
      const name = flags.name ?? (await askLine("Enter your name (e.g., John Doe): "))
      const email = flags.email ?? (await askLine("Enter your email address (e.g., john@example.org): "))
      const comment =
        flags.comment ?? (flags.name === undefined ? await askLine("Enter optional comment: ") : "")
      if (name === undefined || email === undefined)
        command.error("error: --name and --email are needed where nobody can be asked")
      const made = await keyring
        .newPair({
          ...ringOptions(flags),
          name,
          email,
          comment: comment ?? "",
          ...(flags.password === ""
            ? { plain: true }
            : { password: passwordSource(flags.passwordFile, flags.passwordFd, askTwice) }),
          type: flags.type,
          bits: flags.bitLength,
          validFor: flags.days === undefined ? undefined : Math.floor(flags.days / SECONDS.worth),
        })
        .catch((error: unknown) => {
          if (error instanceof RangeError) command.error(`error: ${error.message}`)
          throw error
        })
      if (made.secret === "plain")
        notice("no password protects the private key: whoever reads the file can sign")
      if (flags.json === true) await print(`${JSON.stringify(made)}\n`)
      else
        await print(
          keyLines(made, 0)
            .map((line) => `${printable(line)}\n`)
            .join(""),
        )
      if (flags.push === true) {
        await keyring.push(made.fingerprint, serverOptions(flags), ringOptions(flags))
        notice(`published ${made.fingerprint}`)
      }
    },
  )
}

function addList(key: Command): void {
  const list = key
    .command("list")
    .summary("list the keys of your key rings")
    .description(
      "Lists your own key ring and those of Apptainer and Singularity, which are used where they are. An expired or revoked " +
        "key verifies nothing.",
    )
    .option("-s, --secret", "private keys instead of public ones")
    .option("--json", "print JSON")
  addRingOptions(list).action(listRings)

  key
    .command("global")
    .summary("list the system's key ring")
    .description(
      "Lists the keys in /etc/sifcrypt/global-pgp-public: every user's `verify` knows them, and the execution control list " +
        "knows no others. Root adds and removes with `key import -g`, `key pull -g` and `key remove -g`.",
    )
    .option("--json", "print JSON")
    .action(async (flags: RingFlags) => {
      await listRings({ ...flags, global: true })
    })
}

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

interface ImportFlags extends RingFlags {
  readonly newPassword?: true
  readonly passwordFile?: string
  readonly passwordFd?: number
  readonly newPasswordFile?: string
  readonly newPasswordFd?: number
}

function addImport(key: Command): void {
  const command = key
    .command("import")
    .summary("add the keys in a file to your key ring")
    .description(
      "Adds the keys in FILE, as GnuPG or Apptainer export them, armored or not. Whose key is in the ring is trusted by " +
        "`verify`: compare the fingerprint with its owner's. Private keys are kept under the password they have.",
    )
    .argument("<file>", "the file of keys; - is standard input")
    .option("--new-password", "put private keys under a new password")
    .option("--json", "print the result as JSON")
  addPasswordOptions(command, "new-password", "the private keys from now on")
  addPasswordOptions(addRingOptions(command), "password", "the private keys in FILE").action(
    async (file: string, flags: ImportFlags) => {
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
        if (flags.json === true) await print(`${JSON.stringify(imported)}\n`)
        else await print(imported.map((one) => `${printable(outcomeText(one))}\n`).join(""))
      } finally {
        bytes.fill(0)
      }
    },
  )
}

interface ExportFlags extends RingFlags {
  readonly armor?: true
  readonly secret?: true
  readonly key?: string[]
  readonly force?: true
}

/** The one key there is, where none is named. */
async function onlyKey(flags: ExportFlags): Promise<string> {
  const listings = await keyring.list({ ...ringOptions(flags), secret: flags.secret === true })
  const all = new Set(listings.flatMap(({ keys }) => keys.map(({ fingerprint }) => fingerprint)))
  const [only] = all
  if (only !== undefined && all.size === 1) return only
  const path = keyring.ringPath({ ...ringOptions(flags), secret: flags.secret === true })
  throw new SignatureError(
    "ERR_KEYRING_NO_KEY",
    all.size === 0
      ? `there are no keys in ${path}`
      : `there are ${all.size} keys: --key FINGERPRINT names one`,
  )
}

function addExport(key: Command): void {
  const command = key
    .command("export")
    .summary("write a key to a file")
    .description(
      "Writes keys of your key ring, or of those of Apptainer and Singularity, to FILE. Private keys stay under the password " +
        "they have, and their file is readable by its owner only.",
    )
    .argument("<file>", "the file to write; - is standard output")
    .option("-a, --armor", "as text")
    .option("-s, --secret", "the private key instead of the public one")
    .option("-k, --key <fingerprint>", "which one, unless there is only one (repeatable)", collect)
    .option("-F, --force", "replace FILE")
  addRingOptions(command).action(async (file: string, flags: ExportFlags) => {
    forbidDumps()
    const options = {
      ...ringOptions(flags),
      secret: flags.secret === true,
      armor: flags.armor === true,
    }
    const fingerprints = flags.key ?? [await onlyKey(flags)]
    if (file !== "-") {
      await keyring.exportFile(file, fingerprints, { ...options, force: flags.force === true })
      return
    }
    const bytes = await keyring.exportKeys(fingerprints, options)
    await writeAll(output(), [bytes])
    bytes.fill(0)
  })
}

function addRemove(key: Command): void {
  const command = key
    .command("remove")
    .summary("remove a key from your key ring")
    .description("Removes a key from your own key ring; the rings of others are left alone.")
    .argument("<fingerprint>", "the whole fingerprint")
    .option("-p, --public", "the public key (the default)")
    .addOption(new Option("-s, --secret", "the private key").conflicts("public"))
    .addOption(new Option("-b, --both", "both").conflicts(["public", "secret"]))
  addRingOptions(command).action(
    async (fingerprint: string, flags: RingFlags & { readonly secret?: true; readonly both?: true }) => {
      const what = flags.both === true ? "both" : flags.secret === true ? "secret" : "public"
      await keyring.remove(fingerprint, { ...ringOptions(flags), what })
    },
  )
}

function addServerCommands(key: Command): void {
  const pull = key
    .command("pull")
    .summary("fetch a key from a key server")
    .description(
      "Fetches a public key and adds it to your key ring, where `verify` trusts it: compare the fingerprint with its owner's.",
    )
    .argument("<fingerprint>", "the whole fingerprint: a short key ID can be forged")
    .option("--json", "print the key as JSON")
  addRingOptions(addServerOptions(pull)).action(
    async (fingerprint: string, flags: RingFlags & ServerFlags) => {
      const { imported, key: facts } = await keyring.pull(
        fingerprint,
        serverOptions(flags),
        ringOptions(flags),
      )
      if (flags.json === true) await print(`${JSON.stringify({ ...facts, outcome: imported.outcome })}\n`)
      else
        await print(
          [outcomeText(imported), ...keyLines(facts, 0)].map((line) => `${printable(line)}\n`).join(""),
        )
    },
  )

  const push = key
    .command("push")
    .summary("publish a public key on a key server")
    .description("Publishes a public key, for everybody and for good: most servers forget nothing.")
    .argument("<fingerprint>", "the whole fingerprint")
  addRingOptions(addServerOptions(push)).action(
    async (fingerprint: string, flags: RingFlags & ServerFlags) => {
      await keyring.push(fingerprint, serverOptions(flags), ringOptions(flags))
      notice(`published ${keyring.parseFingerprint(fingerprint)}`)
    },
  )

  const search = key
    .command("search")
    .summary("ask a key server which keys it has")
    .description(
      "Asks a key server for keys by name, address, fingerprint or key ID. What it answers is not verified: anybody can write " +
        "any name into a key.",
    )
    .argument("<text>", "a name, an address, a fingerprint or a key ID")
    .option("-l, --long-list", "with times, sizes and every user ID")
    .option("--json", "print JSON")
  addServerOptions(search).action(
    async (text: string, flags: ServerFlags & { readonly longList?: true; readonly json?: true }) => {
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
      await print(lines.map((line) => `${printable(line)}\n`).join(""))
    },
  )
}

export function addKeyCommands(program: Command): void {
  const key = program
    .command("key")
    .summary("the keys that images are signed with")
    .description(
      "OpenPGP keys that sign images, in a key ring of your own: $SIFCRYPT_KEYSDIR, else ~/.sifcrypt/keys. The rings of " +
        "Apptainer and Singularity are read and used where they are. Only a full fingerprint names a key.",
    )
  addNewPair(key)
  addList(key)
  addImport(key)
  addExport(key)
  addRemove(key)
  addServerCommands(key)
}
