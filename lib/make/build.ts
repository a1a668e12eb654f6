// Builds an image of a folder, a squashfs, another image, or layers.
import * as is from "../arguments.ts"
import { kdfLimits } from "../device/luks-header.ts"
import { realpath, stat } from "node:fs/promises"
import path from "node:path"
import {
  credentialList,
  Credentials,
  wipeCredentials,
  type CredentialSource,
} from "../encryption/credentials.ts"
import type { OpenOptions } from "../container/image.ts"
import { BuildError } from "../errors.ts"
import { verifyOptions } from "../signing/verify.ts"
import {
  DefinitionBuild,
  definitionRows,
  isDefinition,
  type DefinitionOptions,
} from "../definition/definition-build.ts"
import { checkStretching, recipientsOf } from "../encryption/encrypt.ts"
import { checkTarget } from "../file/output.ts"
import { remoteAddress } from "../remote/ssh.ts"
import { layerRows, type LayerOptions } from "../source/layer-options.ts"
import { describedSandbox } from "../source/sandbox.ts"
import { openSource, tellOfPlain } from "../source/source.ts"
import { askBuilders, buildRemotely, checkRemoteOptions, type RemoteBuilder } from "./remote-build.ts"
import {
  encryptedOutputRows,
  makeImage,
  treeRows,
  type BuildResult,
  type EncryptedOutputOptions,
  type TreeOptions,
} from "./write-image.ts"
import { accumulated } from "../units.ts"

/** What {@link build} makes of what. */
export interface BuildOptions extends EncryptedOutputOptions, TreeOptions, DefinitionOptions, LayerOptions {
  /**
   * A definition file, a folder, a squashfs file, another SIF image, or the name of an OCI image:
   * `oci:DIR[:NAME|@N|@DIGEST]`, `oci-archive:FILE[:NAME]`, `docker-archive:FILE[:NAME|@N]`,
   * `docker://[HOST/]REPOSITORY[:TAG|@DIGEST]`.
   */
  readonly source: string
  /**
   * Whoever shall be able to open the image: every RSA key and passphrase. Without them it is plain. A list that names nobody is an
   * error, and so is `undefined`.
   */
  readonly recipients?: readonly CredentialSource[]
  /** Opens an encrypted source; default: `recipients`. */
  readonly unlock?: readonly CredentialSource[] | undefined
  /** As of `open`, for a source that is encrypted. */
  readonly kdfLimits?: OpenOptions["kdfLimits"]
  /** As of `open`, too. */
  readonly onDerivation?: OpenOptions["onDerivation"]
  /** By whom a source that is a SIF image must be signed; any other source is an error then. */
  readonly verify?: NonNullable<OpenOptions["verify"]>
  /** As of `open`, of the source and of all bases of a definition file: nothing else becomes part of the image. */
  readonly requireEncrypted?: OpenOptions["requireEncrypted"]
  /**
   * Where a definition file is built instead of here: `ssh://[USER@]HOST[:PORT][/PATH/OF/sifcrypt]`, over the system's ssh. Of several the
   * first that is of `architecture`. Recipients and keys stay here: the other machine makes the tree, this one the image.
   */
  readonly remote?: readonly string[] | undefined
  /** With `remote`: what `serveBuild` has under this name, where the account there may say so. */
  readonly allowUnconfined?: boolean | undefined
  /** Without recipients it is an error then. */
  readonly encrypt?: boolean | undefined
  /** The output is an ordinary folder. It has no recipients. */
  readonly sandbox?: boolean | undefined
  /** The output is a folder that exists, and the last stage changes it instead of starting anew; `force` starts anew. */
  readonly update?: boolean | undefined
}

const MOST_REMOTES = 64
const remoteList: is.Check<string[]> = (value, name) => {
  const given = is.filled(is.list(remoteAddress))(value, name)
  if (given.length > MOST_REMOTES) throw is.invalidValue(`${name} has more than ${MOST_REMOTES} entries`)
  return given
}

