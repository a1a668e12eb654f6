import assert from "node:assert/strict"
import { readdirSync, readFileSync } from "node:fs"
import path from "node:path"
import { commands } from "../../../lib/cli/commands.ts"
import {
  exitCodeFor,
  exitCodes,
  exitMeanings,
  exitMeaningsOf,
  limitStatus,
} from "../../../lib/cli/exit-codes.ts"
import { buildsFromSource, hintFor, limitHint, roomHint } from "../../../lib/cli/hints.ts"
import {
  BatchError,
  ComposeError,
  BuildError,
  ContainerError,
  DeviceError,
  EnvironmentError,
  GocryptfsError,
  KeyError,
  LuksError,
  OciError,
  RunError,
  SifError,
  SignatureError,
  TreeError,
  type ErrorCode,
} from "../../../lib/errors.ts"

/** What each code ends the command with; the compiler sees to it that none is missing. */
const expected: Readonly<Record<ErrorCode, number>> = {
  ERR_SIF_MAGIC: 21,
  ERR_SIF_VERSION: 21,
  ERR_SIF_TRUNCATED: 21,
  ERR_SIF_HEADER: 21,
  ERR_SIF_DESCRIPTOR: 21,
  ERR_SIF_OVERLAP: 21,
  ERR_SIF_NO_OBJECT: 21,
  ERR_SIF_AMBIGUOUS: 21,
  ERR_SIF_FULL: 21,
  ERR_SIF_SIGNED: 23,
  ERR_SIF_BUSY: 23,
  ERR_SIF_SEALED: 21,
  ERR_SIF_METADATA: 21,
  ERR_SIF_CLOSED: 21,
  ERR_SIF_PLAIN: 21,
  ERR_SIF_TOO_LARGE: 21,
  ERR_KEY_MISSING: 22,
  ERR_KEY_MISMATCH: 22,
  ERR_KEY_FORMAT: 22,
  ERR_KEY_PUBLIC: 22,
  ERR_KEY_TYPE: 22,
  ERR_KEY_DAMAGED: 22,
  ERR_KEY_LOCKED: 22,
  ERR_KEY_PASSPHRASE: 22,
  ERR_KEY_UNSUPPORTED: 22,
  ERR_KEY_WEAK: 22,
  ERR_KEY_COMMAND: 22,
  ERR_KEY_PROVIDER: 22,
  ERR_KEY_TOKEN: 22,
  ERR_KEY_CONFIGURATION: 22,
  ERR_KEY_GNUPG: 22,
  ERR_KEY_MESSAGE: 22,
  ERR_KEY_RECIPIENT: 22,
  ERR_KEY_UNCONFIRMED: 22,
  ERR_LUKS_HEADER: 21,
  ERR_LUKS_PASSPHRASE: 22,
  ERR_LUKS_UNSUPPORTED: 21,
  ERR_LUKS_COST: 21,
  ERR_LUKS_FORMAT: 21,
  ERR_LUKS_FULL: 21,
  ERR_GOCRYPTFS_CONFIG: 21,
  ERR_GOCRYPTFS_PASSPHRASE: 22,
  ERR_GOCRYPTFS_UNSUPPORTED: 21,
  ERR_GOCRYPTFS_COST: 21,
  ERR_GOCRYPTFS_RECIPIENTS: 22,
  ERR_UNSIGNED: 26,
  ERR_SIGNATURE_MISSING: 26,
  ERR_SIGNATURE_SIGNER: 26,
  ERR_SIGNATURE_INVALID: 26,
  ERR_SIGNATURE_FORMAT: 26,
  ERR_SIGNATURE_KEYRING: 26,
  ERR_SIGNATURE_TREE: 26,
  ERR_SIGNATURE_CERTIFICATE: 26,
  ERR_SIGNATURE_SIGN: 26,
  ERR_SIGNATURE_CHANGED: 26,
  ERR_KEYRING_INSECURE: 26,
  ERR_KEYRING_NO_KEY: 26,
  ERR_KEYRING_BUSY: 23,
  ERR_KEYRING_WRITE: 25,
  ERR_KEYSERVER: 25,
  ERR_ECL_FILE: 26,
  ERR_ECL_REFUSED: 26,
  ERR_TREE_FORMAT: 21,
  ERR_TREE_NOT_FOUND: 25,
  ERR_TREE_TYPE: 21,
  ERR_TREE_UNSUPPORTED: 21,
  ERR_OCI_REFERENCE: 20,
  ERR_OCI_NOT_FOUND: 25,
  ERR_OCI_FORMAT: 21,
  ERR_OCI_DIGEST: 21,
  ERR_OCI_LIMIT: 21,
  ERR_OCI_WORK: 21,
  ERR_OCI_UNSUPPORTED: 21,
  ERR_OCI_MAC: 21,
  ERR_OCI_PARTIAL: 21,
  ERR_OCI_REGISTRY: 25,
  ERR_OCI_CREDENTIALS: 22,
  ERR_BUILD_SOURCE: 25,
  ERR_BUILD_EXISTS: 23,
  ERR_BUILD_OUTPUT: 25,
  ERR_BUILD_AGENT: 20,
  ERR_BUILD_SCRIPT: 25,
  ERR_BUILD_SCRATCH: 25,
  ERR_BUILD_REMOTE: 25,
  ERR_BUILD_REMOTE_VERSION: 24,
  ERR_BUILD_REMOTE_REFUSED: 20,
  ERR_BUILD_REMOTE_IMAGE: 21,
  ERR_DEFINITION_SYNTAX: 20,
  ERR_DEFINITION_ARGUMENT: 20,
  ERR_EXTRACT: 25,
  ERR_LOOP_BUSY: 23,
  ERR_LOOP_ATTACH: 25,
  ERR_DM_EXISTS: 23,
  ERR_DM_ACTIVATE: 25,
  ERR_MOUNT: 25,
  ERR_MOUNT_BUSY: 23,
  ERR_MOUNT_NOT_OURS: 25,
  ERR_RUN: 255,
  ERR_RUN_TIMEOUT: 255,
  ERR_RUN_OUTPUT: 255,
  ERR_RUN_BIND: 255,
  ERR_RUN_OPTION: 255,
  ERR_RUN_BUNDLE: 255,
  ERR_RUN_NETWORK: 255,
  ERR_RUN_PORT: 255,
  ERR_RUN_OVERLAY: 255,
  ERR_RUN_OVERLAY_BUSY: 255,
  ERR_RUN_PLAIN_OVERLAY: 255,
  ERR_INSTANCE_NAME: 255,
  ERR_INSTANCE_EXISTS: 23,
  ERR_INSTANCE_NONE: 255,
  ERR_INSTANCE_FOLDER: 255,
  ERR_NETWORK_NAME: 255,
  ERR_NETWORK_EXISTS: 23,
  ERR_NETWORK_NONE: 255,
  ERR_NETWORK_BUSY: 23,
  ERR_NETWORK_SUBNET: 255,
  ERR_BATCH_CONFIG: 20,
  ERR_BATCH_SET: 25,
  ERR_BATCH_TASK: 25,
  ERR_BATCH_SCHEDULER: 25,
  ERR_BATCH_KEY: 22,
  ERR_BATCH_IMAGE: 21,
  ERR_COMPOSE_FILE: 20,
  ERR_COMPOSE_UNSUPPORTED: 20,
  ERR_COMPOSE_PROJECT: 25,
  ERR_COMPOSE_SERVICE: 255,
  ERR_ENV_NO_ADDON: 24,
  ERR_ENV_STALE_ADDON: 24,
  ERR_ENV_NO_LIBRARY: 24,
  ERR_ENV_NO_PROGRAM: 24,
  ERR_ENV_NO_PRIVILEGE: 24,
  ERR_ENV_NO_KERNEL_SUPPORT: 24,
  ERR_ENV_LIMIT: 24,
  ERR_ENV_NO_MEMORY: 24,
  ERR_ENV_NO_CGROUP: 24,
  ERR_ENV_ARCHITECTURE: 24,
}
const codes = Object.keys(expected) as ErrorCode[]

