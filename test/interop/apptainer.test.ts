// Images of ours in a live Apptainer, and images of a live Apptainer here: through dm-crypt, and without privilege.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { chmodSync, copyFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { isRoot, cli, sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { passphrase, testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { describeTree, makeRootTree } from "../support/trees.ts"
import { images as vectors, vector } from "../vectors/load.ts"
import { assertStep, inOwnGuest, inPeer, inPeerAsUser, peerUser, SharedFolder, type Step } from "./peer.ts"

const versions = isRoot
  ? `${inPeer("apptainer", "--version").trim()}, ${inPeer("cryptsetup", "--version").trim()}`
  : "Apptainer"

const showDmCrypt = "cat /data/hello /sys/block/dm-0/dm/uuid"

describe(`interop with ${versions.replace(/ flags:.*/, "")}`, function () {
  const keys = testKeys()
  const tree = makeRootTree()
  /** Built here by an ordinary user. */
  const ours = {
    rsa: "rsa.sif",
    both: "both.sif",
    plain: "plain.sif",
    three: "three.sif",
    changed: "changed.sif",
  }
  /** By the same user, from a definition file. */
  const defined = "defined.sif"
  let shared: SharedFolder
  let folder: string
  let steps: Record<
    | "rsa"
    | "three"
    | "changed"
    | "passphrase"
    | "wrongKey"
    | "plain"
    | "definition"
    | "buildRsa"
    | "buildPassphrase"
    | "buildPlain"
    | "leftLoops"
    | "leftMappings",
    Step
  >

  before(async function () {
    if (!isRoot) skip(this, "needs root, as the peer does")
    shared = new SharedFolder()
    folder = newFolder("images", userId)
    const build = (name: string, ...options: string[]): Promise<unknown> =>
      sifcryptOk(["build", ...options, path.join(folder, name), tree])
    await build(ours.rsa, "--pem-path", keys.publicKey)
    await build(ours.both, "--pem-path", keys.publicKey, "--passphrase-file", keys.passphraseFile)
    const second = ["--pem-path", keys.otherPublicKey, "--passphrase-file", keys.passphraseFile]
    await build(ours.three, "--pem-path", keys.publicKey, ...second)
    // Somebody goes, the secret changes, and somebody comes behind the peer's key.
    const changed = path.join(folder, ours.changed)
    const opener = ["--pem-path", keys.privateKey]
    await build(ours.changed, "--pem-path", keys.publicKey, "--pem-path", keys.otherPublicKey)
    await sifcryptOk(["recipient", "remove", ...opener, changed, keys.otherPublicKey])
    await sifcryptOk(["recipient", "rotate", ...opener, changed])
    await sifcryptOk(["recipient", "add", ...opener, "--recipient", keys.otherPublicKey, changed])
    await build(ours.plain, "--compression", "gzip")
    const definition = path.join(folder, "defined.def")
    writeFileSync(
      definition,
      `Bootstrap: localimage
From: ${tree}

%post
echo from post > /etc/made
%environment
export GREETING="from the environment"
%runscript
cat /etc/made
echo "$GREETING" "$@"
`,
    )
    await sifcryptOk(["build", "--pem-path", keys.publicKey, path.join(folder, defined), definition])
    for (const name of [...Object.values(ours), defined]) shared.take(path.join(folder, name))
    const key = shared.take(keys.privateKey)
    const publicKey = shared.take(keys.publicKey)
    const otherKey = shared.take(keys.otherPrivateKey)
    execFileSync("cp", ["-a", tree, path.join(shared.path, "tree")])
    const secret = `APPTAINER_ENCRYPTION_PASSPHRASE=${passphrase}`
    steps = await shared.inPeerGuest({
      rsa: ["apptainer", "exec", "--pem-path", key, ours.rsa, "/bin/sh", "-c", showDmCrypt],
      three: ["apptainer", "exec", "--pem-path", key, ours.three, "/bin/sh", "-c", showDmCrypt],
      changed: ["apptainer", "exec", "--pem-path", key, ours.changed, "/bin/sh", "-c", showDmCrypt],
      passphrase: ["env", secret, "apptainer", "exec", ours.both, "/bin/sh", "-c", showDmCrypt],
      wrongKey: ["apptainer", "exec", "--pem-path", otherKey, ours.rsa, "/bin/true"],
      plain: ["apptainer", "exec", ours.plain, "/bin/sh", "-c", "cat /data/hello; exit 7"],
      definition: ["apptainer", "run", "--pem-path", key, defined, "an  argument"],
      buildRsa: ["apptainer", "build", "--pem-path", publicKey, "peer-rsa.sif", "tree"],
      buildPassphrase: ["env", secret, "apptainer", "build", "-e", "peer-passphrase.sif", "tree"],
      buildPlain: ["apptainer", "build", "peer-plain.sif", "tree"],
      leftLoops: ["losetup", "-a"],
      leftMappings: ["dmsetup", "ls"],
    })
  })

  after(() => {
    shared[Symbol.dispose]()
  })

  describe("images that an ordinary user built here", () => {
    it("run there as root through dm-crypt, with the RSA key", () => {
      assertStep(steps.rsa, 0)
      assert.match(steps.rsa.stdout, /^hello\nCRYPT-LUKS2-/)
    })

    it("run there with the first of three recipients", () => {
      assertStep(steps.three, 0)
      assert.match(steps.three.stdout, /^hello\nCRYPT-LUKS2-/)
    })

    it("run there after recipients were removed, rotated and added", () => {
      assertStep(steps.changed, 0)
      assert.match(steps.changed.stdout, /^hello\nCRYPT-LUKS2-/)
    })

    it("run there as root through dm-crypt, with the passphrase of an image for several", () => {
      assertStep(steps.passphrase, 0)
      assert.match(steps.passphrase.stdout, /^hello\nCRYPT-LUKS2-/)
    })

    it("are refused there to another key", () => {
      assertStep(steps.wrongKey, 255)
      assert.match(steps.wrongKey.stderr, /correct key/)
    })

    it("run there as here, built encrypted from a definition file", async () => {
      const here = await sifcryptOk([
        "run",
        "--pem-path",
        keys.privateKey,
        path.join(folder, defined),
        "an  argument",
      ])
      assert.equal(here.text, "from post\nfrom the environment an  argument\n")
      assertStep(steps.definition, 0)
      assert.equal(steps.definition.stdout, here.text)
    })

    it("run there plain", () => {
      assertStep(steps.plain, 7)
      assert.equal(steps.plain.stdout, "hello\n")
    })

    it("run there plain as an ordinary user", async () => {
      const place = newFolder("for-peer", peerUser)
      copyFileSync(path.join(folder, ours.plain), path.join(place, ours.plain))
      const { status, text, stderr } = await inPeerAsUser(place, [
        "apptainer",
        "exec",
        ours.plain,
        "/bin/cat",
        "/data/hello",
      ])
      assert.equal(status, 0, stderr)
      assert.equal(text, "hello\n")
    })

    it("are LUKS2 to its cryptsetup, which sees what we wrote", async () => {
      const { text } = await sifcryptOk(["sif", "list", "--json", path.join(folder, ours.both)])
      const [partition] = JSON.parse(text) as { readonly id: number }[]
      const { stdout } = await sifcryptOk([
        "sif",
        "dump",
        String(partition?.id),
        path.join(folder, ours.both),
      ])
      writeFileSync(path.join(shared.path, "partition"), stdout)
      const file = path.join(shared.inside, "partition")
      inPeer("cryptsetup", "isLuks", "--type", "luks2", file)
      const dump = inPeer("cryptsetup", "luksDump", file)
      assert.match(dump, /cipher: aes-xts-plain64\n\tsector: 4096 \[bytes\]/)
      assert.match(dump, /PBKDF: +pbkdf2/)
      assert.match(dump, /PBKDF: +argon2id\n\tTime cost: +4\n\tMemory: +262144/)
      assert.equal(/Cipher key: +512 bits/.test(dump), true)
    })
  })

  describe("listings", () => {
    const peers = ["peer-rsa.sif", "peer-passphrase.sif", "peer-plain.sif"]
    async function assertListsAlike(name: string, file: string): Promise<void> {
      const inside = path.join(shared.inside, name)
      const { text: json } = await sifcryptOk(["sif", "list", "--json", file], { as: "self" })
      const ids = (JSON.parse(json) as { readonly id: number }[]).map(({ id }) => String(id))
      for (const command of [["list"], ["header"], ...ids.map((id) => ["info", id])]) {
        const { text } = await sifcryptOk(["sif", ...command, file], { as: "self" })
        assert.equal(
          text,
          inPeer("apptainer", "sif", ...command, inside),
          `${name}: sif ${command.join(" ")}`,
        )
      }
    }

    for (const name of [...Object.values(ours), ...peers])
      it(`are the same here and there, of ${name}`, async () => {
        await assertListsAlike(name, path.join(shared.path, name))
      })
    for (const name of vectors)
      it(`are the same here and there, of the vector ${name}`, async () => {
        const file = path.join(shared.path, path.basename(name))
        writeFileSync(file, vector(name))
        await assertListsAlike(path.basename(name), file)
      })
  })

  describe("images that it builds", () => {
    /** What of the source tree the image must show: files and links. Apptainer adds to it and touches folders. */
    function assertHoldsTree(root: string): void {
      const found = describeTree(root, false)
      for (const [name, facts] of describeTree(tree, false))
        if (!facts.startsWith("40000")) assert.equal(found.get(name), facts, name)
    }

    it("were built, and it left nothing behind", () => {
      for (const name of ["buildRsa", "buildPassphrase", "buildPlain"] as const) assertStep(steps[name], 0)
      assert.equal(steps.leftLoops.stdout, "")
      assert.match(steps.leftMappings.stdout, /No devices found/)
    })

    for (const [name, options] of [
      ["peer-rsa.sif", ["--pem-path", keys.privateKey]],
      ["peer-passphrase.sif", ["--passphrase-file", keys.passphraseFile]],
      ["peer-plain.sif", []],
    ] as const)
      it(`open here for an ordinary user: ${name}`, async () => {
        const place = newFolder("peer-image", userId)
        const image = path.join(place, name)
        copyFileSync(path.join(shared.path, name), image)
        chmodSync(image, 0o644)
        await sifcryptOk(["extract", ...options, image, path.join(place, "tree")])
        assertHoldsTree(path.join(place, "tree"))
        const { status, text, stderr } = await sifcrypt([
          "exec",
          ...options,
          image,
          "/bin/sh",
          "-c",
          "cat /data/hello; exit 7",
        ])
        assert.equal(status, 7, stderr)
        assert.equal(text, "hello\n")
      })

    it("open here for root through dm-crypt", async () => {
      const images = ["peer-rsa.sif", "peer-passphrase.sif"].map((name) => path.join(shared.path, name))
      const [key, secret] = [keys.privateKey, keys.passphraseFile]
      const run = (name: string, ...options: readonly string[]): string[] => [
        process.execPath,
        cli,
        "exec",
        "--engine",
        "kernel",
        ...options,
        name,
        "/bin/sh",
        "-c",
        showDmCrypt,
      ]
      const results = await inOwnGuest([...images, key, secret], {
        rsa: run("peer-rsa.sif", "--pem-path", path.basename(key)),
        passphrase: run("peer-passphrase.sif", "--passphrase-file", path.basename(secret)),
        leftLoops: ["losetup", "-a"],
        leftMappings: ["dmsetup", "ls"],
      })
      for (const step of [results.rsa, results.passphrase]) {
        assertStep(step, 0)
        assert.match(step.stdout, /^hello\nCRYPT-LUKS2-/)
      }
      assert.equal(results.leftLoops.stdout, "")
      assert.match(results.leftMappings.stdout, /No devices found/)
    })
  })
})
