// The public API. Everything a command can do, a program can do; nothing else is exported.
export { build, remoteBuilders } from "./make/build.ts"
export { compressionLevels } from "./make/write-image.ts"
export { passphraseKdfLimits } from "./encryption/encrypt.ts"
export type { PassphraseKdf } from "./encryption/encrypt.ts"
export type { EncryptionFormat, GocryptfsFacts, LuksFacts, Reader } from "./encryption/encryption-format.ts"
export type { BuildOptions, RemoteBuildersOptions } from "./make/build.ts"
export type { RemoteBuilder } from "./make/remote-build.ts"
export { serveBuild } from "./make/remote-serve.ts"
export type { ServeBuildOptions } from "./make/remote-serve.ts"
export { readDefinition } from "./definition/definition-build.ts"
export type { DefinitionOptions, ReadDefinitionOptions } from "./definition/definition-build.ts"
export type {
  App,
  Definition,
  FileSet,
  FileTransfer,
  SentFile,
  Script,
  ScriptName,
  Stage,
} from "./definition/definition-file.ts"
export type { ScratchKind, ScratchOptions } from "./definition/scratch.ts"
export type { OnOutput } from "./definition/workspace.ts"
export { sectionNames } from "./definition/stages.ts"
export type { SectionName } from "./definition/stages.ts"
export type {
  BuildResult,
  Compression,
  CompressionName,
  EncryptedOutputOptions,
  OutputOptions,
  Owner,
  TreeOptions,
} from "./make/write-image.ts"
export { cleanCache, listCache } from "./oci/cache.ts"
export { MAX_CACHED_IMAGES } from "./oci/image-cache.ts"
export type { CachedBlob, CleanCacheOptions } from "./oci/cache.ts"
export { MAX_LAYER_BYTES } from "./oci/image.ts"
export type { ImageOptions } from "./oci/image.ts"
export type { ClientOptions } from "./registry/client.ts"
export type { CredentialSearch } from "./registry/credentials.ts"
export { registryLogin, registryLogins, registryLogout } from "./registry/login.ts"
export type {
  AuthFileOptions,
  RegistryLogin,
  RegistryLoginOptions,
  RegistryLoginsOptions,
  RegistryLogoutOptions,
} from "./registry/login.ts"
export type { RegistryOptions } from "./registry/store.ts"
export type { OciOptions } from "./registry/transports.ts"
export { decrypt, encrypt, reencrypt } from "./make/convert.ts"
export { view } from "./make/view.ts"
export type { ViewOptions } from "./make/view.ts"
export { squashfuseProgram } from "./native/load.ts"
export { pull } from "./make/pull.ts"
export type { PullOptions, PullResult } from "./make/pull.ts"
export { push } from "./make/push.ts"
export type { PushOptions, PushResult } from "./make/push.ts"
export { createOverlay, MIN_OVERLAY_SIZE } from "./make/overlay.ts"
export type { OverlayCreateOptions } from "./make/overlay.ts"
export type { DecryptOptions, EncryptOptions, ReencryptOptions, TrustOptions } from "./make/convert.ts"
export { isImageName, open, readMetadata } from "./make/open-image.ts"
export type { NameOptions } from "./make/named-image.ts"
export type { OpenImageOptions, ReadMetadataOptions } from "./make/open-image.ts"
export { MAX_ENTRIES, MAX_FILE, Image } from "./container/image.ts"
export type {
  ListOptions,
  OpenOptions,
  ExtractOptions,
  ReadFileOptions,
  ReadOptions,
  TreeEntry,
  WalkOptions,
} from "./container/image.ts"
export type { Engine } from "./runtime/engine.ts"
export type { ConcreteEngine } from "./runtime/starter-protocol.ts"
export { Instance, listInstances, openInstance } from "./container/instance.ts"
export type {
  InstanceOptions,
  JoinOptions,
  ListInstancesOptions,
  StopOptions,
  WaitOptions,
} from "./container/instance.ts"
export { parseRestart } from "./container/service.ts"
export type {
  HealthCheck,
  InstanceStatus,
  LogLimits,
  RestartPolicy,
  ServiceOptions,
} from "./container/service.ts"
export type { LogOptions, LogPiece } from "./container/instance-logs.ts"
export type { InstanceStats } from "./container/instance-stats.ts"
export { createNetwork, listNetworks, openNetwork, removeNetwork } from "./runtime/networks.ts"
export type { NetworkInfo, NetworkMember, NetworkOptions } from "./runtime/networks.ts"
export type { Terminal, TerminalSize } from "./runtime/terminal.ts"
export { startFailure } from "./runtime/handover.ts"
export type { FailureReporter } from "./runtime/handover.ts"
export type { UnsignedPolicy } from "./container/signature.ts"
export type { PartitionKind } from "./encryption/partition.ts"
export type { ImageKind } from "./container/image-root.ts"
export type { TreeEntryType } from "./native/binding.ts"
export type { Mount, MountOptions } from "./container/mount.ts"
export type { OutputOptions as RunOutputOptions, Running, RunOutput, RunResult } from "./container/run.ts"
export { execOptionTable } from "./runtime/options.ts"
export type {
  BindSpec,
  ExecOptionKinds,
  ExecOptionRow,
  ExecOptions,
  MemoryFile,
  NetworkSpec,
  ProgramOptions,
  ResourceLimits,
} from "./runtime/options.ts"
export type { Stdio, StdioOption } from "./runtime/stdio.ts"
export { allocateSecret } from "./key/secret.ts"
export { endAfterSignals, exitNow, forbidDumps } from "./device/process.ts"
export type { ExtractResult } from "./device/tree.ts"
export { MAX_METADATA_SIZE } from "./container/metadata.ts"
export type { AppMetadata, ImageMetadata, MetadataOptions, MetadataPart } from "./container/metadata.ts"
export { inspect } from "./container/inspect.ts"
export type { ImageFacts } from "./container/inspect.ts"
export { ImageMap, mapImage } from "./container/map.ts"
export type { MapKind, MapPart, MapTextOptions, SaveMapOptions } from "./container/map.ts"
export type { CredentialSource } from "./encryption/credentials.ts"
export { keyConfigurationFile } from "./encryption/key-configuration.ts"
export type { GnuPgSource } from "./encryption/gnupg-keys.ts"
export type { KeyProviderSource } from "./encryption/key-providers.ts"
export type { LayerRecipient } from "./encryption/layer-recipients.ts"
export type { SecretSource } from "./encryption/secret-sources.ts"
export { listRecipients } from "./encryption/recipient-list.ts"
export type { Recipient } from "./encryption/recipient-list.ts"
export type { StayOptions } from "./encryption/staying.ts"
export { addRecipients, removeRecipient, rotateRecipients } from "./encryption/recipients.ts"
export type {
  AddRecipientsOptions,
  RecipientChange,
  RecipientChangeOptions,
  RemoveRecipientOptions,
  RotateRecipientsOptions,
} from "./encryption/recipients.ts"
export { becomeOciRuntime, logForOciEngine } from "./container/oci-runtime.ts"
export { listMounts, unmount } from "./container/mounts.ts"
export type { MountInfo } from "./container/mounts.ts"
export { sign } from "./container/sign.ts"
export type { SigningKey, SignOptions } from "./container/sign.ts"
export type { AddedSignature, SignReport } from "./signing/sign.ts"
export type { SignerCertificate } from "./signing/certificate.ts"
export { verify } from "./signing/verify.ts"
export type {
  SignatureFailure,
  SignatureReport,
  SignersRequired,
  VerifyOptions,
  VerifyReport,
} from "./signing/verify.ts"
export { userKeyrings, userSecretKeyrings } from "./signing/rings.ts"
export { checkExecution } from "./container/execution-control.ts"
export type { ExecutionMode, ExecutionVerdict } from "./container/execution-control.ts"
export * as batch from "./batch/batch.ts"
export * as compose from "./compose/compose.ts"
export * as keyring from "./container/keyring.ts"
export * as certificate from "./encryption/certificate-files.ts"
export * as oci from "./make/oci-images.ts"
export * as sif from "./file/sif.ts"
export type { Bytes, KdfLimits, Milliseconds, OnProgress } from "./units.ts"
export * from "./errors.ts"
