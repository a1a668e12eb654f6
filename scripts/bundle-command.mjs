// The command as one file, dist/cli/main.js. Loading fifty modules one by one takes longer than opening an image; and as a
// CommonJS module it does without the wrappers that Node makes of its own modules for an import.
import { chmodSync, writeFileSync } from "node:fs"
import { build } from "esbuild"

const outfile = "dist/cli/main.js"
await build({
  entryPoints: ["lib/cli/main.ts"],
  bundle: true,
  platform: "node",
  format: "cjs",
  target: "node20.19",
  minifyWhitespace: true,
  minifySyntax: true,
  legalComments: "eof",
  define: { "import.meta.url": "moduleUrl" },
  banner: { js: 'const moduleUrl = require("node:url").pathToFileURL(__filename).href' },
  outfile,
  logLevel: "warning",
})
writeFileSync("dist/cli/package.json", '{ "type": "commonjs" }\n')
chmodSync(outfile, 0o755)
