// This package with its addon built for AddressSanitizer and UndefinedBehaviorSanitizer, which Node has to be started with.
import { execFileSync } from "node:child_process"
import { copyFileSync, cpSync, mkdirSync, rmSync, symlinkSync } from "node:fs"
import path from "node:path"
import { packageRoot } from "./cli.ts"
import { newFolder } from "./scratch.ts"

export interface Sanitized {
  /** The package. */
  readonly root: string
  /** Of who loads it. A report goes to standard error and ends the process with the status `REPORTED`. */
  readonly env: Readonly<Record<string, string>>
}

/** No status of a test's own. */
const REPORTED = 86

/** Builds it, which takes minutes the first time. */
export function sanitizedPackage(): Sanitized {
  const build = path.join(packageRoot, "build-addon")
  const modules = path.join(packageRoot, "node_modules")
  const headers = ["node-addon-api", path.join("node-api-headers", "include")]
    .map((name) => path.join(modules, name))
    .join(";")
  const run = (program: string, args: readonly string[]): string =>
    execFileSync(program, args, { encoding: "utf8", maxBuffer: 64 << 20 })
  // It has the place of the project, which is another in each run of a clone that is not within reach.
  rmSync(path.join(build, "CMakeCache.txt"), { force: true })
  run("cmake", ["-S", packageRoot, "-B", build, "-DSIFCRYPT_SANITIZE=addon", `-DCMAKE_JS_INC=${headers}`])
  run("cmake", ["--build", build, "-j", "2"])
  const root = newFolder("sanitized")
  for (const name of ["dist", "schema"])
    cpSync(path.join(packageRoot, name), path.join(root, name), { recursive: true })
  copyFileSync(path.join(packageRoot, "package.json"), path.join(root, "package.json"))
  symlinkSync(modules, path.join(root, "node_modules"))
  const release = path.join(root, "build", "Release")
  mkdirSync(release, { recursive: true })
  copyFileSync(path.join(build, "sifcrypt.node"), path.join(release, "sifcrypt.node"))
  for (const name of ["starter", "init", "shell"].map((one) => `sifcrypt-${one}`))
    symlinkSync(path.join(packageRoot, "build", "Release", name), path.join(release, name))
  const libraries = [
    ...run("ldd", [path.join(build, "sifcrypt.node")]).matchAll(/=> (\S+\/lib(?:a|ub)san\.so\S*)/g),
  ]
  return {
    root,
    env: {
      LD_PRELOAD: libraries.map(([, library]) => library).join(":"),
      // Node leaves much to the end of the process.
      ASAN_OPTIONS: `detect_leaks=0:exitcode=${REPORTED}`,
      UBSAN_OPTIONS: `print_stacktrace=1:exitcode=${REPORTED}`,
    },
  }
}
