// What to try next, keyed by error code. Library errors state facts; advice is given here and nowhere else.
import { closeSync, constants, existsSync, openSync, readFileSync, readSync, statSync } from "node:fs"
import path from "node:path"
import { isImageName, type ContainerError, type ErrorCode, type KdfLimits } from "../index.ts"
import { commandName } from "./name.ts"
import { MAX_KDF_ITERATIONS, MAX_KDF_MEMORY } from "./opening.ts"

/** Where a command was when it failed. */
export interface Failed {
  /** The command, in words. */
  readonly command: string
  /** Its options, as `--name`. */
  readonly options: ReadonlySet<string>
  /** What stands behind it, options too. */
  readonly words: readonly string[]
  readonly cause: unknown
  /** Of the error. */
  readonly limit?: ContainerError["limit"]
  /** --plain-tmp. */
  readonly plainScratch?: boolean | undefined
  /** --require-encrypted, or its variable. */
  readonly requiresEncrypted?: boolean
}

/** Of several the first counts that speaks of no option which the command does not have. */
const hints: Partial<Record<ErrorCode, string | readonly string[]>> = {
  ERR_SIF_MAGIC:
    "this is no SIF image, nor a squashfs file or a folder, which run as well; `file` tells what it is",
  ERR_SIF_TRUNCATED: "the download or copy was cut short: fetch the image again",
  ERR_SIF_AMBIGUOUS:
    "`sifcrypt sif list` shows what is there: name the object by its ID, or delete what does not belong (`sifcrypt sif del`)",
  ERR_SIF_PLAIN:
    "`sifcrypt encrypt` encrypts a SIF image, `sifcrypt image encrypt` one of layers; or leave out --require-encrypted (SIFCRYPT_REQUIRE_ENCRYPTED)",
  ERR_KEY_MISSING: [
    "give --pem-path FILE, --passphrase or --passphrase-file FILE, or set APPTAINER_ENCRYPTION_PEM_PATH or _PASSPHRASE",
    "give --new-password-file FILE, or run it at a terminal to be asked",
    "give --password-file FILE, or run it at a terminal to be asked",
  ],
  ERR_KEY_MISMATCH:
    "use the private key that belongs to the public key the image was built with; a passphrase that is typed twice is the same both times",
  ERR_KEY_FORMAT: "`openssl rsa -in KEY -noout -text` shows whether the file holds an RSA key",
  ERR_KEY_PUBLIC: "opening takes the private key; the public one is for building",
  ERR_KEY_TYPE: "images are encrypted for RSA keys: `sifcrypt cert create` or `openssl genrsa` makes one",
  ERR_KEY_DAMAGED: "the file was cut short or changed: copy it again from where it came",
  ERR_KEY_LOCKED: [
    "give --key-passphrase-file FILE, or run it at a terminal to be asked",
    "give --password-file FILE, or run it at a terminal to be asked",
  ],
  ERR_KEY_PASSPHRASE: "this is the password of the key file, not of the image",
  ERR_KEY_UNSUPPORTED:
    "let the program that made it write it anew: `openssl pkcs12 -in FILE -out key.pem`, `ssh-keygen -p -Z aes256-ctr -f KEY`",
  ERR_KEY_COMMAND: "run the command by itself to see what it says; its standard output must be the key file",
  ERR_KEY_PROVIDER:
    'the file that OCICRYPT_KEYPROVIDER_CONFIG names has {"key-providers": {"NAME": {"cmd": {"path": "/…", "args": []}}}}, or "grpc": "HOST:PORT"',
  ERR_KEY_CONFIGURATION:
    "docs/cli.md says below Credentials what it may have; `chmod 600` makes it yours alone",
  ERR_KEY_TOKEN:
    "`p11tool --list-all URI` or `pkcs11-tool --module MODULE --list-objects` shows what is there; OCICRYPT_CONFIG=internal allows the modules of the system",
  ERR_KEY_GNUPG:
    "`gpg --list-keys` and `gpg --list-secret-keys` show what there is; --gpg-homedir names another folder",
  ERR_KEY_WEAK: "make a new pair: `openssl genrsa -traditional -out key.pem 4096`",
  ERR_KEY_RECIPIENT:
    "`sifcrypt recipient list IMAGE` shows who can open an encrypted image; `sifcrypt encrypt` makes one of a plain image",
  ERR_KEY_UNCONFIRMED:
    "--keep FINGERPRINT names who stays, and nobody else does (so does --recipient FILE with remove and rotate); --require-signer keeps whom a signer vouches for; at a terminal you are asked",
  ERR_LUKS_PASSPHRASE: "check the passphrase; a trailing newline counts when it comes from a variable",
  ERR_GOCRYPTFS_PASSPHRASE: "check the passphrase; gocryptfs takes what stands before its first line end",
  ERR_GOCRYPTFS_COST: "no option allows that much: ask who made the image",
  ERR_GOCRYPTFS_RECIPIENTS:
    "--format luks holds any number of RSA keys and passphrases; `sifcrypt reencrypt` makes such an image of this one",
  ERR_LUKS_UNSUPPORTED:
    "a cipher: as root, `--allow-cipher NAME` lets the kernel engine use it; a keyslot: `cryptsetup luksConvertKey --hash sha256` and `cryptsetup config --priority normal` change it",
  ERR_LUKS_COST: "no option allows that much: ask who made the image",
  ERR_LUKS_FULL: "remove a keyslot that nobody needs, then add the new one",
  ERR_UNSIGNED: "`sifcrypt sign` signs an image; --unsigned warn or allow opens it as it is",
  ERR_SIGNATURE_MISSING: "`sifcrypt sif list` shows what there is; `sifcrypt sign` signs an image",
  ERR_SIGNATURE_SIGNER:
    "give the signer's public key: --key FILE or --signer-key FILE (PEM), or --keyring FILE (OpenPGP)",
  ERR_SIGNATURE_CERTIFICATE:
    "--certificate-intermediates and --certificate-roots name the certificates between it and one that you trust",
  ERR_SIGNATURE_SIGN: "run the program by itself to see what it says",
  ERR_SIGNATURE_INVALID: "the image is not what was signed: get it again from where it came",
  ERR_SIGNATURE_CHANGED:
    "somebody is writing to the image: run it again when it is complete, from a place that is yours",
  ERR_KEYRING_INSECURE:
    "give it back to its owner and nobody else: `chown`, `chmod 700 FOLDER`, `chmod 600 FILE`",
  ERR_KEYRING_NO_KEY: "`sifcrypt key list` shows the keys with their full fingerprints",
  ERR_KEYRING_BUSY: "another sifcrypt is writing it: try again",
  ERR_KEYSERVER: "check the address, and HTTPS_PROXY and NO_PROXY where a proxy is needed",
  ERR_ECL_FILE: "what may run is the administrator's to say, and until the file is right nothing runs",
  ERR_ECL_REFUSED: "`sifcrypt ecl check IMAGE` tells more; what may run is the administrator's to say",
  ERR_OCI_NOT_FOUND:
    "`sifcrypt image list` and `sifcrypt image inspect` show what there is, `skopeo list-tags` what a registry has",
  ERR_OCI_DIGEST: "the image is not what it is said to be: fetch it again, or ask who made it",
  ERR_OCI_LIMIT: "no option allows more, and no image needs that much: ask who made it",
  ERR_OCI_WORK: "no image needs that much: somebody made it to keep you busy, or ask who made it",
  ERR_OCI_UNSUPPORTED: "`sifcrypt image inspect --raw` shows what it is made of",
  ERR_OCI_MAC: "somebody changed the image: fetch it again, or ask who encrypted it",
  ERR_OCI_PARTIAL: "if you know where its plain layers come from, --allow-partial takes them",
  ERR_OCI_REGISTRY: "--no-https speaks to a registry without TLS, --cert-dir DIR trusts its certificate",
  ERR_OCI_CREDENTIALS:
    "log in with `sifcrypt registry login HOST`, or set DOCKER_USERNAME and DOCKER_PASSWORD",
  ERR_BUILD_EXISTS: [
    "choose another name, or -F (--force) replaces it, and it is kept until the new one is complete",
    "choose another name",
  ],
  ERR_BUILD_AGENT: "`sifcrypt help build` lists what an image can be built from",
  ERR_BUILD_SCRIPT:
    "what it printed stands above; scripts run with `sh -ex`, so the last command shown is the one",
  ERR_BUILD_SCRATCH:
    "--scratch-memory SIZE and --scratch-disk SIZE raise the limits, --tmpdir DIR names a folder with more room, --plain-tmp builds in an ordinary folder",
  ERR_BUILD_REMOTE:
    "try `ssh HOST sifcrypt version` with the address as it was given; ssh://HOST/PATH/OF/sifcrypt names a program that is not on the PATH there",
  ERR_BUILD_REMOTE_VERSION:
    "install the same version there; ssh://HOST/PATH/OF/sifcrypt names another program",
  ERR_BUILD_REMOTE_IMAGE: "ask who runs that machine, or build elsewhere",
  ERR_DEFINITION_ARGUMENT:
    "--build-arg NAME=VALUE gives it a value, --warn-unused-build-args lets others pass",
  ERR_EXTRACT: "the folder must be writable and have room; nothing that exists in it is overwritten",
  ERR_TREE_NOT_FOUND: "`sifcrypt ls IMAGE` shows what is there",
  ERR_MOUNT_BUSY: "some process still uses it: `fuser -vm DIR` names it",
  ERR_MOUNT_NOT_OURS: "`sifcrypt mounts` lists what can be unmounted",
  ERR_RUN_OPTION: "`sifcrypt COMMAND --help` says what each option takes",
  ERR_RUN_BUNDLE: "docs/oci-runtime.md has the annotations that there are",
  ERR_BATCH_CONFIG: "docs/batch.md says what it may have",
  ERR_BATCH_SET:
    "`sifcrypt batch submit` prints the folder; `job_sets` of the configuration says where it lies",
  ERR_COMPOSE_FILE:
    "docs/compose.md says what is understood, https://www.compose-spec.io what a file may have",
  ERR_COMPOSE_UNSUPPORTED: "docs/compose.md says what there is",
  ERR_COMPOSE_PROJECT: "`sifcrypt compose ps --all` shows what there is of it",
  ERR_COMPOSE_SERVICE: "`sifcrypt compose logs SERVICE` shows what it wrote",
  ERR_INSTANCE_NAME: "letters, digits, dots, dashes and underscores, at most 64",
  ERR_INSTANCE_EXISTS: "`sifcrypt instance stop NAME` ends it, `sifcrypt exec instance://NAME` joins it",
  ERR_INSTANCE_NONE: "`sifcrypt instance list` shows yours",
  ERR_INSTANCE_FOLDER: "somebody else made it, or its mode was changed: move it away",
  ERR_NETWORK_NAME:
    "letters, digits, dots, dashes and underscores, at most 64; none, host, pasta and bridge are others",
  ERR_NETWORK_EXISTS: "`sifcrypt network inspect NAME` shows it, `sifcrypt network rm NAME` removes it",
  ERR_NETWORK_NONE: "`sifcrypt network list` shows yours, `sifcrypt network create NAME` makes one",
  ERR_NETWORK_BUSY: "it goes when no container is in it any more: `sifcrypt instance stop NAME` ends one",
  ERR_NETWORK_SUBNET: "--subnet 10.90.0.0/24 names another; without, one is chosen of 10.89.0.0/16",
  ERR_RUN_BIND:
    "the source of a bind must exist, on this machine or in the image that image-src is for, and folders cover folders, files files; `sifcrypt sif dump ID IMAGE` takes a partition out of an image",
  ERR_RUN_PORT:
    "`ss -tulnp` shows who listens there; ports below 1024 are root's unless sysctl net.ipv4.ip_unprivileged_port_start is lower",
  ERR_RUN_NETWORK:
    "the words are pasta's: it needs /dev/net/tun (mode 0666) and, before 2024, a default route; --network none and host need nothing",
  ERR_RUN_OVERLAY_BUSY: "one container at a time writes an overlay; add :ro to share it",
  ERR_RUN_PLAIN_OVERLAY:
    "`sifcrypt overlay create --encrypt` makes one that is encrypted (root); --writable-tmpfs keeps nothing; --plain-overlay allows it",
  ERR_ENV_NO_LIBRARY: "install it: `apt install libcryptsetup12` or `dnf install cryptsetup-libs`",
  ERR_ENV_NO_PROGRAM:
    "install it with the system's package manager (Debian, Fedora: the package has the same name, unless the message names one)",
  ERR_ENV_NO_PRIVILEGE: "--engine userspace needs no privilege, only access to /dev/fuse",
  ERR_ENV_NO_KERNEL_SUPPORT:
    "ask the administrator for user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns; " +
    "Docker: --security-opt seccomp=unconfined) and for /dev/fuse (Docker: --device /dev/fuse), which exec and run do without",
  ERR_SIF_SIGNED: [
    "it is changed all the same with --break-signatures; sign the image again afterwards",
    "`sifcrypt overlay create FILE` makes one in a file of its own, for `sifcrypt exec --overlay FILE`",
  ],
  ERR_ENV_ARCHITECTURE:
    "build it for this machine (--arch), or have an emulator registered with binfmt_misc: `apt install qemu-user-static`",
  ERR_ENV_NO_CGROUP:
    "limits need cgroup version 2, and an ordinary user a delegated cgroup: put `systemd-run --user --scope -p Delegate=yes` before the command",
  ERR_ENV_LIMIT:
    "`ulimit -a` shows what a process may have, `ulimit -Sn` and `ulimit -Sf` set how many files it has open and how large they are",
  ERR_ENV_NO_MEMORY:
    "free some memory or raise the cgroup's limit; opening needs it once, for the key derivation",
}

