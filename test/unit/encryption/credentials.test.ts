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
  Credentials,
  resolveOpeners,
  resolveRecipients,
  wipeCredentials,
  type Credential,
  type CredentialSource,
} from "../../../lib/encryption/credentials.ts"
import type { SecretSource } from "../../../lib/encryption/secret-sources.ts"
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
      const found = await resolveOpeners(
        new Credentials([
          { key: { file: privatePath } },
          { key: { bytes: vector("sif/rsa-private.pem") } },
          { passphrase: { bytes: Buffer.from("one") } },
          { passphrase: { file: file("phrase", "two\n") } },
          { environment: { APPTAINER_ENCRYPTION_PASSPHRASE: "three" } },
        ]),
      )
      assert.deepEqual(shown(found), [
        "rsa private rsa_pri.pem",
        "rsa private key 2",
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
        assert.deepEqual(shown(await resolveOpeners(new Credentials([{ environment: env }]))), [
          inOrder[at]?.[2],
        ])
        assert.equal(credentialVariable([{ environment: env }]), inOrder[at]?.[0])
      }
    })

    it("finds nothing where nothing is given, and does not look at the process's own environment", async () => {
      process.env["SIFCRYPT_ENCRYPTION_PASSPHRASE"] = "x"
      try {
        assert.deepEqual(await resolveOpeners(new Credentials([])), [])
        assert.equal(credentialVariable([]), undefined)
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
        const [found] = await resolveOpeners(
          new Credentials([{ passphrase: { file: file("phrase", content) } }]),
        )
        assert.ok(found?.kind === "passphrase")
        assert.equal(found.passphrase.bytes.toString("latin1"), expected)
      })

    it("keeps the line end of a passphrase in a variable: it is part of it", async () => {
      const [found] = await resolveOpeners(
        new Credentials([{ environment: { APPTAINER_ENCRYPTION_PASSPHRASE: "é\n" } }]),
      )
      assert.ok(found?.kind === "passphrase")
      assert.equal(found.passphrase.bytes.toString(), "é\n")
    })

    const refused: readonly (readonly [string, () => CredentialSource, string, RegExp])[] = [
      [
        "a key file that is missing",
        () => ({ key: { file: path.join(folder, "no.pem") } }),
        "ERR_KEY_MISSING",
        /no\.pem: there is no such file/,
      ],
      [
        "a key file that is a folder",
        () => ({ key: { file: folder } }),
        "ERR_KEY_MISSING",
        /cannot read the key file/,
      ],
      [
        "a public key",
        () => ({ key: { file: publicPath } }),
        "ERR_KEY_PUBLIC",
        /private key is needed, found a PKCS#1 public key/,
      ],
      [
        "a key file of more than 1 MiB",
        () => ({ key: { file: file("big", Buffer.alloc((1 << 20) + 1)) } }),
        "ERR_KEY_FORMAT",
        /more than 1048576 bytes/,
      ],
      [
        "an endless key file",
        () => ({ key: { file: "/dev/zero" } }),
        "ERR_KEY_FORMAT",
        /more than 1048576 bytes/,
      ],
      [
        "an empty passphrase",
        () => ({ passphrase: { bytes: Buffer.alloc(0) } }),
        "ERR_KEY_MISSING",
        /the passphrase is empty/,
      ],
      [
        "an empty passphrase file",
        () => ({ passphrase: { file: file("p", "") } }),
        "ERR_KEY_MISSING",
        /the passphrase is empty/,
      ],
      [
        "a passphrase file of one line end",
        () => ({ passphrase: { file: file("p", "\r\n") } }),
        "ERR_KEY_MISSING",
        /the passphrase is empty/,
      ],
      [
        "a passphrase of more than 8 KiB",
        () => ({ passphrase: { bytes: Buffer.alloc(8193, 1) } }),
        "ERR_KEY_FORMAT",
        /at most 8192 bytes/,
      ],
      [
        "an endless passphrase file",
        () => ({ passphrase: { file: "/dev/zero" } }),
        "ERR_KEY_FORMAT",
        /more than 8194 bytes/,
      ],
      [
        "a variable that is set but empty",
        () => ({ environment: { APPTAINER_ENCRYPTION_PASSPHRASE: "" } }),
        "ERR_KEY_MISSING",
        /APPTAINER_ENCRYPTION_PASSPHRASE is set but empty/,
      ],
      [
        "a variable that names no file",
        () => ({ environment: { SIFCRYPT_ENCRYPTION_PEM_PATH: "/nowhere/x.pem" } }),
        "ERR_KEY_MISSING",
        /\/nowhere\/x\.pem: there is no such file/,
      ],
      [
        "a variable that holds no key",
        () => ({ environment: { APPTAINER_ENCRYPTION_PEM_DATA: "hello" } }),
        "ERR_KEY_FORMAT",
        /APPTAINER_ENCRYPTION_PEM_DATA: an RSA private key is needed, found no key of a known form/,
      ],
    ]
    for (const [what, options, code, says] of refused)
      it(`A17: refuses ${what} with a code of its own`, async () => {
        await assert.rejects(resolveOpeners(new Credentials([options()])), {
          name: "KeyError",
          code,
          message: says,
        })
      })

    it("lets the first variable decide, also when it is empty and a later one is not", async () => {
      const env = { SIFCRYPT_ENCRYPTION_PEM_PATH: privatePath, APPTAINER_ENCRYPTION_PASSPHRASE: "" }
      assert.deepEqual(shown(await resolveOpeners(new Credentials([{ environment: env }]))), [
        "rsa private rsa_pri.pem",
      ])
      await assert.rejects(
        resolveOpeners(
          new Credentials([
            { environment: { APPTAINER_ENCRYPTION_PEM_DATA: "", SINGULARITY_ENCRYPTION_PASSPHRASE: "x" } },
          ]),
        ),
        { code: "ERR_KEY_MISSING", message: "APPTAINER_ENCRYPTION_PEM_DATA is set but empty" },
      )
    })

    it("takes keys of node:crypto, before files", async () => {
      const pair = generateKeyPairSync("rsa", { modulusLength: 2048 })
      const found = await resolveOpeners(
        new Credentials([{ key: pair.privateKey }, { key: { file: privatePath } }]),
      )
      assert.deepEqual(shown(found), ["rsa private key object 1", "rsa private rsa_pri.pem"])
      await assert.rejects(resolveOpeners(new Credentials([{ key: pair.publicKey }])), {
        code: "ERR_KEY_PUBLIC",
      })
      const ec = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey
      await assert.rejects(resolveOpeners(new Credentials([{ key: ec }])), {
        code: "ERR_KEY_TYPE",
        message: "key object 1: an RSA key is needed, found an EC key",
      })
      assert.deepEqual(
        shown(await resolveRecipients(new Credentials([{ key: pair.privateKey }]), noNotice)),
        ["rsa public key object 1"],
      )
      await assert.rejects(
        resolveRecipients(new Credentials([{ key: createSecretKey(Buffer.alloc(8)) }]), noNotice),
        TypeError,
      )
    })

    it("A7: reads a key and a passphrase from descriptors, once, and closes them", async () => {
      const keyFd = openSync(privatePath, "r")
      const passphraseFd = openSync(file("phrase", "two\n"), "r")
      assert.deepEqual(
        shown(
          await resolveOpeners(
            new Credentials([{ key: { fd: keyFd } }, { passphrase: { fd: passphraseFd } }]),
          ),
        ),
        [`rsa private descriptor ${keyFd}`, `passphrase "two" descriptor ${passphraseFd}`],
      )
      for (const fd of [keyFd, passphraseFd]) assert.throws(() => fstatSync(fd), { code: "EBADF" })
      await assert.rejects(resolveOpeners(new Credentials([{ key: { fd: keyFd } }])), {
        code: "ERR_KEY_MISSING",
        message: `cannot read descriptor ${keyFd}: it is not open`,
      })
    })

    it("A7: refuses descriptors that carry no secret", async () => {
      for (const fd of [-1, 1, 2, 0.5, NaN])
        await assert.rejects(resolveOpeners(new Credentials([{ key: { fd: fd } }])), RangeError)
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
      await assert.rejects(resolveOpeners(new Credentials([{ passphrase: { fd: poll } }])), {
        code: "ERR_KEY_MISSING",
        message: `cannot read descriptor ${poll}: it was not passed to this process`,
      })
      fstatSync(poll)
    })

    it("A7: takes the output of a command for a key file, without the variables of secrets", async () => {
      process.env["SIFCRYPT_ENCRYPTION_PASSPHRASE"] = "x"
      try {
        const keyCommand = `env | grep -q '^SIFCRYPT_' && exit 9; read line && exit 8; cat '${privatePath}'`
        assert.deepEqual(shown(await resolveOpeners(new Credentials([{ key: { command: keyCommand } }]))), [
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
        await assert.rejects(resolveOpeners(new Credentials([{ key: { command: command } }])), {
          name: "KeyError",
          code,
          message,
        })
      })

    it("ends a key command when the signal says so", async () => {
      const controller = new AbortController()
      const reason = new Error("enough")
      const found = resolveOpeners(
        new Credentials([{ key: { command: "sleep 5; true" } }]),
        controller.signal,
      )
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
      const openLocked = (password?: SecretSource): Promise<Credential[]> =>
        resolveOpeners(new Credentials([{ key: { file: lockedKey }, password }]))
      assert.equal((await openLocked({ ask: ask(["a", "", "right"]) })).length, 1)
      assert.deepEqual(asked.splice(0), ["locked.pem 1", "locked.pem 2", "locked.pem 3"])
      await assert.rejects(openLocked({ ask: ask(["a", "b", "c", "right"]) }), {
        code: "ERR_KEY_PASSPHRASE",
      })
      assert.deepEqual(asked.splice(0), ["locked.pem 1", "locked.pem 2", "locked.pem 3"])
      await assert.rejects(openLocked({ ask: ask([]) }), {
        code: "ERR_KEY_LOCKED",
      })
      await assert.rejects(openLocked(), { code: "ERR_KEY_LOCKED" })
      assert.ok(given.length === 6 && given.every((password) => password.every((byte) => byte === 0)))
      asked.splice(0)
      // One that is given is tried once, right or wrong.
      for (const [keyPassphrase, works] of [
        ["right", true],
        ["wrong", false],
      ] as const) {
        for (const password of [
          { bytes: Buffer.from(keyPassphrase) },
          { file: file("password", `${keyPassphrase}\n`) },
        ])
          if (works) assert.equal((await openLocked(password)).length, 1)
          else await assert.rejects(openLocked(password), { code: "ERR_KEY_PASSPHRASE" })
      }
      assert.deepEqual(asked, [])
      await assert.rejects(openLocked({ bytes: Buffer.alloc(1025) }), {
        code: "ERR_KEY_FORMAT",
        message: /a key's password has at most 1024 bytes/,
      })
    })

    it("reads what can be read once and uses it twice", async () => {
      const count = path.join(folder, "count")
      using gathered = new Credentials([
        { key: { command: `echo >> '${count}'; cat '${privatePath}'` } },
        { passphrase: { fd: openSync(file("phrase", "two\n"), "r") } },
      ])
      assert.equal((await resolveRecipients(gathered, noNotice)).length, 2)
      assert.equal((await resolveOpeners(gathered)).length, 2)
      assert.equal(readFileSync(count).length, 1)
    })

    it("copies a passphrase, and wipes the copy when told to", async () => {
      const given = Buffer.from("secret")
      const found = await resolveOpeners(new Credentials([{ passphrase: { bytes: given } }]))
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
        new Credentials([
          { key: { file: publicPath } },
          { key: { file: vectorPath("sif/rsa-public.pem") } },
          { passphrase: { bytes: Buffer.from("p") } },
        ]),
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
      assert.deepEqual(shown(await resolveRecipients(new Credentials([{ environment: env }]), noNotice)), [
        "rsa public rsa_pub.pem",
      ])
    })

    it("A17: warns of a passphrase that names an existing file, and takes it", async () => {
      const notices: string[] = []
      const found = await resolveRecipients(
        new Credentials([{ passphrase: { bytes: Buffer.from(publicPath) } }]),
        (text) => notices.push(text),
      )
      assert.equal(found.length, 1)
      assert.equal(notices.length, 1)
      assert.match(notices[0] ?? "", /^the passphrase holds the name of a file/)
    })

    it("A17: refuses a weak key before anything is built", async () => {
      await assert.rejects(
        resolveRecipients(new Credentials([{ key: { bytes: Buffer.from(weak) } }]), noNotice),
        {
          name: "KeyError",
          code: "ERR_KEY_WEAK",
          message: /^key 1: an RSA key of 1024 bits/,
        },
      )
    })

    it("A17: refuses all when one of them cannot be read", async () => {
      const pemPaths = [publicPath, path.join(folder, "missing.pem")]
      await assert.rejects(
        resolveRecipients(
          new Credentials([
            ...pemPaths.map((one) => ({ key: { file: one } })),
            { passphrase: { bytes: Buffer.from("p") } },
          ]),
          noNotice,
        ),
        {
          code: "ERR_KEY_MISSING",
          message: /missing\.pem/,
        },
      )
    })

    it("finds nobody where nobody is given", async () => {
      assert.deepEqual(
        await resolveRecipients(new Credentials([{ environment: { HOME: "/" } }]), noNotice),
        [],
      )
    })
  })

  it("no message shows a passphrase", async () => {
    const secret = "hunter2".repeat(2000)
    for (const source of [
      { passphrase: { bytes: Buffer.from(secret) } },
      { environment: { APPTAINER_ENCRYPTION_PEM_DATA: secret } },
    ])
      await assert.rejects(
        resolveOpeners(new Credentials([source])),
        (error: Error) => !error.message.includes("hunter2"),
      )
  })
})