describe("exitCodeFor", () => {
  it("A16, A17: gives each code the status that is promised for it", () => {
    assert.deepEqual(Object.fromEntries(codes.map((code) => [code, exitCodeFor(code)])), expected)
  })

  it("A16: tells a damaged image from a wrong key, a wrong key from a missing program", () => {
    const statuses = [
      "ERR_SIF_TRUNCATED",
      "ERR_KEY_MISMATCH",
      "ERR_ENV_NO_PROGRAM",
      "ERR_BUILD_EXISTS",
    ] as const
    assert.equal(new Set(statuses.map(exitCodeFor)).size, statuses.length)
  })

  it("255 says of each command what it is of that", () => {
    const saidBy = (row: Parameters<typeof exitMeaningsOf>[0]): readonly unknown[] | undefined =>
      exitMeaningsOf(row).find(([status]) => status === exitCodes.notStarted)
    assert.equal(saidBy({}), undefined)
    const general = exitMeanings.at(-1)
    assert.equal(saidBy({ passesOn: true }), general)
    assert.equal(saidBy({ commands: [{}, { passesOn: true }] }), general)
    assert.deepEqual(saidBy({ notStarted: ["no network", "there is none"] }), [
      255,
      "no network",
      "there is none",
    ])
    const group = commands.find(({ name }) => name === "network")
    assert.ok(group?.commands)
    for (const row of [group, ...group.commands])
      assert.doesNotMatch(String(saidBy(row) ?? ""), /payload/, row.name)
  })

  it("gives no status that Node keeps for itself, and each meaning its own", () => {
    const all = Object.values(exitCodes)
    assert.equal(new Set(all).size, all.length)
    assert.ok(all.every((status) => status === 0 || (status >= 20 && status <= 255)))
  })
})

