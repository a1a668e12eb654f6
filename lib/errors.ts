// Every error this package throws on purpose. A leaf.
import type { KdfLimits } from "./units.ts"

/** Stable codes; what each means and what to do stands in docs/errors.md. */
export type ErrorCode =
  | "ERR_SIF_MAGIC"
  | "ERR_SIF_VERSION"
  | "ERR_SIF_TRUNCATED"
  | "ERR_SIF_HEADER"
  | "ERR_SIF_DESCRIPTOR"
  | "ERR_SIF_OVERLAP"
  | "ERR_SIF_NO_OBJECT"
  | "ERR_SIF_AMBIGUOUS"
  | "ERR_SIF_FULL"
  | "ERR_SIF_SIGNED"
  | "ERR_SIF_BUSY"
  | "ERR_SIF_TOO_LARGE"
  | "ERR_SIF_SEALED"
  | "ERR_SIF_METADATA"
  | "ERR_SIF_CLOSED"
  | "ERR_SIF_PLAIN"
  | "ERR_KEY_MISSING"
  | "ERR_KEY_MISMATCH"
  | "ERR_KEY_FORMAT"
  | "ERR_KEY_PUBLIC"
  | "ERR_KEY_TYPE"
  | "ERR_KEY_DAMAGED"
  | "ERR_KEY_LOCKED"
  | "ERR_KEY_PASSPHRASE"
  | "ERR_KEY_UNSUPPORTED"
  | "ERR_KEY_WEAK"
  | "ERR_KEY_COMMAND"
  | "ERR_KEY_PROVIDER"
  | "ERR_KEY_TOKEN"
  | "ERR_KEY_CONFIGURATION"
  | "ERR_KEY_GNUPG"
  | "ERR_KEY_MESSAGE"
  | "ERR_KEY_RECIPIENT"
  | "ERR_KEY_UNCONFIRMED"
  | "ERR_LUKS_HEADER"
  | "ERR_LUKS_PASSPHRASE"
  | "ERR_LUKS_UNSUPPORTED"
  | "ERR_LUKS_COST"
  | "ERR_LUKS_FORMAT"
  | "ERR_LUKS_FULL"
  | "ERR_GOCRYPTFS_CONFIG"
  | "ERR_GOCRYPTFS_PASSPHRASE"
  | "ERR_GOCRYPTFS_UNSUPPORTED"
  | "ERR_GOCRYPTFS_COST"
  | "ERR_GOCRYPTFS_RECIPIENTS"
  | "ERR_UNSIGNED"
  | "ERR_SIGNATURE_MISSING"
  | "ERR_SIGNATURE_SIGNER"
  | "ERR_SIGNATURE_INVALID"
  | "ERR_SIGNATURE_FORMAT"
  | "ERR_SIGNATURE_KEYRING"
  | "ERR_SIGNATURE_TREE"
  | "ERR_SIGNATURE_CERTIFICATE"
  | "ERR_SIGNATURE_SIGN"
  | "ERR_SIGNATURE_CHANGED"
  | "ERR_KEYRING_INSECURE"
  | "ERR_KEYRING_NO_KEY"
  | "ERR_KEYRING_BUSY"
  | "ERR_KEYRING_WRITE"
  | "ERR_KEYSERVER"
  | "ERR_ECL_FILE"
  | "ERR_ECL_REFUSED"
  | "ERR_TREE_FORMAT"
  | "ERR_TREE_NOT_FOUND"
  | "ERR_TREE_TYPE"
  | "ERR_TREE_UNSUPPORTED"
  | "ERR_OCI_REFERENCE"
  | "ERR_OCI_NOT_FOUND"
  | "ERR_OCI_FORMAT"
  | "ERR_OCI_DIGEST"
  | "ERR_OCI_LIMIT"
  | "ERR_OCI_WORK"
  | "ERR_OCI_UNSUPPORTED"
  | "ERR_OCI_MAC"
  | "ERR_OCI_PARTIAL"
  | "ERR_OCI_REGISTRY"
  | "ERR_OCI_CREDENTIALS"
  | "ERR_BUILD_SOURCE"
  | "ERR_BUILD_EXISTS"
  | "ERR_BUILD_OUTPUT"
  | "ERR_BUILD_AGENT"
  | "ERR_BUILD_SCRIPT"
  | "ERR_BUILD_SCRATCH"
  | "ERR_BUILD_REMOTE"
  | "ERR_BUILD_REMOTE_VERSION"
  | "ERR_BUILD_REMOTE_REFUSED"
  | "ERR_BUILD_REMOTE_IMAGE"
  | "ERR_DEFINITION_SYNTAX"
  | "ERR_DEFINITION_ARGUMENT"
  | "ERR_EXTRACT"
  | "ERR_LOOP_BUSY"
  | "ERR_LOOP_ATTACH"
  | "ERR_DM_EXISTS"
  | "ERR_DM_ACTIVATE"
  | "ERR_MOUNT"
  | "ERR_MOUNT_BUSY"
  | "ERR_MOUNT_NOT_OURS"
  | "ERR_RUN"
  | "ERR_RUN_TIMEOUT"
  | "ERR_RUN_OUTPUT"
  | "ERR_RUN_BIND"
  | "ERR_RUN_OPTION"
  | "ERR_RUN_BUNDLE"
  | "ERR_RUN_NETWORK"
  | "ERR_RUN_PORT"
  | "ERR_RUN_OVERLAY"
  | "ERR_RUN_OVERLAY_BUSY"
  | "ERR_RUN_PLAIN_OVERLAY"
  | "ERR_INSTANCE_NAME"
  | "ERR_INSTANCE_EXISTS"
  | "ERR_INSTANCE_NONE"
  | "ERR_INSTANCE_FOLDER"
  | "ERR_NETWORK_NAME"
  | "ERR_NETWORK_EXISTS"
  | "ERR_NETWORK_NONE"
  | "ERR_NETWORK_BUSY"
  | "ERR_NETWORK_SUBNET"
  | "ERR_BATCH_CONFIG"
  | "ERR_BATCH_SET"
  | "ERR_BATCH_TASK"
  | "ERR_BATCH_SCHEDULER"
  | "ERR_BATCH_KEY"
  | "ERR_BATCH_IMAGE"
  | "ERR_COMPOSE_FILE"
  | "ERR_COMPOSE_UNSUPPORTED"
  | "ERR_COMPOSE_PROJECT"
  | "ERR_COMPOSE_SERVICE"
  | "ERR_ENV_NO_ADDON"
  | "ERR_ENV_STALE_ADDON"
  | "ERR_ENV_NO_LIBRARY"
  | "ERR_ENV_NO_PROGRAM"
  | "ERR_ENV_NO_PRIVILEGE"
  | "ERR_ENV_NO_KERNEL_SUPPORT"
  | "ERR_ENV_NO_MEMORY"
  | "ERR_ENV_NO_CGROUP"
  | "ERR_ENV_LIMIT"
  | "ERR_ENV_ARCHITECTURE"