const checkOptions = is.shape<BuildOptions>({
  ...encryptedOutputRows,
  ...treeRows,
  ...definitionRows,
  ...layerRows,
  source: is.required(is.path),
  recipients: is.notUndefined(credentialList),
  unlock: credentialList,
  kdfLimits,
  onDerivation: is.callback,
  verify: is.notUndefined(verifyOptions),
  requireEncrypted: is.flag,
  remote: remoteList,
  allowUnconfined: is.flag,
  encrypt: is.flag,
  sandbox: is.flag,
  update: is.flag,
})

function sandboxError(what: string): BuildError {
  return new BuildError("ERR_BUILD_OUTPUT", what)
}

/** A folder that a sandbox may become: not there yet, or to be replaced. */
async function checkFolder(target: string, force: boolean, update: boolean): Promise<void> {
  const info = await stat(target).catch(() => undefined)
  if (update) {
    if (info?.isDirectory() !== true) throw sandboxError(`cannot update ${target}: it is no folder`)
  } else if (info !== undefined && !force)
    throw new BuildError("ERR_BUILD_EXISTS", `${target} exists`, { path: target })
  else if (info !== undefined && !info.isDirectory())
    throw sandboxError(`cannot replace ${target}: it is no folder`)
}

function checkNothingToVerify({ verify, source }: BuildOptions): void {
  if (verify !== undefined)
    throw BuildError.at(
      source,
      "ERR_BUILD_SOURCE",
      "who must have signed the base of a definition file, its Fingerprints: says",
    )
}

/** What data can be made of. */
async function checkData({
  source,
  output,
  recipients,
  encrypt,
  sandbox,
  update,
}: BuildOptions): Promise<void> {
  if (recipients !== undefined || encrypt === true || sandbox === true || update === true)
    throw new BuildError("ERR_BUILD_OUTPUT", `cannot make data of ${output}: it is a plain partition`, {
      path: output,
    })
  if ((await stat(source).catch(() => undefined))?.isDirectory() !== true)
    throw BuildError.at(source, "ERR_BUILD_SOURCE", "data is made of a folder")
}

/** Builds into an ordinary folder. */
async function buildSandbox(
  options: BuildOptions,
  credentials: Credentials,
): Promise<Omit<BuildResult, "milliseconds">> {
  checkNothingToVerify(options)
  const { output, force = false, update = false } = options
  await checkFolder(output, force, update)
  const target = path.resolve(output)
  const onProgress = options.onProgress && accumulated(options.onProgress)
  await using work = new DefinitionBuild({ ...options, onProgress, credentials, encrypted: false }, target)
  await work.run(undefined, update && !force ? target : undefined)
  const { entries, bytes } = await work.copyTo(await realTarget(target), force)
  onProgress?.(bytes, bytes)
  return { output, encrypted: false, size: bytes, inputBytes: bytes, entries }
}

/** As the workspace names it: links in the way to it are resolved. */
async function realTarget(target: string): Promise<string> {
  return path.join(await realpath(path.dirname(target)), path.basename(target))
}

/**
 * Builds a SIF image, or with `sandbox` a folder. Needs no privilege, no loop device, no device-mapper and no temporary file;
 * the output appears under its name when it is complete, and not at all otherwise. Of a source image every other object is
 * kept.
 *
 * @throws OciError of an OCI image; BuildError `ERR_BUILD_SOURCE`, `ERR_BUILD_EXISTS`, `ERR_BUILD_OUTPUT`, and of a definition file
 * `ERR_DEFINITION_SYNTAX`, `ERR_DEFINITION_ARGUMENT`, `ERR_BUILD_AGENT`, `ERR_BUILD_SCRIPT`, `ERR_BUILD_SCRATCH`; with `remote` also
 * `ERR_BUILD_REMOTE`, `ERR_BUILD_REMOTE_VERSION`, `ERR_BUILD_REMOTE_REFUSED`, `ERR_BUILD_REMOTE_IMAGE`; KeyError
 * before any work when a key is missing or unusable, GocryptfsError `ERR_GOCRYPTFS_RECIPIENTS` when the format cannot have
 * those recipients; SifError, LuksError, GocryptfsError and TreeError of a source image; SignatureError of a base that
 * `Fingerprints:` is about, or with `verify`; EnvironmentError; the signal's reason.
 */
