// What a program that depends on the package sees of it (`npm run check:published`): publint and attw find nothing, and the examples of
// README.md and the guides compile beside the tarball's declarations, which are checked themselves, in the oldest TypeScript, ours and the
// newest.
import { execFileSync } from "node:child_process"
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { publint } from "publint"
import { formatMessage } from "publint/utils"
import { examples, pages } from "../test/support/examples.ts"

/** Beside our own: the first that knows `await using`, and the one that is written in Go. */
const TYPESCRIPTS = ["5.2.2", "7.0.2"]
const root = process.cwd()
const folder = mkdtempSync(path.join(tmpdir(), "sifcrypt-published-"))
let failed = false
/** Files of TypeScript. */
const consumers = []

/** Runs a program whose output counts only if it fails. */
function check(what, file, args, cwd = folder) {
  try {
    execFileSync(file, args, { cwd, stdio: "pipe", encoding: "utf8" })
    console.log(`${what}: ok`)
  } catch (error) {
    console.error(`${what}: failed\n${error.stdout}${error.stderr}`)
    failed = true
  }
}

/** The consumer of one kind of resolution, by the compiler in `compiler`. */
function compile(compiler, module, moduleResolution) {
  const { version } = JSON.parse(readFileSync(path.join(compiler, "package.json"), "utf8"))
  const options = { module, moduleResolution, target: "es2022", lib: ["esnext"], types: ["node"] }
  const config = `tsconfig.${version}.${moduleResolution}.json`
  const compilerOptions = { ...options, strict: true, noEmit: true, skipLibCheck: false }
  writeFileSync(path.join(folder, config), JSON.stringify({ compilerOptions, files: consumers }))
  const program = path.join(compiler, "bin", "tsc")
  check(`TypeScript ${version}, ${moduleResolution}`, process.execPath, [program, "-p", config])
}

try {
  execFileSync("npm", ["pack", "--ignore-scripts", "--silent", "--pack-destination", folder], {
    stdio: "pipe",
  })
  const tarball = readdirSync(folder)[0]
  const installed = path.join(folder, "node_modules", "sifcrypt")
  mkdirSync(installed, { recursive: true })
  execFileSync("tar", ["-xf", tarball, "--strip-components=1", "-C", installed], { cwd: folder })
  const manifest = JSON.parse(readFileSync(path.join(installed, "package.json"), "utf8"))
  for (const name of [...Object.keys(manifest.dependencies), "@types/node"]) {
    mkdirSync(path.dirname(path.join(folder, "node_modules", name)), { recursive: true })
    symlinkSync(path.join(root, "node_modules", name), path.join(folder, "node_modules", name))
  }

  const { messages } = await publint({ pkgDir: installed, strict: true, pack: false })
  // The command is a script for sh, which starts Node itself (lib/cli/start.cjs); of interpreters publint knows env only.
  const faults = messages.filter(({ code }) => code !== "BIN_FILE_NOT_EXECUTABLE")
  for (const fault of faults) console.error(`publint: ${formatMessage(fault, manifest)}`)
  failed ||= faults.length > 0
  if (faults.length === 0) console.log("publint: ok")
  // It is ESM, which Node 20.19 can require; there is no second copy in CommonJS.
  check("attw", path.join(root, "node_modules", ".bin", "attw"), ["--profile", "esm-only", tarball])

  writeFileSync(path.join(folder, "package.json"), '{ "type": "module" }\n')
  for (const example of pages.flatMap((page) => examples(page, "ts"))) {
    const file = `consumer${consumers.length}.ts`
    writeFileSync(path.join(folder, file), example)
    consumers.push(file)
  }
  // What only functions of the package make.
  const made = ["Image", "Instance", "sif.SifImage"]
  const tries = made.map((name) => `// @ts-expect-error\nnew ${name}()\n`).join("")
  writeFileSync(path.join(folder, "made.ts"), `import { Image, Instance, sif } from "sifcrypt"\n${tries}`)
  consumers.push("made.ts")
  const others = TYPESCRIPTS.map((version) => {
    const prefix = path.join(folder, `typescript-${version}`)
    execFileSync("npm", ["install", "--silent", "--prefix", prefix, `typescript@${version}`])
    return prefix
  })
  for (const packages of [root, ...others]) {
    const compiler = path.join(packages, "node_modules", "typescript")
    for (const module of ["node16", "nodenext"]) compile(compiler, module, module)
    compile(compiler, "esnext", "bundler")
  }
} finally {
  rmSync(folder, { recursive: true })
}
process.exitCode = failed ? 1 : 0
