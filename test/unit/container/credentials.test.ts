import assert from "node:assert/strict"
import { generateKeyPairSync } from "node:crypto"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import {
  credentialVariable,
  hasExplicitCredentials,
  resolveOpeners,
  resolveRecipients,
  wipeCredentials,
  type Credential,
} from "../../../lib/container/credentials.ts"
import { vector, vectorPath } from "../../vectors/load.ts"

const privatePath = vectorPath("peer/rsa_pri.pem")
const publicPath = vectorPath("peer/rsa_pub.pem")
const weak = generateKeyPairSync("rsa", { modulusLength: 1024 }).publicKey.export({
  type: "pkcs1",
  format: "pem",
})

/** What a credential is, for comparisons. */
function shown(credentials: readonly Credential[]): string[] {
  return credentials.map((credential) =>
    credential.kind === "rsa"
      ? `rsa ${credential.key.type} ${path.basename(credential.origin)}`
      : `passphrase ${JSON.stringify(credential.passphrase.bytes.toString("latin1"))} ${path.basename(credential.origin)}`,
  )
}

const noNotice = (text: string): void => {
  assert.fail(`unexpected notice: ${text}`)
}

describe("credentials", () => {
  let folder: string
  beforeEach(() => {
    folder = mkdtempSync(path.join(tmpdir(), "sifcrypt-unit-"))
  })
  afterEach(() => {
    rmSync(folder, { recursive: true })
  })
  function file(name: string, content: string | Uint8Array): string {
    const place = path.join(folder, name)
    writeFileSync(place, content)
    return place
  }

  describe("resolveOpeners", () => {
    it("reads everything that is given, in order, and then no variable", async () => {
      const found = await resolveOpeners({
        pemPaths: [privatePath],
        pemData: [vector("sif/rsa-private.pem")],
        passphrase: Buffer.from("one"),
        passphraseFile: file("phrase", "two\n"),
        env: { APPTAINER_ENCRYPTION_PASSPHRASE: "three" },
      })
      assert.deepEqual(shown(found), [
        "rsa private rsa_pri.pem",
        "rsa private key 1",
        'passphrase "one" the passphrase',
        'passphrase "two" phrase',
      ])
    })

    it("reads every variable when nothing is given, paths first, ours before the peers'", async () => {
      const env = {
        SINGULARITY_ENCRYPTION_PASSPHRASE: "c",
        APPTAINER_ENCRYPTION_PASSPHRASE: "b",
        SIFCRYPT_ENCRYPTION_PASSPHRASE: "a",
        APPTAINER_ENCRYPTION_PEM_DATA: vector("peer/rsa_pri.pem").toString(),
        SINGULARITY_ENCRYPTION_PEM_PATH: privatePath,
      }
      assert.deepEqual(shown(await resolveOpeners({ env })), [
        "rsa private rsa_pri.pem",
        "rsa private APPTAINER_ENCRYPTION_PEM_DATA",
        'passphrase "a" SIFCRYPT_ENCRYPTION_PASSPHRASE',
        'passphrase "b" APPTAINER_ENCRYPTION_PASSPHRASE',
        'passphrase "c" SINGULARITY_ENCRYPTION_PASSPHRASE',
      ])
      assert.equal(credentialVariable({ env }), "SINGULARITY_ENCRYPTION_PEM_PATH")
    })

    it("finds nothing where nothing is given, and does not look at the process's own environment", async () => {
      process.env["SIFCRYPT_ENCRYPTION_PASSPHRASE"] = "x"
      try {
        assert.deepEqual(await resolveOpeners({}), [])
        assert.equal(credentialVariable({}), undefined)
      } finally {
        delete process.env["SIFCRYPT_ENCRYPTION_PASSPHRASE"]
      }
    })

    for (const [content, expected] of [
      ["secret", "secret"],
      ["secret\n", "secret"],
      ["secret\r\n", "secret"],
      ["secret\n\n", "secret\n"],
      [" secret ", " secret "],
      ["sec\nret\n", "sec\nret"],
      ["\0\xff\n", "\0\xc3\xbf"],
      ["\r", "\r"],
    ] as const)
      it(`takes ${JSON.stringify(content)} in a file for the passphrase ${JSON.stringify(expected)}`, async () => {
        const [found] = await resolveOpeners({ passphraseFile: file("phrase", content) })
        assert.ok(found?.kind === "passphrase")
        assert.equal(found.passphrase.bytes.toString("latin1"), expected)
      })

    it("keeps the line end of a passphrase in a variable: it is part of it", async () => {
      const [found] = await resolveOpeners({ env: { APPTAINER_ENCRYPTION_PASSPHRASE: "é\n" } })
      assert.ok(found?.kind === "passphrase")
      assert.equal(found.passphrase.bytes.toString(), "é\n")
    })

    const refused: readonly (readonly [
      string,
      () => Parameters<typeof resolveOpeners>[0],
      string,
      RegExp,
    ])[] = [
      [
        "a key file that is missing",
        () => ({ pemPaths: [path.join(folder, "no.pem")] }),
        "ERR_KEY_MISSING",
        /no\.pem: there is no such file/,
      ],
      [
        "a key file that is a folder",
        () => ({ pemPaths: [folder] }),
        "ERR_KEY_MISSING",
        /cannot read the key file/,
      ],
      [
        "a public key",
        () => ({ pemPaths: [publicPath] }),
        "ERR_KEY_FORMAT",
        /private key is needed, found PEM RSA PUBLIC KEY/,
      ],
      [
        "a key file of more than 1 MiB",
        () => ({ pemPaths: [file("big", Buffer.alloc((1 << 20) + 1))] }),
        "ERR_KEY_FORMAT",
        /more than 1048576 bytes/,
      ],
      [
        "an endless key file",
        () => ({ pemPaths: ["/dev/zero"] }),
        "ERR_KEY_FORMAT",
        /more than 1048576 bytes/,
      ],
      [
        "an empty passphrase",
        () => ({ passphrase: Buffer.alloc(0) }),
        "ERR_KEY_MISSING",
        /the passphrase is empty/,
      ],
      [
        "an empty passphrase file",
        () => ({ passphraseFile: file("p", "") }),
        "ERR_KEY_MISSING",
        /the passphrase is empty/,
      ],
      [
        "a passphrase file of one line end",
        () => ({ passphraseFile: file("p", "\r\n") }),
        "ERR_KEY_MISSING",
        /the passphrase is empty/,
      ],
      [
        "a passphrase of more than 8 KiB",
        () => ({ passphrase: Buffer.alloc(8193, 1) }),
        "ERR_KEY_FORMAT",
        /at most 8192 bytes/,
      ],
      [
        "an endless passphrase file",
        () => ({ passphraseFile: "/dev/zero" }),
        "ERR_KEY_FORMAT",
        /more than 8194 bytes/,
      ],
      [
        "a variable that is set but empty",
        () => ({ env: { APPTAINER_ENCRYPTION_PASSPHRASE: "" } }),
        "ERR_KEY_MISSING",
        /APPTAINER_ENCRYPTION_PASSPHRASE is set but empty/,
      ],
      [
        "a variable that names no file",
        () => ({ env: { SIFCRYPT_ENCRYPTION_PEM_PATH: "/nowhere/x.pem" } }),
        "ERR_KEY_MISSING",
        /\/nowhere\/x\.pem: there is no such file/,
      ],
      [
        "a variable that holds no key",
        () => ({ env: { APPTAINER_ENCRYPTION_PEM_DATA: "hello" } }),
        "ERR_KEY_FORMAT",
        /APPTAINER_ENCRYPTION_PEM_DATA: a PEM private key is needed/,
      ],
    ]
    for (const [what, options, code, says] of refused)
      it(`A17: refuses ${what} with a code of its own`, async () => {
        await assert.rejects(resolveOpeners(options()), { name: "KeyError", code, message: says })
      })

    it("does without a later variable that cannot be read", async () => {
      const env = { SIFCRYPT_ENCRYPTION_PEM_PATH: privatePath, APPTAINER_ENCRYPTION_PASSPHRASE: "" }
      assert.deepEqual(shown(await resolveOpeners({ env })), ["rsa private rsa_pri.pem"])
    })

    it("copies a passphrase, and wipes the copy when told to", async () => {
      const given = Buffer.from("secret")
      const found = await resolveOpeners({ passphrase: given })
      given.fill(0)
      assert.deepEqual(shown(found), ['passphrase "secret" the passphrase'])
      const [credential] = found
      assert.ok(credential?.kind === "passphrase")
      const { bytes } = credential.passphrase
      wipeCredentials(found)
      assert.deepEqual(bytes, Buffer.alloc(6))
      assert.throws(() => credential.passphrase.bytes, /wiped/)
    })
  })

  describe("resolveRecipients", () => {
    it("takes everything that is given: several keys and a passphrase", async () => {
      const found = await resolveRecipients(
        { pemPaths: [publicPath, vectorPath("sif/rsa-public.pem")], passphrase: Buffer.from("p") },
        noNotice,
      )
      assert.deepEqual(shown(found), [
        "rsa public rsa_pub.pem",
        "rsa public rsa-public.pem",
        'passphrase "p" the passphrase',
      ])
    })

    it("takes only the first of the variables", async () => {
      const env = {
        APPTAINER_ENCRYPTION_PEM_PATH: publicPath,
        APPTAINER_ENCRYPTION_PASSPHRASE: "p",
        SINGULARITY_ENCRYPTION_PEM_PATH: "/nowhere",
      }
      assert.deepEqual(shown(await resolveRecipients({ env }, noNotice)), ["rsa public rsa_pub.pem"])
    })

    it("A17: warns of a passphrase that names an existing file, and takes it", async () => {
      const notices: string[] = []
      const found = await resolveRecipients({ passphrase: Buffer.from(publicPath) }, (text) =>
        notices.push(text),
      )
      assert.equal(found.length, 1)
      assert.equal(notices.length, 1)
      assert.match(notices[0] ?? "", /^the passphrase holds the name of a file/)
    })

    it("A17: refuses a weak key before anything is built", async () => {
      await assert.rejects(resolveRecipients({ pemData: [Buffer.from(weak)] }, noNotice), {
        name: "KeyError",
        code: "ERR_KEY_WEAK",
        message: /^key 1: an RSA key of 1024 bits/,
      })
    })

    it("A17: refuses all when one of them cannot be read", async () => {
      const pemPaths = [publicPath, path.join(folder, "missing.pem")]
      await assert.rejects(resolveRecipients({ passphrase: Buffer.from("p"), pemPaths }, noNotice), {
        code: "ERR_KEY_MISSING",
        message: /missing\.pem/,
      })
    })

    it("finds nobody where nobody is given", async () => {
      assert.deepEqual(await resolveRecipients({ env: { HOME: "/" } }, noNotice), [])
    })
  })

  it("hasExplicitCredentials sees what is given, not variables", () => {
    assert.equal(hasExplicitCredentials({}), false)
    assert.equal(
      hasExplicitCredentials({ pemPaths: [], env: { APPTAINER_ENCRYPTION_PASSPHRASE: "x" } }),
      false,
    )
    assert.equal(hasExplicitCredentials({ pemPaths: ["x"] }), true)
    assert.equal(hasExplicitCredentials({ pemData: [Buffer.alloc(1)] }), true)
    assert.equal(hasExplicitCredentials({ passphrase: Buffer.alloc(0) }), true)
    assert.equal(hasExplicitCredentials({ passphraseFile: "x" }), true)
  })

  it("no message shows a passphrase", async () => {
    const secret = "hunter2".repeat(2000)
    for (const options of [
      { passphrase: Buffer.from(secret) },
      { env: { APPTAINER_ENCRYPTION_PEM_DATA: secret } },
    ])
      await assert.rejects(resolveOpeners(options), (error: Error) => !error.message.includes("hunter2"))
  })
})