export async function build(given: BuildOptions): Promise<BuildResult> {
  const options = checkOptions(given, "options")
  const started = performance.now()
  const { signal, force = false } = options
  signal?.throwIfAborted()
  checkStretching(options)
  const { remote } = options
  if (remote !== undefined) checkRemoteOptions(options)
  const sandbox = options.sandbox === true || options.update === true
  if (!sandbox) await checkTarget(options.output, force)
  // They may be needed twice: for the source, and for whom the image is encrypted.
  using recipientsGiven = new Credentials(options.recipients)
  using unlockGiven = new Credentials(options.unlock)
  const credentials = options.unlock === undefined ? recipientsGiven : unlockGiven
  const timed = (made: Omit<BuildResult, "milliseconds">): BuildResult => ({
    ...made,
    milliseconds: Math.round(performance.now() - started),
  })
  if (options.data === true) await checkData(options)
  if (sandbox) {
    if (options.encrypt === true || options.format !== undefined || options.recipients !== undefined)
      throw sandboxError(`cannot encrypt ${options.output}: a sandbox is an ordinary folder`)
    return timed(await buildSandbox(options, credentials))
  }
  const recipients = await recipientsOf({
    ...options,
    recipients: options.recipients === undefined ? undefined : recipientsGiven,
  })
  try {
    if (remote !== undefined) {
      checkNothingToVerify(options)
      const onProgress = options.onProgress && accumulated(options.onProgress)
      return timed(await buildRemotely({ ...options, remote, onProgress }, recipients, credentials))
    }
    if (await isDefinition(options.source)) {
      checkNothingToVerify(options)
      const encrypted = recipients.length > 0
      // Of each base, and of the image then.
      const onProgress = options.onProgress && accumulated(options.onProgress)
      await using work = new DefinitionBuild(
        { ...options, onProgress, credentials, encrypted },
        options.output,
      )
      return timed(
        await makeImage({ ...options, onProgress }, recipients, (output) => work.run(output.file.fd)),
      )
    }
    await using found = await openSource(options.source, credentials, {
      ...options,
      isNamed: options.unlock !== undefined,
    })
    if (recipients.length === 0) tellOfPlain(found, options.output, options.onNotice)
    const isSandbox = "directory" in found.tree && options.data !== true
    const source = isSandbox ? await describedSandbox(found, options) : found
    if (options.compression !== undefined && "squashfs" in source.tree)
      options.onNotice?.(
        `${options.source} holds a squashfs, which is copied as it is: compression has no effect`,
      )
    // An OCI image may have been chosen by another name of its architecture.
    const chosen = source.architecture === undefined ? {} : { architecture: source.architecture }
    return timed(await makeImage({ ...options, ...chosen }, recipients, source))
  } finally {
    wipeCredentials(recipients)
  }
}

/** How {@link remoteBuilders} asks. */
export interface RemoteBuildersOptions extends Pick<BuildOptions, "signal" | "onNotice"> {
  /** As of {@link build}. */
  readonly remote: readonly string[]
}

const checkAsking = is.shape<RemoteBuildersOptions>({
  remote: is.required(remoteList),
  signal: is.abortSignal,
  onNotice: is.callback,
})

/**
 * Asks machines that could build what they are, one after the other.
 *
 * @throws BuildError `ERR_BUILD_REMOTE`, `ERR_BUILD_REMOTE_VERSION`; EnvironmentError `ERR_ENV_NO_PROGRAM`; the signal's reason.
 */
export async function remoteBuilders(options: RemoteBuildersOptions): Promise<RemoteBuilder[]> {
  const { remote, ...others } = checkAsking(options, "options")
  return await askBuilders(remote, others)
}
