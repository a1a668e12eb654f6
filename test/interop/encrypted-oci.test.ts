// Encrypted layers, beside live programs: either decrypts what the other one has encrypted. docs/compatibility.md has the table.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { oci, type CredentialSource, type LayerRecipient } from "../../lib/index.ts"
import { GnuPg } from "../support/gnupg.ts"
import { newFolder } from "../support/scratch.ts"
import { makeToken, TOKEN_MODULE as MODULE, TOKEN_PIN as PIN } from "../support/token.ts"
import { vectorPath } from "../vectors/load.ts"
import { Containerd, peerCommand } from "./containerd.ts"

const key = (name: string): string => vectorPath(`ocicrypt/keys/${name}`)
const plain = `oci:${vectorPath("oci/layout")}`

describe("encrypted layers, beside live programs", () => {
  const folder = newFolder("encrypted-interop")
  const file = (name: string): string => path.join(folder, name)
  const variables = [
    "GNUPGHOME",
    "OCICRYPT_KEYPROVIDER_CONFIG",
    "OCICRYPT_CONFIG",
    "OCICRYPT_OAEP_HASHALG",
  ] as const
  const before_ = variables.map((name) => process.env[name])
  let ring: GnuPg
  let containerd: Containerd

  before(async () => {
    ring = new GnuPg()
    ring.run(["--import"], readFileSync(key("pgp1.sec.gpg")))
    const toy = path.join(import.meta.dirname, "../support/toy-key-provider.mjs")
    const cmd = { path: process.execPath, args: [toy, file("transcript")] }
    writeFileSync(file("keyprovider.conf"), JSON.stringify({ "key-providers": { toy: { cmd } } }), {
      mode: 0o600,
    })
    makeToken(folder)
    writeFileSync(
      file("key.yaml"),
      `pkcs11:\n  uri: pkcs11:token=sifcrypt;object=layers?module-path=${MODULE}&pin-value=${PIN}\n` +
        `module:\n  env:\n    SOFTHSM2_CONF: ${file("softhsm2.conf")}\n`,
    )
    // A token in files knows OAEP with SHA-1 alone.
    const values = [ring.home, file("keyprovider.conf"), "internal", "sha1"]
    for (const [i, name] of variables.entries()) process.env[name] = values[i]
    const [decoder, ...words] = peerCommand("ctd-decoder")
    mkdirSync(file("keys"))
    containerd = await Containerd.start(file("containerd"), decoder, [
      ...words,
      "--decryption-keys-path",
      file("keys"),
    ])
  })
  after(async () => {
    for (const [i, name] of variables.entries())
      if (before_[i] === undefined) Reflect.deleteProperty(process.env, name)
      else process.env[name] = before_[i]
    ring[Symbol.dispose]()
    await containerd[Symbol.asyncDispose]()
  })

  interface Scheme {
    readonly recipient: () => LayerRecipient
    readonly opener: () => CredentialSource
    /** In their words. */
    readonly theirs: () => string
    readonly keys: () => readonly string[]
  }
  const schemes: Readonly<Record<string, Scheme>> = {
    "JWE with RSA": {
      recipient: () => ({ jwe: { file: key("rsa1.pub.pem") } }),
      opener: () => ({ key: { file: key("rsa1.pem") } }),
      theirs: () => `jwe:${key("rsa1.pub.pem")}`,
      keys: () => [key("rsa1.pem")],
    },
    "JWE with EC": {
      recipient: () => ({ jwe: { file: key("ec1.pub.pem") } }),
      opener: () => ({ key: { file: key("ec1.pem") } }),
      theirs: () => `jwe:${key("ec1.pub.pem")}`,
      keys: () => [key("ec1.pem")],
    },
    "PKCS#7": {
      recipient: () => ({ pkcs7: { file: key("p7.crt.pem") } }),
      opener: () => ({ key: { file: key("p7.key.pem") } }),
      theirs: () => `pkcs7:${key("p7.crt.pem")}`,
      keys: () => [key("p7.key.pem"), key("p7.crt.pem")],
    },
    OpenPGP: {
      recipient: () => ({ pgp: { file: key("pgp1.pub.gpg") } }),
      opener: () => ({ gnupg: true }),
      theirs: () => `pgp:${/<([^>]+)>/.exec(ring.run(["--list-keys"]).toString())?.[1] ?? ""}`,
      keys: () => [key("pgp1.sec.gpg")],
    },
    "a key provider": {
      recipient: () => ({ provider: "toy", parameter: "p" }),
      opener: () => ({ provider: "toy" }),
      theirs: () => "provider:toy:p",
      keys: () => ["provider:toy"],
    },
    "PKCS#11": {
      recipient: () => ({ pkcs11: { file: file("key.yaml") } }),
      opener: () => ({ key: { file: file("key.yaml") } }),
      theirs: () => `pkcs11:${file("key.yaml")}`,
      keys: () => [file("key.yaml")],
    },
  }

  interface Program {
    /** Both are archives of OCI. */
    encrypt(recipient: string, source: string, target: string): void
    decrypt(keys: readonly string[], source: string, target: string): void
    readonly lacks?: readonly string[]
  }
  const skopeo = (command: readonly [string, ...string[]]): Program => {
    const run = (...args: string[]): void => {
      const [program, ...words] = [...command, "copy", "-q", "--insecure-policy", ...args]
      execFileSync(program, words, { stdio: "pipe", timeout: 60_000 })
    }
    return {
      encrypt(recipient, source, target): void {
        run("--encryption-key", recipient, `oci-archive:${source}`, `oci-archive:${target}`)
      },
      decrypt(keys, source, target): void {
        const given = keys.flatMap((one) => ["--decryption-key", one])
        run(...given, `oci-archive:${source}`, `oci-archive:${target}`)
      },
    }
  }
  const imported = (archive: string): string => {
    containerd.client("images", "import", "--no-unpack", archive)
    return "example.org/it:it"
  }
  const programs: Readonly<Record<string, Program>> = {
    "skopeo 1.9": { ...skopeo(["skopeo"]), lacks: ["a key provider", "PKCS#11"] },
    "skopeo of Debian unstable": skopeo(peerCommand("skopeo")),
    imgcrypt: {
      encrypt(recipient, source, target): void {
        const name = imported(source)
        containerd.client(
          "images",
          "encrypt",
          "--gpg-homedir",
          ring.home,
          "--recipient",
          recipient,
          name,
          `${name}-made`,
        )
        containerd.client("images", "export", target, `${name}-made`)
        containerd.client("images", "rm", name, `${name}-made`)
      },
      decrypt(keys, source, target): void {
        const name = imported(source)
        const [first = "", certificate] = keys
        const more = certificate === undefined ? [] : ["--dec-recipient", `pkcs7:${certificate}`]
        containerd.client(
          "images",
          "decrypt",
          "--gpg-homedir",
          ring.home,
          "--key",
          first,
          ...more,
          name,
          `${name}-made`,
        )
        containerd.client("images", "export", target, `${name}-made`)
        containerd.client("images", "rm", name, `${name}-made`)
      },
    },
  }

  const archive = (name: string): string => `oci-archive:${name}:example.org/it:it`
  /** Base and top: skopeo compresses the layer between them. */
  async function contents(source: string): Promise<readonly unknown[]> {
    const { manifest } = await oci.inspect({ source, platform: "linux/amd64" })
    const layers = (manifest?.layers ?? []).map(({ digest, size }) => [digest, size])
    return [layers[0], layers[2]]
  }

  it("of ours are unpacked by imgcrypt's ctd-decoder", async () => {
    const ours = file("ours.tar")
    const recipients = [{ jwe: { file: key("ec1.pub.pem") } }, { pkcs7: { file: key("p7.crt.pem") } }]
    await oci.encrypt({ source: plain, target: archive(ours), recipients })
    containerd.client("images", "import", "--snapshotter", "native", "--key", key("ec1.pem"), ours)
    assert.equal(readdirSync(containerd.snapshots).length, 3)
    containerd.client("images", "rm", "example.org/it:it")
  })

  let count = 0
  for (const [program, peer] of Object.entries(programs))
    for (const [scheme, { recipient, opener, theirs, keys }] of Object.entries(schemes)) {
      if (peer.lacks?.includes(scheme) === true) continue
      it(`A33: ${scheme}, ${program} decrypts ours, and we decrypt its own`, async () => {
        const [ours, opened, source, own] = Array.from({ length: 4 }, () => file(`${++count}.tar`)) as [
          ...[string, string, string, string],
        ]
        await oci.encrypt({ source: plain, target: archive(ours), recipients: [recipient()] })
        peer.decrypt(keys(), ours, opened)
        assert.ok(
          (await oci.layerInfo({ source: `oci-archive:${opened}` })).every((layer) => !layer.encrypted),
        )
        assert.deepEqual(await contents(`oci-archive:${opened}`), await contents(plain))
        await oci.copy({ source: plain, target: archive(source) })
        peer.encrypt(theirs(), source, own)
        assert.ok((await oci.layerInfo({ source: `oci-archive:${own}` })).every((layer) => layer.encrypted))
        const back = `oci:${file(`${count}`)}:it`
        await oci.decrypt({ source: `oci-archive:${own}`, target: back, unlock: [opener()] })
        assert.deepEqual(await contents(back), await contents(plain))
      })
    }
})
