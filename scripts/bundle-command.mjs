// The command as one file, dist/cli/main.js: loading fifty modules one by one takes longer than opening an image.
import { chmodSync } from "node:fs"
import { build } from "esbuild"

const outfile = "dist/cli/main.js"
await build({
  entryPoints: ["lib/cli/main.ts"],
  bundle: true,
  platform: "node",
  format: "esm",
  target: "node20.19",
  legalComments: "eof",
  // What packages of the older kind ask for by require().
  banner: {
    js: 'import { createRequire as requireFor } from "node:module"; const require = requireFor(import.meta.url)',
  },
  outfile,
  logLevel: "warning",
})
chmodSync(outfile, 0o755)
