// What of Node had a published flaw and is not used here (docs/security.md, "What was found in others"), so that it stays unused.
import assert from "node:assert/strict"
import { readdirSync, readFileSync } from "node:fs"
import path from "node:path"

const lib = path.join(import.meta.dirname, "..", "..", "lib")
const sources = readdirSync(lib, { recursive: true, encoding: "utf8" })
  .filter((name) => /\.c?ts$|\.c?js$/.test(name))
  .map((name) => ({ name, text: readFileSync(path.join(lib, name), "utf8") }))

describe("what of Node is not used", () => {
  for (const [what, pattern, but] of [
    ["HTTP/2, but to speak to key providers", /"(node:)?http2"/, ["ocicrypt/provider-service.ts"]],
    [
      "servers of TLS or HTTP",
      /createSecureServer|SNICallback|ALPNCallback|\b(https?|tls)\.createServer|createServer[^}]*\} from "(node:)?(https?|tls|http2)"/,
      [],
    ],
    ["SQLite, the permission model", /"(node:)?sqlite"|--permission/, []],
    ["Web Crypto", /webcrypto|\bsubtle\b/, []],
    ["headers by their distinct names", /(headers|trailers)Distinct/, []],
    [
      "fetch, but functions of ours that have its name; forms, brotli",
      /globalThis\.fetch|(?<![.#\w]|async |function )fetch\(|"undici"|\bFormData\b|[bB]rotli/,
      ["batch/images.ts", "oci/image.ts"],
    ],
    ["certificates of who is at the other end", /getPeerCertificate/, []],
    ["hooks of what is asynchronous", /async_hooks|AsyncLocalStorage/, []],
    ["time limits of scripts", /\b(new Script|runIn(This|New)?Context)\b[^;]*\btimeout\b/, []],
    ["all records of a name", /resolveAny/, []],
    ["the proxies of Node's own agents", /proxyEnv|NODE_USE_ENV_PROXY\b.*=/, []],
  ] as const)
    it(what, () => {
      const found = sources.filter(({ text }) => pattern.test(text)).map(({ name }) => name)
      assert.deepEqual(found, but)
    })
})
