// Finds the addon and the programs beside it, opens the addon at first use and, when that fails, says what was tried.
import { existsSync, readdirSync, readFileSync } from "node:fs"
import path from "node:path"
import bindings from "bindings"
import { EnvironmentError } from "../errors.ts"
import type { NativeAddon } from "./binding.ts"
import { nativeDigest } from "./native-digest.ts"
import { readNativeFile, type NativeFile } from "./sources-note.ts"

/** The package's own folder: two above dist/native and lib/native. */
export const packageRoot: string = path.resolve(import.meta.dirname, "..", "..")

/** The package's own. */
export function packageVersion(): string {
  return (JSON.parse(readFileSync(path.join(packageRoot, "package.json"), "utf8")) as { version: string })
    .version
}

const platform = `${process.platform}-${process.arch}`

let addon: NativeAddon | undefined

/**
 * Which libc a process runs on, by the files that are mapped into it. (process.report knows too, and takes longer than opening an image.)
 * glibc's has one of two names everywhere; musl's is its dynamic linker, which distributions call what they like.
 */
export function libcOf(maps: string): "glibc" | "musl" {
  return /\/libc(?:\.so\.6|-2\.\d+\.so)\b/.test(maps) ? "glibc" : "musl"
}

function libc(): "glibc" | "musl" {
  return libcOf(readFileSync("/proc/self/maps", "latin1"))
}

/**
 * The native addon.
 *
 * @throws EnvironmentError `ERR_ENV_NO_ADDON` when there is none for this machine or it cannot be loaded, `ERR_ENV_STALE_ADDON` when it is
 *   another version's.
 */
export function loadAddon(): NativeAddon {
  if (addon !== undefined) return addon
  const file = nativeFile("sifcrypt.node", () => `sifcrypt.${libc()}.node`)
  try {
    addon = bindings({ bindings: "sifcrypt", module_root: packageRoot, try: [[file]] }) as NativeAddon
    return addon
  } catch (cause) {
    // The dynamic linker's sentence: which symbol, which library.
    const reason = cause instanceof Error ? cause.message.trim().replace(/\s*\n\s*/g, " ") : String(cause)
    throw new EnvironmentError(
      "ERR_ENV_NO_ADDON",
      `the native addon does not load on ${machine()}: ${reason}`,
      { cause },
    )
  }
}

/**
 * The executable that owns mounts and payloads, beside the addon.
 *
 * @throws EnvironmentError `ERR_ENV_NO_ADDON`, `ERR_ENV_STALE_ADDON`.
 */
export function starterPath(): string {
  return nativeFile("sifcrypt-starter", () => `sifcrypt-starter.${libc()}`)
}

/**
 * The executable that does what squashfuse_ll does when it is started under that name: by a link, say.
 *
 * @returns Its path, for `sifcrypt link` or for a folder that another program looks into.
 * @throws EnvironmentError `ERR_ENV_NO_ADDON`, `ERR_ENV_STALE_ADDON`.
 */
export function squashfuseProgram(): string {
  return starterPath()
}

/**
 * The executable that is the first process of a container that needs one; linked statically, so that any image runs it.
 *
 * @throws EnvironmentError `ERR_ENV_NO_ADDON`, `ERR_ENV_STALE_ADDON`.
 */
export function initPath(): string {
  return nativeFile("sifcrypt-init", () => "sifcrypt-init")
}

/**
 * The executable that interprets an image's environment scripts and becomes the payload; linked statically as well.
 *
 * @throws EnvironmentError `ERR_ENV_NO_ADDON`, `ERR_ENV_STALE_ADDON`.
 */
export function shellPath(): string {
  return nativeFile("sifcrypt-shell", () => "sifcrypt-shell")
}

/** A local build first, else what the package brings; either only if it belongs to this JavaScript. */
function nativeFile(name: string, prebuiltName: () => string): string {
  const built = path.join(packageRoot, "build", "Release", name)
  const file = existsSync(built) ? built : path.join(packageRoot, "prebuilds", platform, prebuiltName())
  let found: NativeFile
  try {
    found = readNativeFile(file)
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    const message =
      code === "ENOENT"
        ? `no native addon for ${machine()}: neither ${built} nor ${file} is there; ` +
          `${path.join(packageRoot, "prebuilds")} has ${shipped().join(", ") || "nothing"}`
        : `${file} cannot be read (${code})`
    throw new EnvironmentError("ERR_ENV_NO_ADDON", message, { cause })
  }
  const { sources, architecture, isCut } = found
  if (isCut) throw new EnvironmentError("ERR_ENV_NO_ADDON", `${file} is cut short`)
  if (architecture !== undefined && architecture !== process.arch)
    throw new EnvironmentError("ERR_ENV_NO_ADDON", `${file} is for ${architecture}, and this is ${machine()}`)
  if (nativeDigest !== undefined && sources !== nativeDigest) {
    const message = `${file} was made of other sources (${sources?.slice(0, 12) ?? "it does not say of which"}) than this JavaScript (${nativeDigest.slice(0, 12)})`
    throw new EnvironmentError("ERR_ENV_STALE_ADDON", message)
  }
  return file
}

/** This machine, as far as it decides which files it runs. */
function machine(): string {
  const { header } = process.report.getReport() as { header: { glibcVersionRuntime?: string } }
  const version = header.glibcVersionRuntime
  return `${platform} (${libc()}${version === undefined ? "" : ` ${version}`}, Node ${process.versions.node})`
}

/** The files that the package brings. */
function shipped(): readonly string[] {
  try {
    return readdirSync(path.join(packageRoot, "prebuilds"), { recursive: true, encoding: "utf8" })
      .filter((file) => file.includes("sifcrypt"))
      .sort()
  } catch {
    return []
  }
}