describe("a code", () => {
  it("is named by a test that provokes it", () => {
    const tests = path.resolve(import.meta.dirname, "../..")
    const texts = readdirSync(tests, { recursive: true, encoding: "utf8" })
      .map((file) => path.join(tests, file))
      .filter((file) => file.endsWith(".test.ts") && file !== import.meta.filename)
      .map((file) => readFileSync(file, "utf8"))
    assert.deepEqual(
      codes.filter((code) => !texts.some((text) => text.includes(code))),
      [],
    )
  })
})

describe("hintFor", () => {
  const source = readFileSync(path.join(import.meta.dirname, "../../../lib/cli/hints.ts"), "utf8")

  it("has hints for codes that exist, and for no others", () => {
    const [general = ""] = source.split("const particular")
    const hinted = [...general.matchAll(/^ {2}(ERR_\w+):/gm)].map(([, code]) => code)
    assert.ok(hinted.length > 10)
    for (const code of hinted) assert.ok(codes.includes(code as ErrorCode), code)
    assert.deepEqual(
      codes.filter((code) => hintFor(code) !== undefined),
      codes.filter((code) => hinted.includes(code)),
    )
  })

  it("offers to build where that can be done", () => {
    for (const system of [
      'ID=debian\nVERSION_ID="12"\n',
      "ID=debian\n",
      'VERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n',
      'ID=linuxmint\nVERSION_ID="22"\nID_LIKE="ubuntu debian"\n',
    ])
      assert.ok(buildsFromSource(system), system)
    for (const system of [
      'ID=debian\nVERSION_ID="11"\n',
      'ID=ubuntu\nVERSION_ID="22.04"\nID_LIKE=debian\n',
      "ID=fedora\nVERSION_ID=43\n",
      "ID=alpine\nVERSION_ID=3.20.1\n",
      'ID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.4"\n',
      "",
    ])
      assert.equal(buildsFromSource(system), false, system)
  })

  it("A17: has a hint for each way in which a key can be wrong", () => {
    for (const code of [
      "ERR_KEY_MISSING",
      "ERR_KEY_MISMATCH",
      "ERR_KEY_FORMAT",
      "ERR_KEY_WEAK",
      "ERR_LUKS_PASSPHRASE",
    ] as const)
      assert.ok((hintFor(code) ?? "").length > 20, code)
  })

  it("names the options and the numbers that allow a key derivation, or says that none does", () => {
    for (const [limits, options] of [
      [{ memory: 2 ** 21 }, "--max-kdf-memory 2048 opens"],
      [{ memory: 2 ** 20 + 1 }, "--max-kdf-memory 1025 opens"],
      [{ iterations: 600_000_000 }, "--max-kdf-iterations 600000000 opens"],
      [
        { work: 2 ** 31, memory: 2 ** 22, iterations: 600_000_000 },
        "4096 and --max-kdf-iterations 600000000",
      ],
      [{ memory: 2 ** 32, work: 2 ** 41 }, "--max-kdf-memory 4194304 opens"],
      [{ memory: 2 ** 32 + 1 }, "no option"],
      [{ memory: 2 ** 21, parallel: 17 }, "no option"],
      [{ iterations: 2 ** 32 }, "no option"],
    ] as const)
      for (const code of ["ERR_LUKS_COST", "ERR_GOCRYPTFS_COST"] as const)
        assert.ok(
          hintFor(code, undefined, limits)?.includes(options),
          `${hintFor(code, undefined, limits) ?? ""} ${options}`,
        )
  })

  it("names what raises the limit that an error comes from, in a code or in words", () => {
    const system = (code: string, syscall: string): Error => Object.assign(new Error(code), { code, syscall })
    for (const error of [
      system("EMFILE", "pipe2"),
      new KeyError("ERR_KEY_MISSING", "no key", { cause: system("EMFILE", "open") }),
      new RunError("ERR_RUN_NETWORK", "network: pasta: /dev/null open: Too many open files"),
      new Error("fcntl: Too many open files"),
    ])
      assert.match(limitHint(error) ?? "", /^`ulimit -n`/, error.message)
    assert.match(limitHint(system("ENFILE", "open")) ?? "", /fs\.file-max/)
    for (const error of [system("EFBIG", "layer_limit"), system("ENOENT", "open"), undefined])
      assert.equal(limitHint(error), undefined)
    assert.deepEqual(
      (["ERR_KEY_MISSING", "ERR_LUKS_HEADER", "ERR_BUILD_OUTPUT", "ERR_RUN_NETWORK"] as const).map(
        limitStatus,
      ),
      [24, 24, 24, 255],
    )
  })

  it("names the file system that is full", () => {
    const cause = Object.assign(new Error("ENOSPC"), { code: "ENOSPC" })
    const error = new BuildError("ERR_BUILD_OUTPUT", "cannot write it", { path: "/tmp/image.sif", cause })
    assert.match(roomHint(error) ?? "", /^`df -h \/tmp`/)
    assert.equal(roomHint(cause), undefined)
  })

  it("does not advise what was asked for already", () => {
    const at = {
      command: "build",
      options: new Set<string>(),
      words: [],
      cause: undefined,
      plainScratch: true,
    }
    assert.doesNotMatch(hintFor("ERR_BUILD_SCRATCH", at) ?? "", /--plain-tmp/)
    assert.match(hintFor("ERR_BUILD_SCRATCH", { ...at, plainScratch: false }) ?? "", /--plain-tmp/)
  })

  it("says each hint in one line without an end", () => {
    for (const code of codes) assert.doesNotMatch(hintFor(code) ?? "", /\n|\.$|\s$/, code)
  })
})

