// The public API. Everything a command can do, a program can do; nothing else is exported.
export { build } from "./build/build.ts"
export type { BuildOptions, BuildResult, Compression, CompressionName } from "./build/build.ts"
export { open, Image } from "./container/image.ts"
export type { Engine } from "./container/engine.ts"
export type { ExtractResult } from "./device/tree.ts"
export type {
  ExecOptions,
  ExtractOptions,
  ListOptions,
  MountOptions,
  OpenOptions,
  ReadOptions,
  TreeEntry,
} from "./container/image.ts"
export { inspect } from "./container/inspect.ts"
export type { ImageFacts, LuksFacts } from "./container/inspect.ts"
export type { CredentialOptions } from "./container/credentials.ts"
export { listMounts, unmount } from "./container/mounts.ts"
export type { MountInfo } from "./container/mounts.ts"
export type { Mount, RunResult, Running } from "./container/image.ts"
export * as sif from "./sif/index.ts"
export * from "./errors.ts"