/** Options shared by all: the origin, and facts a program can use. */
export interface ContainerErrorOptions {
  /** What went wrong below: usually a system error. */
  readonly cause?: unknown
  /** The file or device the error is about. */
  readonly path?: string | undefined
  /** Byte offset in the image, where known. */
  readonly offset?: number | undefined
  /** The limits that would allow a key derivation that was refused for its cost. */
  readonly kdfLimits?: Partial<KdfLimits> | undefined
  /**
   * What was too much, where that is not the same everywhere: `layers` are limited by `maxLayerBytes`, `memory` by the machine, open `files`
   * and the `size` of a file by the limits of this process.
   */
  readonly limit?: "layers" | "memory" | "files" | "size" | undefined
}

/** The codes that begin with a word. */
type CodesOf<Word extends string> = Extract<ErrorCode, `ERR_${Word}` | `ERR_${Word}_${string}`>

/** Base class of everything this package throws on purpose. */
export class ContainerError extends Error {
  /** Stable; switch on this, not on the message. */
  readonly code: ErrorCode
  /** The file or device the error is about. */
  readonly path: string | undefined
  /** Byte offset in the image, where known. */
  readonly offset: number | undefined
  /** Of a key derivation that was refused for its cost: the `kdfLimits` of `open` that would allow it. */
  readonly kdfLimits: Partial<KdfLimits> | undefined
  /**
   * What was too much, where that is not the same everywhere: `layers` are limited by `maxLayerBytes`, `memory` by the machine, open `files`
   * and the `size` of a file by the limits of this process.
   */
  readonly limit: "layers" | "memory" | "files" | "size" | undefined
  constructor(code: ErrorCode, message: string, options: ContainerErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = new.target.name
    this.code = code
    this.path = options.path
    this.offset = options.offset
    this.kdfLimits = options.kdfLimits
    this.limit = options.limit
  }
}

/** One about a single matter: it has the codes of that, and no others. */
abstract class ErrorAbout<Code extends ErrorCode> extends ContainerError {
  override readonly code: Code
  constructor(code: Code, message: string, options?: ContainerErrorOptions) {
    super(code, message, options)
    this.code = code
  }

  /** @internal One about a file or device, whose name begins the message. */
  static at<Code extends ErrorCode, E>(
    this: new (code: Code, message: string, options?: ContainerErrorOptions) => E,
    path: string,
    code: NoInfer<Code>,
    what: string,
    options?: Omit<ContainerErrorOptions, "path">,
  ): E {
    return new this(code, `${path}: ${what}`, { ...options, path })
  }
}

/** The SIF structure itself. */
export class SifError extends ErrorAbout<CodesOf<"SIF">> {}
/** Keys, passphrases and crypto messages. */
export class KeyError extends ErrorAbout<CodesOf<"KEY">> {}
/** The LUKS2 header and its keyslots. */
export class LuksError extends ErrorAbout<CodesOf<"LUKS">> {}
/** The gocryptfs layer of an image, and its configuration. */
export class GocryptfsError extends ErrorAbout<CodesOf<"GOCRYPTFS">> {}
/** Signatures, and what is asked of them. */
export class SignatureError extends ErrorAbout<
  CodesOf<"SIGNATURE" | "UNSIGNED" | "KEYRING" | "KEYSERVER" | "ECL">
> {}
/** The squashfs tree inside. */
export class TreeError extends ErrorAbout<CodesOf<"TREE">> {}
/** OCI and Docker images, and registries. */
export class OciError extends ErrorAbout<CodesOf<"OCI">> {}
/** Building and writing outputs. */
export class BuildError extends ErrorAbout<CodesOf<"BUILD" | "DEFINITION" | "EXTRACT">> {}
/** Loop devices, mappings, mounts. */
export class DeviceError extends ErrorAbout<CodesOf<"LOOP" | "DM" | "MOUNT">> {}
/** Running a payload. */
export class RunError extends ErrorAbout<CodesOf<"RUN" | "INSTANCE" | "NETWORK">> {}
/** Jobs on a cluster. */
export class BatchError extends ErrorAbout<CodesOf<"BATCH">> {}
/** Services of a compose file. */
export class ComposeError extends ErrorAbout<CodesOf<"COMPOSE">> {}
/** What this machine or user lacks. */
export class EnvironmentError extends ErrorAbout<CodesOf<"ENV">> {}
