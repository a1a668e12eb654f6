// The power goes while a command writes: what a disk may hold then, at each moment, is the old image or the new one.
import assert from "node:assert/strict"
import { createHash, createPublicKey, generateKeyPairSync } from "node:crypto"
import {
  copyFileSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { build, listRecipients, open, sif, verify } from "../../lib/index.ts"
import { fingerprint } from "../../lib/key/fingerprint.ts"
import { isRoot, sifcrypt, sifcryptOk } from "../support/cli.ts"
import { callsOf, failing, type Call } from "../support/faults.ts"
import { keep, type Kept } from "../support/kept.ts"
import { testKeys } from "../support/keys.ts"
import { statesOf } from "../support/power.ts"
import { makeLayout } from "../support/layout.ts"
import { Registry } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

describe("a power cut", function () {
  this.timeout(120_000)
  const keys = testKeys()
  const unlock = [{ key: { file: keys.privateKey } }]
  const signer = generateKeyPairSync("ed25519")
  const folder = newFolder("power-cut")
  const at = (...names: readonly string[]): string => path.join(folder, ...names)
  const tree = at("tree")
  const another = ["-N", "Two", "-E", "two@example.org", "--type", "ed25519", "-P", ""]
  let kept: Kept
  let registry: Registry | undefined
  let host = ""

  before(async function () {
    if (!isRoot) skip(this, "needs root, to see what others write")
    if (process.arch !== "x64") skip(this, "knows the system calls of x86-64 only")
    // Little, as each state of the disk is opened.
    mkdirSync(path.join(tree, "data"), { recursive: true })
    writeFileSync(path.join(tree, "data", "hello"), "hello\n")
    writeFileSync(at("signer.pem"), signer.privateKey.export({ type: "pkcs8", format: "pem" }))
    for (const [name, ...files] of [
      ["one.sif", keys.publicKey],
      ["image.sif", keys.publicKey, keys.otherPublicKey],
    ] as const)
      await build({ output: at(name), source: tree, recipients: files.map((file) => ({ key: { file } })) })
    await build({ output: at("plain.sif"), source: tree })
    makeLayout(at("layout"), tree, {})
    kept = await keep(folder, keys)
    cpSync(at("ring"), at("ring-of-two"), { recursive: true })
    await sifcryptOk(["key", "newpair", ...another, "-d", at("ring-of-two")], { as: "self" })
    registry = await Registry.start()
    host = registry.host
    await sifcryptOk(["push", "-U", at("image.sif"), `oras://${host}/image:1`], { as: "self" })
    const auths = Object.fromEntries(
      ["one", "two"].map((name) => [
        `${name}.example`,
        { auth: Buffer.from(`${name}:secret`).toString("base64") },
      ]),
    )
    mkdirSync(at("logins"))
    writeFileSync(at("logins", "auth.json"), JSON.stringify({ auths }), { mode: 0o600 })
  })
  after(async () => {
    await registry?.[Symbol.asyncDispose]()
  })

  let count = 0
  async function traced(
    args: readonly string[],
    env: Readonly<Record<string, string>> = {},
  ): Promise<Call[]> {
    const report = at(`${++count}.report`)
    const wrapper = failing(report, folder, "data")
    await sifcryptOk(args, { as: "self", cwd: folder, wrapper, env })
    return callsOf(report)
  }

  const what = ({ number, name, object }: Call): string => `before ${number}, ${name} ${object.slice(0, 100)}`

  /** Does each state of an image hold, and were there both? */
  async function eachIsOldOrNew(
    calls: readonly Call[],
    image: string,
    before: Buffer | undefined,
    isNew: (image: string) => Promise<boolean>,
  ): Promise<void> {
    const seen = { old: 0, new: 0 }
    const states = statesOf(calls, image, before)
    const end = readFileSync(image)
    assert.ok(
      states.some(({ content }) => content?.equals(end)),
      "the trace has all that was written",
    )
    for (const { before: call, content } of states) {
      const state = at("state.sif")
      if (content === undefined) {
        assert.equal(before, undefined, what(call))
        seen.old++
        continue
      }
      writeFileSync(state, content)
      try {
        await using opened = await open(state, { unlock, unsigned: "allow" })
        assert.equal((await opened.readFile("/data/hello")).toString(), "hello\n")
        seen[(await isNew(state)) ? "new" : "old"]++
      } catch (cause) {
        throw new Error(what(call), { cause })
      }
    }
    assert.ok(seen.old > 0 && seen.new > 0, JSON.stringify(seen))
  }

  /** What is replaced whole, appears or goes: no state is another than that at the start and that at the end. */
  function isOldOrNew(calls: readonly Call[], file: string, before: Buffer | undefined): void {
    const end = existsSync(file) ? readFileSync(file) : undefined
    const seen = { old: 0, new: 0 }
    const isSame = (one: Buffer | undefined, other: Buffer | undefined): boolean =>
      one === undefined || other === undefined ? one === other : one.equals(other)
    for (const { before: call, content } of statesOf(calls, file, before)) {
      const state = isSame(content, before) ? "old" : "new"
      if (state === "new")
        assert.ok(isSame(content, end), `${file} ${what(call)}: ${content?.length ?? "no"} bytes`)
      seen[state]++
    }
    assert.ok(seen.old > 0 && seen.new > 0, `${file}: ${JSON.stringify(seen)}`)
  }

  /** Everything below a folder that holds something, by its path. */
  function filesIn(top: string): Map<string, Buffer> {
    const names = existsSync(top) ? readdirSync(top, { recursive: true, encoding: "utf8" }) : []
    const files = names.map((name) => path.join(top, name)).filter((file) => lstatSync(file).isFile())
    return new Map(
      files.map((file) => [file, readFileSync(file)] as const).filter(([, { length }]) => length > 0),
    )
  }

  /** The same for all files of a folder that changes. @returns Which have changed. */
  function eachInIsOldOrNew(
    calls: readonly Call[],
    top: string,
    before: ReadonlyMap<string, Buffer>,
  ): readonly string[] {
    const after = filesIn(top)
    const changed = [...new Set([...before.keys(), ...after.keys()])].filter((file) => {
      const [was, is] = [before.get(file), after.get(file)]
      return was === undefined || is?.equals(was) !== true
    })
    for (const file of changed) isOldOrNew(calls, file, before.get(file))
    return changed
  }

  for (const [name, flags, old] of [
    ["a new image", [], undefined],
    ["a new image in the place of another", ["-F"], "image.sif"],
    ["a new image of gocryptfs", ["--format", "gocryptfs"], undefined],
  ] as const)
    it(`leaves ${name} whole, or what was there`, async () => {
      const before = old === undefined ? undefined : readFileSync(at(old))
      const target = at(`made-${flags.join("")}.sif`)
      if (before !== undefined) writeFileSync(target, before)
      const calls = await traced(["build", ...flags, "--pem-path", keys.publicKey, target, tree])
      const digest = before && createHash("sha256").update(before).digest("hex")
      await eachIsOldOrNew(calls, target, before, async (state) =>
        Promise.resolve(createHash("sha256").update(readFileSync(state)).digest("hex") !== digest),
      )
    })

  it("leaves a signature, and a hash tree, or none", async () => {
    const image = at("to-sign.sif")
    copyFileSync(at("image.sif"), image)
    const before = readFileSync(image)
    const calls = await traced(["sign", "--tree", "--key", at("signer.pem"), image])
    await eachIsOldOrNew(calls, image, before, async (state) => {
      {
        await using opened = await sif.openSif(state)
        if (!opened.objects.some(({ type }) => type === sif.DataType.signature)) return false
      }
      const { verified } = await verify(state, { keys: [createPublicKey(signer.privateKey)] })
      assert.ok(verified)
      return true
    })
  })

  const other = fingerprint(createPublicKey(readFileSync(keys.otherPublicKey)))
  for (const [command, flags, whom] of [
    ["add", ["--recipient", keys.otherPublicKey], []],
    ["remove", [], [other]],
    ["rotate", ["--keep", keys.otherPublicKey], []],
  ] as const)
    it(`leaves an image that opens for who stays: recipient ${command}`, async () => {
      const image = at(`recipient-${command}.sif`)
      copyFileSync(at(command === "add" ? "one.sif" : "image.sif"), image)
      const before = readFileSync(image)
      const stale = new Set((await listRecipients(image)).map(({ keyslot }) => keyslot))
      const args = ["recipient", command, "--pem-path", keys.privateKey, ...flags, image, ...whom]
      const calls = await traced(args)
      await eachIsOldOrNew(calls, image, before, async (state) =>
        (await listRecipients(state)).some(({ keyslot }) => !stale.has(keyslot)),
      )
    })

  const toOther = ["--pem-path", keys.privateKey, "--recipient", keys.otherPublicKey]
  const password = ["--password-file", keys.passphraseFile]
  const newPassword = ["--new-password-file", keys.passphraseFile]
  const forKey = ["--recipient", `jwe:${keys.publicKey}`]

  /** What commands make of nothing, or in the place of something. */
  const outputs: Readonly<Record<string, readonly [replaces: boolean, (made: string) => readonly string[]]>> =
    {
      "an encrypted image": [false, (made) => ["encrypt", "--pem-path", keys.publicKey, "plain.sif", made]],
      "a decrypted image": [
        true,
        (made) => ["decrypt", "-F", "--pem-path", keys.privateKey, "image.sif", made],
      ],
      "an image that is encrypted anew": [true, (made) => ["reencrypt", "-F", ...toOther, "image.sif", made]],
      "an image in another format": [
        false,
        (made) => ["reencrypt", "--format", "gocryptfs", ...toOther, "image.sif", made],
      ],
      "an image of a registry": [true, (made) => ["pull", "-F", made, `oras://${host}/image:1`]],
      "an image without objects": [false, (made) => ["sif", "new", made]],
      "an archive of encrypted layers": [
        true,
        (made) => ["image", "encrypt", "-f", ...forKey, "oci:layout", `oci-archive:${made}`],
      ],
      "an archive of decrypted layers": [
        false,
        (made) => ["image", "decrypt", "--key", keys.privateKey, "oci:encrypted", `oci-archive:${made}`],
      ],
      "a key in another form": [
        true,
        (made) => ["cert", "convert", "-F", "--to", "pkcs8", ...newPassword, ...password, "kept.pfx", made],
      ],
      "an exported key": [false, (made) => ["key", "export", "--secret", "-d", "ring", made]],
      "a digest in a file": [
        true,
        (made) => ["image", "copy", "--digestfile", made, "oci:layout", "oci:copied"],
      ],
    }
  for (const [name, [replaces, args]] of Object.entries(outputs))
    it(`leaves ${name} whole, or what was there`, async () => {
      const made = at(`made-${count}`)
      const before = replaces ? Buffer.from("what was there\n") : undefined
      if (before !== undefined) writeFileSync(made, before)
      isOldOrNew(await traced(args(made), { SIFCRYPT_CACHEDIR: at("own-cache") }), made, before)
    })

  /** Commands that change what is kept in a folder, which is a copy of this one. */
  const changes: Readonly<
    Record<string, readonly [from: string | undefined, (changed: string) => readonly string[]]>
  > = {
    "the files of a certificate": [
      undefined,
      (changed) => ["cert", "create", "--file-prefix", `${changed}/new`, "--bits", "2048", ...password],
    ],
    "a store that gets a certificate": [undefined, () => ["cert", "add", ...password, "kept.pfx"]],
    "a store that loses a certificate": ["certificates", () => ["cert", "del", kept.thumbprint]],
    "a ring that gets a first key": [undefined, (changed) => ["key", "import", "-d", changed, "secret.pgp"]],
    "a ring that gets another key": ["ring", (changed) => ["key", "newpair", ...another, "-d", changed]],
    "a ring that loses one of its keys": [
      "ring-of-two",
      (changed) => ["key", "remove", "--both", "-d", changed, kept.fingerprint],
    ],
    "who to be at a registry": [
      "logins",
      (changed) => ["registry", "logout", "--authfile", `${changed}/auth.json`, "two.example"],
    ],
  }
  for (const [name, [from, args]] of Object.entries(changes))
    it(`leaves ${name} as before, or as it is to be`, async () => {
      const changed = at(`changed-${count}`)
      mkdirSync(changed, { mode: 0o700 })
      if (from !== undefined) cpSync(at(from), changed, { recursive: true })
      const before = filesIn(changed)
      const calls = await traced(args(changed), { SIFCRYPT_CERTSDIR: changed })
      assert.notDeepEqual(eachInIsOldOrNew(calls, changed, before), [])
    })

  it("leaves a layout whose index names only what is there", async () => {
    const target = at("layers")
    const calls = await traced(["image", "encrypt", ...forKey, "oci:layout", `oci:${target}:made`])
    const made = eachInIsOldOrNew(calls, target, new Map())
    const named = (file: string): number =>
      calls.findLastIndex(({ kind, object }) => kind === "rename" && object.endsWith(` -> ${file}`))
    const index = path.join(target, "index.json")
    for (const file of made) if (file !== index) assert.ok(named(file) < named(index), file)
    assert.ok(made.length > 3, made.join(", "))
  })

  for (const [name, args, isNew] of [
    [
      "an object, or not",
      () => ["sif", "add", "--datatype", "6", "IMAGE", "text"],
      (objects) => objects.some(({ type }) => type === sif.DataType.json),
    ],
    [
      "an image without an object, or with it",
      () => ["sif", "del", String(kept.generic), "IMAGE"],
      (objects) => !objects.some(({ id }) => id === kept.generic),
    ],
    [
      "one partition the primary one, or another",
      () => ["sif", "setprim", String(kept.system), "IMAGE"],
      (objects) => {
        const primary = objects.filter(({ partition }) => partition?.type === sif.PartitionType.primarySystem)
        assert.equal(primary.length, 1)
        return primary[0]?.id === kept.system
      },
    ],
  ] as const satisfies readonly (readonly [
    string,
    () => readonly string[],
    (objects: readonly sif.SifObject[]) => boolean,
  ])[])
    it(`leaves ${name}`, async () => {
      const image = at(`changed-${count}.sif`)
      copyFileSync(at("objects.sif"), image)
      const calls = await traced(args().map((word) => (word === "IMAGE" ? image : word)))
      await eachIsOldOrNew(calls, image, readFileSync(at("objects.sif")), async (state) => {
        await using opened = await sif.openSif(state)
        const texts: readonly number[] = [sif.DataType.generic, sif.DataType.json]
        for (const { id, type } of opened.objects) {
          if (!texts.includes(type)) continue
          const pieces: Buffer[] = []
          for await (const piece of sif.dump(opened, id)) pieces.push(piece)
          assert.equal(Buffer.concat(pieces).toString(), "a text\n")
        }
        return isNew(opened.objects)
      })
    })

  it("leaves a record of a service that is read or passed over, and a volume that is known to be a project's", async () => {
    const recipients = [{ key: { file: keys.publicKey } }]
    await build({ output: at("root.sif"), source: makeRootTree(), recipients })
    const data = at("data")
    mkdirSync(data)
    const project = `cut-${process.pid}`
    const env = { XDG_DATA_HOME: data }
    const options = { as: "self", cwd: folder, env } as const
    writeFileSync(
      at("compose.yaml"),
      `name: ${project}
x-sifcrypt: { pem_path: "${keys.privateKey}" }
services:
  one: { image: ./root.sif, network_mode: none, entrypoint: sleep 300, volumes: ["kept:/data"] }
volumes: { kept: {} }
`,
    )
    const up = ["compose", "up", "-d"]
    try {
      const running = async (): Promise<boolean> =>
        (await sifcryptOk(["compose", "ps", "--json"], options)).text.includes("running")
      const calls = await traced(up, env)
      assert.ok(await running())
      const made = (name: string): number =>
        calls.findIndex(({ name: call, object }) => call === "mkdir" && object.endsWith(name))
      const noted = calls.findIndex(
        ({ kind, object }) => kind === "fsync" && object.endsWith("/project.json"),
      )
      assert.ok(
        noted >= 0 && noted < made(`/${project}_kept/data`),
        "it is noted whose a volume is before that is there",
      )

      // In memory; where the system has no place for that, on a disk.
      const names = calls.map(({ object }) => / -> (\/.*\/instances\/[^/]*\.json)$/.exec(object)?.[1])
      const record = names.find((name) => name !== undefined) ?? assert.fail()
      const states = statesOf(calls, record, undefined)
      await sifcryptOk(["compose", "down", "-t", "1"], options)
      for (const { content } of states) {
        if (content !== undefined) writeFileSync(record, content, { mode: 0o600 })
        assert.equal(await running(), false)
      }
      assert.ok(states.some(({ content }) => content?.length === 0))
      writeFileSync(record, "", { mode: 0o600 })
      await sifcryptOk(up, options)
      assert.ok(await running())
    } finally {
      await sifcrypt(["compose", "down", "-v", "-t", "1"], options)
    }
    assert.deepEqual([...filesIn(data).keys()], [])
  })

  it("leaves a copy in the cache that is whole, or none", async () => {
    const cache = at("cache")
    mkdirSync(cache, { mode: 0o700 })
    const env = { SIFCRYPT_CACHEDIR: cache }
    const calls = await traced(["ls", "-R", `oci:${at("layout")}`], env)
    const images = readdirSync(cache, { recursive: true, encoding: "utf8" }).filter((name) =>
      /\/[0-9a-f]{64}$/.test(name),
    )
    assert.equal(images.length, 1)
    await eachIsOldOrNew(calls, path.join(cache, images[0] ?? ""), undefined, () => Promise.resolve(true))
  })
})
