// What each release wrote opens for ever: releases/VERSION, made by scripts/release-vectors.sh, is never changed.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { createHash, createPublicKey } from "node:crypto"
import { chmodSync, cpSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs"
import path from "node:path"
import { gunzipSync } from "node:zlib"
import { decrypt, listRecipients, open, rotateRecipients, sif, verify } from "../../lib/index.ts"
import { newFolder } from "../support/scratch.ts"
import { vectorPath } from "./load.ts"

const versions = readdirSync(vectorPath("releases"))

describe("what was written by", () => {
  it("some release is there, and no more than a megabyte of each", () => {
    assert.ok(versions.includes("0.1.0"))
    for (const version of versions) {
      const sizes = readdirSync(vectorPath(`releases/${version}`), { recursive: true, encoding: "utf8" }).map(
        (name) => statSync(vectorPath(`releases/${version}/${name}`)).size,
      )
      assert.ok(sizes.reduce((sum, size) => sum + size, 0) < 1 << 20, version)
    }
  })

  for (const version of versions)
    describe(version, () => {
      const folder = newFolder(`release-${version}`)
      const at = (name: string): string => path.join(folder, name)
      const unlock = [{ key: { file: at("key.pem") } }]
      const passphrase = [{ passphrase: { file: at("passphrase") } }]
      const blocks = Array.from({ length: 8000 }, (_, i) => `more than one block of a file system, ${i + 1} times\n`)

      before(() => {
        cpSync(vectorPath(`releases/${version}`), folder, { recursive: true })
        for (const name of readdirSync(folder).filter((one) => /\.(?:sif|img)\.gz$/.test(one)))
          writeFileSync(at(name.replace(".gz", "")), gunzipSync(readFileSync(at(name))))
        for (const name of ["layers", "cache"])
          execFileSync("tar", ["-xzf", at(`${name}.tar.gz`), "-C", folder, "--no-same-owner"])
        chmodSync(at("keys"), 0o700)
        chmodSync(at("cache"), 0o700)
      })

      for (const [image, how, openers] of [
        ["plain", "with no key", []],
        ["luks", "with a key", unlock],
        ["luks", "with a passphrase", passphrase],
        ["luks", "with a key in a PKCS#12 file", [{ key: { file: at("key.pfx") }, password: { file: at("passphrase") } }]],
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
      })
    })
})
