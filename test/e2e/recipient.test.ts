// Who may open an image, changed in place by an ordinary user.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { createHash, createPublicKey } from "node:crypto"
import { chmodSync, chownSync, copyFileSync, existsSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { addRecipients, removeRecipient, sif, type Recipient } from "../../lib/index.ts"
import { fingerprint } from "../../lib/key/fingerprint.ts"
import { cryptoMessageExtra, DataType } from "../../lib/sif/format.ts"
import { encodeCryptoMessage } from "../../lib/key/crypto-message.ts"
import { isRoot, sifcrypt, sifcryptOk, userId, type Result } from "../support/cli.ts"
import { bits, integer, nothing, oid, sequence } from "../support/der.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { typing } from "../support/terminal.ts"
import { makeRootTree } from "../support/trees.ts"
import { vector, vectorPath } from "../vectors/load.ts"

const keys = testKeys()
const tree = makeRootTree()
/** Without a terminal, wherever the tests run. */
const nowhere = { wrapper: ["setsid", "--wait"] }
const cheap = ["--pbkdf", "pbkdf2:2000"]
const nameOf = (file: string): string => fingerprint(createPublicKey(readFileSync(file)))
const alice = { public: keys.publicKey, private: keys.privateKey, name: nameOf(keys.publicKey) }
const bob = { public: keys.otherPublicKey, private: keys.otherPrivateKey, name: nameOf(keys.otherPublicKey) }

describe("sifcrypt recipient", function () {
  this.timeout(60_000)
  const folder = newFolder("recipients", userId)
  let count = 0

  async function build(...options: string[]): Promise<string> {
    const image = path.join(folder, `${++count}.sif`)
    await sifcryptOk(["build", ...cheap, ...options, image, tree])
    return image
  }
  const recipient = (...args: string[]): Promise<Result> => sifcrypt(["recipient", ...args])
  const recipientOk = (...args: string[]): Promise<Result> => sifcryptOk(["recipient", ...args])
  async function list(image: string): Promise<Recipient[]> {
    return JSON.parse((await recipientOk("list", "--json", image)).text) as Recipient[]
  }
  async function opens(image: string, ...credentials: string[]): Promise<boolean> {
    const { status, text } = await sifcrypt(["cat", ...credentials, image, "/data/hello"])
    assert.ok(status === 0 ? text === "hello\n" : status === 22 || status === 21, String(status))
    return status === 0
  }
  const withKey = (key: string): string[] => ["--pem-path", key]
  /** Everybody whom the image names now: what somebody notes as long as nobody else can write it. */
  async function keepAll(image: string): Promise<string[]> {
    const names = (await list(image)).map((one) => one.fingerprint ?? one.keyslotFingerprint ?? "")
    return names.flatMap((name) => ["--keep", name])
  }
  const withPassphrase = ["--passphrase-file", keys.passphraseFile]

  /** The encrypted payload: nothing may touch it. */
  async function payload(image: string): Promise<string> {
    await using opened = await sif.openSif(image)
    const { offset, size } = opened.primary()
    const bytes = readFileSync(image).subarray(offset, offset + size)
    return createHash("sha256")
      .update(bytes.subarray(4 << 20))
      .digest("hex")
  }

  it("A6: lists without a key who may open an image, and with what", async () => {
    const image = await build(...withKey(alice.public), ...withKey(bob.public), ...withPassphrase)
    const recipients = await list(image)
    assert.deepEqual(
      recipients.map(({ kind, id, fingerprint: name, modulusBits, keyslot, kdf, stale, readableBy }) => [
        kind,
        id,
        name,
        modulusBits,
        keyslot,
        kdf,
        stale,
        readableBy,
      ]),
      [
        ["rsa", 2, alice.name, 2048, 0, "pbkdf2", false, ["sifcrypt", "apptainer", "singularity"]],
        ["rsa", 3, bob.name, 2048, 0, "pbkdf2", false, ["sifcrypt"]],
        [
          "passphrase",
          undefined,
          undefined,
          undefined,
          1,
          "pbkdf2",
          false,
          ["sifcrypt", "apptainer", "singularity", "cryptsetup"],
        ],
      ],
    )
    assert.match(recipients[2]?.keyslotFingerprint ?? "", /^SHA256:[A-Za-z0-9+/]{43}$/)
    const { text } = await recipientOk("list", image)
    assert.match(text, /^KIND +OBJECT +KEYSLOT +KEY +COST +READABLE BY\nrsa +2 +0 +SHA256:/)
    assert.match(
      text,
      /\npassphrase +- +1 +SHA256:\S+ +pbkdf2, 2000 iterations +sifcrypt, apptainer, singularity, cryptsetup\n$/,
    )
  })

  it("names nobody in an image that was built with --anonymous, which both keys open", async () => {
    const image = await build("--anonymous", ...withKey(alice.public), ...withKey(bob.public))
    assert.deepEqual(
      (await list(image)).map(({ fingerprint: name, modulusBits }) => [name, modulusBits]),
      [
        [undefined, undefined],
        [undefined, undefined],
      ],
    )
    assert.ok(!readFileSync(image).includes("PUBLIC KEY"))
    assert.ok(await opens(image, ...withKey(alice.private)))
    assert.ok(await opens(image, ...withKey(bob.private)))
  })

  it("A6: adds an RSA recipient and a passphrase, and does not touch the payload", async () => {
    const image = await build(...withKey(alice.public))
    const before = await payload(image)
    assert.ok(!(await opens(image, ...withKey(bob.private))))
    await recipientOk("add", ...withKey(alice.private), "--recipient", bob.public, image)
    assert.ok(await opens(image, ...withKey(bob.private)))
    await recipientOk(
      "add",
      ...withKey(bob.private),
      ...(await keepAll(image)),
      ...cheap,
      "--recipient-passphrase-file",
      keys.passphraseFile,
      image,
    )
    assert.ok(await opens(image, ...withPassphrase))
    assert.ok(await opens(image, ...withKey(alice.private)))
    assert.equal(await payload(image), before)
    assert.deepEqual(
      (await list(image)).map(({ kind, fingerprint: name }) => name ?? kind),
      [alice.name, bob.name, "passphrase"],
    )
  })

  it("adds RSA recipients with a passphrase: they share a secret and a keyslot", async () => {
    const image = await build(...withPassphrase)
    await recipientOk("add", ...withPassphrase, "--recipient", alice.public, image)
    await recipientOk("add", ...withPassphrase, ...(await keepAll(image)), "--recipient", bob.public, image)
    assert.deepEqual(
      (await list(image)).map(({ kind, fingerprint: name, keyslot }) => [
        kind === "rsa" ? name : kind,
        keyslot,
      ]),
      [
        [alice.name, 2],
        [bob.name, 2],
        ["passphrase", 0],
      ],
    )
    for (const key of [alice, bob]) assert.ok(await opens(image, ...withKey(key.private)))
  })

  /** The crypto messages as they are, to put them back later. */
  async function messagesOf(image: string): Promise<{ data: Buffer; extra: Buffer; name: string }[]> {
    await using opened = await sif.openSif(image)
    const messages = opened.objects.filter(({ type }) => type === sif.DataType.cryptoMessage)
    return await Promise.all(
      messages.map(async (message) => ({
        name: message.name,
        extra: message.extra,
        data: Buffer.from(await opened.data(message, 1 << 20)),
      })),
    )
  }

  for (const how of ["fingerprint", "object ID", "key file"] as const)
    it(`A6: removes a recipient by ${how}, whose old message opens nothing any more`, async () => {
      const image = await build(...withKey(alice.public), ...withKey(bob.public), ...withPassphrase)
      const before = await payload(image)
      const old = await messagesOf(image)
      const whom = { fingerprint: bob.name, "object ID": "3", "key file": bob.public }[how]
      const [, , passphrase] = await list(image)
      const keep = ["--keep", passphrase?.keyslotFingerprint ?? ""]
      const { stderr } = await recipientOk("remove", ...withKey(alice.private), ...keep, image, whom)
      assert.match(stderr, /kept the volume key .* `sifcrypt reencrypt IMAGE OUTPUT`/)
      assert.ok(await opens(image, ...withKey(alice.private)))
      assert.ok(await opens(image, ...withPassphrase))
      assert.ok(!(await opens(image, ...withKey(bob.private))))
      assert.deepEqual(
        (await list(image)).map(({ kind, fingerprint: name }) => name ?? kind),
        [alice.name, "passphrase"],
      )
      assert.equal(await payload(image), before)
      // Bob kept the whole message. It fits no keyslot, whatever it says of itself.
      const bytes = readFileSync(image)
      for (const { data } of old) assert.ok(!bytes.includes(data))
      for (const extra of [old[1]?.extra, cryptoMessageExtra()]) {
        const copy = path.join(folder, `kept-${++count}.sif`)
        copyFileSync(image, copy)
        chmodSync(copy, 0o666)
        const link = { to: "object", id: 1 } as const
        await sif.addObject(
          copy,
          { type: sif.DataType.cryptoMessage, link, ...(extra && { extra }) },
          old[1]?.data ?? Buffer.alloc(0),
        )
        assert.ok(!(await opens(copy, ...withKey(bob.private))))
      }
    })

  it("A6: removes a passphrase with its keyslot, as cryptsetup sees as well", async () => {
    const image = await build(...withKey(alice.public), ...withPassphrase)
    const partition = async (): Promise<string> => {
      await using opened = await sif.openSif(image)
      const { offset, size } = opened.primary()
      const file = path.join(folder, `${++count}.luks`)
      writeFileSync(file, readFileSync(image).subarray(offset, offset + size))
      return file
    }
    const test = (file: string): void => {
      execFileSync("cryptsetup", ["open", "--test-passphrase", "--key-file", "-", file], {
        input: readFileSync(keys.passphraseFile).subarray(0, -1),
        stdio: "pipe",
      })
    }
    test(await partition())
    await recipientOk("remove", ...withKey(alice.private), "--keyslot", "1", image)
    const after = await partition()
    assert.throws(() => {
      test(after)
    }, /No key available|No usable keyslot/)
    execFileSync("cryptsetup", ["luksDump", after])
    assert.ok(await opens(image, ...withKey(alice.private)))
  })

  it("refuses to remove the last recipient, nobody, and a keyslot of the RSA recipients", async () => {
    const image = await build(...withKey(alice.public))
    const before = readFileSync(image)
    for (const [whom, message] of [
      [[alice.name], /object 2 is the last recipient/],
      [[bob.name], /is none of its RSA recipients/],
      [["17"], /17 is none of its RSA recipients/],
      [["--keyslot", "0"], /keyslot 0 belongs to the RSA recipients/],
      [["--keyslot", "5"], /there is no keyslot 5/],
    ] as const) {
      const { status, stderr } = await recipient("remove", ...withKey(alice.private), image, ...whom)
      assert.equal(status, 22, stderr)
      assert.match(stderr, message)
    }
    assert.ok(readFileSync(image).equals(before))
    const onlyPassphrase = await build(...withPassphrase)
    const last = await recipient("remove", ...withPassphrase, "--keyslot", "0", onlyPassphrase)
    assert.equal(last.status, 22)
    assert.match(last.stderr, /keyslot 0 is all that opens it/)
    assert.equal((await recipient("rotate", ...withPassphrase, onlyPassphrase)).status, 22)
    assert.equal(
      (await recipient("add", ...withKey(alice.private), "--recipient", alice.public, image)).status,
      22,
    )
    assert.equal((await recipient("add", ...withKey(alice.private), image)).status, 22)
    assert.equal((await recipient("remove", ...withKey(alice.private), image)).status, 20)
  })

  it("refuses a wrong credential, and a plain image", async () => {
    const image = await build(...withKey(alice.public))
    const before = readFileSync(image)
    const { status, stderr } = await recipient(
      "add",
      ...withKey(bob.private),
      "--recipient",
      bob.public,
      image,
    )
    assert.equal(status, 22)
    assert.match(stderr, /was not encrypted for this key/)
    assert.ok(readFileSync(image).equals(before))
    const plain = path.join(folder, "plain.sif")
    await sifcryptOk(["build", plain, tree])
    const refused = await recipient("list", plain)
    assert.equal(refused.status, 22)
    assert.match(refused.stderr, /not encrypted/)
    assert.match(refused.stderr, /hint: .*`sifcrypt encrypt`/)
  })

  it("lists an image whose messages carry what is no key, and what ends the process that asks for its details", async () => {
    const image = await build(...withKey(alice.public))
    const [message] = await messagesOf(image)
    assert.ok(message !== undefined)
    const [rsa, ec] = ["1.2.840.113549.1.1.1", "1.2.840.10045.2.1"].map((id) => oid(id))
    const [p256, p224] = ["1.2.840.10045.3.1.7", "1.3.132.0.33"].map((id) => oid(id))
    assert.ok(rsa && ec && p256 && p224)
    const modulus = (1n << 2047n) | 1n
    const strange = [
      sequence(sequence(ec, p256), bits(Buffer.of(0))), // the point at infinity: Node 20 ends in an assertion
      sequence(sequence(ec, p256), bits(Buffer.alloc(65, 4))),
      sequence(sequence(ec, p224), bits(Buffer.alloc(57, 4))),
      sequence(sequence(rsa, nothing), bits(sequence(integer(modulus), integer(1n)))),
      sequence(sequence(rsa, nothing), bits(sequence(integer(modulus), integer(modulus - 2n)))),
      Buffer.alloc(64, 0x30),
    ]
    await using opened = await sif.openSif(image)
    const { id } = opened.primary()
    for (const der of strange) {
      const key = `-----BEGIN PUBLIC KEY-----\n${der.toString("base64")}\n-----END PUBLIC KEY-----\n`
      const data = Buffer.concat([encodeCryptoMessage(Buffer.alloc(256, 1)), Buffer.from(key)])
      const object = {
        type: sif.DataType.cryptoMessage,
        link: { to: "object", id },
        extra: message.extra,
      } as const
      await sif.addObject(image, object, data)
    }
    const { stderr } = await recipientOk("list", image)
    assert.equal(stderr, "")
    const bitsOf = (await list(image)).map(({ modulusBits }) => modulusBits)
    assert.deepEqual(bitsOf, [2048, ...strange.map(() => undefined)])
    assert.ok(await opens(image, ...withKey(alice.private)))
  })

  it("needs the keys of anonymous recipients who stay, and says whose", async () => {
    const image = await build("--anonymous", ...withKey(alice.public), ...withKey(bob.public))
    const { status, stderr } = await recipient("rotate", ...withKey(alice.private), image)
    assert.equal(status, 22)
    assert.match(stderr, /is not in the image: object 3/)
    await recipientOk("rotate", ...withKey(alice.private), "--recipient", bob.public, image)
    for (const key of [alice, bob]) assert.ok(await opens(image, ...withKey(key.private)))
    assert.ok(!readFileSync(image).includes("PUBLIC KEY"), "they stay anonymous")
  })

  it("does not wrap the new secret for a key that somebody smuggled into the image", async () => {
    const image = await build(...withKey(alice.public))
    chmodSync(image, 0o666)
    const key = createPublicKey(readFileSync(bob.public))
    await using opened = await sif.openSif(image)
    const [message] = await messagesOf(image)
    assert.ok(message !== undefined)
    await sif.addObject(
      image,
      {
        type: sif.DataType.cryptoMessage,
        name: bob.name,
        link: { to: "object", id: opened.primary().id },
        extra: message.extra,
      },
      encodeCryptoMessage(Buffer.alloc(256, 1), key),
    )
    const { status, stderr } = await sifcrypt(
      ["recipient", "rotate", ...withKey(alice.private), image],
      nowhere,
    )
    assert.equal(status, 22)
    assert.match(stderr, /nothing but the image says that these are to stay: SHA256:\S+ \(object 3\)/)
    assert.match(stderr, /hint: --keep FINGERPRINT/)
    assert.ok(stderr.includes(bob.name))
    await recipientOk("remove", ...withKey(alice.private), image, "3")
    assert.ok(await opens(image, ...withKey(alice.private)))
    assert.ok(!(await opens(image, ...withKey(bob.private))))
  })

  describe("at a terminal", () => {
    for (const command of ["rotate", "reencrypt"] as const)
      it(`shows who would stay, and ${command} takes nothing but a yes`, async () => {
        const image = await build(...withKey(alice.public), ...withKey(bob.public))
        const before = readFileSync(image)
        const output = path.join(folder, `${++count}.sif`)
        const args =
          command === "rotate"
            ? ["recipient", "rotate", ...withKey(alice.private), image]
            : ["reencrypt", ...withKey(alice.private), image, output]
        for (const answer of ["", "n", "keep", "^y,"]) {
          const { status, text } = await sifcrypt(args, typing(answer))
          assert.equal(status, 22, text)
          assert.match(text, new RegExp(`rsa +3 +0 +${bob.name.replaceAll("+", "\\+")} \\(2048 bits\\)`))
          assert.match(text, /Is this one to stay\? \[y\/N\]: /)
          assert.match(text, /nothing but the image says that these are to stay: SHA256:\S+ \(object 3\)/)
        }
        assert.ok(readFileSync(image).equals(before))
        assert.ok(!existsSync(output))
        await sifcryptOk(args, typing("y"))
        const changed = command === "rotate" ? image : output
        for (const key of [alice, bob]) assert.ok(await opens(changed, ...withKey(key.private)))
      })
  })

  it("keeps nobody but those who are listed, and says so", async () => {
    const image = await build(...withKey(alice.public), ...withKey(bob.public), ...withPassphrase)
    const keyslot = (await list(image))[2]?.keyslotFingerprint ?? ""
    const listed = ["--keep", `${alice.name},${keyslot}`]
    const { stderr } = await recipientOk("rotate", ...withKey(alice.private), ...listed, image)
    assert.ok(stderr.includes(`not listed, and not kept: ${bob.name} (object 3)`), stderr)
    assert.ok(await opens(image, ...withPassphrase))
    assert.ok(!(await opens(image, ...withKey(bob.private))))
    const another = await build(...withKey(alice.public), ...withKey(bob.public), ...withPassphrase)
    await recipientOk("rotate", ...withKey(alice.private), "--keep", bob.public, another)
    for (const key of [alice, bob]) assert.ok(await opens(another, ...withKey(key.private)))
    assert.ok(!(await opens(another, ...withPassphrase)))
  })

  it("reports the signatures that a change breaks, and removes them on request", async () => {
    const image = await build(...withKey(alice.public))
    chmodSync(image, 0o666)
    const sign = (link: sif.SifLink): Promise<number> =>
      sif.addObject(image, { type: sif.DataType.signature, link }, Buffer.from("signature"))
    const group = await sign({ to: "group", group: 1 })
    const other = await sign({ to: "group", group: 2 })
    const first = await recipientOk("rotate", "--json", ...withKey(alice.private), image)
    assert.match(first.stderr, new RegExp(`the signature ${group} did not survive`))
    assert.deepEqual((JSON.parse(first.text) as { brokenSignatures: number[] }).brokenSignatures, [group])
    await recipientOk("rotate", "--remove-signatures", ...withKey(alice.private), image)
    await using opened = await sif.openSif(image)
    const left = opened.objects.filter(({ type }) => type === sif.DataType.signature).map(({ id }) => id)
    assert.deepEqual(left, [other])
  })

  describe("with an image of the peer's", () => {
    const key = path.join(folder, "peer.pem")
    let image: string
    before(() => {
      writeFileSync(key, vector("peer/rsa_pri.pem"), { mode: 0o644 })
    })
    beforeEach(() => {
      image = path.join(folder, `peer-${++count}.sif`)
      writeFileSync(image, vector("peer/luks-rsa2048.sif"))
      if (isRoot) chownSync(image, userId, userId)
    })
    const readable = async (credential: readonly string[]): Promise<boolean> =>
      (await sifcrypt(["ls", ...credential, image])).status === 0

    it("rotates, and names its recipient from then on", async () => {
      await recipientOk("rotate", ...withKey(key), image)
      assert.ok(await readable(withKey(key)))
      const [only, ...others] = await list(image)
      assert.deepEqual(others, [])
      assert.equal(only?.fingerprint, fingerprint(createPublicKey(vector("peer/rsa_pri.pem"))))
      assert.equal(only.kdf, "pbkdf2")
      // a second time with what the image has
      await recipientOk("rotate", ...withKey(key), image)
      assert.ok(await readable(withKey(key)))
    })

    it("adds recipients behind the peer's, and removes them", async () => {
      await recipientOk("add", ...withKey(key), "--recipient", alice.public, image)
      await recipientOk(
        "add",
        ...withKey(alice.private),
        ...(await keepAll(image)),
        ...cheap,
        "--recipient-passphrase-file",
        keys.passphraseFile,
        image,
      )
      for (const credential of [withKey(key), withKey(alice.private), withPassphrase])
        assert.ok(await readable(credential))
      const [first, second, third] = await list(image)
      assert.deepEqual(
        [first?.fingerprint, second?.fingerprint, third?.kind],
        [fingerprint(createPublicKey(vector("peer/rsa_pri.pem"))), alice.name, "passphrase"],
      )
      assert.deepEqual(first?.readableBy, ["sifcrypt", "apptainer", "singularity"])
      await recipientOk(
        "remove",
        ...withKey(key),
        "--keep",
        third?.keyslotFingerprint ?? "",
        image,
        alice.name,
      )
      assert.ok(!(await readable(withKey(alice.private))))
      assert.ok(await readable(withKey(key)))
      assert.ok(await readable(withPassphrase))
    })
  })

  describe("of a gocryptfs image", () => {
    const gocryptfs = (...options: string[]): Promise<string> => {
      const image = path.join(folder, `${++count}.sif`)
      return sifcryptOk(["build", "--format", "gocryptfs", ...options, image, tree]).then(() => image)
    }
    /** The partition but for the block of its configuration. */
    const data = async (image: string): Promise<string> => {
      await using opened = await sif.openSif(image)
      const { offset, size } = opened.primary()
      const bytes = readFileSync(image).subarray(offset, offset + size)
      return createHash("sha256").update(bytes.subarray(0, 4096)).update(bytes.subarray(8192)).digest("hex")
    }
    const names = async (image: string): Promise<(string | undefined)[]> =>
      (await list(image)).map(({ fingerprint: name }) => name)

    it("A6: adds, removes and rotates RSA recipients, and does not touch the payload", async () => {
      const image = await gocryptfs(...withKey(alice.public))
      const before = await data(image)
      assert.deepEqual(
        (await list(image)).map(({ kind, keyslot, kdf, cost, readableBy }) => [
          kind,
          keyslot,
          kdf,
          cost,
          readableBy,
        ]),
        [["rsa", undefined, "scrypt", "1 MiB, N 1024, R 8, P 1", ["sifcrypt", "apptainer"]]],
      )
      await recipientOk("add", ...withKey(alice.private), "--recipient", bob.public, image)
      assert.ok(await opens(image, ...withKey(bob.private)))
      const old = path.join(folder, `${++count}.sif`)
      copyFileSync(image, old)
      await recipientOk("remove", ...withKey(bob.private), image, alice.name)
      assert.deepEqual(await names(image), [bob.name])
      assert.ok(await opens(image, ...withKey(bob.private)))
      assert.ok(!(await opens(image, ...withKey(alice.private))))
      await recipientOk("rotate", ...withKey(bob.private), image)
      assert.deepEqual(await names(image), [bob.name])
      assert.ok(await opens(image, ...withKey(bob.private)))
      assert.equal(await data(image), before)
      // What the removed one kept: the crypto message of the image before.
      await using kept = await sif.openSif(old)
      const [message] = kept.objects.filter(({ name }) => name === alice.name)
      assert.ok(message !== undefined)
      const { type, link, group, name, extra } = message
      const bytes = await kept.data(message, 1 << 16)
      for (const mark of [extra, cryptoMessageExtra()]) {
        const tried = path.join(folder, `${++count}.sif`)
        copyFileSync(image, tried)
        await sif.addObject(tried, { type, link, group, name, extra: mark }, bytes)
        assert.ok(!(await opens(tried, ...withKey(alice.private))))
        assert.ok(await opens(tried, ...withKey(bob.private)))
      }
    })

    it("says that it has one password, and that its last recipient stays", async () => {
      const image = await gocryptfs(...withKey(alice.public))
      const before = readFileSync(image)
      const newPassphrase = ["--recipient-passphrase-file", keys.passphraseFile]
      for (const [args, status, message] of [
        [
          ["add", ...withKey(alice.private), ...newPassphrase, image],
          22,
          /a gocryptfs image has one password/,
        ],
        [["remove", ...withKey(alice.private), image, alice.name], 22, /is the last recipient/],
        [["remove", ...withKey(alice.private), "--keyslot", "0", image], 22, /has no keyslots/],
      ] as const) {
        const result = await recipient(...args)
        assert.equal(result.status, status)
        assert.match(result.stderr, message)
      }
      assert.deepEqual(readFileSync(image), before)
    })

    it("lists a passphrase, and neither adds to it nor replaces it", async () => {
      const image = await gocryptfs(...withPassphrase)
      const before = readFileSync(image)
      assert.deepEqual(
        (await list(image)).map(({ kind, cost, readableBy }) => [kind, cost, readableBy]),
        [["passphrase", "64 MiB, N 65536, R 8, P 1", ["sifcrypt", "apptainer"]]],
      )
      for (const [args, message] of [
        [["add", ...withPassphrase, "--recipient", bob.public, image], /one password, here a passphrase/],
        [["rotate", ...withPassphrase, image], /has no RSA recipient/],
      ] as const) {
        const result = await recipient(...args)
        assert.equal(result.status, 22)
        assert.match(result.stderr, message)
        assert.match(result.stderr, /hint: /)
      }
      assert.deepEqual(readFileSync(image), before)
    })

    it("A6: rotates the recipient of an image that Apptainer made, and names it", async () => {
      const image = path.join(folder, `${++count}.sif`)
      const key = vectorPath("peer/rsa_pri.pem")
      writeFileSync(image, vector("peer/gocryptfs-rsa2048.sif"))
      if (isRoot) chownSync(image, userId, userId)
      const content = async (file: string): Promise<string> =>
        (await sifcryptOk(["ls", "-lR", ...withKey(key), file])).text
      const before = await content(image)
      await recipientOk("rotate", ...withKey(key), image)
      assert.equal(await content(image), before)
      assert.deepEqual(await names(image), [fingerprint(createPublicKey(vector("peer/rsa_pri.pem")))])
      await using changed = await sif.openSif(image)
      assert.equal(changed.objects.filter(({ type }) => type === DataType.cryptoMessage).length, 1)
    })
  })

  it("lets two changes of one image happen one after the other", async () => {
    const image = await build(...withKey(alice.public))
    const newPassphrase = ["--recipient-passphrase-file", keys.wrongPassphraseFile, ...cheap]
    await Promise.all([
      recipientOk("rotate", ...withKey(alice.private), image),
      recipientOk("rotate", ...withKey(alice.private), image),
    ])
    assert.ok(await opens(image, ...withKey(alice.private)))
    const added = await Promise.all(
      [["--recipient", bob.public], newPassphrase].map((whom) =>
        sifcrypt(["recipient", "add", ...withKey(alice.private), ...whom, image], nowhere),
      ),
    )
    // Whoever came second found somebody whom nobody had named.
    assert.deepEqual(added.map(({ status }) => status).sort(), [0, 22])
    assert.ok(await opens(image, ...withKey(alice.private)))
  })

  it("is in the API as well", async () => {
    const image = await build(...withKey(alice.public))
    chmodSync(image, 0o666)
    const credentials = [{ key: { file: alice.private } }]
    const added = await addRecipients(image, {
      unlock: credentials,
      recipients: [{ key: { file: bob.public } }],
    })
    assert.equal(added.recipients.length, 2)
    await assert.rejects(removeRecipient(image, { unlock: credentials, recipient: "SHA256:AAAA" }), {
      name: "KeyError",
      code: "ERR_KEY_RECIPIENT",
    })
    const removed = await removeRecipient(image, { unlock: credentials, recipientFile: bob.public })
    assert.deepEqual(
      removed.recipients.map(({ fingerprint: name }) => name),
      [alice.name],
    )
  })
})