/** The options that allow a key derivation of this cost; undefined: none does. */
function costHint({ memory = 0, iterations = 0, parallel }: Partial<KdfLimits>): string | undefined {
  const mebibytes = Math.ceil(memory / 1024)
  if (parallel !== undefined || mebibytes > MAX_KDF_MEMORY || iterations > MAX_KDF_ITERATIONS)
    return undefined
  const options = [
    mebibytes > 0 ? `--max-kdf-memory ${mebibytes}` : "",
    iterations > 0 ? `--max-kdf-iterations ${iterations}` : "",
  ]
  return `if you trust the image, ${options.filter((option) => option !== "").join(" and ")} opens it`
}

/** Codes of what keeps two machines from speaking with each other at all. */
const network: ReadonlySet<unknown> = new Set([
  ...["ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "ECONNRESET"],
])

const limitHints: Readonly<Record<string, string>> = {
  EMFILE: "`ulimit -n` shows how many files a process may have open, and raises that; 1024 are usual",
  ENFILE:
    "the machine has too many files open: `sysctl fs.file-nr` shows how many, fs.file-max how many there may be",
  EFBIG: "`ulimit -f` shows how large a file of a process may be; `ulimit -Sf unlimited` allows any size",
}

/** Does the shell that started us allow files of any size? Then it is the file system that does not. */
function isSizeLimited(): boolean {
  try {
    return !/^Max file size +unlimited/m.test(readFileSync("/proc/self/limits", "latin1"))
  } catch {
    return false
  }
}

/** What writes files: where images are read, EFBIG is said of what they ask for. */
const writing = /^(?:p?write(?:v|64)?|f?truncate(?:64)?|fallocate|copy_file_range|open|link)$/

/** Advice on a limit of this process or of the machine that an error comes from, whatever could not be done. */
export function limitHint(error: unknown): string | undefined {
  const { message = "", syscall = "", cause, code: given } = (error ?? {}) as Partial<NodeJS.ErrnoException>
  // Helper programs, and what reads the arguments of a native call, have these words for it and no code.
  const code = message.endsWith(": Too many open files") ? "EMFILE" : (given ?? "")
  if (code === "EFBIG" && !(writing.test(syscall) && isSizeLimited())) return undefined
  return limitHints[code] ?? (cause === undefined ? undefined : limitHint(cause))
}

/** A file system that is full: which one? */
export function roomHint(error: unknown): string | undefined {
  for (let at = error, file: string | undefined; at instanceof Error; at = at.cause) {
    const { code, path: place } = at as NodeJS.ErrnoException
    file ??= place
    if (file === undefined || (code !== "ENOSPC" && code !== "EDQUOT")) continue
    const folder = isFolder(file) ? file : path.dirname(file)
    return code === "ENOSPC"
      ? `\`df -h ${folder}\` and \`df -i ${folder}\` show the file system that is full`
      : `the quota of the file system of ${folder} is used up: \`quota -s\` shows it`
  }
  return undefined
}

/** What only where it failed tells; null: there is nothing to advise. */
const particular: Partial<Record<ErrorCode, (at: Failed) => string | null | undefined>> = {
  ERR_KEY_MISSING: ({ command, words, cause }) => {
    // It was given: a file that cannot be read.
    if (typeof (cause as Partial<NodeJS.ErrnoException> | undefined)?.syscall === "string") return null
    if (command.startsWith("image ")) return "give --key KEY; `sifcrypt COMMAND --help` says what that may be"
    // What starts containers shows it: no option of ours is at hand.
    if (command === "oci-runtime")
      return "say which key opens it in ~/.config/sifcrypt/keys.toml, or in the annotation org.sifcrypt.key"
    // It was given, and taken for the payload's.
    const behind = words
      .find((word) => /^--(?:pem-path|key-fd|key-command|passphrase)/.test(word))
      ?.split("=", 1)[0]
    return behind && `options stand before IMAGE: ${behind} behind it is the payload's`
  },
  // It was found, and says itself what is wrong.
  ERR_KEY_PROVIDER: ({ cause }) => (cause instanceof Error && "complaint" in cause ? null : undefined),
  ERR_KEY_MISMATCH: ({ command }) =>
    command === "cert del" ? "`sifcrypt cert list` shows what is there" : undefined,
  ERR_OCI_PARTIAL: ({ requiresEncrypted }) =>
    requiresEncrypted === true
      ? "`sifcrypt image encrypt` encrypts all layers; or leave out --require-encrypted (SIFCRYPT_REQUIRE_ENCRYPTED)"
      : undefined,
  ERR_RUN_OPTION: ({ options }) =>
    options.has("--help-all") ? "`sifcrypt COMMAND --help-all` says what each option takes" : undefined,
  ERR_BATCH_CONFIG: ({ command }) => (command === "batch config import" ? null : undefined),
  // Who asked for the build is told; here nobody has an address.
  ERR_BUILD_REMOTE: ({ command }) => (command === "serve-build" ? null : undefined),
  ERR_SIF_MAGIC: ({ command, words }) => {
    // Of `view` the last one is a folder anyway.
    const folders = (command === "view" ? words.slice(0, -1) : words).filter(isFolder)
    if ((command === "map" || command === "view") && folders.length > 0)
      return "`sifcrypt build IMAGE FOLDER` makes an image of it"
    const found = words.map(extImage).find((image) => image !== undefined)
    if (found === undefined) return undefined
    const [file, offset] = found
    return (
      `as root \`mount -o ro,loop,offset=${offset} ${file} DIR\` shows what is in it, and \`sifcrypt build OUTPUT DIR\` ` +
      "makes a SIF of that"
    )
  },
  ERR_MOUNT_BUSY: ({ command }) =>
    command === "unmount"
      ? undefined
      : "`sifcrypt unmount DIR` takes away what sifcrypt has mounted; or name another folder",
  ERR_BUILD_EXISTS: swapped,
  ERR_BUILD_OUTPUT: swapped,
  ERR_BUILD_SOURCE: swapped,
  ERR_OCI_REFERENCE: ({ command, words }) =>
    command === "pull" && words.some((word) => /^https?:/.test(word))
      ? "--digest sha256:... says which file it has to be, --verify or --require-signer who must have signed it"
      : undefined,
  ERR_ENV_NO_ADDON: built,
  ERR_ENV_NO_PRIVILEGE: ({ cause }) =>
    (cause as Partial<NodeJS.ErrnoException> | undefined)?.syscall === "getpwuid"
      ? "ask the administrator for an entry (`getent passwd UID` shows it); exec, run, ls, cat and extract need none"
      : undefined,
  ERR_BUILD_SCRATCH: ({ cause, plainScratch }) => {
    // Its process says itself why it has ended, and no room was wanting.
    if (cause !== undefined) return null
    return plainScratch === true ? "--tmpdir DIR names a folder with more room" : undefined
  },
  ERR_ENV_LIMIT: ({ limit }) =>
    limit === "files" ? limitHints["EMFILE"] : limit === "size" ? limitHints["EFBIG"] : undefined,
  ERR_ENV_STALE_ADDON: built,
  ERR_OCI_LIMIT: ({ options, limit }) => {
    if (limit === "memory") return "`sifcrypt pull` fetches it to a file"
    return limit === "layers" && options.has("--max-layer-size")
      ? "if you trust the image, --max-layer-size GIB raises the limit of its layers"
      : undefined
  },
  ERR_OCI_REGISTRY: ({ cause }) =>
    network.has((cause as { readonly code?: unknown } | undefined)?.code)
      ? "check the address, and HTTPS_PROXY and NO_PROXY where a proxy is needed"
      : undefined,
}

/** The file, and where in it an ext file system starts: what Singularity 2 called an image. */
function extImage(file: string): readonly [string, number] | undefined {
  let descriptor
  try {
    descriptor = openSync(file, constants.O_RDONLY | constants.O_NONBLOCK)
    const head = Buffer.alloc(2048)
    readSync(descriptor, head, 0, head.length, 0)
    const start = head.toString("latin1", 0, 2) === "#!" ? head.indexOf("\n") + 1 : 0
    return head.readUInt16LE(start + 0x438) === 0xef53 ? [file, start] : undefined
  } catch {
    return undefined
  } finally {
    if (descriptor !== undefined) closeSync(descriptor)
  }
}

function isFolder(file: string): boolean {
  return statSync(file, { throwIfNoEntry: false })?.isDirectory() === true
}

/** What is no file for this command, though others take it. */
export function nameHint({ code, path }: Partial<NodeJS.ErrnoException>): string | undefined {
  return code === "ENOENT" && path !== undefined && isImageName(path)
    ? `\`${commandName} pull FILE ${path}\` makes a SIF of it; what runs or reads an image takes it by its name`
    : undefined
}

/** Has this system the libraries of scripts/system-packages.sh, new enough? Derivatives of Debian and Ubuntu have, or say which they lack. */
export function buildsFromSource(osRelease: string): boolean {
  const field = (name: string): string | undefined =>
    new RegExp(`^${name}="?([^"\n]*)"?$`, "m").exec(osRelease)?.[1]
  const oldest = { debian: 12, ubuntu: 24.04 }[field("ID") ?? ""]
  // Releases to come of Debian have no number.
  if (oldest !== undefined) return Number(field("VERSION_ID") ?? Infinity) >= oldest
  return /\b(?:debian|ubuntu)\b/.test(field("ID_LIKE") ?? "")
}

/** The package's own folder: two above dist/cli and lib/cli. */
function built(): string {
  const root = path.resolve(import.meta.dirname, "..", "..")
  const system = "/etc/os-release"
  if (!existsSync(system) || !buildsFromSource(readFileSync(system, "utf8")))
    return "install the package again; it can be built from source on Debian 12, Ubuntu 24.04 and newer"
  return `install the package again, or build it here: \`cd ${root} && npm run build:native\` (as root it installs what that needs, else it names it)`
}

/** Somebody who thinks of `cp` names the source first. */
function swapped({ command, words }: Failed): string | undefined {
  const [output = "", source = ""] = words.slice(-2)
  const isSwapped =
    command === "build" && existsSync(output) && !existsSync(source) && /\.(?:sif|simg|img)$/.test(source)
  return isSwapped ? `OUTPUT comes first: \`sifcrypt build ${source} ${output}\`` : undefined
}

/** Does it speak of what the command has? What stands in backquotes is another command. */
function applies(hint: string, { options }: Failed): boolean {
  const named = hint.replace(/`[^`]*`/g, "").match(/--[a-z][a-z-]*/g) ?? []
  return named.every((flag) => options.has(flag))
}

/**
 * Advice for an error code, or undefined where the message says it all.
 *
 * @param at - Where that is known.
 * @param kdfLimits - The error's.
 */
export function hintFor(code: ErrorCode, at?: Failed, kdfLimits?: Partial<KdfLimits>): string | undefined {
  const all = [hints[code] ?? []].flat()
  const [only] = all
  const general = at === undefined || all.length < 2 ? only : all.find((one) => applies(one, at))
  const own = at && particular[code]?.(at)
  if (own === null) return undefined
  const hint = (kdfLimits && costHint(kdfLimits)) ?? own ?? general
  return hint
    ?.replaceAll("`sifcrypt ", `\`${commandName} `)
    .replace(" COMMAND ", ` ${at?.command ?? "COMMAND"} `)
}
