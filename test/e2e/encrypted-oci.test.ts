// Images whose layers are encrypted, and what is made of them here.
import assert from "node:assert/strict"
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { build, open, type BuildOptions } from "../../lib/index.ts"
import { sifcrypt } from "../support/cli.ts"
import { imageTree } from "../support/image-tree.ts"
import { Layout } from "../support/layout.ts"
import { newFolder } from "../support/scratch.ts"
import { vectorPath } from "../vectors/load.ts"

const key = { file: vectorPath("ocicrypt/keys/rsa1.pem") }
const PUBOPTS = "org.opencontainers.image.enc.pubopts"

describe("encrypted OCI images", () => {
  const folder = newFolder("encrypted-oci", 2345)
  let count = 0

  async function built(source: string, options: Partial<BuildOptions> = {}): Promise<string> {
    const output = path.join(folder, `${++count}.sif`)
    await build({ output, source, architecture: "amd64", sourceDateEpoch: 1_700_000_000, ...options })
    return output
  }
  async function refused(source: string, code: string, options: Partial<BuildOptions>): Promise<void> {
    await assert.rejects(built(source, options), (error: Error & { code?: string }) => {
      assert.equal(error.code, code, error.message)
      return true
    })
    assert.equal(existsSync(path.join(folder, `${count}.sif`)), false, "nothing is left")
  }
  const encrypted = (): Layout => new Layout("encrypted", "ocicrypt/skopeo")
  const unlock = [{ key }]

  it("become the image that the plain ones become, plain or encrypted", async () => {
    const wanted = await imageTree(await built(`oci:${vectorPath("oci/layout")}`))
    const source = `oci:${vectorPath("ocicrypt/skopeo")}`
    const content = (tree: Awaited<ReturnType<typeof imageTree>>): unknown =>
      [...tree].filter(([name]) => !/^\.singularity\.d\/(?:labels\.json|Singularity)$/.test(name))
    const plain = await imageTree(await built(source, { unlock }))
    assert.deepEqual(content(plain), content(wanted))
    const bytes = Buffer.from("correct horse")
    const image = await built(source, { unlock, recipients: [{ passphrase: { bytes } }] })
    await using opened = await open(image, { unlock: [{ passphrase: { bytes } }], unsigned: "allow" })
    assert.ok((await opened.list("/")).length > 0)
  })

  it("are built of by a definition file", async () => {
    const definition = path.join(folder, "of.def")
    writeFileSync(definition, `Bootstrap: oci\nFrom: ${vectorPath("ocicrypt/skopeo")}\n`)
    const tree = await imageTree(await built(definition, { unlock }))
    assert.ok(tree.has("etc"))
    await refused(definition, "ERR_KEY_MISSING", {})
  })

  it("need a key that is theirs", async () => {
    const source = `oci:${vectorPath("ocicrypt/skopeo")}`
    await refused(source, "ERR_KEY_MISSING", {})
    const other = { file: vectorPath("ocicrypt/keys/rsa2.pem") }
    await refused(source, "ERR_KEY_MISMATCH", { unlock: [{ key: other }] })
    await refused(source, "ERR_KEY_PUBLIC", {
      unlock: [{ key: { file: vectorPath("ocicrypt/keys/rsa1.pub.pem") } }],
    })
  })

  it("are refused when somebody changed a layer, its MAC or its counter", async () => {
    const layout = encrypted()
    const layers = structuredClone(layout.manifest.layers)
    const [base] = layers
    assert.ok(base !== undefined)
    const changed = layout.blob(base.digest)
    changed[10] = (changed[10] ?? 0) ^ 1
    layout.manifest.layers[0] = { ...base, ...layout.add(changed, base.mediaType) }
    layout.write()
    await refused(`oci:${layout.folder}`, "ERR_OCI_MAC", { unlock })
    const short = layout.blob(base.digest).subarray(0, -1)
    layout.manifest.layers[0] = { ...base, ...layout.add(short, base.mediaType) }
    layout.write()
    await refused(`oci:${layout.folder}`, "ERR_OCI_MAC", { unlock })
    // Peers decrypt this to something else.
    const options = Buffer.from(base.annotations?.[PUBOPTS] ?? "", "base64").toString()
    const nonce = options.replace('"cipheroptions":{}', `"cipheroptions":{"nonce":"${"A".repeat(22)}=="}`)
    assert.notEqual(nonce, options)
    const annotations = { ...base.annotations, [PUBOPTS]: Buffer.from(nonce).toString("base64") }
    layout.manifest.layers[0] = { ...base, annotations }
    layout.write()
    await refused(`oci:${layout.folder}`, "ERR_OCI_FORMAT", { unlock })
    layout.remove()
  })

  it("are refused when somebody changed which layers they have", async () => {
    const layout = encrypted()
    const [base, middle, top] = layout.manifest.layers
    assert.ok(base !== undefined && middle !== undefined && top !== undefined)
    layout.manifest.layers = [top, middle, base]
    layout.write()
    await refused(`oci:${layout.folder}`, "ERR_OCI_DIGEST", { unlock })
    const plain = readFileSync(vectorPath("oci/layout/index.json"), "utf8")
    assert.ok(plain.includes("manifests"))
    const other = new Layout()
    const [substitute] = other.manifest.layers
    assert.ok(substitute !== undefined)
    layout.add(other.blob(substitute.digest), substitute.mediaType)
    layout.manifest.layers = [substitute, middle, top]
    layout.write()
    await refused(`oci:${layout.folder}`, "ERR_OCI_PARTIAL", { unlock })
    await built(`oci:${layout.folder}`, { unlock, oci: { allowPartial: true } })
    // All of them.
    await refused(`oci:${other.folder}`, "ERR_OCI_PARTIAL", { unlock })
    layout.remove()
    other.remove()
  })

  it("are opened by the command with --key", async () => {
    const output = path.join(folder, "command.sif")
    const source = `oci:${vectorPath("ocicrypt/skopeo")}`
    const args = ["build", "--arch", "amd64", output, source]
    assert.equal((await sifcrypt(args)).status, 22)
    const made = await sifcrypt([...args, "--key", key.file])
    assert.equal(made.status, 0, made.stderr)
  })
})