describe("ContainerError", () => {
  it("carries code, path, offset and cause, and is named for its class", () => {
    const cause = new Error("origin")
    const options = { cause, path: "/x", offset: 7 }
    for (const [Class, error] of [
      [SifError, new SifError("ERR_SIF_MAGIC", "what happened", options)],
      [KeyError, new KeyError("ERR_KEY_MISSING", "what happened", options)],
      [LuksError, new LuksError("ERR_LUKS_COST", "what happened", options)],
      [GocryptfsError, new GocryptfsError("ERR_GOCRYPTFS_COST", "what happened", options)],
      [SignatureError, new SignatureError("ERR_UNSIGNED", "what happened", options)],
      [TreeError, new TreeError("ERR_TREE_TYPE", "what happened", options)],
      [OciError, new OciError("ERR_OCI_LIMIT", "what happened", options)],
      [BuildError, new BuildError("ERR_EXTRACT", "what happened", options)],
      [DeviceError, new DeviceError("ERR_MOUNT", "what happened", options)],
      [RunError, new RunError("ERR_RUN", "what happened", options)],
      [BatchError, new BatchError("ERR_BATCH_CONFIG", "what happened", options)],
      [ComposeError, new ComposeError("ERR_COMPOSE_FILE", "what happened", options)],
      [EnvironmentError, new EnvironmentError("ERR_ENV_NO_MEMORY", "what happened", options)],
    ] as const) {
      assert.ok(error instanceof Class && error instanceof ContainerError && error instanceof Error)
      assert.equal(error.name, Class.name)
      assert.deepEqual([error.message, error.path, error.offset], ["what happened", "/x", 7])
      assert.match(error.code, /^ERR_[A-Z_]+$/)
      assert.equal(error.cause, cause)
    }
  })

  it("has no cause of its own where there is none", () => {
    const error = new SifError("ERR_SIF_MAGIC", "x")
    assert.equal("cause" in error, false)
    assert.deepEqual([error.path, error.offset], [undefined, undefined])
  })
})
