// Who decides what an image says of itself: objects that anybody can put beside its encryption, objects that nobody verified, and
// two of a kind.
import assert from "node:assert/strict"
import { createPrivateKey, createPublicKey } from "node:crypto"
import {
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import {
  build,
  decrypt,
  encrypt,
  MAX_METADATA_SIZE,
  open,
  readMetadata,
  reencrypt,
  sif,
  type ImageMetadata,
  type MetadataOptions,
} from "../../lib/index.ts"
import { sifcrypt } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { signDsse } from "../support/signing.ts"
import { makeRootTree } from "../support/trees.ts"
import { vector, vectorPath } from "../vectors/load.ts"

const forged = Buffer.from(
  JSON.stringify({
    data: { attributes: { labels: { owner: "OUTSIDER" }, runscript: "#!/bin/sh\nexec outsider\n" } },
    type: "container",
  }),
)

interface Extra {
  readonly type?: number
  readonly name?: string
  readonly group?: number
}

describe("what an image says of itself", () => {
  const keys = testKeys()
  const to = { recipients: [{ key: { file: keys.publicKey } }] }
  const from = { unlock: [{ key: { file: keys.privateKey } }] }
  const folder = newFolder("described")
  const inFolder = (name: string): string => path.join(folder, name)
  let plain = ""
  let encrypted = ""
  let count = 0

  /** A copy with the objects that an outsider has added. */
  async function withObjects(image: string, ...extras: readonly Extra[]): Promise<string> {
    const copy = inFolder(`copy-${++count}.sif`)
    copyFileSync(image, copy)
    for (const { type = sif.DataType.json, name = "inspect-metadata.json", group = 1 } of extras)
      await sif.addObject(copy, { type, name, group }, forged)
    return copy
  }

  async function told(
    image: string,
    options: MetadataOptions,
  ): Promise<{ metadata: ImageMetadata; notices: string[] }> {
    const notices: string[] = []
    const metadata = await readMetadata(image, { ...options, onNotice: (text) => notices.push(text) })
    return { metadata, notices }
  }

  before(async () => {
    plain = inFolder("plain.sif")
    writeFileSync(plain, vector("peer/plain.sif"))
    encrypted = inFolder("encrypted.sif")
    await encrypt({ image: plain, output: encrypted, ...to })
  })

  for (const [what, extras] of [
    ["beside it", [{}]],
    ["in another group", [{ group: 2 }]],
    ["twice", [{}, {}]],
    ["as a definition", [{ type: sif.DataType.definition, name: "" }]],
  ] as const)
    it(`is said by what is sealed, whatever an outsider puts ${what}, which is told and is not converted`, async () => {
      const image = await withObjects(encrypted, ...extras)
      const { metadata, notices } = await told(image, from)
      assert.deepEqual(metadata, await readMetadata(encrypted, from))
      assert.equal(metadata.origin, "sealed")
      assert.match(notices.join("\n"), /lies outside of its encryption.* does not count: object \d+/)
      const output = inFolder(`converted-${count}.sif`)
      const refused = { code: "ERR_SIF_AMBIGUOUS", message: /lies outside of the encryption|are both/ }
      await assert.rejects(reencrypt({ image, output, ...from }), refused)
      await assert.rejects(decrypt({ image, output, ...from }), refused)
      const unlock = from.unlock
      await assert.rejects(build({ source: image, output, ...to, unlock }), refused)
      await assert.rejects(build({ source: image, output, unlock }), refused)
      assert.ok(!existsSync(output))
    })

  it("is said by the root file system where nothing is sealed, and not by who could write the file", async () => {
    const bare = inFolder("bare.sif")
    await build({ source: makeRootTree(), output: bare, ...to })
    const { metadata, notices } = await told(await withObjects(bare, {}), from)
    assert.deepEqual([metadata.origin, metadata.labels, metadata.runscript], ["root", {}, undefined])
    assert.equal(notices.length, 1)
    const peer = inFolder("peer.sif")
    writeFileSync(peer, vector("peer/gocryptfs-rsa2048.sif"))
    const opener = { unlock: [{ key: { file: vectorPath("peer/rsa_pri.pem") } }] }
    assert.equal((await readMetadata(peer, opener)).origin, "root")
    assert.match((await readMetadata(peer, opener)).labels["org.label-schema.build-arch"] ?? "", /^amd64$/)
  })

  it("of a sandbox is that it was made of it, with the labels and scripts that are there, and what it was made of before", async () => {
    const tree = makeRootTree()
    const inside = path.join(tree, ".singularity.d")
    mkdirSync(path.join(inside, "bootstrap_history"), { recursive: true })
    writeFileSync(path.join(inside, "bootstrap_history", "Apptainer0"), "the first\n")
    writeFileSync(path.join(inside, "Singularity"), "Bootstrap: docker\nFrom: alpine\n")
    writeFileSync(
      path.join(inside, "labels.json"),
      '{"Author": "me", "org.label-schema.usage.singularity.deffile.bootstrap": "docker"}',
    )
    // It stays the link that it is.
    symlinkSync("/bin/busybox", path.join(inside, "runscript"))
    symlinkSync("/opt/env", path.join(inside, "env"))
    const app = path.join(tree, "scif", "apps", "tool", "scif")
    mkdirSync(path.join(app, "env"), { recursive: true })
    writeFileSync(path.join(app, "runscript.help"), "of the tool\n")
    writeFileSync(path.join(app, "env", "90-environment.sh"), "export TOOL=1\n")
    const definition = `bootstrap: localimage\nfrom: ${tree}\n\n`
    const labels = {
      Author: "me",
      "org.label-schema.build-arch": "arm64",
      "org.label-schema.build-date": "Thursday_1_January_1970_0:0:7_UTC",
      "org.label-schema.schema-version": "1.0",
      "org.label-schema.usage.singularity.deffile.bootstrap": "localimage",
      "org.label-schema.usage.singularity.deffile.from": tree,
    }
    for (const [name, origin, recipients] of [
      ["sandbox.sif", "objects", {}],
      ["sealed.sif", "sealed", to],
    ] as const) {
      const output = inFolder(name)
      await build({ source: tree, output, architecture: "arm64", sourceDateEpoch: 7, ...recipients })
      const metadata = await readMetadata(output, from)
      assert.deepEqual(
        [metadata.origin, metadata.deffile, { ...metadata.labels }],
        [origin, definition, labels],
      )
      assert.deepEqual(metadata.apps, {
        tool: {
          helpfile: "of the tool\n",
          labels: {},
          environment: { "/scif/apps/tool/scif/env/90-environment.sh": "export TOOL=1\n" },
        },
      })
      await using image = await open(output, from)
      const text = async (file: string): Promise<string> =>
        (await image.readFile(`/.singularity.d/${file}`)).toString()
      assert.deepEqual(JSON.parse(await text("labels.json")), labels)
      assert.equal(await text("Singularity"), definition)
      assert.equal(await text("bootstrap_history/Apptainer0"), "the first\n")
      assert.equal(await text("bootstrap_history/Apptainer1"), "Bootstrap: docker\nFrom: alpine\n")
      const entries = await image.list("/.singularity.d")
      for (const link of ["runscript", "env"])
        assert.equal(entries.find(({ path: name }) => name.endsWith(`/${link}`))?.type, "symlink", link)
    }
    const data = inFolder("data.sif")
    await build({ source: tree, output: data, data: true })
    await using sifImage = await sif.openSif(data)
    assert.equal(sifImage.objects.length, 1, "a folder of data says nothing of an image")
  })

  it("of a sandbox that says it in no words, or in too many, is refused", async () => {
    for (const [file, content, message] of [
      ["labels.json", "{", /a labels\.json in it is no JSON/],
      ["runscript", Buffer.alloc(MAX_METADATA_SIZE), /there are more than \d+ bytes of metadata/],
    ] as const) {
      const tree = makeRootTree()
      mkdirSync(path.join(tree, ".singularity.d"))
      writeFileSync(path.join(tree, ".singularity.d", file), content)
      const refused = { code: "ERR_BUILD_SOURCE", message }
      await assert.rejects(build({ source: tree, output: inFolder("broken.sif") }), refused)
      assert.ok(!existsSync(inFolder("broken.sif")))
    }
  })

  it("is what lies outside where no key is given, and that is told", async () => {
    const { metadata, notices } = await told(await withObjects(encrypted, {}), {})
    assert.deepEqual([metadata.origin, metadata.labels], ["objects", { owner: "OUTSIDER" }])
    assert.match(notices.join("\n"), /no key was given.* outside of its encryption, where anybody/)
    const shown = await sifcrypt(["inspect", await withObjects(encrypted, {})])
    assert.match(shown.stderr, /no key was given.* outside of its encryption/)
    const demand = ["--require-encrypted", await withObjects(encrypted, {})]
    assert.equal((await sifcrypt(["inspect", ...demand])).status, 22, "what lies outside is plain")
  })

  it("does not become sealed by a conversion when it was put beside what is sealed", async () => {
    const image = await withObjects(encrypted, { type: sif.DataType.sbom, name: "other.json" })
    const output = inFolder("sbom.sif")
    await reencrypt({ image, output, ...from })
    assert.ok(readFileSync(output).includes("OUTSIDER"))
    assert.equal((await readMetadata(output, from)).origin, "sealed")
    const heard: string[] = []
    const peer = inFolder("peer-again.sif")
    writeFileSync(peer, vector("peer/gocryptfs-rsa2048.sif"))
    const opener = { unlock: [{ key: { file: vectorPath("peer/rsa_pri.pem") } }] }
    await reencrypt({
      image: peer,
      output: inFolder("r.sif"),
      ...opener,
      onNotice: (text) => heard.push(text),
    })
    assert.match(heard.join("\n"), /had it outside of its encryption, where anybody may have put it/)
  })

  it("is not chosen among two of a kind: reading and converting are refused", async () => {
    const image = await withObjects(plain, {})
    await assert.rejects(readMetadata(image), { code: "ERR_SIF_AMBIGUOUS" })
    await assert.rejects(encrypt({ image, output: inFolder("two.sif"), ...to }), {
      code: "ERR_SIF_AMBIGUOUS",
    })
    const elsewhere = await withObjects(plain, { group: 2 })
    assert.deepEqual(await readMetadata(elsewhere), await readMetadata(plain))
  })

  it("is read within one budget for all of it, and only what is asked for", async () => {
    const source = makeRootTree()
    const write = (inside: string, size: number): void => {
      const file = path.join(source, inside)
      mkdirSync(path.dirname(file), { recursive: true })
      writeFileSync(file, Buffer.alloc(size, "#"))
    }
    const some = MAX_METADATA_SIZE / 4
    for (const n of [1, 2, 3, 4, 5]) write(`.singularity.d/env/${n}.sh`, some)
    for (const app of ["a", "b", "c", "__proto__", "e"]) write(`scif/apps/${app}/scif/runscript`, some)
    write(".singularity.d/runscript.help", 100)
    // As of an image that has nothing beside its tree.
    const image = source
    const tooLarge = { code: "ERR_SIF_TOO_LARGE", message: new RegExp(`the ${MAX_METADATA_SIZE} bytes that`) }
    await assert.rejects(readMetadata(image), tooLarge)
    await assert.rejects(readMetadata(image, { parts: ["environment"], apps: [] }), tooLarge)
    await assert.rejects(readMetadata(image, { parts: ["runscript"] }), tooLarge)
    const { helpfile } = await readMetadata(image, { parts: ["helpfile"], apps: [] })
    assert.equal(helpfile?.length, 100)
    const { apps } = await readMetadata(image, { parts: ["runscript"], apps: ["c", "__proto__"] })
    assert.deepEqual(
      Object.entries(apps).map(([name, { runscript }]) => [name, runscript?.length]),
      [
        ["__proto__", some],
        ["c", some],
      ],
    )
    const named = await sifcrypt(["inspect", "--list-apps", image])
    assert.equal(named.text, "__proto__\na\nb\nc\ne\n", named.stderr)
    assert.equal((await sifcrypt(["run-help", image])).text, `${"#".repeat(100)}\n`)
    assert.equal((await sifcrypt(["inspect", image])).status, 0)
    const { status, stderr } = await sifcrypt(["inspect", "--all", image])
    assert.deepEqual([status, /ERR_SIF_TOO_LARGE|more than the/.test(stderr)], [21, true], stderr)
  })

  it("costs for each name as well: a folder of empty scripts ends at the same budget", async () => {
    const source = makeRootTree()
    const env = path.join(source, ".singularity.d", "env")
    mkdirSync(env, { recursive: true })
    const first = path.join(env, "0.sh")
    writeFileSync(first, "")
    for (let n = 1; n < 20_000; n++) linkSync(first, path.join(env, `${n}.sh`))
    const image = source
    await assert.rejects(readMetadata(image, { parts: ["environment"] }), { code: "ERR_SIF_TOO_LARGE" })
    assert.deepEqual((await readMetadata(image, { parts: ["labels"] })).labels, {})
  })

  describe("with a signature demanded", () => {
    const privateKey = createPrivateKey(readFileSync(vectorPath("sif/ed25519-private.pem")))
    const by = { keys: [createPublicKey(privateKey)], require: "any" as const }

    it("is said by objects that were verified, and by no others", async () => {
      const image = await withObjects(plain, { group: 2, name: "other.json" })
      await using opened = await sif.openSif(image)
      const root = opened.primary()
      const inspected = opened.objects.find(({ name }) => name === "inspect-metadata.json")
      // Names of objects count from the group's lowest.
      const lowest = Math.min(...opened.objects.filter(({ group }) => group === 1).map(({ id }) => id))
      await signDsse(image, privateKey, [lowest, root.id])
      // Only the root is signed: its group's labels are anybody's.
      const verify = { ...by, objects: [root.id] }
      assert.equal((await readMetadata(image, { verify })).origin, "root")
      await assert.rejects(readMetadata(image, { verify: { ...by, groups: [1] } }), /is not verified/)
      await signDsse(image, privateKey, [lowest, inspected?.id ?? 0, root.id])
      const both = { ...by, objects: [root.id, inspected?.id ?? 0] }
      const { origin, deffile } = await readMetadata(image, { verify: both })
      assert.deepEqual([origin, typeof deffile], ["objects", "string"])
    })

    it("goes into no copy otherwise", async () => {
      const image = await withObjects(plain)
      await using opened = await sif.openSif(image)
      const root = opened.primary()
      const ids = opened.objects.map(({ id }) => id)
      await signDsse(image, privateKey, ids)
      const output = inFolder("verified.sif")
      const missing = { code: "ERR_SIGNATURE_MISSING", message: /object \d+ of group 1 would be copied/ }
      await assert.rejects(encrypt({ image, output, ...to, verify: { ...by, objects: [root.id] } }), missing)
      await sif.addObject(image, { type: sif.DataType.sbom, group: 2 }, forged)
      await assert.rejects(encrypt({ image, output, ...to, verify: { ...by, groups: [1] } }), {
        code: "ERR_SIGNATURE_MISSING",
        message: /of group 2 would be copied/,
      })
      assert.ok(!existsSync(output))
    })
  })
})
