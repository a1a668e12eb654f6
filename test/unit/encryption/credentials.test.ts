import assert from "node:assert/strict"
import { createSecretKey, generateKeyPairSync } from "node:crypto"
import {
  fstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import {
  credentialVariable,
  gatherCredentials,
  hasExplicitCredentials,
  resolveOpeners,
  resolveRecipients,
  wipeCredentials,
  type Credential,
} from "../../../lib/encryption/credentials.ts"
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

    it("A7: reads the first variable when nothing is given: ours, Apptainer's, Singularity's; path, data, passphrase", async () => {
      const data = vector("peer/rsa_pri.pem").toString()
      const inOrder = [
        ["SIFCRYPT_ENCRYPTION_PEM_PATH", privatePath, "rsa private rsa_pri.pem"],
        ["SIFCRYPT_ENCRYPTION_PEM_DATA", data, "rsa private SIFCRYPT_ENCRYPTION_PEM_DATA"],
        ["SIFCRYPT_ENCRYPTION_PASSPHRASE", "a", 'passphrase "a" SIFCRYPT_ENCRYPTION_PASSPHRASE'],
        ["APPTAINER_ENCRYPTION_PEM_PATH", privatePath, "rsa private rsa_pri.pem"],
        ["APPTAINER_ENCRYPTION_PEM_DATA", data, "rsa private APPTAINER_ENCRYPTION_PEM_DATA"],
        ["APPTAINER_ENCRYPTION_PASSPHRASE", "b", 'passphrase "b" APPTAINER_ENCRYPTION_PASSPHRASE'],
        ["SINGULARITY_ENCRYPTION_PEM_PATH", privatePath, "rsa private rsa_pri.pem"],
        ["SINGULARITY_ENCRYPTION_PEM_DATA", data, "rsa private SINGULARITY_ENCRYPTION_PEM_DATA"],
        ["SINGULARITY_ENCRYPTION_PASSPHRASE", "c", 'passphrase "c" SINGULARITY_ENCRYPTION_PASSPHRASE'],
      ] as const
      for (let at = 0; at < inOrder.length; at++) {
        const env = Object.fromEntries(inOrder.slice(at).map(([name, value]) => [name, value]))
        assert.deepEqual(shown(await resolveOpeners({ env })), [inOrder[at]?.[2]])
        assert.equal(credentialVariable({ env }), inOrder[at]?.[0])
      }
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
        "ERR_KEY_PUBLIC",
        /private key is needed, found a PKCS#1 public key/,
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
        /APPTAINER_ENCRYPTION_PEM_DATA: an RSA private key is needed, found no key of a known form/,
      ],
    ]
    for (const [what, options, code, says] of refused)
      it(`A17: refuses ${what} with a code of its own`, async () => {
        await assert.rejects(resolveOpeners(options()), { name: "KeyError", code, message: says })
      })

    it("lets the first variable decide, also when it is empty and a later one is not", async () => {
      const env = { SIFCRYPT_ENCRYPTION_PEM_PATH: privatePath, APPTAINER_ENCRYPTION_PASSPHRASE: "" }
      assert.deepEqual(shown(await resolveOpeners({ env })), ["rsa private rsa_pri.pem"])
      await assert.rejects(
        resolveOpeners({
          env: { APPTAINER_ENCRYPTION_PEM_DATA: "", SINGULARITY_ENCRYPTION_PASSPHRASE: "x" },
        }),
        { code: "ERR_KEY_MISSING", message: "APPTAINER_ENCRYPTION_PEM_DATA is set but empty" },
      )
    })

    it("takes keys of node:crypto, before files", async () => {
      const pair = generateKeyPairSync("rsa", { modulusLength: 2048 })
      const found = await resolveOpeners({ keys: [pair.privateKey], pemPaths: [privatePath] })
      assert.deepEqual(shown(found), ["rsa private key object 1", "rsa private rsa_pri.pem"])
      await assert.rejects(resolveOpeners({ keys: [pair.publicKey] }), { code: "ERR_KEY_PUBLIC" })
      const ec = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey
      await assert.rejects(resolveOpeners({ keys: [ec] }), {
        code: "ERR_KEY_TYPE",
        message: "key object 1: an RSA key is needed, found an EC key",
      })
      assert.deepEqual(shown(await resolveRecipients({ keys: [pair.privateKey] }, noNotice)), [
        "rsa public key object 1",
      ])
      await assert.rejects(
        resolveRecipients({ keys: [createSecretKey(Buffer.alloc(8))] }, noNotice),
        TypeError,
      )
    })

    it("A7: reads a key and a passphrase from descriptors, once, and closes them", async () => {
      const keyFd = openSync(privatePath, "r")
      const passphraseFd = openSync(file("phrase", "two\n"), "r")
      assert.deepEqual(shown(await resolveOpeners({ keyFd, passphraseFd })), [
        `rsa private descriptor ${keyFd}`,
        `passphrase "two" descriptor ${passphraseFd}`,
      ])
      for (const fd of [keyFd, passphraseFd]) assert.throws(() => fstatSync(fd), { code: "EBADF" })
      await assert.rejects(resolveOpeners({ keyFd }), {
        code: "ERR_KEY_MISSING",
        message: `cannot read descriptor ${keyFd}: it is not open`,
      })
    })

    it("A7: refuses descriptors that carry no secret", async () => {
      for (const fd of [-1, 1, 2, 0.5, NaN]) await assert.rejects(resolveOpeners({ keyFd: fd }), RangeError)
      const names = readdirSync("/proc/self/fd").map(Number)
      const target = (fd: number): string => {
        try {
          return readlinkSync(`/proc/self/fd/${fd}`)
        } catch {
          return "" // the folder's own, closed by now
        }
      }
      const poll = names.find((fd) => target(fd).startsWith("anon_inode:"))
      assert.ok(poll !== undefined)
      await assert.rejects(resolveOpeners({ passphraseFd: poll }), {
        code: "ERR_KEY_MISSING",
        message: `cannot read descriptor ${poll}: it was not passed to this process`,
      })
      fstatSync(poll)
    })

    it("A7: takes the output of a command for a key file, without the variables of secrets", async () => {
      process.env["SIFCRYPT_ENCRYPTION_PASSPHRASE"] = "x"
      try {
        const keyCommand = `env | grep -q '^SIFCRYPT_' && exit 9; read line && exit 8; cat '${privatePath}'`
        assert.deepEqual(shown(await resolveOpeners({ keyCommand })), [
          "rsa private the output of the key command",
        ])
      } finally {
        delete process.env["SIFCRYPT_ENCRYPTION_PASSPHRASE"]
      }
    })

    for (const [command, code, message] of [
      ["exit 3", "ERR_KEY_COMMAND", "the key command failed: it ended with status 3"],
      ["kill -9 $$", "ERR_KEY_COMMAND", "the key command failed: it ended with SIGKILL"],
      ["cat /dev/zero", "ERR_KEY_FORMAT", "the output of the key command: more than 1048576 bytes"],
      [
        "true",
        "ERR_KEY_FORMAT",
        "the output of the key command: an RSA private key is needed, found nothing",
      ],
    ] as const)
      it(`A7: says how a key command failed: ${command}`, async () => {
        await assert.rejects(resolveOpeners({ keyCommand: command }), { name: "KeyError", code, message })
      })

    it("ends a key command when the signal says so", async () => {
      const controller = new AbortController()
      const reason = new Error("enough")
      const found = resolveOpeners({ keyCommand: "sleep 5; true" }, controller.signal)
      setTimeout(() => {
        controller.abort(reason)
      }, 50)
      await assert.rejects(found, reason)
    })

    it("A5: asks for a protected key's password at most three times, and wipes what it was given", async () => {
      const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 })
      const lockedKey = file(
        "locked.pem",
        privateKey.export({ type: "pkcs8", format: "pem", cipher: "aes-256-cbc", passphrase: "right" }),
      )
      const asked: string[] = []
      const given: Buffer[] = []
      const ask =
        (answers: readonly (string | undefined)[]) =>
        async (origin: string, attempt: number): Promise<Buffer | undefined> => {
          asked.push(`${path.basename(origin)} ${attempt}`)
          const answer = answers[attempt - 1]
          if (answer === undefined) return undefined
          given.push(Buffer.from(answer))
          return given.at(-1)
        }
      const pemPaths = [lockedKey]
      assert.equal((await resolveOpeners({ pemPaths, askKeyPassphrase: ask(["a", "", "right"]) })).length, 1)
      assert.deepEqual(asked.splice(0), ["locked.pem 1", "locked.pem 2", "locked.pem 3"])
      await assert.rejects(resolveOpeners({ pemPaths, askKeyPassphrase: ask(["a", "b", "c", "right"]) }), {
        code: "ERR_KEY_PASSPHRASE",
      })
      assert.deepEqual(asked.splice(0), ["locked.pem 1", "locked.pem 2", "locked.pem 3"])
      await assert.rejects(resolveOpeners({ pemPaths, askKeyPassphrase: ask([]) }), {
        code: "ERR_KEY_LOCKED",
      })
      await assert.rejects(resolveOpeners({ pemPaths }), { code: "ERR_KEY_LOCKED" })
      assert.ok(given.length === 6 && given.every((password) => password.every((byte) => byte === 0)))
      asked.splice(0)
      // One that is given is not asked for, right or wrong.
      for (const [keyPassphrase, works] of [
        ["right", true],
        ["wrong", false],
      ] as const) {
        const options = { pemPaths, askKeyPassphrase: ask(["right"]) }
        for (const own of [
          { keyPassphrase: Buffer.from(keyPassphrase) },
          { keyPassphraseFile: file("password", `${keyPassphrase}\n`) },
        ])
          if (works) assert.equal((await resolveOpeners({ ...options, ...own })).length, 1)
          else await assert.rejects(resolveOpeners({ ...options, ...own }), { code: "ERR_KEY_PASSPHRASE" })
      }
      assert.deepEqual(asked, [])
      await assert.rejects(resolveOpeners({ pemPaths, keyPassphrase: Buffer.alloc(1025) }), {
        code: "ERR_KEY_FORMAT",
        message: /a key's password has at most 1024 bytes/,
      })
    })

    it("reads what can be read once and uses it twice", async () => {
      const count = path.join(folder, "count")
      using gathered = await gatherCredentials({
        keyCommand: `echo >> '${count}'; cat '${privatePath}'`,
        passphraseFd: openSync(file("phrase", "two\n"), "r"),
      })
      assert.equal((await resolveRecipients(gathered, noNotice)).length, 2)
      assert.equal((await resolveOpeners(gathered)).length, 2)
      assert.equal(readFileSync(count).length, 1)
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
