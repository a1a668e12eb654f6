// The command that signs: with each kind of key, from a file, a key ring, gpg's agent and another program.
import assert from "node:assert/strict"
import { generateKeyPairSync, type KeyObject } from "node:crypto"
import {
  chmodSync,
  closeSync,
  mkdirSync,
  openSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs"
import path from "node:path"
import { encryptKey, generateKey, type PrivateKey } from "openpgp"
import { sif, sign, verify } from "../../lib/index.ts"
import { finish, homeOf, sifcrypt, sifcryptOk, startSifcrypt, userId } from "../support/cli.ts"
import { GnuPg } from "../support/gnupg.ts"
import { newFolder } from "../support/scratch.ts"
import { typing } from "../support/terminal.ts"
import { vector, vectorPath } from "../vectors/load.ts"

const password = "correct horse"

/** Runs a command and tells on standard error how much memory its largest process had, in KiB. */
const peakMemory = `
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(status)
`

interface Pair {
  readonly publicKey: KeyObject
  readonly privateKey: KeyObject
}

describe("sifcrypt sign", () => {
  const folder = newFolder("sign", userId)
  const at = (name: string): string => path.join(folder, name)
  let count = 0

  /** A file with these bytes, which everybody may read and write. */
  function put(name: string, bytes: string | Uint8Array): string {
    writeFileSync(at(name), bytes)
    chmodSync(at(name), 0o666)
    return at(name)
  }

  function unsigned(): string {
    const file = put(`${++count}.sif`, vector("peer/plain.sif"))
    return file
  }

  const twoGroups = (): string => {
    const image = vector("sif/two-groups-signed-legacy-group.sif")
    image.fill(0, 4096 + 3 * 585, 4096 + 4 * 585) // without its signature
    return put(`${++count}.sif`, image)
  }

  async function idsOf(file: string): Promise<readonly number[]> {
    await using image = await sif.openSif(file)
    return image.objects.filter(({ type }) => type === sif.DataType.signature).map(({ id }) => id)
  }

  const kinds: Readonly<Record<string, () => Pair>> = {
    RSA: () => generateKeyPairSync("rsa", { modulusLength: 2048 }),
    "ECDSA P-256": () => generateKeyPairSync("ec", { namedCurve: "P-256" }),
    "ECDSA P-384": () => generateKeyPairSync("ec", { namedCurve: "P-384" }),
    "ECDSA P-521": () => generateKeyPairSync("ec", { namedCurve: "P-521" }),
    Ed25519: () => generateKeyPairSync("ed25519"),
  }
  for (const [kind, make] of Object.entries(kinds))
    it(`A28: with ${kind}, and the image verifies with the public key and no other`, async () => {
      const { publicKey, privateKey } = make()
      const name = kind.replace(" ", "-")
      const key = put(`${name}.key`, privateKey.export({ type: "pkcs8", format: "pem" }))
      const pem = put(`${name}.pem`, publicKey.export({ type: "spki", format: "pem" }))
      const image = unsigned()
      const { text } = await sifcryptOk(["sign", "--key", key, image])
      assert.match(
        text,
        /^Signature 4 \(dsse\) of group 1: objects 1, 2, 3\n {2}Fingerprint: SHA256:\S{43}\nSigned: /,
      )
      assert.match(
        (await sifcryptOk(["verify", "--key", pem, image])).text,
        /Signature 4 \(dsse\) of group 1: good/,
      )
      const other = await sifcrypt(["verify", "--key", vectorPath("sif/ecdsa-public.pem"), image])
      assert.equal(other.status, 26)
    })

  it("A28: with keys as PKCS#1 and SEC 1", async () => {
    const rsa = kinds["RSA"]?.().privateKey.export({ type: "pkcs1", format: "pem" })
    const ec = kinds["ECDSA P-256"]?.().privateKey.export({ type: "sec1", format: "pem" })
    for (const [name, pem] of [
      ["pkcs1", rsa],
      ["sec1", ec],
    ] as const)
      // prettier-ignore
      await sifcryptOk(["sign", "--key", put(name, pem ?? ""), unsigned()])
  })

  it("changes nothing else: objects, their descriptors and the identity stay", async () => {
    const image = unsigned()
    const before = readFileSync(image)
    await sifcryptOk(["sign", "--key", vectorPath("sif/ed25519-private.pem"), image])
    const after = readFileSync(image)
    assert.deepEqual(after.subarray(0, 72), before.subarray(0, 72))
    assert.deepEqual(after.subarray(4096, 4096 + 3 * 585), before.subarray(4096, 4096 + 3 * 585))
    assert.deepEqual(after.subarray(32176, before.length), before.subarray(32176))
    assert.equal(after.readBigInt64LE(80), before.readBigInt64LE(80) - 1n)
    await using signed = await sif.openSif(image)
    const signature = signed.object(4)
    assert.equal(signature.group, 0)
    assert.deepEqual(signature.link, { to: "group", group: 1 })
    assert.equal(signature.name, "")
    assert.equal(signature.extra.readInt32LE(0), 1)
    assert.ok(signature.extra.subarray(4).every((byte) => byte === 0))
    assert.equal(signed.header.dataOffset + signed.header.dataSize, after.length)
  })

  it("each group by a signature of its own, a chosen group, chosen objects", async () => {
    const key = ["--key", vectorPath("sif/ed25519-private.pem")]
    const pem = ["--key", vectorPath("sif/ed25519-public.pem")]
    const both = twoGroups()
    assert.match(
      (await sifcryptOk(["sign", ...key, both])).text,
      /group 1: objects 1, 2\n.*group 2: objects 3\n/,
    )
    await sifcryptOk(["verify", ...pem, both])
    const one = twoGroups()
    await sifcryptOk(["sign", ...key, "-g", "2", one])
    await sifcryptOk(["verify", ...pem, "-g", "2", one])
    assert.equal((await sifcrypt(["verify", ...pem, one])).status, 26)
    const single = twoGroups()
    const { text } = await sifcryptOk(["sign", ...key, "-i", "2", "-i", "3", "--json", single])
    const report = JSON.parse(text) as { signatures: { group: number; objects: number[] }[] }
    assert.deepEqual(
      report.signatures.map(({ group, objects }) => [group, objects]),
      [
        [1, [2]],
        [2, [3]],
      ],
    )
    await sifcryptOk(["verify", ...pem, "-i", "2", "-i", "3", single])
    assert.equal((await sifcrypt(["verify", ...pem, "-g", "1", single])).status, 26)
    // The part does not spoil the whole.
    await sifcryptOk(["sign", ...key, single])
    await sifcryptOk(["verify", ...pem, single])
  })

  describe("with OpenPGP keys", () => {
    let keys: readonly PrivateKey[]
    let rings: string
    let env: Readonly<Record<string, string>>

    before(async () => {
      const make = async (name: string, v6 = false): Promise<PrivateKey> => {
        const { privateKey } = await generateKey({
          userIDs: [{ name }],
          type: "curve25519",
          format: "object",
          ...(v6 ? { config: { v6Keys: true } } : {}),
        })
        return privateKey
      }
      keys = [await make("Ada"), await make("Bob"), await make("Cy", true)]
      rings = at("rings")
      mkdirSync(rings)
      const [ada, bob, cy] = keys
      assert.ok(ada && bob && cy)
      const locked = await encryptKey({ privateKey: bob, passphrase: password })
      writeFileSync(
        path.join(rings, "pgp-secret"),
        Buffer.concat([ada, locked, cy].map((key) => key.write())),
      )
      writeFileSync(path.join(rings, "pgp-public"), Buffer.concat(keys.map((key) => key.toPublic().write())))
      env = { APPTAINER_KEYSDIR: rings }
    })

    it("A27: of the user's ring, by index and by fingerprint; the name is shown when it verifies", async () => {
      const name = keys[0]?.getFingerprint().toUpperCase() ?? ""
      for (const which of ["0", name, name.toLowerCase()]) {
        const image = unsigned()
        const { text } = await sifcryptOk(["sign", "-k", which, image], { env })
        assert.match(text, new RegExp(`Fingerprint: ${name}\n`))
        const verified = await sifcryptOk(["verify", image], { env })
        assert.match(
          verified.text,
          /\[LOCAL\] {12}Signing entity: Ada\n\[LOCAL\] {12}Fingerprint: [0-9A-F]{40}\n/,
        )
      }
    })

    it("A27: asks which, where there are several", async () => {
      const result = await sifcrypt(["sign", unsigned()], { env })
      assert.equal(result.status, 26)
      assert.match(
        result.stderr,
        /there are 3 secret keys, and one has to be chosen: 0: [0-9A-F]{40} Ada; 1: /,
      )
    })

    it("A27: an empty key ring is an error", async () => {
      const result = await sifcrypt(["sign", unsigned()], { env: { HOME: homeOf("user") } })
      assert.equal(result.status, 26)
      assert.match(result.stderr, /there is no OpenPGP secret key to sign with/)
    })

    it("S40: takes no short key ID", async () => {
      const id = keys[0]?.getKeyID().toHex() ?? ""
      const result = await sifcrypt(["sign", "-k", id, unsigned()], { env })
      assert.equal(result.status, 20)
      assert.match(result.stderr, /an index or a whole fingerprint/)
    })

    it("A27: that a password protects, from a file, a descriptor and the terminal", async () => {
      const file = put("password", `${password}\n`)
      const image = unsigned()
      await sifcryptOk(["sign", "-k", "1", "--key-passphrase-file", file, image], { env })
      const child = startSifcrypt(["sign", "-k", "1", "--key-passphrase-fd", "3", image], {
        env,
        stdio: ["ignore", "pipe", "pipe", openSync(file, "r")],
      })
      assert.equal((await finish(child)).status, 0)
      const typed = await sifcryptOk(["sign", "-k", "1", image], {
        as: "self",
        env,
        ...typing(`wrong,${password}`),
      })
      assert.match(typed.text, /Enter passphrase for the key [0-9A-F]{40}: /)
      assert.match(typed.text, /not the password of the key file: try again/)
      assert.deepEqual(await idsOf(image), [4, 5, 6])
      await sifcryptOk(["verify", "--require", "all", image], { env })
    })

    it("A27: not without the password, nor with another", async () => {
      const image = unsigned()
      const before = readFileSync(image)
      const without = await sifcrypt(["sign", "-k", "1", image], { env })
      assert.equal(without.status, 22)
      assert.match(without.stderr, /its password is needed/)
      const wrong = await sifcrypt(["sign", "-k", "1", "--key-passphrase-file", put("wrong", "no"), image], {
        env,
      })
      assert.equal(wrong.status, 22)
      assert.match(wrong.stderr, /is not the password of the key/)
      assert.deepEqual(readFileSync(image), before)
    })

    it("of version 6, with a word about the peers", async () => {
      const image = unsigned()
      const { stderr } = await sifcryptOk(["sign", "-k", "2", image], { env })
      assert.match(stderr, /version 6: Apptainer and SingularityCE cannot verify/)
      assert.match((await sifcryptOk(["verify", image], { env })).text, /Fingerprint: [0-9A-F]{64}\n/)
    })
  })

  describe("with gpg", () => {
    let gpg: GnuPg

    before(() => {
      gpg = new GnuPg()
    })
    after(() => {
      gpg[Symbol.dispose]()
    })

    it("A27: the agent's only key, RSA and Ed25519, index and fingerprint", async () => {
      const as = "self"
      const { env } = gpg
      const none = await sifcrypt(["sign", "--gpg", unsigned()], { as, env })
      assert.equal(none.status, 26)
      assert.match(none.stderr, /gpg has no secret key that signs/)
      const first = gpg.generate("Ada", "ed25519", "sign")
      const image = unsigned()
      await sifcryptOk(["sign", "--gpg", image], { as, env })
      const second = gpg.generate("Bob", "rsa2048", "sign")
      const several = await sifcrypt(["sign", "--gpg", image], { as, env })
      assert.equal(several.status, 26)
      assert.match(several.stderr, new RegExp(`one has to be chosen: ${first}, ${second}`))
      await sifcryptOk(["sign", "--gpg", "-k", second, image], { as, env })
      await sifcryptOk(["sign", "--gpg", "-k", "0", image], { as, env })
      const ring = put("gpg-ring", gpg.run(["--export"]))
      for (const required of ["all", `${first},${second}`])
        await sifcryptOk(["verify", "--keyring", ring, "--require", required, image], { as })
      assert.deepEqual(await idsOf(image), [4, 5, 6])
    })

    it("A27: tells why gpg does not sign, and leaves the image alone", async () => {
      const fingerprint = gpg.generate("Cy", "ed25519", "sign", "geheim")
      const image = unsigned()
      const before = readFileSync(image)
      // The agent knows the password from making the key.
      writeFileSync(path.join(gpg.home, "gpg-agent.conf"), "pinentry-program /bin/false\n")
      gpg.forget()
      const result = await sifcrypt(["sign", "--gpg", "-k", fingerprint, image], { as: "self", env: gpg.env })
      assert.equal(result.status, 26, result.stderr)
      assert.match(result.stderr, /gpg failed: it ended with status 2: gpg: .*clear-sign failed/)
      assert.deepEqual(readFileSync(image), before)
    })

    it("names gpg where it is not installed", async () => {
      const onlyNode = newFolder("only-node")
      symlinkSync(process.execPath, path.join(onlyNode, "node"))
      const result = await sifcrypt(["sign", "--gpg", unsigned()], {
        as: "self",
        env: { PATH: onlyNode },
      })
      assert.equal(result.status, 24)
      assert.match(result.stderr, /gpg is not installed/)
    })

    it("S37: GnuPG verifies what our keys sign, and reads the text", async () => {
      gpg.run(["--import"], vector("sif/pgp-private.asc"))
      const image = unsigned()
      await sifcryptOk(["sign", "--secret-keyring", vectorPath("sif/pgp-private.asc"), image])
      await using signed = await sif.openSif(image)
      const data = await signed.data(signed.object(4), 1 << 20)
      gpg.run(["--verify"], data)
      const text = gpg.run(["--decrypt"], data).toString("utf8")
      assert.equal((JSON.parse(text) as { version: number }).version, 1)
    })
  })

  it("A27: with another program, which has the key", async () => {
    const secret = vectorPath("sif/rsa-private.pem")
    const pem = vectorPath("sif/rsa-public.pem")
    const image = unsigned()
    await sifcryptOk([
      "sign",
      "--key",
      pem,
      "--sign-command",
      `openssl dgst -sha256 -sign '${secret}'`,
      image,
    ])
    await sifcryptOk(["verify", "--key", pem, image])
    const before = readFileSync(image)
    for (const [command, message] of [
      ["exit 3", /the signing command failed: it ended with status 3/],
      ["echo nonsense", /made a signature that is not good/],
      ["yes", /more than 2048 bytes/],
      [
        `openssl dgst -sha256 -sign '${vectorPath("sif/ecdsa-private.pem")}'`,
        /made a signature that is not good/,
      ],
    ] as const) {
      const result = await sifcrypt(["sign", "--key", pem, "--sign-command", command, image])
      assert.equal(result.status, 26)
      assert.match(result.stderr, message)
    }
    assert.deepEqual(readFileSync(image), before)
  })

  const protectedKeys: readonly (readonly [string, () => string | Buffer])[] = [
    ["PKCS#8", () => kinds["Ed25519"]?.().privateKey.export({ type: "pkcs8", format: "pem", cipher: "aes-256-cbc", passphrase: password }) ?? ""],
    ["PKCS#1", () => kinds["RSA"]?.().privateKey.export({ type: "pkcs1", format: "pem", cipher: "aes-256-cbc", passphrase: password }) ?? ""],
  ] // prettier-ignore
  for (const [form, make] of protectedKeys)
    it(`with a protected key file, ${form}`, async () => {
      const key = put(`protected-${form.replace("#", "")}`, make())
      const args = ["sign", "--key", key, "--key-passphrase-file", put("password", `${password}\n`)]
      await sifcryptOk([...args, unsigned()])
      const without = await sifcrypt(["sign", "--key", key, unsigned()])
      assert.equal(without.status, 22)
      assert.match(without.stderr, /its password is needed and none was given/)
    })

  const refusals: readonly (readonly [string, readonly string[], number, RegExp])[] = [
    ["a public key", ["--key", vectorPath("sif/ed25519-public.pem")], 22, /a private key is needed/],
    ["a key that is not there", ["--key", "/nonexistent"], 22, /there is no such file/],
    ["a group that is not there", ["--key", vectorPath("sif/ed25519-private.pem"), "-g", "9"], 26, /no group 9/],
    ["an object that is not there", ["--key", vectorPath("sif/ed25519-private.pem"), "-i", "9"], 21, /no object 9/],
    ["two kinds of key at once", ["--key", vectorPath("sif/ed25519-private.pem"), "-k", "1"], 20, /cannot be used with/],
    ["group and object at once", ["--gpg", "-g", "1", "-i", "1"], 20, /cannot be used with/],
    ["a command without its public key", ["--sign-command", "true"], 20, /takes the public key as --key/],
  ] // prettier-ignore
  for (const [what, args, status, message] of refusals)
    it(`refuses ${what}`, async () => {
      const image = unsigned()
      const before = readFileSync(image)
      const result = await sifcrypt(["sign", ...args, image])
      assert.equal(result.status, status, result.stderr)
      assert.match(result.stderr, message)
      assert.deepEqual(readFileSync(image), before)
    })

  it("refuses keys that sign no images, and weak ones", async () => {
    for (const [name, { privateKey }] of Object.entries({
      x25519: generateKeyPairSync("x25519"),
      secp256k1: generateKeyPairSync("ec", { namedCurve: "secp256k1" }),
      weak: generateKeyPairSync("rsa", { modulusLength: 1024 }),
    })) {
      const key = put(`${name}.key`, privateKey.export({ type: "pkcs8", format: "pem" }))
      const result = await sifcrypt(["sign", "--key", key, unsigned()])
      // What is on a strange curve is no key to begin with.
      assert.equal(result.status, name === "secp256k1" ? 22 : 26, name)
      const why = { x25519: /signs no images/, secp256k1: /which is not supported/, weak: /too weak/ }
      assert.match(result.stderr, why[name as keyof typeof why])
    }
  })

  it("refuses what is no image, what is malformed, and what has no room", async () => {
    const key = ["--key", vectorPath("sif/ed25519-private.pem")]
    assert.equal((await sifcrypt(["sign", ...key, put("text", "not an image")])).status, 21)
    const image = vector("peer/plain.sif")
    image.writeBigInt64LE(BigInt(image.length), 4096 + 17)
    assert.equal((await sifcrypt(["sign", ...key, put("malformed", image)])).status, 21)
    const full = vector("peer/plain.sif")
    full.writeBigInt64LE(3n, 88)
    const result = await sifcrypt(["sign", ...key, put("full", full)])
    assert.equal(result.status, 21)
    assert.match(result.stderr, /all 3 descriptors are used/)
  })

  it("A24, S2: tells of objects in no group, and the image does not verify", async () => {
    const image = vector("peer/plain.sif")
    image.writeUInt32LE(0xf0000000, 4096 + 9)
    const file = put("ungrouped.sif", image)
    const { stderr } = await sifcryptOk(["sign", "--key", vectorPath("sif/ed25519-private.pem"), file])
    assert.match(stderr, /object 1 is in no group and is not signed/)
    const report = await sifcrypt(["verify", "--json", "--key", vectorPath("sif/ed25519-public.pem"), file])
    assert.equal(report.status, 26)
    assert.deepEqual((JSON.parse(report.text) as { uncovered: number[] }).uncovered, [1])
  })

  it("signers at the same time wait for one another: every signature is there", async () => {
    const image = unsigned()
    const { privateKey, publicKey } = generateKeyPairSync("ed25519")
    const each = Array.from({ length: 12 }, () => sign(image, { key: privateKey }))
    const commands = Array.from({ length: 4 }, () =>
      sifcryptOk(["sign", "--key", vectorPath("sif/ed25519-private.pem"), image]),
    )
    const reports = await Promise.all(each)
    await Promise.all(commands)
    assert.equal(new Set(reports.map(({ signatures }) => signatures[0]?.id)).size, 12)
    const report = await verify(image, {
      keys: [publicKey],
      keyPaths: [vectorPath("sif/ed25519-public.pem")],
      require: "all",
    })
    assert.equal(report.verified, true)
    assert.equal(report.signatures.length, 16)
  })

  it("verifies and signs an image of 1 GiB in less than 64 MiB", async () => {
    const image = unsigned()
    const size = 2 ** 30
    const record = 4096 + 2 * 585
    const start = Number(readFileSync(image).readBigInt64LE(record + 17))
    const bytes = Buffer.alloc(8)
    bytes.writeBigInt64LE(BigInt(size))
    const fd = openSync(image, "r+")
    writeSync(fd, bytes, 0, 8, record + 25)
    closeSync(fd)
    truncateSync(image, start + size)
    assert.ok(statSync(image).blocks * 512 < 16 << 20)
    await sifcryptOk(["sign", "--key", vectorPath("sif/ed25519-private.pem"), image])
    await sifcryptOk(["sign", "--secret-keyring", vectorPath("sif/pgp-private.asc"), image])
    for (const args of [
      ["--key", vectorPath("sif/ed25519-public.pem")],
      ["--keyring", vectorPath("sif/pgp-private.asc")],
    ]) {
      const { stderr } = await sifcryptOk(["verify", ...args, image], {
        wrapper: ["python3", "-c", peakMemory],
      })
      const kib = Number(stderr.trim().split("\n").at(-1))
      assert.ok(kib > 0 && kib < 64 << 10, `${kib} KiB`)
    }
  })
})
