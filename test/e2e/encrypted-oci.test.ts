// Images whose layers are encrypted, and what is made of them here.
import assert from "node:assert/strict"
import {
  chmodSync,
  copyFileSync,
  existsSync,
  readdirSync,
  readFileSync,
  realpathSync,
  statSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { build, oci, open, type BuildOptions, type LayerRecipient } from "../../lib/index.ts"
import { runProgram, sifcrypt } from "../support/cli.ts"
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
    const told: string[] = []
    const onNotice = (text: string): number => told.push(text)
    const plain = await imageTree(await built(source, { unlock, onNotice }))
    assert.deepEqual(content(plain), content(wanted))
    assert.equal(told.length, 1)
    assert.match(
      told[0] ?? "",
      /skopeo is encrypted, and what .*\.sif has of it lies there in clear: .*--pem-path/,
    )
    const bytes = Buffer.from("correct horse")
    const recipients = [{ passphrase: { bytes } }]
    const image = await built(source, { unlock, recipients, onNotice })
    // Of this one as well, when it becomes plain.
    await built(image, { unlock: recipients, onNotice, architecture: undefined })
    assert.deepEqual(
      told.slice(1).filter((text) => text.includes("in clear")),
      told.slice(1),
    )
    assert.equal(told.length, 2)
    await using opened = await open(image, { unlock: [{ passphrase: { bytes } }], unsigned: "allow" })
    assert.ok((await opened.list("/")).length > 0)
  })

  it("are built of by a definition file", async () => {
    const definition = path.join(folder, "of.def")
    writeFileSync(definition, `Bootstrap: oci\nFrom: ${vectorPath("ocicrypt/skopeo")}\n`)
    const told: string[] = []
    const onNotice = (text: string): number => told.push(text)
    const tree = await imageTree(await built(definition, { unlock, onNotice }))
    assert.ok(tree.has("etc"))
    assert.match(told.join("\n"), /skopeo is encrypted, and what .*\.sif has of it lies there in clear/)
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

  it("A35: are refused when somebody changed which layers they have", async () => {
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

  it("are opened by their names: kept for whoever can open their layers, and for nobody else", async () => {
    const cache = newFolder("encrypted-cache")
    const name = `oci:${vectorPath("ocicrypt/skopeo")}`
    const options = { oci: { cacheFolder: cache }, architecture: "amd64", unsigned: "allow" } as const
    const kept = (): string[] =>
      readdirSync(cache, { recursive: true })
        .map(String)
        .filter(
          (file) => statSync(path.join(cache, file)).isFile() && statSync(path.join(cache, file)).size > 4096,
        )
    for (let time = 0; time < 2; time++) {
      await using opened = await open(name, { ...options, unlock })
      assert.ok((await opened.list("/")).length > 0)
    }
    const images = kept()
    assert.equal(images.length, 1)
    const image = path.join(cache, images[0] ?? "")
    await assert.rejects(open(image, { unsigned: "allow", unlock }), { code: "ERR_KEY_MISMATCH" })
    await assert.rejects(open(name, options), { code: "ERR_KEY_MISSING" })
    const other = { file: vectorPath("ocicrypt/keys/rsa2.pem") }
    await assert.rejects(open(name, { ...options, unlock: [{ key: other }] }), { code: "ERR_KEY_MISMATCH" })
    // Whatever opens the layers opens the one copy.
    const encryptedFor = `oci:${path.join(folder, "for-ec")}:it`
    const keyFile = (file: string): { file: string } => ({ file: vectorPath(`ocicrypt/keys/${file}`) })
    const recipients = [{ jwe: keyFile("ec1.pub.pem") }, { pgp: keyFile("pgp1.pub.gpg") }]
    await oci.encrypt({ source: `oci:${vectorPath("oci/layout")}`, target: encryptedFor, recipients })
    let copies: readonly string[] | undefined
    for (const file of ["ec1.pem", "pgp1.sec.gpg"]) {
      await using opened = await open(encryptedFor, { ...options, unlock: [{ key: keyFile(file) }] })
      assert.ok((await opened.list("/")).length > 0)
      copies ??= kept()
      assert.deepEqual([copies.length, kept()], [2, copies])
    }
    await assert.rejects(open(encryptedFor, { ...options, unlock }), { code: "ERR_KEY_MISMATCH" })
    // One that does not open is built anew.
    const second = copies?.find((file) => !images.includes(file)) ?? ""
    writeFileSync(path.join(cache, second), readFileSync(image))
    await using again = await open(encryptedFor, { ...options, unlock: [{ key: keyFile("ec1.pem") }] })
    assert.ok((await again.list("/")).length > 0)
    assert.notDeepEqual(readFileSync(path.join(cache, second)), readFileSync(image))
  })

  it("that turn out to be plain are refused where a key was named for them, or where that is asked for", async () => {
    const layout = new Layout("plain-by-name", "oci/layout")
    const { digest } = layout.write()
    const name = `oci:${layout.folder}`
    const options = { architecture: "amd64", unsigned: "allow", oci: { disableCache: true } } as const
    const partial = { code: "ERR_OCI_PARTIAL", message: /no layer is encrypted/ }
    await assert.rejects(open(name, { ...options, unlock }), partial)
    await using allowed = await open(name, {
      ...options,
      unlock,
      oci: { ...options.oci, allowPartial: true },
    })
    assert.ok((await allowed.list("/")).length > 0)
    await using pinned = await open(`${name}@${digest}`, { ...options, unlock })
    assert.ok((await pinned.list("/")).length > 0)
    const environment = { SIFCRYPT_ENCRYPTION_PEM_PATH: key.file }
    await using ambient = await open(name, { ...options, unlock: [{ environment }] })
    assert.ok((await ambient.list("/")).length > 0)
    const demand = { ...options, requireEncrypted: true, oci: { ...options.oci, allowPartial: true } }
    await assert.rejects(open(name, demand), partial)
    await assert.rejects(open(`${name}@${digest}`, demand), partial)
    await refused(name, "ERR_OCI_PARTIAL", { requireEncrypted: true })
    layout.remove()
  })

  it("are the only images that are taken where encryption is demanded, as SIF files are and folders are not", async () => {
    const demand = { requireEncrypted: true, unsigned: "allow" } as const
    const source = `oci:${vectorPath("ocicrypt/skopeo")}`
    const recipients = [{ passphrase: { bytes: Buffer.from("correct horse") } }]
    const encryptedSif = await built(source, { requireEncrypted: true, unlock, recipients })
    await using opened = await open(encryptedSif, { ...demand, unlock: recipients })
    assert.ok((await opened.list("/")).length > 0)
    // A plain overlay lies over all that is encrypted.
    const overlaid = path.join(folder, "overlaid.sif")
    copyFileSync(encryptedSif, overlaid)
    const kind = ["--datatype", "4", "--parttype", "4", "--partfs", "2", "--partarch", "2", "--groupid", "1"]
    const added = await sifcrypt(["sif", "add", ...kind, overlaid, key.file], { as: "self" })
    assert.equal(added.status, 0, added.stderr)
    const overlay = { code: "ERR_SIF_PLAIN", message: /its overlay \d+ is not encrypted/ }
    await assert.rejects(open(overlaid, { ...demand, unlock: recipients }), overlay)
    await refused(overlaid, "ERR_SIF_PLAIN", { requireEncrypted: true, unlock: recipients })
    const plain = await built(source, { unlock })
    const tree = newFolder("plain-tree")
    writeFileSync(path.join(tree, "file"), "")
    for (const image of [plain, tree]) {
      await assert.rejects(open(image, demand), { code: "ERR_SIF_PLAIN" })
      await refused(image, "ERR_SIF_PLAIN", { requireEncrypted: true })
    }
    const definition = path.join(folder, "demand.def")
    writeFileSync(definition, `Bootstrap: localimage\nFrom: ${plain}\n`)
    await refused(definition, "ERR_SIF_PLAIN", { requireEncrypted: true })
    for (const args of [["ls"], ["exec"]] as const) {
      const denied = await sifcrypt([...args, "--require-encrypted", plain, "/"])
      assert.equal(denied.status, 21, denied.stderr)
      const variable = await sifcrypt([...args, plain, "/"], { env: { SIFCRYPT_REQUIRE_ENCRYPTED: "1" } })
      assert.equal(variable.status, 21, variable.stderr)
    }
  })

  it("are opened by the command with --key", async () => {
    const output = path.join(folder, "command.sif")
    const source = `oci:${vectorPath("ocicrypt/skopeo")}`
    const args = ["build", "--arch", "amd64", output, source]
    assert.equal((await sifcrypt(args)).status, 22)
    const made = await sifcrypt([...args, "--key", key.file])
    assert.equal(made.status, 0, made.stderr)
    assert.match(made.stderr, /^sifcrypt: .* is encrypted, and what .* lies there in clear: .*--passphrase/)
  })
})

describe("layers of OCI images", () => {
  const folder = newFolder("encrypted-layers", 2345)
  const plain = `oci:${vectorPath("oci/layout")}`
  const keyFile = (name: string): { readonly file: string } => ({ file: vectorPath(`ocicrypt/keys/${name}`) })
  const place = (name: string): string => path.join(folder, name)
  const originalDigest = (
    JSON.parse(readFileSync(vectorPath("oci/layout/index.json"), "utf8")) as {
      manifests: readonly { digest: string }[]
    }
  ).manifests[0]?.digest
  const rsa: LayerRecipient = { jwe: keyFile("rsa1.pub.pem") }
  const ec: LayerRecipient = { jwe: keyFile("ec1.pub.pem") }
  const certificate: LayerRecipient = { pkcs7: keyFile("p7.crt.pem") }
  const pgp: LayerRecipient = { pgp: keyFile("pgp1.pub.gpg") }

  const layoutBlob = (layout: string, digest: string): string =>
    readFileSync(path.join(layout, "blobs", ...digest.split(":")), "utf8")

  async function decrypted(name: string, key: string): Promise<string> {
    const target = `oci:${place(`${name}-${key}`)}:it`
    return (await oci.decrypt({ source: `oci:${place(name)}:it`, target, unlock: [{ key: keyFile(key) }] }))
      .digest
  }

  const cases: readonly [name: string, recipients: readonly LayerRecipient[], keys: readonly string[]][] = [
    ["jwe-rsa", [rsa], ["rsa1.pem"]],
    ["jwe-ec", [ec], ["ec1.pem"]],
    ["pkcs7", [certificate], ["p7.key.pem"]],
    ["pgp", [pgp], ["pgp1.sec.gpg"]],
    ["all", [rsa, ec, certificate, pgp], ["rsa1.pem", "ec1.pem", "p7.key.pem", "pgp1.sec.gpg"]],
  ]
  for (const [name, recipients, keys] of cases)
    it(`encrypted for ${name}, are the same image when they are decrypted`, async () => {
      await oci.encrypt({ source: plain, target: `oci:${place(name)}:it`, recipients })
      for (const key of keys) assert.equal(await decrypted(name, key), originalDigest, key)
      await assert.rejects(decrypted(name, "rsa2.pem"), { code: "ERR_KEY_MISMATCH" })
    })

  it("have a key of their own each, and none twice", async () => {
    const target = (name: string): string => `oci:${place(name)}:it`
    await oci.encrypt({ source: plain, target: target("once"), recipients: [rsa] })
    await oci.encrypt({ source: plain, target: target("again"), recipients: [rsa] })
    const digests = [
      await oci.layerInfo({ source: target("once") }),
      await oci.layerInfo({ source: target("again") }),
    ]
    assert.equal(new Set(digests.flat().map(({ digest }) => digest)).size, 6)
  })

  it("A30: are not said to be encrypted, or changed, or decrypted, where nothing was", async () => {
    const target = `oci:${place("nothing")}:it`
    const platforms = ["linux/s390x"]
    const none = { code: "ERR_OCI_NOT_FOUND" }
    await assert.rejects(oci.encrypt({ source: plain, target, recipients: [rsa], platforms }), none)
    await oci.encrypt({ source: plain, target: `oci:${place("something")}:it`, recipients: [rsa] })
    const source = `oci:${place("something")}:it`
    const unlock = [{ key: keyFile("rsa1.pem") }]
    const change = { source, target, recipients: [ec], unlock, platforms }
    for (const one of ["add", "replace", "rotate"] as const)
      await assert.rejects(oci.changeRecipients({ ...change, change: one }), none, one)
    await assert.rejects(oci.decrypt({ source, target, unlock, platforms }), none)
    // A layer that nobody can encrypt, in an image that is to be.
    const layout = new Layout("foreign", "oci/layout")
    const type = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    layout.manifest.layers = layout.manifest.layers.map((layer) => ({ ...layer, mediaType: type }))
    layout.write()
    const foreign = { source: `oci:${layout.folder}`, target, recipients: [rsa] }
    await assert.rejects(oci.encrypt(foreign), {
      code: "ERR_OCI_UNSUPPORTED",
      message: /cannot be encrypted/,
    })
    layout.remove()
    // Somebody put plain layers in their places: whatever named the key.
    const environment = { SIFCRYPT_ENCRYPTION_PEM_PATH: keyFile("rsa1.pem").file }
    for (const given of [[{ environment }], unlock])
      for (const layers of [undefined, [0]])
        await assert.rejects(oci.decrypt({ source: plain, target, unlock: given, layers }), {
          code: "ERR_OCI_PARTIAL",
        })
    assert.equal(existsSync(place("nothing")), false)
  })

  it("that are there more than once are encrypted once", async () => {
    const layout = new Layout("repeated", "oci/layout")
    const [first] = layout.manifest.layers
    assert.ok(first !== undefined)
    layout.manifest.layers = Array.from({ length: 40 }, () => first)
    layout.config.rootfs.diff_ids = Array.from({ length: 40 }, () => layout.config.rootfs.diff_ids[0] ?? "")
    layout.write()
    const target = `oci:${place("repeated")}:it`
    await oci.encrypt({ source: `oci:${layout.folder}`, target, recipients: [rsa] })
    const layers = await oci.layerInfo({ source: target })
    assert.deepEqual([layers.length, new Set(layers.map(({ digest }) => digest)).size], [40, 1])
    const plainAgain = { source: target, target: `oci:${place("repeated-plain")}:it` }
    // Decrypted and looked at once, too: its content is 20480 bytes.
    const unlock = [{ key: keyFile("rsa1.pem") }]
    await oci.decrypt({ ...plainAgain, unlock, oci: { maxLayerBytes: 2 * 20480 } })
    const rotated = { source: target, target: `oci:${place("repeated-rotated")}:it`, unlock }
    await oci.changeRecipients({ ...rotated, change: "rotate", recipients: [rsa] })
    const anew = await oci.layerInfo({ source: rotated.target })
    assert.deepEqual([anew.length, new Set(anew.map(({ digest }) => digest)).size], [40, 1])
    layout.remove()
  })

  it("are bounded all together, each of which would be small enough", async () => {
    await oci.encrypt({ source: plain, target: `oci:${place("bounded")}:it`, recipients: [rsa] })
    const work = { source: `oci:${place("bounded")}:it`, unlock: [{ key: keyFile("rsa1.pem") }] }
    // 20480, 10240 and 40960 bytes.
    for (const [limit, isEnough] of [
      [71_680, true],
      [71_679, false],
    ] as const) {
      const made = oci.decrypt({
        ...{ ...work, target: `oci:${place(`bounded-${limit}`)}:it`, oci: { maxLayerBytes: limit } },
      })
      if (isEnough) await made
      else await assert.rejects(made, { code: "ERR_OCI_LIMIT" })
      assert.equal(existsSync(place(`bounded-${limit}`)), isEnough)
    }
  })

  it("get recipients without a byte of them being changed, and others' messages stay", async () => {
    const layout = new Layout("unknown-scheme", "ocicrypt/skopeo")
    const unknown = "org.opencontainers.image.enc.keys.future"
    layout.manifest.layers = layout.manifest.layers.map((layer) => ({
      ...layer,
      annotations: { ...layer.annotations, [unknown]: "b3BhcXVl,bW9yZQ==" },
    }))
    layout.write()
    const source = `oci:${layout.folder}`
    const target = `oci:${place("more")}:it`
    await assert.rejects(oci.encrypt({ source, target, recipients: [ec] }), { code: "ERR_KEY_MISSING" })
    await oci.encrypt({ source, target, recipients: [ec, certificate], unlock: [{ key }] })
    const [before, after] = [await oci.layerInfo({ source }), await oci.layerInfo({ source: target })]
    assert.deepEqual(
      after.map(({ digest }) => digest),
      before.map(({ digest }) => digest),
    )
    for (const { schemes } of after) assert.deepEqual(schemes, ["future", "jwe", "pkcs7"])
    const text = layoutBlob(place("more"), (await oci.inspect({ source: target })).digest)
    assert.equal(text.split("b3BhcXVl,bW9yZQ==").length, 4)
    for (const one of ["rsa1.pem", "ec1.pem", "p7.key.pem"]) assert.ok(await decrypted("more", one))
    layout.remove()
  })

  it("are for those who are named: more of them, these only, or anew", async () => {
    const at = (name: string): string => `oci:${place(name)}:it`
    await oci.encrypt({ source: plain, target: at("changed-recipients"), recipients: [rsa, certificate] })
    const source = at("changed-recipients")
    const digests = async (target: string): Promise<string[]> =>
      (await oci.layerInfo({ source: target })).map(({ digest }) => digest)
    const before = await digests(source)
    const opens = async (name: string, expected: Readonly<Record<string, boolean>>): Promise<void> => {
      for (const [file, isOpened] of Object.entries(expected))
        if (isOpened) assert.equal(await decrypted(name, file), originalDigest, file)
        else await assert.rejects(decrypted(name, file), { code: "ERR_KEY_MISMATCH" }, file)
    }
    const work = { source, unlock: [{ key }] }
    await oci.changeRecipients({ ...work, target: at("replaced"), change: "replace", recipients: [ec] })
    assert.deepEqual(await digests(at("replaced")), before)
    await opens("replaced", { "rsa1.pem": false, "p7.key.pem": false, "ec1.pem": true })
    await oci.changeRecipients({ ...work, target: at("rotated"), change: "rotate", recipients: [ec, pgp] })
    const after = await digests(at("rotated"))
    assert.ok(after.every((digest) => !before.includes(digest)))
    await opens("rotated", { "rsa1.pem": false, "p7.key.pem": false, "ec1.pem": true, "pgp1.sec.gpg": true })
    // In its place.
    await oci.changeRecipients({ ...work, target: source, change: "add", recipients: [ec] })
    assert.deepEqual(await digests(source), before)
    await opens("changed-recipients", {
      "rsa1.pem": true,
      "p7.key.pem": true,
      "ec1.pem": true,
      "rsa2.pem": false,
    })
    const unnamed = `oci:${place("changed-recipients")}`
    await assert.rejects(
      oci.changeRecipients({ ...work, source: unnamed, target: unnamed, change: "add", recipients: [ec] }),
      { code: "ERR_OCI_REFERENCE" },
    )
    await assert.rejects(
      oci.changeRecipients({
        ...work,
        source: plain,
        target: at("nothing"),
        change: "add",
        recipients: [ec],
      }),
      { code: "ERR_OCI_PARTIAL" },
    )
  })

  it("keep who has them in a scheme that is not known, unless they are to be dropped", async () => {
    const layout = new Layout("unknown-recipients", "ocicrypt/skopeo")
    const unknown = "org.opencontainers.image.enc.keys.future"
    layout.manifest.layers = layout.manifest.layers.map((layer) => ({
      ...layer,
      annotations: { ...layer.annotations, [unknown]: "b3BhcXVl" },
    }))
    layout.write()
    for (const change of ["replace", "rotate"] as const) {
      const target = `oci:${place(`unknown-${change}`)}:it`
      const work = { source: `oci:${layout.folder}`, target, change, recipients: [ec], unlock: [{ key }] }
      await assert.rejects(oci.changeRecipients(work), { code: "ERR_OCI_UNSUPPORTED" })
      await oci.changeRecipients({ ...work, dropUnknown: true })
      for (const { schemes } of await oci.layerInfo({ source: target })) assert.deepEqual(schemes, ["jwe"])
    }
    layout.remove()
  })

  it("of a plain image have no recipients that it brings along", async () => {
    const layout = new Layout("planted")
    layout.manifest.layers = layout.manifest.layers.map((layer) => ({
      ...layer,
      annotations: { "org.opencontainers.image.enc.keys.pgp": "cGxhbnRlZA==", kept: "yes" },
    }))
    layout.write()
    const target = `oci:${place("planted")}:it`
    await oci.encrypt({ source: `oci:${layout.folder}`, target, recipients: [rsa] })
    for (const { schemes } of await oci.layerInfo({ source: target })) assert.deepEqual(schemes, ["jwe"])
    assert.match(layoutBlob(place("planted"), (await oci.inspect({ source: target })).digest), /"kept":"yes"/)
    layout.remove()
  })

  it("can be encrypted in part, which nobody takes unless he says so", async () => {
    await oci.encrypt({ source: plain, target: `oci:${place("part")}:it`, recipients: [rsa], layers: [-1] })
    const info = await oci.layerInfo({ source: `oci:${place("part")}:it` })
    assert.deepEqual(
      info.map(({ encrypted }) => encrypted),
      [false, false, true],
    )
    await assert.rejects(decrypted("part", "rsa1.pem"), { code: "ERR_OCI_PARTIAL" })
    const source = `oci:${place("part")}:it`
    const target = `oci:${place("part-decrypted")}:it`
    const partly = await oci.decrypt({ source, target, unlock: [{ key }], oci: { allowPartial: true } })
    assert.equal(partly.digest, originalDigest)
    await assert.rejects(
      oci.encrypt({ source: plain, target: `oci:${place("none")}:it`, recipients: [rsa], layers: [3] }),
      { code: "ERR_OCI_NOT_FOUND" },
    )
  })

  it("of Docker's manifests become OCI's, which alone can name them", async () => {
    const layout = new Layout("docker-types")
    layout.manifest.mediaType = "application/vnd.docker.distribution.manifest.v2+json"
    layout.manifest.config.mediaType = "application/vnd.docker.container.image.v1+json"
    layout.manifest.layers = layout.manifest.layers.map((layer) => ({
      ...layer,
      mediaType: `application/vnd.docker.image.rootfs.diff.tar${layer.mediaType.endsWith("gzip") ? ".gzip" : ""}`,
    }))
    const manifest = layout.write()
    const platform = { os: "linux", architecture: "amd64" }
    const list = {
      schemaVersion: 2,
      mediaType: "application/vnd.docker.distribution.manifest.list.v2+json",
      manifests: [
        { ...manifest, platform },
        { ...manifest, platform: { os: "linux", architecture: "s390x" } },
      ],
    }
    const index = layout.add(JSON.stringify(list), list.mediaType)
    layout.writeIndex({ schemaVersion: 2, manifests: [index] })
    const source = `oci:${layout.folder}`
    const target = `oci:${place("docker-types")}:it`
    const made = await oci.encrypt({ source, target, recipients: [rsa], layers: [0, 2] })
    assert.equal(made.mediaType, "application/vnd.oci.image.index.v1+json")
    const { manifest: found } = await oci.inspect({ source: target, platform: "linux/amd64" })
    const layer = "application/vnd.oci.image.layer.v1.tar"
    assert.deepEqual(
      found?.layers.map(({ mediaType }) => mediaType),
      [`${layer}+gzip+encrypted`, layer, `${layer}+gzip+encrypted`],
    )
    const json = JSON.parse(layoutBlob(place("docker-types"), found.digest)) as Layout["manifest"]
    assert.equal(json.mediaType, "application/vnd.oci.image.manifest.v1+json")
    assert.equal(json.config.mediaType, "application/vnd.oci.image.config.v1+json")
    assert.equal(json.config.digest, layout.manifest.config.digest)
    await assert.rejects(
      oci.encrypt({ source, target: `docker-archive:${place("no.tar")}`, recipients: [rsa] }),
      { code: "ERR_OCI_UNSUPPORTED" },
    )
    layout.remove()
  })

  it("that stay plain for another platform are told of", async () => {
    const layout = new Layout("two-platforms")
    const manifest = layout.write()
    const platforms = ["amd64", "s390x"].map((architecture) => ({ os: "linux", architecture }))
    // Two manifests that share their layers.
    const other = layout.add(`${layout.blob(manifest.digest).toString()}\n`, manifest.mediaType)
    const manifests = [manifest, other].map((one, i) => ({ ...one, platform: platforms[i] }))
    const mediaType = "application/vnd.oci.image.index.v1+json"
    layout.writeIndex({
      schemaVersion: 2,
      manifests: [layout.add(JSON.stringify({ schemaVersion: 2, mediaType, manifests }), mediaType)],
    })
    const source = `oci:${layout.folder}`
    const target = `oci:${place("two-platforms")}:it`
    const notices: string[] = []
    await oci.encrypt({
      ...{ source, target, recipients: [rsa], platforms: ["linux/amd64"] },
      onNotice: (text) => notices.push(text),
    })
    assert.equal(notices.filter((text) => text.includes("is plain where another part")).length, 3)
    const info = await oci.layerInfo({ source: target })
    assert.deepEqual(
      info.map(({ platform, encrypted }) => `${platform} ${String(encrypted)}`),
      [
        ...Array.from({ length: 3 }, () => "linux/amd64 true"),
        ...Array.from({ length: 3 }, () => "linux/s390x false"),
      ],
    )
    // What was not chosen is the same manifest.
    const [, kept] = (
      JSON.parse(layoutBlob(place("two-platforms"), (await oci.inspect({ source: target })).digest)) as {
        manifests: { digest: string }[]
      }
    ).manifests
    assert.equal(kept?.digest, other.digest)
    layout.remove()
  })

  it("leave nothing plain behind when they are not what was encrypted", async () => {
    const layout = new Layout("tampered", "ocicrypt/skopeo")
    const [base, middle, top] = layout.manifest.layers
    assert.ok(base !== undefined && middle !== undefined && top !== undefined)
    const blobs = (name: string): string[] =>
      existsSync(place(name))
        ? readdirSync(place(name), { recursive: true })
            .map(String)
            .filter((one) => /[0-9a-f]{64}/.test(one))
        : []
    const attempt = async (name: string, code: string): Promise<void> => {
      layout.write()
      const target = `oci:${place(name)}:it`
      await assert.rejects(oci.decrypt({ source: `oci:${layout.folder}`, target, unlock: [{ key }] }), {
        code,
      })
      assert.deepEqual(blobs(name), [])
    }
    const changed = layout.blob(top.digest)
    changed[changed.length - 1] = (changed.at(-1) ?? 0) ^ 1
    layout.manifest.layers[2] = { ...top, ...layout.add(changed, top.mediaType) }
    await attempt("changed", "ERR_OCI_MAC")
    layout.manifest.layers = [top, middle, base]
    await attempt("swapped", "ERR_OCI_DIGEST")
    layout.remove()
  })

  it("are told of, encrypted and decrypted by the command", async () => {
    const target = `oci:${place("command")}:it`
    const recipients = [
      "-r",
      `jwe:${keyFile("rsa1.pub.pem").file}`,
      "-r",
      `pkcs7:${keyFile("p7.crt.pem").file}`,
    ]
    const made = await sifcrypt(["image", "encrypt", ...recipients, plain, target])
    assert.equal(made.status, 0, made.stderr)
    const told = await sifcrypt(["image", "layerinfo", target])
    const [head = "", ...rows] = told.stdout.toString().trimEnd().split("\n")
    assert.match(head, /^#   +DIGEST   +PLATFORM   +SIZE   +ENCRYPTION   +RECIPIENTS$/)
    assert.equal(rows.length, 3)
    for (const row of rows) {
      assert.match(
        row,
        /^\d   sha256:[0-9a-f]{64}   linux\/amd64   +\d+    jwe,pkcs7   kid [\w-]{43}, serial [0-9a-f]+$/,
      )
      assert.equal(row.length, head.length)
    }
    const back = `oci:${place("command-back")}:it`
    const undone = await sifcrypt(["image", "decrypt", target, back, "--key", keyFile("p7.key.pem").file])
    assert.equal(undone.status, 0, undone.stderr)
    assert.equal(undone.stdout.toString().trimEnd(), originalDigest)
    const added = await sifcrypt([
      ...["image", "recipients", "add", target, "--key", keyFile("p7.key.pem").file],
      ...["-r", `jwe:${keyFile("ec1.pub.pem").file}`],
    ])
    assert.equal(added.status, 0, added.stderr)
    const listed = await sifcrypt(["image", "recipients", "list", target])
    assert.match(
      listed.stdout.toString(),
      /^RECIPIENT +LAYERS\n(?:kid [\w-]{43} +3 of 3\n){2}serial [0-9a-f]+ +3 of 3\n$/,
    )
    const wrong = await sifcrypt(["image", "decrypt", target, back, "--key", keyFile("rsa2.pem").file])
    assert.equal(wrong.status, 22, wrong.stderr)
  })

  it("are for key providers that were named, and passwords of keys are no words of the command", async () => {
    const transcript = place("transcript")
    writeFileSync(transcript, "")
    chmodSync(transcript, 0o666)
    // Where everybody may read it.
    const toy = place("toy.mjs")
    copyFileSync(path.join(import.meta.dirname, "../support/toy-key-provider.mjs"), toy)
    const configuration = place("keyprovider.conf")
    const cmd = { path: realpathSync(process.execPath), args: [toy, transcript] }
    writeFileSync(configuration, JSON.stringify({ "key-providers": { toy: { cmd } } }), { mode: 0o644 })
    const env = { OCICRYPT_KEYPROVIDER_CONFIG: configuration }
    const target = `oci:${place("provider")}:it`
    const made = await sifcrypt(["image", "encrypt", "-r", "provider:toy:p1:p2", plain, target], { env })
    assert.equal(made.status, 0, made.stderr)
    assert.match(readFileSync(transcript, "utf8"), /"Parameters":\{"toy":\["cDE6cDI="\]\}/)
    const asked = readFileSync(transcript, "utf8").length
    // The image names it; that is not enough.
    const decrypt = ["image", "decrypt", target, `oci:${place("provider-back")}:it`, "--key"]
    const unnamed = await sifcrypt([...decrypt, keyFile("rsa1.pem").file], { env })
    assert.equal(unnamed.status, 22, unnamed.stderr)
    assert.equal(readFileSync(transcript, "utf8").length, asked)
    const named = await sifcrypt([...decrypt, "provider:toy"], { env })
    assert.equal(named.stdout.toString().trimEnd(), originalDigest, named.stderr)
    const listed = await sifcrypt(["ls", "--key", "provider:toy", target, "/"], { env })
    assert.equal(listed.status, 0, listed.stderr)
    const absent = await sifcrypt([...decrypt, "provider:toy"])
    assert.equal(absent.status, 22)
    assert.match(absent.stderr, /OCICRYPT_KEYPROVIDER_CONFIG names no file/)

    const locked = keyFile("rsa1.enc-pkcs8.pem").file
    const password = place("password")
    writeFileSync(password, "secret123\n", { mode: 0o644 })
    const encrypted = `oci:${vectorPath("ocicrypt/skopeo")}`
    const output = `oci:${place("by-password")}:it`
    const opened = await sifcrypt([
      "image",
      "decrypt",
      encrypted,
      output,
      "--key",
      `${locked}:file=${password}`,
    ])
    assert.equal(opened.status, 0, opened.stderr)
    for (const word of ["pass=secret123", "secret123"]) {
      const refused = await sifcrypt(["image", "decrypt", encrypted, output, "--key", `${locked}:${word}`])
      assert.equal(refused.status, 22)
      assert.match(refused.stderr, /has a password in it/)
      assert.ok(!refused.stderr.includes("secret123"))
    }
  })

  it("are encrypted and decrypted in the words of skopeo and of ctr-enc", async () => {
    const [encrypted, back] = [`oci:${place("skopeo")}:it`, `oci:${place("skopeo-back")}:it`]
    const words = ["image", "copy", "--encrypt-layer", "-1", "--encryption-key"]
    const made = await sifcrypt([...words, `jwe:${keyFile("rsa1.pub.pem").file}`, plain, encrypted])
    assert.equal(made.status, 0, made.stderr)
    const layers = (await oci.layerInfo({ source: encrypted })).map((layer) => layer.encrypted)
    assert.deepEqual(layers, [false, false, true])
    const key = keyFile("rsa1.pem").file
    const undone = await sifcrypt([
      "image",
      "copy",
      "--allow-partial",
      "--decryption-key",
      key,
      encrypted,
      back,
    ])
    assert.equal(undone.stdout.toString().trimEnd(), originalDigest, undone.stderr)
    const both = ["--decryption-key", key, "--encryption-key", `jwe:${keyFile("rsa1.pub.pem").file}`]
    assert.equal((await sifcrypt(["image", "copy", ...both, plain, back])).status, 20)

    const links = place("links")
    assert.equal((await sifcrypt(["link", links, "ctr-enc"])).status, 0)
    const ctrEnc = (...args: string[]): ReturnType<typeof runProgram> =>
      runProgram([path.join(links, "ctr-enc"), "-n", "default", "images", ...args])
    const target = `oci:${place("ctr-enc")}:it`
    const recipient = ["--recipient", `jwe:${keyFile("ec1.pub.pem").file}`]
    const wrapped = await ctrEnc("encrypt", ...recipient, "--all-platforms", plain, target)
    assert.equal(wrapped.status, 0, wrapped.stderr)
    assert.match((await ctrEnc("layerinfo", target)).stdout.toString(), /jwe/)
    const opened = await ctrEnc("decrypt", "--key", keyFile("ec1.pem").file, target)
    assert.equal(opened.stdout.toString().trimEnd(), originalDigest, opened.stderr)
  })
})
