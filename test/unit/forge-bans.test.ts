// What node-forge must not be used for is refused by lint, and its version is one without the known flaws.
import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import path from "node:path"
import { ESLint } from "eslint"

const root = path.resolve(import.meta.dirname, "../..")

describe("node-forge", () => {
  const eslint = new ESLint({
    cwd: root,
    ruleFilter: ({ ruleId }) =>
      /^(@typescript-eslint\/no-restricted-imports|no-restricted-syntax)$/.test(ruleId),
  })
  const complaints = async (code: string): Promise<readonly (string | null)[]> => {
    const [result] = await eslint.lintText(code, { filePath: path.join(root, "lib", "key", "pkcs12.ts") })
    return (result?.messages ?? []).map(({ ruleId }) => ruleId)
  }

  for (const code of [
    'import forge from "node-forge"',
    'import rsa from "node-forge/lib/rsa.js"',
    'import x509 from "node-forge/lib/x509.js"',
    'import ed25519 from "node-forge/lib/ed25519.js"',
    'import pkcs12 from "node-forge/lib/pkcs12.js"',
  ])
    it(`S33, S36: lint refuses ${code}`, async () => {
      assert.deepEqual(await complaints(`${code}\n`), ["@typescript-eslint/no-restricted-imports"])
    })

  for (const code of [
    "forge.pki.rsa.generateKeyPair(1)",
    "forge.pki.publicKeyFromPem(x).verify(y, z)",
    "pki.verifyCertificateChain(store, chain)",
    "rsa.encrypt(x, y, z)",
  ])
    it(`S33, S36: lint refuses ${code}`, async () => {
      const found = await complaints(`${code}\n`)
      assert.ok(found.length > 0 && found.every((rule) => rule === "no-restricted-syntax"), String(found))
    })

  it("S33: lint takes the parts that only cut and put together", async () => {
    assert.deepEqual(
      await complaints('import type forge from "node-forge"\nimport asn1 from "node-forge/lib/asn1.js"\n'),
      [],
    )
  })

  it("S33, S36: is of a version without the known flaws, 1.4.3 or later of major 1", () => {
    const wanted = (
      JSON.parse(readFileSync(path.join(root, "package.json"), "utf8")) as {
        dependencies: Record<string, string>
      }
    ).dependencies["node-forge"]
    const installed = (
      JSON.parse(readFileSync(path.join(root, "node_modules/node-forge/package.json"), "utf8")) as {
        version: string
      }
    ).version
    for (const version of [wanted?.replace(/^\^/, ""), installed]) {
      const [major = 0, minor = 0, patch = 0] = (version ?? "").split(".").map(Number)
      assert.ok(major === 1 && (minor > 4 || (minor === 4 && patch >= 3)), version)
    }
  })
})
