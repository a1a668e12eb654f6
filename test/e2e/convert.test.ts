// `sifcrypt encrypt`, `decrypt` and `reencrypt`: from one image to another, and what anyone can read of it.
import assert from "node:assert/strict"
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs"
import path from "node:path"
import { once } from "node:events"
import { decrypt, encrypt, reencrypt, sif } from "../../lib/index.ts"
import { sifcrypt, sifcryptOk, startSifcrypt, userId } from "../support/cli.ts"
import { passphrase, testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { vector, vectorPath } from "../vectors/load.ts"

const MARKERS = ["bootstrap: localimage", "org.label-schema.build-arch", "a-secret-of-the-sbom", "runscript"]

/** A peer's plain image with an SBOM, an overlay with holes, a data partition and something in another group. */
async function richImage(folder: string): Promise<string> {
  const image = path.join(folder, "plain.sif")
  writeFileSync(image, vector("peer/plain.sif"))
  const partition = (type: number): Buffer => {
    const extra = Buffer.alloc(384)
    extra.writeInt32LE(sif.FileSystem.ext3, 0)
    extra.writeInt32LE(type, 4)
    extra.write("02", 8)
    return extra
  }
  const overlay = Buffer.alloc(3 << 20)
  overlay.write("start of the overlay")
  overlay.write("end of it", overlay.length - 9)
  await sif.addObject(
    image,
    { type: sif.DataType.sbom, name: "sbom.json", group: 1, link: { to: "object", id: 3 } },
    Buffer.from('{"of":"a-secret-of-the-sbom"}'),
    { time: 1_600_000_000 },
  )
  await sif.addObject(
    image,
    { type: sif.DataType.partition, group: 1, extra: partition(sif.PartitionType.overlay) },
    overlay,
  )
  await sif.addObject(
    image,
    {
      type: sif.DataType.partition,
      group: 2,
      name: "data",
      link: { to: "group", group: 1 },
      extra: partition(sif.PartitionType.data),
    },
    Buffer.alloc(5000, 7),
  )
  return image
}

interface Content {
  readonly facts: unknown
  readonly data: Buffer
}

/** All that an object is, apart from where it lies. */
async function contentOf(image: string): Promise<Content[]> {
  await using opened = await sif.openSif(image)
  const all: Content[] = []
  for (const object of opened.objects) {
    const { slot, id, type, group, link, name, created, uid, gid, extra, size } = object
    const modified = object.partition?.type === sif.PartitionType.primarySystem ? 0 : object.modified
    all.push({
      facts: { slot, id, type, group, link, name, created, modified, uid, gid, extra, size },
      data: await opened.data(object, 1 << 30),
    })
  }
  return all
}

describe("from one image to another", () => {
  const keys = testKeys()
  const to = { recipients: [{ key: { file: keys.publicKey } }] }
  const from = { unlock: [{ key: { file: keys.privateKey } }] }
  const folder = newFolder("convert")
  const inFolder = (name: string): string => path.join(folder, name)
  let plain = ""
  let encrypted = ""
  const notices: string[] = []

  before(async () => {
    plain = await richImage(folder)
    encrypted = inFolder("encrypted.sif")
    await encrypt({ image: plain, output: encrypted, ...to, onNotice: (text) => notices.push(text) })
  })

  it("A6: decrypt gives back what encrypt was given: the partition bit for bit, and every other object", async () => {
    const output = inFolder("decrypted.sif")
    await decrypt({ image: encrypted, output, ...from })
    assert.deepEqual(await contentOf(output), await contentOf(plain))
  })

  it("S5: decrypt says which partitions and objects of the plain image were outside of the encryption", async () => {
    const heard: string[] = []
    const onNotice = (text: string): void => void heard.push(text)
    await decrypt({ image: encrypted, output: inFolder("told.sif"), ...from, onNotice })
    assert.deepEqual(heard, [
      `${encrypted} had it outside of its encryption, where anybody may have put it, and the plain image has it as its own: Overlay partition, Data partition data`,
    ])
  })

  it("A6: reencrypt keeps it all, for the one who opens it, with another volume key", async () => {
    const again = inFolder("again.sif")
    const heard: string[] = []
    await reencrypt({ image: encrypted, output: again, ...from, onNotice: (text) => heard.push(text) })
    assert.match(heard.join("\n"), /^encrypted for: SHA256:/m)
    const output = inFolder("again-decrypted.sif")
    await decrypt({ image: again, output, ...from })
    assert.deepEqual(await contentOf(output), await contentOf(plain))
    await using first = await sif.openSif(encrypted)
    await using second = await sif.openSif(again)
    const start = (image: sif.SifImage): Promise<Buffer> => image.read(image.primary(), 4 << 20, 4096)
    assert.notDeepEqual(await start(first), await start(second))
  })

  it("A6: restores partitions of any length", async () => {
    const bytes = vector("peer/plain.sif")
    const used = Number(bytes.readBigUInt64LE(36864 + 40))
    for (const length of [used, used + 1, used + 4097]) {
      const image = inFolder("odd.sif")
      const changed = Buffer.alloc(36864 + length)
      bytes.copy(changed)
      changed.fill(0x5a, 36864 + used)
      // The third descriptor is the partition's.
      changed.writeBigInt64LE(BigInt(length), 4096 + 2 * 585 + 25)
      writeFileSync(image, changed)
      await encrypt({ image, output: inFolder("odd-e.sif"), force: true, ...to })
      await decrypt({ image: inFolder("odd-e.sif"), output: inFolder("odd-d.sif"), force: true, ...from })
      assert.deepEqual(await contentOf(inFolder("odd-d.sif")), await contentOf(image), String(length))
      assert.equal(statSync(inFolder("odd-d.sif")).size, changed.length)
    }
  })

  it("A10: nothing of definition, labels, scripts and SBOM can be found in the encrypted file", () => {
    const before = readFileSync(plain)
    const after = readFileSync(encrypted)
    for (const marker of MARKERS) {
      assert.ok(before.includes(marker), marker)
      assert.ok(!after.includes(marker), marker)
    }
  })

  it("A10: says in one line what is kept inside, and in one what stays readable", () => {
    assert.deepEqual(notices, [
      "kept inside the encryption: Def.FILE, JSON.Generic inspect-metadata.json, SBOM sbom.json",
      "readable without a key, beside the encrypted partition: Overlay partition, Data partition data",
    ])
  })

  it("A10: leaves all of it readable with --public-metadata, and says so", async () => {
    const output = path.join(newFolder("public", userId), "image.sif")
    const { stderr } = await sifcryptOk([
      "encrypt",
      "--public-metadata",
      "--pem-path",
      keys.publicKey,
      vectorPlain(),
      output,
    ])
    assert.match(stderr, /readable without a key.*Def\.FILE, JSON\.Generic inspect-metadata\.json/)
    assert.ok(readFileSync(output).includes("bootstrap: localimage"))
  })

  it("A10: build from an image keeps its metadata inside as well", async () => {
    const output = path.join(newFolder("built", userId), "image.sif")
    await sifcryptOk(["build", "--pem-path", keys.publicKey, output, vectorPlain()])
    assert.ok(!readFileSync(output).includes("bootstrap: localimage"))
    const plainAgain = path.join(newFolder("built-plain", userId), "image.sif")
    await sifcryptOk(["decrypt", "--pem-path", keys.privateKey, output, plainAgain])
    assert.deepEqual(await contentOf(plainAgain), await contentOf(vectorPlain()))
  })

  it("seals what a peer's encrypted image has beside its partition, and decrypts both kinds", async () => {
    for (const name of ["luks-rsa2048", "gocryptfs-rsa2048"]) {
      const image = inFolder(`${name}.sif`)
      writeFileSync(image, vector(`peer/${name}.sif`))
      const peer = { unlock: [{ key: { file: vectorPath("peer/rsa_pri.pem") } }] }
      await decrypt({ image, output: inFolder(`${name}-d.sif`), ...peer })
      await using opened = await sif.openSif(inFolder(`${name}-d.sif`))
      assert.equal(opened.primary().partition.fileSystem, sif.FileSystem.squashfs)
      assert.equal(opened.objects.length, 3)
      await reencrypt({ image, output: inFolder(`${name}-r.sif`), ...peer })
      assert.ok(!readFileSync(inFolder(`${name}-r.sif`)).includes("bootstrap: localimage"))
    }
  })

  it("A6: goes through gocryptfs and back", async () => {
    const image = inFolder("gocryptfs.sif")
    await encrypt({ image: plain, output: image, format: "gocryptfs", ...to })
    await using opened = await sif.openSif(image)
    assert.equal(opened.primary().partition.fileSystem, sif.FileSystem.gocryptfsSquashfs)
    await reencrypt({ image, output: inFolder("luks-again.sif"), format: "luks", ...from })
    await decrypt({ image: inFolder("luks-again.sif"), output: inFolder("plain-again.sif"), ...from })
    assert.deepEqual(await contentOf(inFolder("plain-again.sif")), await contentOf(plain))
  })

  it("A10: inspect shows with a key what it shows of the plain image without one", async () => {
    for (const flags of [[], ["-d"], ["-e"], ["-r"], ["--all"], ["-l", "--json"]]) {
      const open = ["inspect", ...flags]
      const { text } = await sifcryptOk([...open, plain])
      assert.notEqual(text, "")
      assert.equal((await sifcryptOk([...open, "--pem-path", keys.privateKey, encrypted])).text, text)
    }
    const { text } = await sifcryptOk(["inspect", plain])
    assert.match(text, /^org\.label-schema\.build-arch: amd64$/m)
    const { status, stderr } = await sifcrypt(["inspect", encrypted])
    assert.equal(status, 22)
    assert.match(stderr, /is encrypted \(for 1 RSA recipient\) and no key was given/)
  })

  it("S28: refuses an unsigned image where that is asked for, before any key is used", async () => {
    for (const command of ["decrypt", "reencrypt"]) {
      const output = path.join(newFolder("unsigned", userId), "image.sif")
      const { status, stderr } = await sifcrypt([command, "--unsigned", "error", encrypted, output])
      assert.equal(status, 26, stderr)
      assert.ok(!existsSync(output))
    }
    assert.equal((await sifcrypt(["inspect", "--unsigned", "error", encrypted])).status, 26)
  })

  it("leaves signatures out and names them", async () => {
    const image = inFolder("signed.sif")
    writeFileSync(image, vector("peer/plain.sif"))
    const id = await sif.addObject(
      image,
      { type: sif.DataType.signature, link: { to: "group", group: 1 } },
      Buffer.from("-----BEGIN PGP SIGNED MESSAGE-----\n"),
    )
    const heard: string[] = []
    await encrypt({ image, output: inFolder("unsigned.sif"), ...to, onNotice: (text) => heard.push(text) })
    assert.match(heard[0] ?? "", new RegExp(`^signature ${id} of .*signed.sif left out: `))
    await using opened = await sif.openSif(inFolder("unsigned.sif"))
    assert.ok(opened.objects.every(({ type }) => type !== sif.DataType.signature))
  })

  it("keeps the passphrase that opened, and takes new recipients instead where they are named", async () => {
    const own = [{ passphrase: { bytes: Buffer.from(passphrase) } }]
    const image = inFolder("passphrase.sif")
    const passphraseKdf = { type: "pbkdf2", iterations: 1000 } as const
    await encrypt({ image: plain, output: image, recipients: own, passphraseKdf })
    await reencrypt({ image, output: inFolder("same.sif"), unlock: own, passphraseKdf })
    await decrypt({ image: inFolder("same.sif"), output: inFolder("same-d.sif"), unlock: own })
    const recipients = [{ key: { file: keys.otherPublicKey } }]
    await reencrypt({ image, output: inFolder("other.sif"), unlock: own, recipients })
    await assert.rejects(decrypt({ image: inFolder("other.sif"), output: inFolder("no.sif"), unlock: own }), {
      code: "ERR_LUKS_PASSPHRASE",
    })
    const other = { unlock: [{ key: { file: keys.otherPrivateKey } }] }
    await decrypt({ image: inFolder("other.sif"), output: inFolder("other-d.sif"), ...other })
    assert.deepEqual(await contentOf(inFolder("other-d.sif")), await contentOf(plain))
  })

  it("refuses to keep recipients whose keys the image does not show", async () => {
    const image = inFolder("anonymous.sif")
    const both = { recipients: [{ key: { file: keys.publicKey } }, { key: { file: keys.otherPublicKey } }] }
    await encrypt({ image: plain, output: image, anonymous: true, ...both })
    await assert.rejects(reencrypt({ image, output: inFolder("none.sif"), ...from }), {
      code: "ERR_KEY_MISSING",
      message: /the public key of each recipient who stays is needed, and is not in the image: object \d+$/,
    })
    assert.ok(!existsSync(inFolder("none.sif")))
  })

  it("refuses an image that is not what it should be, and an output that exists", async () => {
    const output = inFolder("refused.sif")
    await assert.rejects(encrypt({ image: encrypted, output, ...to }), {
      code: "ERR_BUILD_SOURCE",
      message: /is encrypted already$/,
    })
    await assert.rejects(decrypt({ image: plain, output, ...from }), {
      code: "ERR_BUILD_SOURCE",
      message: /is not encrypted$/,
    })
    const wrong = { unlock: [{ key: { file: keys.otherPrivateKey } }] }
    await assert.rejects(decrypt({ image: encrypted, output, ...wrong }), { code: "ERR_KEY_MISMATCH" })
    assert.ok(!existsSync(output))
    assert.equal((await sifcrypt(["encrypt", "--pem-path", keys.publicKey, plain, encrypted])).status, 23)
  })

  it("A8: a reencryption that is killed leaves nothing", async () => {
    const home = newFolder("killed", userId)
    const output = path.join(home, "image.sif")
    const child = startSifcrypt(["reencrypt", "--pem-path", keys.privateKey, encrypted, output])
    // As soon as it says what it seals, the output is under construction.
    await once(child.stderr ?? child, "data")
    child.kill("SIGKILL")
    await once(child, "close")
    assert.deepEqual(
      readdirSync(home).filter((name) => name !== "image.sif"),
      [],
    )
  })
})

let plainVector: string | undefined

/** The peer's plain image as a file. */
function vectorPlain(): string {
  if (plainVector === undefined) {
    plainVector = path.join(newFolder("plain-vector"), "plain.sif")
    writeFileSync(plainVector, vector("peer/plain.sif"))
  }
  return plainVector
}
