// The command as one file, dist/cli/command.js, what runs payloads as a smaller one, dist/cli/run.js, and a small one that loads
// either, dist/cli/main.js (lib/cli/start.cjs). Loading fifty modules one by one takes longer than opening an image; as a CommonJS module it does
// without the wrappers that Node makes of its own modules for an import.
import { execFileSync, spawnSync } from "node:child_process"
import { createHash } from "node:crypto"
import { chmodSync, copyFileSync, cpSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { createRequire, isBuiltin } from "node:module"
import { build } from "esbuild"
import { isCompiled, sourcesOfDist } from "./dist-sources.mjs"
import { external, installed } from "./notice.mjs"

const main = "dist/cli/main.js"
const require = createRequire(import.meta.url)
const { wrap } = require("node:module")

// Modules of Node and packages that take milliseconds and megabytes to load, and that most commands have no use for. They are
// loaded when one of their exports is first used; a module that is not here would be loaded at the start.
const lazyModules = {
  name: "lazy-modules",
  setup({ onResolve, onLoad }) {
    const own = new Set(["fs", "path", "events", "module", "url", "buffer", "process", "os"])
    onResolve({ filter: /^[a-z0-9@:_/-]+$/ }, ({ path: name, namespace, kind }) => {
      const bare = name.replace(/^node:/, "")
      if (namespace === "lazy") return { path: name, external: true }
      if (isBuiltin(bare)) return own.has(bare) ? undefined : { path: `node:${bare}`, namespace: "lazy" }
      return external.includes(name) && kind === "import-statement"
        ? { path: name, namespace: "lazy" }
        : undefined
    })
    onLoad({ filter: /.*/, namespace: "lazy" }, ({ path: name }) => ({
      contents: `let loaded
const load = () => (loaded ??= require("${name}"))
module.exports = {
${Object.keys(require(name))
  .map((key) => `  get ${JSON.stringify(key)}() { return load()[${JSON.stringify(key)}] },`)
  .join("\n")}
}`,
      loader: "js",
    }))
  },
}

// What the native files are known by (lib/native/load.ts), in the library and in the command.
const digest = execFileSync("scripts/native-digest.sh", { encoding: "utf8" }).trim()
const digestModule = `export const nativeDigest = ${JSON.stringify(digest)}\n`
const nativeDigest = {
  name: "native-digest",
  setup({ onLoad }) {
    onLoad({ filter: /\/lib\/native\/native-digest\.ts$/ }, () => ({ contents: digestModule }))
  },
}

/** Bundles a file of lib/cli into one of dist/cli, ready to be compiled as the function that a CommonJS module is. */
async function bundle(source, name) {
  const outfile = `dist/cli/${name}.js`
  const { warnings, metafile } = await build({
    metafile: true,
    plugins: [lazyModules, nativeDigest],
    entryPoints: [`lib/cli/${source}.ts`],
    bundle: true,
    platform: "node",
    format: "cjs",
    target: "node20.19",
    minifyWhitespace: true,
    minifySyntax: true,
    legalComments: "eof",
    define: { "import.meta.filename": "__filename", "import.meta.dirname": "__dirname" },
    banner: {
      js: `const importedModules = new Map()
function sharedImport(found) {
  if (!importedModules.has(found)) importedModules.set(found, Object.create(found, { default: { value: found } }))
  return importedModules.get(found)
}`,
    },
    // Large, and seldom needed: they stay where npm puts them, and are required when needed.
    external,
    supported: { "dynamic-import": false },
    outfile,
    logLevel: "warning",
  })
  if (warnings.length > 0) throw new Error(`${outfile} is not what its source says`)
  const named = installed().map((one) => one.name)
  for (const input of Object.keys(metafile.inputs)) {
    const [, name] = /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input) ?? []
    if (name !== undefined && !named.includes(name))
      throw new Error(`${outfile} has ${name}, which is not in NOTICE`)
  }
  // esbuild copies every export of a module that is none of ours for each file that imports it: thousands of properties for node:fs and
  // node:crypto. One object for each module that has them by inheritance is enough.
  const text = readFileSync(outfile, "utf8")
  const shared = text.replace(/__toESM\((require(?:_\w+\(\)|\("[^"]+"\))),1\)/g, "sharedImport($1)")
  if (shared === text)
    throw new Error("esbuild's imports look different: bundle-command.mjs does not know them")
  // main.js takes each byte for a character, which spares V8 the decoding.
  const wrapped = wrap(shared.replaceAll("\u00a9", "(c)"))
  const other = /[^\0-\x7f]/.exec(wrapped)
  if (other !== null) throw new Error(`${outfile}: ${JSON.stringify(other[0])} is not ASCII`)
  // By its hash its code cache is known.
  writeFileSync(outfile, `/*${createHash("sha256").update(wrapped).digest("hex")}*/${wrapped}`)
}

rmSync("dist/sources", { force: true })
writeFileSync("dist/native/native-digest.js", digestModule)
await bundle("main", "command")
await bundle("main-run", "run")
writeFileSync("dist/cli/package.json", '{ "type": "commonjs" }\n')
copyFileSync("lib/cli/start.cjs", main)
cpSync("lib/cli/commands/completion", "dist/cli/completion", { recursive: true })
chmodSync(main, 0o755)

rmSync("dist/man", { recursive: true, force: true })
const pages = spawnSync(process.execPath, ["--import", "tsx", "lib/cli/man-pages.ts"], {
  stdio: ["ignore", "inherit", "inherit"],
})
if (pages.status !== 0) throw new Error("the manual pages cannot be made")

if (spawnSync(main, ["--version"], { stdio: ["ignore", "ignore", "inherit"] }).status !== 0)
  throw new Error("the bundled command does not start")

// Beside a library that tsc has made of other files it is not what `npm pack` takes.
if (isCompiled()) writeFileSync("dist/sources", `${sourcesOfDist()}\n`)
