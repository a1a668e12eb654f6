// A SIF by way of a registry, from here to a live Apptainer and back, and under one name for several architectures.
import assert from "node:assert/strict"
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { build, pull, push, registryLogin, registryLogins } from "../../lib/index.ts"
import { htpasswd, Registry, secret } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"
import { inPeerAsUser, peerUser } from "./peer.ts"

describe("SIF at a registry, beside a live Apptainer", () => {
  const folder = newFolder("push-interop", peerUser)
  const image = path.join(folder, "ours.sif")
  const environment = { HOME: folder }
  let registry: Registry

  before(async () => {
    chmodSync(folder, 0o777)
    registry = await Registry.start()
    const tree = newFolder("push-tree")
    mkdirSync(path.join(tree, "etc"))
    writeFileSync(path.join(tree, "etc", "file"), "content\n")
    await build({
      output: image,
      source: tree,
      recipients: [{ passphrase: { bytes: Buffer.from("words") } }],
    })
  })
  after(() => registry[Symbol.asyncDispose]())

  const name = (rest: string): string => `oras://${registry.host}/${rest}`
  async function peer(...command: readonly string[]): Promise<void> {
    const { status, stderr } = await inPeerAsUser(folder, ["apptainer", ...command])
    assert.equal(status, 0, stderr)
  }

  it("Apptainer pulls what we push", async () => {
    await push({ image, reference: name("ours:1"), unsigned: "allow", registry: { environment } })
    await peer("pull", "--no-https", "pulled.sif", name("ours:1"))
    assert.deepEqual(readFileSync(path.join(folder, "pulled.sif")), readFileSync(image))
  })

  it("Apptainer pulls its architecture of an index that we push", async () => {
    const registryOptions = { environment }
    await push({
      image,
      reference: name("index:1"),
      index: true,
      unsigned: "allow",
      registry: registryOptions,
    })
    await peer("pull", "--no-https", "from-index.sif", name("index:1"))
    assert.deepEqual(readFileSync(path.join(folder, "from-index.sif")), readFileSync(image))
  })

  it("Apptainer pulls with the login that we keep, and we with the one that it keeps", async () => {
    await using closed = await Registry.start({ htpasswd })
    const reference = `oras://${closed.host}/private:1`
    await push({ image, reference, unsigned: "allow", registry: { environment, credentials: secret } })
    const [ours, theirs] = [path.join(folder, "ours"), path.join(folder, "theirs")]
    for (const place of [ours, theirs]) {
      mkdirSync(place)
      chmodSync(place, 0o777)
    }
    const authFile = path.join(ours, "docker-config.json")
    await registryLogin({ registry: closed.host, ...secret, authFile, environment })
    chmodSync(authFile, 0o644)
    await peer("pull", "--no-https", "--authfile", authFile, "with-our-login.sif", reference)
    assert.deepEqual(readFileSync(path.join(folder, "with-our-login.sif")), readFileSync(image))
    const file = path.join(theirs, "docker-config.json")
    const flags = ["--authfile", file, "--username", secret.username, "--password", "secret"]
    await peer("registry", "login", ...flags, `oras://${closed.host}`)
    const output = path.join(folder, "with-their-login.sif")
    await pull({ reference, output, oci: { environment: { HOME: folder, APPTAINER_CONFIGDIR: theirs } } })
    assert.deepEqual(readFileSync(output), readFileSync(image))
    // What it has written there stays when something is added.
    await registryLogin({ registry: closed.host, ...secret, authFile: file, environment })
    await peer("registry", "logout", "--authfile", file, `oras://${closed.host}`)
    assert.deepEqual(await registryLogins({ authFile: file }), [])
  })

  it("we pull what Apptainer pushes", async () => {
    await peer("push", "--no-https", "ours.sif", name("theirs:1"))
    const output = path.join(folder, "theirs.sif")
    const { title } = await pull({ reference: name("theirs:1"), output, oci: { environment } })
    assert.deepEqual(readFileSync(output), readFileSync(image))
    assert.equal(title, "ours.sif")
  })
})
