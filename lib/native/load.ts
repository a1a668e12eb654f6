// Finds the addon, opens it at first use and, when that fails, says what was tried.
import { existsSync, readFileSync } from "node:fs"
import path from "node:path"
import bindings from "bindings"
import { EnvironmentError } from "../errors.ts"
import type { NativeAddon } from "./binding.ts"

/** The package's own folder: two above dist/native and lib/native. */
export const packageRoot: string = path.resolve(import.meta.dirname, "..", "..")

/** The package's own. */
export function packageVersion(): string {
  return (JSON.parse(readFileSync(path.join(packageRoot, "package.json"), "utf8")) as { version: string })
    .version
}

let addon: NativeAddon | undefined

/** Which libc this process runs on. (process.report knows too, and takes longer than opening an image.) */
function libc(): "glibc" | "musl" {
  return readFileSync("/proc/self/maps", "latin1").includes("/ld-musl-") ? "musl" : "glibc"
}

/** `<platform>-<arch>`, the folder of prebuilds/ for this machine. */
export function prebuildFolder(): string {
  return path.join(packageRoot, "prebuilds", `${process.platform}-${process.arch}`)
}

/**
 * The native addon.
 *
 * @throws EnvironmentError `ERR_ENV_NO_ADDON` when there is none for this machine or it cannot be loaded.
 */
export function loadAddon(): NativeAddon {
  if (addon !== undefined) return addon
  const built = ["module_root", "build", "Release", "bindings"]
  const platform = `${process.platform}-${process.arch}`
  const local = existsSync(path.join(packageRoot, "build", "Release", "sifcrypt.node"))
  try {
    const place = local ? built : ["module_root", "prebuilds", platform, `sifcrypt.${libc()}.node`]
    addon = bindings({ bindings: "sifcrypt", module_root: packageRoot, try: [place] }) as NativeAddon
    return addon
  } catch (cause) {
    throw new EnvironmentError(
      "ERR_ENV_NO_ADDON",
      `no native addon for ${process.platform}-${process.arch} (${libc()}, Node ${process.versions.node}) in ${packageRoot}`,
      { cause },
    )
  }
}

/**
 * The executable that owns mounts and payloads, beside the addon.
 *
 * @throws EnvironmentError `ERR_ENV_NO_ADDON`.
 */
export function starterPath(): string {
  return executable("sifcrypt-starter")
}

/**
 * The executable that is the first process of a container that needs one; linked statically, so that any image runs it.
 *
 * @throws EnvironmentError `ERR_ENV_NO_ADDON`.
 */
export function initPath(): string {
  return executable("sifcrypt-init")
}

/**
 * The executable that interprets an image's environment scripts and becomes the payload; linked statically as well.
 *
 * @throws EnvironmentError `ERR_ENV_NO_ADDON`.
 */
export function shellPath(): string {
  return executable("sifcrypt-shell")
}

function executable(name: string): string {
  const built = path.join(packageRoot, "build", "Release", name)
  if (existsSync(built)) return built
  const prebuilt = path.join(prebuildFolder(), `${name}.${libc()}`)
  if (existsSync(prebuilt)) return prebuilt
  throw new EnvironmentError("ERR_ENV_NO_ADDON", `no ${name}: neither ${built} nor ${prebuilt}`)
}
