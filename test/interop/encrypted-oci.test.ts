// Encrypted layers, beside a live skopeo: either decrypts what the other one has encrypted.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import path from "node:path"
import { oci, type LayerRecipient } from "../../lib/index.ts"
import { newFolder } from "../support/scratch.ts"
import { vectorPath } from "../vectors/load.ts"

const file = (name: string): string => vectorPath(`ocicrypt/keys/${name}`)
const plain = `oci:${vectorPath("oci/layout")}`

const schemes: readonly {
  readonly name: string
  readonly recipient: LayerRecipient
  readonly theirs: string
  readonly keys: readonly string[]
}[] = [
  {
    name: "JWE with RSA",
    recipient: { jwe: { file: file("rsa1.pub.pem") } },
    theirs: `jwe:${file("rsa1.pub.pem")}`,
    keys: [file("rsa1.pem")],
  },
  {
    name: "JWE with EC",
    recipient: { jwe: { file: file("ec1.pub.pem") } },
    theirs: `jwe:${file("ec1.pub.pem")}`,
    keys: [file("ec1.pem")],
  },
  {
    name: "PKCS#7",
    recipient: { pkcs7: { file: file("p7.crt.pem") } },
    theirs: `pkcs7:${file("p7.crt.pem")}`,
    keys: [file("p7.key.pem"), file("p7.crt.pem")],
  },
]

describe("encrypted layers, beside a live skopeo", () => {
  const folder = newFolder("encrypted-interop")

  function skopeo(...args: string[]): void {
    execFileSync("skopeo", ["copy", "-q", "--insecure-policy", ...args], { stdio: "pipe" })
  }
  async function contents(source: string): Promise<readonly unknown[]> {
    const { manifest } = await oci.inspect({ source, platform: "linux/amd64" })
    return (manifest?.layers ?? []).map(({ digest, size }) => [digest, size])
  }

  for (const [i, { name, recipient, theirs, keys }] of schemes.entries()) {
    it(`of ours it decrypts those by ${name}`, async () => {
      const encrypted = `oci:${path.join(folder, `ours-${i}`)}:it`
      const decrypted = `oci:${path.join(folder, `ours-${i}-decrypted`)}:it`
      await oci.encrypt({ source: plain, target: encrypted, recipients: [recipient] })
      skopeo(...keys.flatMap((key) => ["--decryption-key", key]), encrypted, decrypted)
      assert.ok((await oci.layerInfo({ source: decrypted })).every((layer) => !layer.encrypted))
      // It compresses the middle one.
      const [base, , top] = await contents(decrypted)
      const [wantedBase, , wantedTop] = await contents(plain)
      assert.deepEqual([base, top], [wantedBase, wantedTop])
    })

    it(`of its own we decrypt those by ${name}`, async () => {
      const encrypted = `oci:${path.join(folder, `theirs-${i}`)}:it`
      const decrypted = `oci:${path.join(folder, `theirs-${i}-decrypted`)}:it`
      skopeo("--encryption-key", theirs, plain, encrypted)
      const unlock = keys.map((key) => ({ key: { file: key } }))
      await oci.decrypt({ source: encrypted, target: decrypted, unlock })
      const [base, , top] = await contents(decrypted)
      const [wantedBase, , wantedTop] = await contents(plain)
      assert.deepEqual([base, top], [wantedBase, wantedTop])
    })
  }
})
