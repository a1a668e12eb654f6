// `sifcrypt build`: sources, options, what it keeps of a tree, and what it refuses.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import {
  chmodSync,
  chownSync,
  existsSync,
  lchownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  closeSync,
  ftruncateSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from "node:fs"
import path from "node:path"
import { isRoot, sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { passphrase, testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { describeTree } from "../support/trees.ts"

/** A handful of files whose content compresses more or less. */
function smallTree(): string {
  const tree = newFolder("small-tree")
  mkdirSync(path.join(tree, "sub"))
  writeFileSync(path.join(tree, "sub", "text"), "some text\n".repeat(50_000))
  writeFileSync(path.join(tree, "zeros"), Buffer.alloc(300_000))
  writeFileSync(path.join(tree, "small"), "x")
  writeFileSync(path.join(tree, "empty"), "")
  symlinkSync("sub/text", path.join(tree, "link"))
  return tree
}

describe("sifcrypt build", () => {
  const keys = testKeys()
  const tree = smallTree()
  const expected = describeTree(tree, false)

  async function assertHolds(image: string, credentials: readonly string[]): Promise<void> {
    const target = path.join(newFolder("extracted", userId), "tree")
    await sifcryptOk(["extract", ...credentials, image, target])
    assert.deepEqual(describeTree(target, false), expected)
  }

  describe("of a directory", () => {
    it("A2: makes an encrypted image for an RSA key as an ordinary user", async () => {
      const image = path.join(newFolder("rsa", userId), "image.sif")
      const result = await sifcryptOk(["build", "--pem-path", keys.publicKey, "--json", image, tree])
      const facts = JSON.parse(result.text) as Record<string, unknown>
      assert.equal(facts["encrypted"], true)
      assert.equal(facts["size"], statSync(image).size)
      assert.equal(result.stderr, "")
      const listing = await sifcryptOk(["sif", "list", image])
      assert.match(listing.text, /FS \(Encrypted squashfs\/\*System\/\w+\)/)
      assert.match(listing.text, /Cryptographic Message \(PEM\/RSA-OAEP\)/)
      await assertHolds(image, ["--pem-path", keys.privateKey])
    })

    it("A2: makes an encrypted image for a passphrase as an ordinary user", async () => {
      const image = path.join(newFolder("passphrase", userId), "image.sif")
      await sifcryptOk(["build", "--passphrase-file", keys.passphraseFile, image, tree])
      await assertHolds(image, ["--passphrase-file", keys.passphraseFile])
    })

    it("makes one image that every key and passphrase given opens", async () => {
      const image = path.join(newFolder("both", userId), "image.sif")
      const to = ["--pbkdf", "pbkdf2:1000", "--pem-path", keys.publicKey, "--pem-path", keys.otherPublicKey]
      await sifcryptOk(["build", ...to, "--passphrase-file", keys.passphraseFile, image, tree])
      for (const credential of [
        ["--pem-path", keys.privateKey],
        ["--pem-path", keys.otherPrivateKey],
        ["--passphrase-file", keys.passphraseFile],
      ]) {
        const { text } = await sifcryptOk(["cat", ...credential, image, "small"])
        assert.equal(text, "x")
      }
    })

    it("makes a plain image without credentials", async () => {
      const image = path.join(newFolder("plain", userId), "image.sif")
      await sifcryptOk(["build", image, tree])
      const listing = await sifcryptOk(["sif", "list", image])
      assert.match(listing.text, /FS \(Squashfs\/\*System\/\w+\)/)
      await assertHolds(image, [])
    })

    for (const compression of ["zstd", "zstd:19", "gzip", "gzip:1", "gzip:12", "lz4", "lz4:12", "xz", "xz:1"])
      it(`compresses with ${compression}`, async () => {
        const image = path.join(newFolder("compressed", userId), "image.sif")
        await sifcryptOk(["build", "--compression", compression, "--pem-path", keys.publicKey, image, tree])
        await assertHolds(image, ["--pem-path", keys.privateKey])
      })

    it("leaves the image that it replaces out of a tree that holds it", async () => {
      const source = newFolder("self", userId)
      writeFileSync(path.join(source, "file"), "content")
      const image = path.join(source, "image.sif")
      await sifcryptOk(["build", image, source])
      await sifcryptOk(["build", "-F", image, source])
      assert.equal((await sifcryptOk(["ls", image])).text, "file\n")
    })

    it("keeps names that are no text, start with a dash or hold a newline", async () => {
      const source = newFolder("names")
      const names = ["-rf", "new\nline", " space ", "'\"$(x)`", "*", "\\", "a".repeat(255)].map((name) =>
        Buffer.from(name),
      )
      names.push(Buffer.from([0x66, 0xff, 0xfe, 0x01]), Buffer.from("ünïcode", "latin1"), Buffer.from("日本"))
      for (const name of names)
        writeFileSync(Buffer.concat([Buffer.from(`${source}/`), name]), name.toString("latin1"))
      const image = path.join(newFolder("names-image", userId), "image.sif")
      await sifcryptOk(["build", "--pem-path", keys.publicKey, image, source])
      const target = path.join(newFolder("names-extracted", userId), "tree")
      await sifcryptOk(["extract", "--pem-path", keys.privateKey, image, target])
      assert.deepEqual(describeTree(target, false), describeTree(source, false))
      const shown = await sifcryptOk(["ls", "--pem-path", keys.privateKey, image])
      assert.ok(shown.text.includes("new\\x0aline"), "control characters are shown escaped")
      assert.equal(shown.text.trimEnd().split("\n").length, names.length)
    })
  })

  describe("of another image", () => {
    const folder = newFolder("sources", userId)
    const squashfs = path.join(folder, "tree.squashfs")
    const plain = path.join(folder, "plain.sif")
    const encrypted = path.join(folder, "encrypted.sif")

    before(async () => {
      execFileSync("mksquashfs", [tree, squashfs, "-quiet", "-no-progress", "-no-xattrs"], {
        stdio: "ignore",
      })
      chmodSync(squashfs, 0o644)
      await sifcryptOk(["build", plain, tree])
      await sifcryptOk(["build", "--pem-path", keys.publicKey, encrypted, tree])
    })

    for (const [name, source, options] of [
      ["a squashfs file", squashfs, []],
      ["a plain SIF", plain, []],
      ["an encrypted SIF", encrypted, ["--source-pem-path", keys.privateKey]],
    ] as const) {
      it(`encrypts ${name}`, async () => {
        const image = path.join(newFolder("converted", userId), "image.sif")
        await sifcryptOk(["build", ...options, "--pem-path", keys.otherPublicKey, image, source])
        await assertHolds(image, ["--pem-path", keys.otherPrivateKey])
      })
      it(`makes a plain image of ${name}`, async () => {
        const image = path.join(newFolder("converted", userId), "image.sif")
        await sifcryptOk(["build", ...options, image, source])
        await assertHolds(image, [])
      })
    }

    it("copies a squashfs byte for byte", async () => {
      const image = path.join(newFolder("copied", userId), "image.sif")
      await sifcryptOk(["build", image, squashfs])
      const { stdout } = await sifcryptOk(["sif", "dump", "1", image])
      const original = readFileSync(squashfs)
      // bytes_used of the superblock: what follows is padding.
      const used = Number(original.readBigUInt64LE(40))
      assert.ok(stdout.subarray(0, used).equals(original.subarray(0, used)))
    })

    it("asks for the key of an encrypted source", async () => {
      const image = path.join(newFolder("no-source-key", userId), "image.sif")
      const result = await sifcrypt(["build", image, encrypted])
      assert.equal(result.status, 22)
      assert.match(result.stderr, /encrypted.sif is encrypted .* no key was given/)
      assert.equal(existsSync(image), false)
    })
  })

  describe("and its output", () => {
    it("refuses to replace a file without -F, and leaves it alone", async () => {
      const folder = newFolder("existing", userId)
      const image = path.join(folder, "image.sif")
      writeFileSync(image, "precious")
      const result = await sifcrypt(["build", image, tree])
      assert.equal(result.status, 23)
      assert.match(result.stderr, /image\.sif exists\n/)
      assert.match(result.stderr, /hint: .*-F/)
      assert.equal(readFileSync(image, "utf8"), "precious")
      assert.deepEqual(readdirSync(folder), ["image.sif"])
    })

    it("replaces a file with -F", async () => {
      const folder = newFolder("forced", userId)
      const image = path.join(folder, "image.sif")
      writeFileSync(image, "old", { mode: 0o600 })
      await sifcryptOk(["build", "-F", "--pem-path", keys.publicKey, image, tree])
      await assertHolds(image, ["--pem-path", keys.privateKey])
      assert.deepEqual(readdirSync(folder), ["image.sif"])
    })

    it("replaces a symbolic link, not what it leads to", async () => {
      const folder = newFolder("link", userId)
      const precious = path.join(folder, "precious")
      const image = path.join(folder, "image.sif")
      writeFileSync(precious, "precious")
      symlinkSync("precious", image)
      assert.equal((await sifcrypt(["build", image, tree])).status, 23)
      await sifcryptOk(["build", "-F", image, tree])
      assert.equal(readFileSync(precious, "utf8"), "precious")
      assert.ok(lstatSync(image).isFile())
    })

    it("appears in a drop folder, where one may write and not look", async function () {
      if (!isRoot) skip(this, "needs root, for a folder that is somebody else's")
      const drop = newFolder("drop")
      chmodSync(drop, 0o1733)
      const image = path.join(drop, "image.sif")
      await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree])
      await assertHolds(image, ["--pem-path", keys.privateKey])
      assert.equal((await sifcrypt(["build", image, tree])).status, 23)
      await sifcryptOk(["build", "-F", image, tree])
      await assertHolds(image, [])
      assert.deepEqual(readdirSync(drop), ["image.sif"])
    })

    it("may have a name as long as names can be, also when it is replaced", async () => {
      const folder = newFolder("long-name", userId)
      const name = `${"i".repeat(251)}.sif`
      const image = path.join(folder, name)
      await sifcryptOk(["build", "-F", image, tree])
      await sifcryptOk(["build", "-F", "--pem-path", keys.publicKey, image, tree])
      await assertHolds(image, ["--pem-path", keys.privateKey])
      assert.deepEqual(readdirSync(folder), [name])
    })

    it("names a folder that does not exist", async () => {
      const image = path.join(newFolder("missing", userId), "no", "image.sif")
      const result = await sifcrypt(["build", image, tree])
      assert.equal(result.status, 25)
      assert.match(result.stderr, /cannot create .*image\.sif: the folder does not exist/)
    })

    it("refuses a folder in its place, also with -F", async () => {
      const folder = newFolder("folder", userId)
      const result = await sifcrypt(["build", "-F", folder, tree])
      assert.equal(result.status, 25)
      assert.match(result.stderr, /it is a folder/)
    })

    it("A8: names a folder that may not be written", async function () {
      if (!isRoot) skip(this, "needs root, to make a folder that the user may not write")
      const image = path.join(newFolder("not-mine", 0), "image.sif")
      const result = await sifcrypt(["build", image, tree])
      assert.equal(result.status, 25)
      assert.match(result.stderr, /cannot create .*image\.sif: permission denied/)
    })

    it("names a source that does not exist", async () => {
      const folder = newFolder("no-source", userId)
      const result = await sifcrypt(["build", path.join(folder, "i.sif"), path.join(folder, "nothing")])
      assert.equal(result.status, 25)
      assert.match(result.stderr, /cannot read the source .*nothing: there is no such file/)
      assert.deepEqual(readdirSync(folder), [])
    })

    it("refuses a source that is neither an image nor a folder", async () => {
      const folder = newFolder("bad-source", userId)
      const source = path.join(folder, "text")
      writeFileSync(source, "this is text\n".repeat(100))
      const result = await sifcrypt(["build", path.join(folder, "i.sif"), source])
      assert.equal(result.status, 21)
      assert.match(result.stderr, /text/)
      assert.deepEqual(readdirSync(folder), ["text"])
    })

    it("names a file of the tree that may not be read, and writes nothing", async function () {
      if (!isRoot) skip(this, "needs root, to make a file that the user may not read")
      const source = newFolder("unreadable")
      writeFileSync(path.join(source, "secret"), "secret", { mode: 0o600 })
      const folder = newFolder("unreadable-image", userId)
      const result = await sifcrypt(["build", path.join(folder, "image.sif"), source])
      assert.equal(result.status, 25)
      assert.match(result.stderr, /secret/)
      assert.deepEqual(readdirSync(folder), [])
    })

    it("refuses a compression that it does not know", async () => {
      const folder = newFolder("compression", userId)
      for (const compression of ["lzo", "zstd:99", "gzip:", "xz:x"]) {
        const result = await sifcrypt([
          "build",
          "--compression",
          compression,
          path.join(folder, "i.sif"),
          tree,
        ])
        assert.equal(result.status, 20, `${compression}: ${result.stderr}`)
        assert.ok(result.stderr.includes(compression.split(":")[0] ?? ""))
      }
      assert.deepEqual(readdirSync(folder), [])
    })
  })

  describe("with SOURCE_DATE_EPOCH", () => {
    it("makes plain images that are equal byte for byte", async () => {
      const folder = newFolder("reproducible", userId)
      const copy = path.join(newFolder("copy"), "tree")
      execFileSync("cp", ["-a", tree, copy])
      const env = { SOURCE_DATE_EPOCH: "1700000000" }
      const images = ["a.sif", "b.sif", "c.sif"].map((name) => path.join(folder, name))
      await sifcryptOk(["build", images[0]!, tree], { env })
      await sifcryptOk(["build", images[1]!, copy], { env })
      await sifcryptOk(["build", images[2]!, tree], { env, as: "self" })
      const [a, b, c] = images.map((image) => readFileSync(image))
      assert.ok(a!.equals(b!), "the same tree in another place")
      if (isRoot) {
        // Root keeps owners, and this tree is root's: the same as what an ordinary user's build makes of it.
        assert.ok(a!.equals(c!), "built by another user")
      }
    })

    it("never makes two encrypted images alike", async () => {
      const folder = newFolder("unlike", userId)
      const env = { SOURCE_DATE_EPOCH: "1700000000" }
      const images = ["a.sif", "b.sif"].map((name) => path.join(folder, name))
      for (const image of images)
        await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree], { env })
      const [a, b] = images.map((image) => readFileSync(image))
      assert.ok(!a!.subarray(-100_000).equals(b!.subarray(-100_000)))
      assert.ok(!a!.equals(b!))
    })

    it("refuses one that is no number", async () => {
      const folder = newFolder("bad-epoch", userId)
      const result = await sifcrypt(["build", path.join(folder, "i.sif"), tree], {
        env: { SOURCE_DATE_EPOCH: "yesterday" },
      })
      assert.equal(result.status, 20)
      assert.match(result.stderr, /SOURCE_DATE_EPOCH/)
    })
  })

  describe("and owners", () => {
    before(function () {
      if (!isRoot) skip(this, "needs root, to make files of several owners")
    })

    function ownedTree(): string {
      const source = newFolder("owned")
      for (const [name, uid, gid] of [
        ["root", 0, 0],
        ["user", userId, userId],
        ["large", 4_000_000_000, 3_000_000_000],
      ] as const) {
        writeFileSync(path.join(source, name), name)
        chownSync(path.join(source, name), uid, gid)
      }
      return source
    }

    async function ownersIn(image: string): Promise<Record<string, string>> {
      const { text } = await sifcryptOk(["ls", "--json", image])
      const entries = JSON.parse(text) as { name: string; uid: number; gid: number }[]
      return Object.fromEntries(entries.map(({ name, uid, gid }) => [name, `${uid}:${gid}`]))
    }

    it("are kept by root", async () => {
      const image = path.join(newFolder("kept"), "image.sif")
      await sifcryptOk(["build", image, ownedTree()], { as: "self" })
      assert.deepEqual(await ownersIn(image), {
        large: "4000000000:3000000000",
        root: "0:0",
        user: `${userId}:${userId}`,
      })
    })

    it("become root for an ordinary user", async () => {
      const image = path.join(newFolder("squashed", userId), "image.sif")
      await sifcryptOk(["build", image, ownedTree()])
      assert.deepEqual(await ownersIn(image), { large: "0:0", root: "0:0", user: "0:0" })
    })

    it("are kept for an ordinary user with --keep-owner", async () => {
      const image = path.join(newFolder("kept-by-user", userId), "image.sif")
      await sifcryptOk(["build", "--keep-owner", image, ownedTree()])
      assert.equal((await ownersIn(image))["user"], `${userId}:${userId}`)
    })
  })

  describe("as root", () => {
    before(function () {
      if (!isRoot) skip(this, "needs root, to make device nodes and foreign owners")
    })

    it("keeps every kind of file, hard links, modes, times, xattrs and holes through build and extract", async () => {
      const source = newFolder("everything")
      const at = (name: string): string => path.join(source, name)
      writeFileSync(at("setuid"), "program")
      chownSync(at("setuid"), 1234, 5678)
      chmodSync(at("setuid"), 0o6755)
      mkdirSync(at("sticky"))
      chmodSync(at("sticky"), 0o1777)
      writeFileSync(at("first"), "twice here")
      linkSync(at("first"), at("sticky/second"))
      symlinkSync("nowhere", at("dangling"))
      lchownSync(at("dangling"), 42, 43)
      execFileSync("mknod", [at("block"), "b", "7", "200"])
      execFileSync("mknod", [at("character"), "c", "1", "3"])
      execFileSync("mkfifo", [at("fifo")])
      execFileSync("python3", [
        "-c",
        `import socket; socket.socket(socket.AF_UNIX).bind(${JSON.stringify(at("socket"))})`,
      ])
      const sparse = openSync(at("sparse"), "w")
      ftruncateSync(sparse, 64 << 20)
      writeSync(sparse, "in the middle", 32 << 20)
      closeSync(sparse)
      writeFileSync(at("tagged"), "tagged")
      execFileSync("python3", [
        "-c",
        "import os, sys; os.setxattr(sys.argv[1], 'user.colour', b'green\\x00blue'); " +
          "os.setxattr(sys.argv[1], 'security.capability', bytes.fromhex('0100000200040000000000000000000000000000'))",
        at("tagged"),
      ])
      utimesSync(at("tagged"), 1_000_000_000, 1_234_567_890)
      utimesSync(at("sticky"), 1_000_000_000, 987_654_321)

      const folder = newFolder("everything-image")
      const image = path.join(folder, "image.sif")
      const target = path.join(folder, "tree")
      await sifcryptOk(["build", "--pem-path", keys.publicKey, image, source], { as: "self" })
      await sifcryptOk(["extract", "--pem-path", keys.privateKey, image, target], { as: "self" })
      assert.deepEqual(describeTree(target), describeTree(source))
      const script =
        "import os, sys; print({n: os.getxattr(sys.argv[1], n) for n in sorted(os.listxattr(sys.argv[1]))})"
      const xattrs = (root: string): string =>
        execFileSync("python3", ["-c", script, path.join(root, "tagged")], { encoding: "utf8" })
      assert.match(xattrs(target), /green/)
      assert.equal(xattrs(target), xattrs(source))
      assert.ok(statSync(path.join(target, "sparse")).blocks < 2048, "the hole stays a hole")
      assert.ok(statSync(image).size < 40 << 20, "and takes no room in the image")
    })
  })

  it("does not take a passphrase as an argument of --passphrase", async () => {
    const folder = newFolder("no-argument", userId)
    const result = await sifcrypt(["build", "--passphrase", passphrase, path.join(folder, "i.sif"), tree])
    // The passphrase is an operand too many.
    assert.equal(result.status, 20)
    assert.deepEqual(readdirSync(folder), [])
  })
})
