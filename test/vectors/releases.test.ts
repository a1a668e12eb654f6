// What each release wrote opens for ever: releases/VERSION, made by scripts/release-vectors.sh, is never changed.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { createHash, createPublicKey } from "node:crypto"
import { chmodSync, cpSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs"
import path from "node:path"
import { gunzipSync } from "node:zlib"
import {
  build,
  decrypt,
  listRecipients,
  open,
  rotateRecipients,
  sif,
  verify,
} from "../../lib/index.ts"
import { packageRoot } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"
import { vectorPath } from "./load.ts"

/** What docs/format.md promises: files of a release, as their test has them. */
const promised = [
  ...(/\| What +\| There +\|\n([^]*?)\n\n/
    .exec(readFileSync(path.join(packageRoot, "docs", "format.md"), "utf8"))?.[1]
    ?.matchAll(/`([^`]+)`/g) ?? []),
].map(([, name = ""]) => name)
/** What takes part, and is no promise of a format of ours. */
const others = ["passphrase", "signer.pem", "signer.pub.pem", "cache"]

const versions = readdirSync(vectorPath("releases"))

describe("what was written by", () => {
  it("some release is there, and no more than one and a half MiB of each", () => {
    assert.ok(versions.includes("0.1.0"))
    for (const version of versions) {
      const sizes = readdirSync(vectorPath(`releases/${version}`), { recursive: true, encoding: "utf8" }).map(
        (name) => statSync(vectorPath(`releases/${version}/${name}`)).size,
      )
      assert.ok(sizes.reduce((sum, size) => sum + size, 0) < 3 << 19, version)
    }
  })

  for (const version of versions)
    describe(version, () => {
      const folder = newFolder(`release-${version}`)
      const used = new Set<string>()
      const at = (name: string): string => {
        used.add(name.split("/")[0] ?? "")
        return path.join(folder, name)
      }
      const password = { file: path.join(folder, "passphrase") }
      const unlock = [{ key: { file: path.join(folder, "key.pem") } }]
      const passphrase = [{ passphrase: password }]
      const blocks = Array.from({ length: 8000 }, (_, i) => `more than one block of a file system, ${i + 1} times\n`)

      before(() => {
        cpSync(vectorPath(`releases/${version}`), folder, { recursive: true })
        for (const file of readdirSync(folder).map((name) => path.join(folder, name))) {
          if (file.endsWith(".tar.gz")) execFileSync("tar", ["-xzf", file, "-C", folder, "--no-same-owner"])
          else if (file.endsWith(".gz")) writeFileSync(file.slice(0, -3), gunzipSync(readFileSync(file)))
        }
        for (const name of ["keys", "cache"]) chmodSync(path.join(folder, name), 0o700)
      })
      after("everything that is promised has been opened", () => {
        const there = readdirSync(vectorPath(`releases/${version}`)).map((name) => name.replace(/(?:\.tar)?\.gz$/, ""))
        assert.ok(promised.length > 10)
        assert.deepEqual(there.sort(), [...promised, ...others].sort())
        assert.deepEqual(
          promised.filter((name) => !used.has(name)),
          [],
        )
      })

      for (const [image, how, openers] of [
        ["plain", "with no key", []],
        ["luks", "with a passphrase", passphrase],
        ...["key.pem", "key.pfx", "key-legacy.pfx", "key-pkcs8.pem", "key-certificate.pem"].map(
          (name) => ["luks", `with ${name}`, [{ key: { file: at(name) }, password }]] as const,
        ),
        ["gocryptfs", "with a key", unlock],
      ] as const)
        it(`opens: ${image} ${how}`, async () => {
          await using opened = await open(at(`${image}.sif`), openers.length > 0 ? { unlock: openers } : {})
          assert.equal((await opened.readFile("/data/link")).toString(), "hello\n")
          assert.equal((await opened.readFile("/data/blocks")).toString(), blocks.join(""))
        })

      for (const image of ["plain", "luks", "gocryptfs"])
        it(`has good signatures of both kinds, and a hash tree: ${image}`, async () => {
          const keys = [createPublicKey(readFileSync(at("signer.pub.pem")))]
          const keyringPaths = [at("keys/pgp-public")]
          for (const options of [{ keys }, { keyringPaths }, { keys, keyringPaths, require: "all" }] as const)
            assert.equal((await verify(at(`${image}.sif`), options)).verified, true)
          await using opened = await open(at(`${image}.sif`), { unlock, verify: { keys } })
          assert.equal((await opened.readFile("/data/hello")).toString(), "hello\n")
          await using objects = await sif.openSif(at(`${image}.sif`))
          assert.ok(objects.objects.some(({ name }) => name === "sifcrypt-verity"))
        })

      it("has what describes it inside of the encryption, where decrypt finds it", async () => {
        const image = at("decrypted.sif")
        await decrypt({ image: at("luks.sif"), output: image, unlock })
        await using opened = await sif.openSif(image)
        assert.ok(opened.objects.some(({ type }) => type === sif.DataType.definition))
        await using locked = await sif.openSif(at("luks.sif"))
        assert.ok(!locked.objects.some(({ type }) => type === sif.DataType.definition))
      })

      it("has a squashfs in it that opens alone", async () => {
        await using plain = await sif.openSif(at("plain.sif"))
        const { offset = 0, size = 0 } = plain.objects.find(({ type }) => type === sif.DataType.partition) ?? {}
        const alone = path.join(folder, "plain.squashfs")
        writeFileSync(alone, readFileSync(at("plain.sif")).subarray(offset, offset + size))
        await using opened = await open(alone)
        assert.equal((await opened.readFile("/data/link")).toString(), "hello\n")
      })

      it("has overlays that are whole: one alone, one in an image", async () => {
        const holds = (file: string, folder: string, name: string): void => {
          execFileSync("e2fsck", ["-n", "-f", file], { stdio: "pipe" })
          const listed = execFileSync("debugfs", ["-R", `ls -p ${folder}`, file], { stdio: "pipe" })
          assert.match(listed.toString(), new RegExp(`/${name}/`))
        }
        holds(at("overlay.img"), "/", "upper")
        await using image = await sif.openSif(at("overlay-inside.sif"))
        const overlay = image.objects.findLast(({ type }) => type === sif.DataType.partition)
        const { offset = 0, size = 0 } = overlay ?? {}
        const alone = path.join(folder, "overlay-inside.img")
        writeFileSync(alone, readFileSync(at("overlay-inside.sif")).subarray(offset, offset + size))
        holds(alone, "/upper", "frozen")
        await using opened = await open(at("overlay-inside.sif"))
        assert.equal((await opened.readFile("/data/hello")).toString(), "hello\n")
      })

      it("has an encrypted overlay, which test/uml/overlay.test.ts opens with the kernel", async () => {
        await using overlay = await sif.openSif(at("overlay-encrypted.sif"))
        assert.deepEqual(
          overlay.objects.map(({ type }) => type),
          [sif.DataType.partition, sif.DataType.cryptoMessage],
        )
      })

      it("has public keys that images are made for", async () => {
        const image = path.join(folder, "made.sif")
        const recipients = ["key-public.pem", "key-public-pkcs1.pem", "certificate.pem"]
        for (const name of recipients) {
          await build({
            output: image,
            source: at("plain.sif"),
            recipients: [{ key: { file: at(name) } }],
            force: true,
          })
          await using opened = await open(image, { unlock, unsigned: "allow" })
          assert.equal((await opened.readFile("/data/hello")).toString(), "hello\n")
        }
      })

      it("gets other recipients", async () => {
        for (const image of ["luks", "gocryptfs"]) {
          const copy = at(`changed-${image}.sif`)
          cpSync(at(`${image}.sif`), copy)
          const recipients = await listRecipients(copy)
          assert.ok(recipients.some(({ fingerprint = "" }) => fingerprint.startsWith("SHA256:")))
          const keep = recipients.flatMap(({ keyslotFingerprint }) => keyslotFingerprint ?? [])
          await rotateRecipients(copy, { unlock, keep })
          await using opened = await open(copy, { unlock })
          assert.equal((await opened.readFile("/data/hello")).toString(), "hello\n")
        }
      })

      it("has layers that are decrypted, and a copy of them in the cache that is used", async () => {
        const images = (): string[] =>
          readdirSync(at("cache"), { recursive: true, encoding: "utf8" })
            .filter((name) => statSync(at(`cache/${name}`)).isFile())
            .map((name) => `${name} ${createHash("sha256").update(readFileSync(at(`cache/${name}`))).digest("hex")}`)
        const before = images()
        assert.ok(before.length > 0)
        mkdirSync(at("empty"), { mode: 0o700 })
        for (const cacheFolder of [at("cache"), at("empty")]) {
          await using opened = await open(`oci:${at("layers")}`, { unlock, oci: { cacheFolder } })
          assert.ok((await opened.list("/")).length > 0)
        }
        assert.deepEqual(images(), before)
        for (const file of [at("key.pem"), at("keys/pgp-secret")]) {
          await using opened = await open(`oci:${at("layers-others")}`, {
            unlock: [{ key: { file } }],
            oci: { cacheFolder: at("empty") },
          })
          assert.ok((await opened.list("/")).length > 0)
        }
      })
    })
})
