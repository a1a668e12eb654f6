// The execution control list, with the userspace engine: each mode, what is refused before any key is used, and lists that
// cannot be relied on. The list lies where it always lies, in a mount namespace of the test's.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import {
  chownSync,
  copyFileSync,
  linkSync,
  mkdirSync,
  readFileSync,
  renameSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { sif } from "../../lib/index.ts"
import {
  cli,
  isRoot,
  packageRoot,
  runProgram,
  sifcrypt,
  sifcryptOk,
  userId,
  type Result,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { eclText, withSystemFiles, type SystemFile, type SystemOptions } from "../support/policy.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"
import { vectorPath } from "../vectors/load.ts"

describe("the execution control list", function () {
  const images = newFolder("images", userId)
  const elsewhere = newFolder("elsewhere", userId)
  const keys = testKeys()
  const env = { SIFCRYPT_KEYSDIR: path.join(newFolder("ring", userId), "keys") }
  const signer: Record<"ann" | "bob" | "eve", string> = { ann: "", bob: "", eve: "" }
  /** The system's ring: of Ann and Bob; nobody knows Eve. */
  let ring: Buffer

  /** An image in the folder of the group. */
  const image = (name: string): string => path.join(images, `${name}.sif`)

  before(async function () {
    if (!isRoot) skip(this, "needs root, to give the command another /etc")
    for (const name of ["ann", "bob", "eve"] as const) {
      const args = ["-N", name, "-E", `${name}@example.org`, "--type", "ed25519", "-P", "", "--json"]
      const made = await sifcryptOk(["key", "newpair", ...args], { env })
      signer[name] = (JSON.parse(made.text) as { fingerprint: string }).fingerprint
    }
    const known = ["-k", signer.ann, "-k", signer.bob]
    ring = (await sifcryptOk(["key", "export", ...known, "-"], { env })).stdout
    await sifcryptOk(["build", "--pem-path", keys.publicKey, image("unsigned"), makeRootTree()])
    const sign = async (
      name: string,
      from: string,
      ...by: readonly (keyof typeof signer)[]
    ): Promise<void> => {
      copyFileSync(image(from), image(name))
      chownSync(image(name), userId, userId)
      for (const one of by) await sifcryptOk(["sign", "-k", signer[one], image(name)], { env })
    }
    await sign("ann", "unsigned", "ann")
    await sign("bob", "unsigned", "bob")
    await sign("both", "ann", "bob")
    await sign("eve", "unsigned", "eve")
    await sign("ann-eve", "ann", "eve")
    copyFileSync(image("ann"), path.join(elsewhere, "ann.sif"))
  })

  const command = (file: string): readonly string[] => [
    "exec",
    "--pem-path",
    keys.privateKey,
    file,
    "cat",
    "/data/hello",
  ]

  function under(
    text: string,
    args: readonly string[],
    files: Readonly<Record<string, SystemFile>> = {},
    options: SystemOptions = {},
  ): Promise<Result> {
    const wrapper = withSystemFiles(
      { "sifcrypt/ecl.toml": { text }, "sifcrypt/global-pgp-public": { text: ring }, ...files },
      options,
    )
    return sifcrypt(args, { wrapper, cwd: "/" })
  }

  async function runs(text: string, file: string): Promise<void> {
    const result = await under(text, command(file))
    assert.equal(result.status, 0, result.stderr)
    assert.equal(result.text, "hello\n")
  }

  /** Refused, by command and by `ecl check`, and before a key is looked for. */
  async function refuses(text: string, file: string, message: RegExp): Promise<void> {
    const result = await under(text, ["exec", "--pem-path", "/nonexistent", file, "cat", "/data/hello"])
    assert.equal(result.status, 26, result.stderr)
    assert.match(result.stderr, message)
    assert.equal(result.text, "")
    const told = await under(text, ["ecl", "check", file])
    assert.equal(told.status, 26)
    assert.match(told.text, /Verdict: {2}may not run/)
    assert.match(told.text, message)
  }

  const list = (mode: string, ...by: readonly (keyof typeof signer)[]): string =>
    eclText([{ mode, folder: images, signers: by.map((one) => signer[one]) }])

  it("S3: whitelist: one of the listed signers is enough, and strangers do not matter", async () => {
    await runs(list("whitelist", "ann", "bob"), image("ann"))
    await runs(list("whitelist", "ann"), image("ann-eve"))
    await runs(list("whitelist", "ann").replace(signer.ann, signer.ann.toLowerCase()), image("both"))
    await refuses(list("whitelist", "ann"), image("bob"), /none of the listed signers/)
    // Eve is listed, but the system's ring does not know her key.
    await refuses(list("whitelist", "eve"), image("eve"), /not validly signed/)
  })

  it("S3: whitestrict: each of the listed signers", async () => {
    await runs(list("whitestrict", "ann", "bob"), image("both"))
    await refuses(list("whitestrict", "ann", "bob"), image("ann"), new RegExp(`${signer.bob} did not sign`))
  })

  it("S3: blacklist: signed, but by none of the listed, whether or not their key is known", async () => {
    await runs(list("blacklist", "eve"), image("ann"))
    await runs(list("blacklist"), image("bob"))
    await refuses(list("blacklist", "bob"), image("both"), new RegExp(`${signer.bob} signed it`))
    await refuses(list("blacklist", "eve"), image("ann-eve"), new RegExp(`${signer.eve} signed it`))
  })

  it("S3: what is no SIF, which nobody can sign, does not run while the list is activated", async () => {
    const sandbox = path.join(images, "sandbox")
    execFileSync("cp", ["-a", makeRootTree(), sandbox])
    const squashfs = path.join(images, "image.sqfs")
    execFileSync("mksquashfs", [sandbox, squashfs, "-quiet", "-no-progress"], { stdio: "ignore" })
    for (const file of [sandbox, squashfs])
      await refuses(list("blacklist", "eve"), file, /which nobody signs, and .* lets only signed images run/)
    await runs(list("blacklist", "eve").replace("activated = true", "activated = false"), sandbox)
    const read = await under(list("blacklist", "eve"), ["cat", sandbox, "/data/hello"])
    assert.equal(read.text, "hello\n", read.stderr)
  })

  for (const mode of ["whitelist", "whitestrict", "blacklist"])
    it(`S3: ${mode}: what is unsigned, changed, or in another folder is refused`, async () => {
      const text = list(mode, mode === "blacklist" ? "bob" : "ann")
      await refuses(text, image("unsigned"), /not validly signed: .*no signature/)
      const changed = image(`changed-${mode}`)
      const bytes = readFileSync(image("ann"))
      await using opened = await sif.openSif(image("ann"))
      const partition = opened.primary()
      const at = partition.offset + partition.size - 5000
      bytes[at] = (bytes[at] ?? 0) ^ 1
      writeFileSync(changed, bytes)
      await refuses(text, changed, /its data was changed/)
      await refuses(text, path.join(elsewhere, "ann.sif"), /is in no execgroup/)
    })

  it("S17: a folder is that folder alone, and the empty one is any that no group names", async () => {
    const below = path.join(images, "below")
    mkdirSync(below, { recursive: true })
    copyFileSync(image("ann"), path.join(below, "ann.sif"))
    await refuses(list("whitelist", "ann"), path.join(below, "ann.sif"), /is in no execgroup/)
    const any = eclText([
      { mode: "whitelist", folder: images, signers: [signer.bob] },
      { mode: "whitelist", folder: "", signers: [signer.ann] },
    ])
    await runs(any, path.join(below, "ann.sif"))
    await refuses(any, image("ann"), /none of the listed/)
  })

  it("S3: the folder is that of the open file, whatever path leads to it", async () => {
    const text = list("whitelist", "ann")
    const links = newFolder("links", userId)
    symlinkSync(path.join(elsewhere, "ann.sif"), path.join(images, "link.sif"))
    symlinkSync(images, path.join(links, "images"))
    await refuses(text, path.join(images, "link.sif"), /is in no execgroup/)
    await runs(text, path.join(links, "images", "ann.sif"))
    await runs(text, path.join(images, "below", "..", "ann.sif"))
  })

  it("holds for mount, view, run, shell and the library, and not for what only reads", async () => {
    const text = list("whitelist", "bob")
    const target = newFolder("mount", userId)
    for (const args of [
      ["mount", "--pem-path", "/nonexistent", image("ann"), target],
      ["view", "--pem-path", "/nonexistent", image("ann"), target],
      ["run", "--pem-path", "/nonexistent", image("ann")],
      ["shell", "--pem-path", "/nonexistent", image("ann")],
      ["test", "--pem-path", "/nonexistent", image("ann")],
    ]) {
      const result = await under(text, args)
      assert.equal(result.status, 26, `${args[0] ?? ""}: ${result.stderr}`)
      assert.match(result.stderr, /may not run here/)
    }
    const read = await under(text, ["cat", "--pem-path", keys.privateKey, image("ann"), "/data/hello"])
    assert.equal(read.text, "hello\n")
  })

  it("is asked by the library before a key is used, and an image that was opened to be read is not run", async () => {
    const script = `
      import { open } from ${JSON.stringify(new URL("../../dist/index.js", import.meta.url).href)}
      const [, , image, key] = process.argv
      const unlock = [{ key: { file: key } }]
      for (const [file, options] of [[image, { unlock: [{ key: { file: "/nonexistent" } }] }], [image, { unlock, purpose: "read" }]])
        try {
          const opened = await open(file, options)
          console.log("opened", (await opened.readFile("/data/hello")).toString().trim())
          await opened.exec(["echo"])
          console.log("ran")
        } catch (error) {
          console.log(error.code ?? error.name)
        }`
    const file = path.join(newFolder("program", userId), "program.mjs")
    writeFileSync(file, script)
    const wrapper = withSystemFiles({
      "sifcrypt/ecl.toml": { text: list("whitelist", "bob") },
      "sifcrypt/global-pgp-public": { text: ring },
    })
    const argv = [process.execPath, file, image("ann"), keys.privateKey]
    const result = await runProgram(argv, { wrapper })
    assert.equal(result.text, "ERR_ECL_REFUSED\nopened hello\nERR_INVALID_ARG_VALUE\n", result.stderr)
  })

  it("is not asked where it is not activated, or not there", async () => {
    await runs(list("whitelist", "bob").replace("true", "false"), image("unsigned"))
    const none = withSystemFiles({})
    const result = await sifcrypt(command(image("unsigned")), { wrapper: none, cwd: "/" })
    assert.equal(result.text, "hello\n", result.stderr)
    const told = await sifcryptOk(["ecl", "check", "--json", image("unsigned")], { wrapper: none, cwd: "/" })
    const verdict = JSON.parse(told.text) as { allowed: boolean; active: boolean }
    assert.deepEqual([verdict.allowed, verdict.active], [true, false])
  })

  it("Apptainer's list and ring hold where there is none of ours", async () => {
    const apptainer = {
      "apptainer/ecl.toml": { text: list("whitelist", "ann") },
      "apptainer/global-pgp-public": { text: ring },
    }
    const run = (file: string, files: Readonly<Record<string, SystemFile>>): Promise<Result> =>
      sifcrypt(command(file), { wrapper: withSystemFiles(files), cwd: "/" })
    assert.equal((await run(image("ann"), apptainer)).text, "hello\n")
    assert.equal((await run(image("bob"), apptainer)).status, 26)
    const ours = { "sifcrypt/ecl.toml": { text: "activated = false\n" } }
    assert.equal((await run(image("bob"), { ...apptainer, ...ours })).text, "hello\n")
  })

  const group = (lines: string): string => `activated = true\n[[execgroup]]\n${lines}`
  for (const [what, text, message] of [
    ["no TOML", "activated = tru", /no valid TOML/],
    ["no UTF-8", Buffer.from("activated = true # \xff\n", "latin1"), /no valid TOML/],
    ["nothing in it", "", /does not say whether it is activated/],
    ["a misspelt key", "activate = false\n", /a key that is not known: activate/],
    ["a word for true", 'activated = "yes"\n', /does not say whether/],
    ["an unknown mode", group('mode = "white"\n'), /mode is one of/],
    ["a misspelt key in a group", group('mode = "blacklist"\nkeyfps = []\n'), /keyfps/],
    ["a short key ID", group('mode = "whitelist"\nkeyfp = ["E87EAFD1"]\n'), /no full fingerprint/],
    ["nobody on a whitelist", group('mode = "whitestrict"\nkeyfp = []\n'), /nobody who may sign/],
    ["a relative folder", group('mode = "blacklist"\ndirpath = "images"\n'), /no absolute path/],
    ["a folder with a slash at its end", group('mode = "blacklist"\ndirpath = "/srv/"\n'), /plain form/],
    [
      "a folder twice",
      `${group('mode = "blacklist"\n')}[[execgroup]]\nmode = "blacklist"\n`,
      /several groups/,
    ],
  ] as const)
    it(`fails closed for a list with ${what}`, async () => {
      const place = withSystemFiles({ "sifcrypt/ecl.toml": { text } })
      for (const args of [command(image("ann")), ["ecl", "check", image("ann")]]) {
        const result = await sifcrypt(args, { wrapper: place, cwd: "/" })
        assert.equal(result.status, 26, result.stderr)
        assert.match(result.stderr, message)
        assert.match(result.stderr, /ecl\.toml/)
        assert.equal(result.text, "")
      }
    })

  it("has a code for a list that is broken", async () => {
    const place = withSystemFiles({ "sifcrypt/ecl.toml": { text: "" } })
    const library = JSON.stringify(path.join(packageRoot, "dist", "index.js"))
    const script = `import(${library}).then((it) => it.open(${JSON.stringify(image("ann"))})).catch((e) => console.log(e.code))`
    const result = await runProgram([...place, process.execPath, "-e", script], { as: "self", cwd: "/" })
    assert.equal(result.text.trim(), "ERR_ECL_FILE", result.stderr)
  })

  it("fails closed for a folder over a symbolic link", async () => {
    const link = path.join(newFolder("link"), "images")
    symlinkSync(images, link)
    const text = eclText([{ mode: "whitelist", folder: link, signers: [signer.ann] }])
    const result = await under(text, command(image("ann")))
    assert.equal(result.status, 26)
    assert.match(result.stderr, /over a symbolic link/)
  })

  it("S10: fails closed for a list, a ring or a folder that others than root may write", async () => {
    const text = list("whitelist", "ann")
    const refused = async (
      files: Readonly<Record<string, SystemFile>>,
      options: SystemOptions,
    ): Promise<void> => {
      const result = await under(text, command(image("ann")), files, options)
      assert.equal(result.status, 26, JSON.stringify(files))
      assert.match(
        result.stderr,
        /is not to be trusted: (?:its mode is 0\d\d\d, so others|it belongs to user 2345)/,
      )
    }
    await refused({ "sifcrypt/ecl.toml": { text, mode: 0o664 } }, {})
    await refused({ "sifcrypt/ecl.toml": { text, mode: 0o646 } }, {})
    await refused({ "sifcrypt/global-pgp-public": { text: ring, mode: 0o666 } }, {})
    await refused({}, { folderMode: "775" })
    await refused({}, { owner: 2345 })
  })

  it("fails closed for a list that cannot be read", async () => {
    const text = list("whitelist", "ann")
    const unreadable = await under(text, command(image("ann")), {
      "sifcrypt/ecl.toml": { text, mode: 0o600 },
    })
    assert.equal(unreadable.status, 26)
    assert.match(unreadable.stderr, /cannot be read/)
  })

  it("S2: of old signatures one of the root is enough only where nothing lies over it", async () => {
    const legacy = image("legacy")
    copyFileSync(vectorPath("sif/two-groups-signed-legacy-all.sif"), legacy)
    const signers = ["12045C8C0B1004D058DE4BEDA20C27EE7FF7BA84"]
    const text = `legacyinsecure = true\n${eclText([{ mode: "whitelist", folder: images, signers }])}`
    const keyring = readFileSync(vectorPath("sif/pgp-private.asc"))
    const check = (): Promise<Result> =>
      under(text, ["ecl", "check", legacy], { "sifcrypt/global-pgp-public": { text: keyring } })
    const { status, stderr } = await check()
    assert.equal(status, 0, stderr)
    const extra = Buffer.alloc(11)
    extra.writeInt32LE(sif.FileSystem.ext3, 0)
    extra.writeInt32LE(sif.PartitionType.overlay, 4)
    const object = { type: sif.DataType.partition, extra, group: 1 }
    await sif.addObject(legacy, object, Buffer.alloc(4096))
    const added = await check()
    assert.equal(added.status, 26)
    assert.match(added.text, /no signature/)
  })

  it("no variable and no option names another list", async () => {
    const mine = newFolder("mine", userId)
    writeFileSync(path.join(mine, "ecl.toml"), "activated = false\n")
    const names = ["CONFDIR", "CONFIGDIR", "SYSCONFDIR", "ECL", "ECL_FILE", "ETC", "HOME"]
    const variables = names.flatMap((name) =>
      ["", "SIFCRYPT_", "APPTAINER_"].map((prefix) => [`${prefix}${name}`, mine]),
    )
    const wrapper = withSystemFiles({
      "sifcrypt/ecl.toml": { text: list("whitelist", "bob") },
      "sifcrypt/global-pgp-public": { text: ring },
    })
    const result = await sifcrypt(command(image("ann")), {
      wrapper,
      cwd: mine,
      env: Object.fromEntries(variables) as Record<string, string>,
    })
    assert.equal(result.status, 26)
    assert.match(result.stderr, /\/etc\/sifcrypt\/ecl\.toml does not allow it/)
  })

  it("key global lists the system's ring, and root alone changes it", async () => {
    const wrapper = withSystemFiles({ "sifcrypt/global-pgp-public": { text: ring } })
    const listed = await sifcryptOk(["key", "global"], { wrapper, cwd: "/" })
    assert.match(listed.text, /\/etc\/sifcrypt\/global-pgp-public/)
    for (const name of ["ann", "bob"] as const) assert.match(listed.text, new RegExp(signer[name]))
    const removed = await sifcrypt(["key", "remove", "-g", signer.ann], { wrapper, cwd: "/" })
    assert.equal(removed.status, 25, removed.stderr)
    assert.match(removed.stderr, /permission denied/)
    const chain = [
      "sh",
      "-c",
      '"$0" "$1" key remove -g "$2" && exec "$0" "$1" key list -g --json',
      process.execPath,
    ]
    const byRoot = await runProgram([...chain, cli, signer.ann], { wrapper, as: "self", cwd: "/" })
    assert.equal(byRoot.status, 0, byRoot.stderr)
    assert.doesNotMatch(byRoot.text, new RegExp(signer.ann))
    assert.match(byRoot.text, new RegExp(signer.bob))
    // Every user's verify knows whom root put there.
    await sifcryptOk(["verify", image("bob")], { wrapper, cwd: "/" })
  })

  it("S3: an image that lost its name is in no folder", async () => {
    const wrapper = withSystemFiles({
      "sifcrypt/ecl.toml": { text: eclText([{ mode: "whitelist", folder: "", signers: [signer.ann] }]) },
      "sifcrypt/global-pgp-public": { text: ring },
    })
    const file = path.join(newFolder("gone", userId), "image.sif")
    copyFileSync(image("ann"), file)
    linkSync(file, `${file}.other`)
    renameSync(`${file}.other`, `${file}.third`)
    const script = 'exec 7<"$2"; rm "$2"; exec "$0" "$1" ecl check /proc/self/fd/7'
    const result = await runProgram(["sh", "-c", script, process.execPath, cli, file], {
      wrapper,
      as: "self",
    })
    assert.equal(result.status, 26, result.stderr + result.text)
    assert.match(result.text, /no folder holds it/)
  })
})
