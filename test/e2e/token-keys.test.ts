// Layers that are encrypted for a key in a PKCS#11 token: a real one, in files.
import assert from "node:assert/strict"
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { oci, type CredentialSource } from "../../lib/index.ts"
import { TokenKey } from "../../lib/ocicrypt/token-key.ts"
import { newFolder } from "../support/scratch.ts"
import { makeToken, TOKEN_MODULE as MODULE, TOKEN_PIN as PIN } from "../support/token.ts"
import { vectorPath } from "../vectors/load.ts"

describe("layers encrypted for a key in a PKCS#11 token", () => {
  const folder = newFolder("token")
  const file = (name: string): string => path.join(folder, name)
  const plain = `oci:${vectorPath("oci/layout")}`
  const originalDigest = /sha256:[0-9a-f]{64}/.exec(
    readFileSync(vectorPath("oci/layout/index.json"), "utf8"),
  )?.[0]
  const environment = { ...process.env }
  const set = (variables: Readonly<Record<string, string | undefined>>): void => {
    for (const [name, value] of Object.entries(variables))
      if (value === undefined) Reflect.deleteProperty(process.env, name)
      else process.env[name] = value
  }

  function keyFile(query: string, key = "token=sifcrypt;object=layers", more = ""): string {
    const name = file("key.yaml")
    const env = `module:\n  env:\n    SOFTHSM2_CONF: ${file("softhsm2.conf")}\n${more}`
    writeFileSync(name, `pkcs11:\n  uri: pkcs11:${key}?${query}\n${env}`)
    return name
  }
  const opener = (...args: Parameters<typeof keyFile>): CredentialSource => ({
    key: { file: keyFile(...args) },
  })
  /** What openssl was told. */
  const told = (): string => (existsSync(file("log")) ? readFileSync(file("log"), "utf8") : "")
  const starts = (): number => told().split("\n--\n").length - 1

  before(() => {
    makeToken(folder)
    const record = `tr '\\0' '\\n' </proc/$$/environ >>${file("log")}; echo "$@" >>${file("log")}; echo -- >>${file("log")}`
    writeFileSync(file("openssl"), `#!/bin/sh\n${record}\nexec /usr/bin/openssl "$@"\n`)
    chmodSync(file("openssl"), 0o755)
    writeFileSync(
      file("ocicrypt.conf"),
      `pkcs11:\n  module-directories:\n  - /usr/lib/softhsm/\n  allowed-module-paths:\n  - ${MODULE}\n`,
    )
    set({ PATH: `${folder}:${process.env["PATH"] ?? ""}`, OCICRYPT_CONFIG: file("ocicrypt.conf") })
  })
  after(() => {
    set({ PATH: environment["PATH"], OCICRYPT_CONFIG: environment["OCICRYPT_CONFIG"] })
  })

  const encrypted = `oci:${file("encrypted")}:it`
  const decrypted = async (credential: CredentialSource): Promise<string> =>
    (await oci.decrypt({ source: encrypted, target: `oci:${file("decrypted")}:it`, unlock: [credential] }))
      .digest

  it("open with it, wherever the PIN comes from, and nobody sees that", async () => {
    const recipients = [{ pkcs11: { file: keyFile("module-name=libsofthsm2") } }]
    await oci.encrypt({ source: plain, target: encrypted, recipients })
    const [base] = await oci.layerInfo({ source: encrypted })
    assert.deepEqual([base?.schemes, base?.recipients], [["pkcs11"], ["[pkcs11]"]])
    writeFileSync(file("pin"), `${PIN}\n`)
    const module = `module-path=${MODULE}`
    assert.equal(await decrypted(opener(`${module}&pin-value=%33${PIN.slice(1)}`)), originalDigest)
    assert.equal(
      await decrypted(opener(`${module}&pin-source=file://${file("pin")}`, "token=sifcrypt;id=%01")),
      originalDigest,
    )
    const password = { bytes: Buffer.from(PIN) }
    assert.equal(await decrypted({ ...opener(module), password }), originalDigest)
    assert.ok(starts() > 3)
    assert.ok(!told().includes(PIN))
  })

  it("are for whoever has its public half in a file, too, and open with the private key itself", async () => {
    const recipients = [{ pkcs11: { file: vectorPath("ocicrypt/keys/rsa1.pub.pem") } }]
    const source = `oci:${file("software")}:it`
    await oci.encrypt({ source: plain, target: source, recipients })
    const target = `oci:${file("software-back")}:it`
    const unlock = [{ key: { file: vectorPath("ocicrypt/keys/rsa1.pem") } }]
    assert.equal((await oci.decrypt({ source, target, unlock })).digest, originalDigest)
    // Another's, as far as the token can tell.
    const module = `module-path=${MODULE}&pin-value=${PIN}`
    await assert.rejects(oci.decrypt({ source, target, unlock: [opener(module)] }), {
      code: "ERR_KEY_MISMATCH",
    })
    // Nor does what is no message of any key keep the token from others.
    const place = {
      key: "token=sifcrypt;object=layers",
      module: MODULE,
      env: { SOFTHSM2_CONF: file("softhsm2.conf") },
    }
    using token = new TokenKey(place, Buffer.from(PIN), "a token", undefined)
    await token.check()
    for (const byte of [0, 1, 255])
      assert.equal(await token.decrypt(Buffer.alloc(256, byte), "sha256"), undefined)
    const ec = [{ pkcs11: { file: vectorPath("ocicrypt/keys/ec1.pub.pem") } }]
    await assert.rejects(oci.encrypt({ source: plain, target, recipients: ec }), { code: "ERR_KEY_TYPE" })
  })

  it("tell a token a wrong PIN once, as it counts them", async () => {
    const earlier = starts()
    await assert.rejects(decrypted(opener(`module-path=${MODULE}&pin-value=000000`)), {
      code: "ERR_KEY_PASSPHRASE",
      message: /the token refuses this PIN$/,
    })
    assert.equal(starts(), earlier + 1)
    await assert.rejects(decrypted(opener(`module-path=${MODULE}`)), { code: "ERR_KEY_LOCKED" })
    assert.equal(starts(), earlier + 1)
  })

  it("need openssl with its engine, which is said", async () => {
    set({ OPENSSL_ENGINES: folder })
    try {
      await assert.rejects(decrypted(opener(`module-path=${MODULE}&pin-value=${PIN}`)), {
        code: "ERR_ENV_NO_PROGRAM",
        message: /openssl with its engine for PKCS#11 .* is not installed$/,
      })
    } finally {
      set({ OPENSSL_ENGINES: environment["OPENSSL_ENGINES"] })
    }
  })

  it("load no module that the user's configuration does not allow, and say what is missing", async () => {
    const pin = `pin-value=${PIN}`
    const refused = async (
      credential: CredentialSource,
      message: RegExp,
      code = "ERR_KEY_TOKEN",
    ): Promise<void> => {
      await assert.rejects(decrypted(credential), (error: Error & { code?: string }) => {
        assert.equal(error.code, code, error.message)
        assert.match(error.message, message)
        assert.ok(!error.message.includes(PIN))
        return true
      })
    }
    const earlier = starts()
    await refused(
      opener(`module-path=/usr/lib/x86_64-linux-gnu/libc.so.6&${pin}`),
      /libc\.so\.6 may not be loaded/,
    )
    await refused(opener(`module-path=/nowhere.so&${pin}`), /is not there$/)
    await refused(opener(`module-name=softhsm&${pin}`), /is not there$/)
    set({ OCICRYPT_CONFIG: file("none.conf"), HOME: folder, XDG_CONFIG_HOME: folder })
    writeFileSync(file("none.conf"), "pkcs11: {}\n")
    await refused(opener(`module-path=${MODULE}&${pin}`), /may not be loaded/)
    // What others may write says nothing, nor is it loaded.
    chmodSync(file("none.conf"), 0o666)
    await refused(opener(`module-path=${MODULE}&${pin}`), /none\.conf: others may write it/)
    chmodSync(file("none.conf"), 0o644)
    mkdirSync(file("modules"))
    writeFileSync(file("modules/toy.so"), "")
    chmodSync(file("modules"), 0o777)
    writeFileSync(file("none.conf"), `pkcs11:\n  allowed-module-paths: [${file("modules/")}]\n`)
    await refused(opener(`module-path=${file("modules/toy.so")}&${pin}`), /modules: others may write it/)
    set({ OCICRYPT_CONFIG: "" })
    writeFileSync(file("ocicrypt.conf"), "pkcs11:\n  allowed-module-paths: [softhsm]\n")
    await refused(
      opener(`module-path=${MODULE}&${pin}`),
      /a list that is none of absolute paths/,
      "ERR_KEY_FORMAT",
    )
    set({
      OCICRYPT_CONFIG: "internal",
      HOME: environment["HOME"],
      XDG_CONFIG_HOME: environment["XDG_CONFIG_HOME"],
    })
    for (const [uri, more] of [
      ["token=sifcrypt", ""],
      ["token=sifcrypt;object=layers;object=others", ""],
      ["token=sifcrypt;object=a b", ""],
      ["token=sifcrypt;object=layers", "    LD_PRELOAD: /tmp/x.so\n"],
      ["token=sifcrypt;object=layers", "    GCONV_PATH: /tmp\n"],
    ] as const)
      await refused(
        opener(`module-path=${MODULE}&${pin}`, uri, more),
        /URI|not for a module/,
        "ERR_KEY_FORMAT",
      )
    await refused(
      opener(`module-path=${MODULE}&pin-source=|id`),
      /the pin-source .* is no file$/,
      "ERR_KEY_FORMAT",
    )
    assert.equal(starts(), earlier)
    await refused(
      opener(`module-path=${MODULE}&${pin}`, "token=other;object=layers"),
      /there is no such token$/,
    )
    await refused(
      opener(`module-name=libsofthsm2&${pin}`, "token=sifcrypt;object=other"),
      /the token has no such key$/,
    )
  })
})
