// Every form of key, made by the programs that people make keys with, against build and open by an ordinary user.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { createPrivateKey } from "node:crypto"
import { chmodSync, closeSync, copyFileSync, openSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import forge from "node-forge"
import { ContainerError, open } from "../../lib/index.ts"
import { parsePrivateKey, parsePublicKey } from "../../lib/key/key-file.ts"
import { finish, sifcrypt, sifcryptOk, startSifcrypt, userId } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { openssl } from "../support/openssl.ts"
import { newFolder } from "../support/scratch.ts"
import { typing } from "../support/terminal.ts"

const password = "open sesame"

describe("key files", () => {
  const folder = newFolder("key-forms")
  const tree = newFolder("key-forms-tree")
  const images = newFolder("key-forms-images", userId)
  const passwordFile = path.join(folder, "password")
  const wrongPasswordFile = path.join(folder, "wrong-password")
  const keys = testKeys()
  const own = keys.privateKey
  const other = keys.otherPrivateKey
  const image = path.join(images, "image.sif")

  const at = (name: string): string => path.join(folder, name)
  function write(name: string, content: string | Uint8Array): string {
    writeFileSync(at(name), content)
    return at(name)
  }
  /** What openssl writes, as a file that everybody can read. */
  function made(name: string, args: readonly string[]): string {
    openssl([...args, "-out", at(name)])
    chmodSync(at(name), 0o644)
    return at(name)
  }
  const out = ["-passout", `pass:${password}`]
  function sshKey(name: string, from: string, phrase: string, ...options: string[]): string {
    copyFileSync(from, at(name))
    chmodSync(at(name), 0o600)
    execFileSync("ssh-keygen", ["-q", "-p", "-P", "", "-N", phrase, ...options, "-f", at(name)], {
      stdio: "ignore",
    })
    const line = execFileSync("ssh-keygen", ["-y", "-P", phrase, "-f", at(name)])
    chmodSync(at(name), 0o644)
    write(`${name}.pub`, line)
    return at(name)
  }
  const jwk = (file: string): object => createPrivateKey(readFileSync(file)).export({ format: "jwk" })
  function forgePfx(name: string, options: object): string {
    const key = forge.pki.privateKeyFromPem(readFileSync(own, "utf8"))
    const certificate = forge.pki.certificateFromPem(readFileSync(at("certificate.pem"), "utf8"))
    const der = forge.asn1.toDer(forge.pkcs12.toPkcs12Asn1(key, [certificate], password, options)).getBytes()
    return write(name, Buffer.from(der, "latin1"))
  }

  made("certificate.pem", ["req", "-x509", "-key", own, "-subj", "/CN=me", "-days", "30"])
  made("locked.pem", ["pkcs8", "-topk8", "-in", own, ...out])
  made("locked-other.pem", ["pkcs8", "-topk8", "-in", other, ...out])
  sshKey("ssh", own, "")
  sshKey("ssh-locked", own, password, "-a", "4")
  const authority = made("authority.pem", [
    "req",
    "-x509",
    "-key",
    other,
    "-subj",
    "/CN=authority",
    "-days",
    "30",
  ])
  made("request.pem", ["req", "-new", "-key", own, "-subj", "/CN=leaf"])
  made("leaf.pem", [
    "x509",
    "-req",
    "-in",
    at("request.pem"),
    "-CA",
    authority,
    "-CAkey",
    other,
    "-days",
    "30",
  ])
  const text = (file: string): string => readFileSync(file, "utf8")
  const legacy = ["-provider", "legacy", "-provider", "default"]

  /** Public keys, or private ones that need no password for this. */
  const publicForms: Readonly<Record<string, string>> = {
    "OpenSSL, PKCS#1 PEM": made("pkcs1.pub", ["rsa", "-in", own, "-RSAPublicKey_out"]),
    "OpenSSL, PKCS#1 DER": made("pkcs1.pub.der", ["rsa", "-in", own, "-RSAPublicKey_out", "-outform", "DER"]),
    "OpenSSL, SPKI PEM": made("spki.pub", ["pkey", "-in", own, "-pubout"]),
    "OpenSSL, SPKI DER": made("spki.pub.der", ["pkey", "-in", own, "-pubout", "-outform", "DER"]),
    "OpenSSL, certificate PEM": at("certificate.pem"),
    "OpenSSL, certificate PEM with its text": made("certificate.txt", [
      "x509",
      "-in",
      at("certificate.pem"),
      "-text",
    ]),
    "OpenSSL, certificate DER": made("certificate.der", [
      "x509",
      "-in",
      at("certificate.pem"),
      "-outform",
      "DER",
    ]),
    "OpenSSL, a chain": write("chain.pem", text(at("leaf.pem")) + text(authority)),
    "OpenSSL, a chain that begins at the root": write(
      "root-first.pem",
      text(authority) + text(at("leaf.pem")),
    ),
    "OpenSSL, certificate and protected key": write(
      "both.pem",
      text(at("certificate.pem")) + text(at("locked.pem")),
    ),
    "ssh-keygen, .pub": at("ssh.pub"),
    "ssh-keygen, authorized_keys": write(
      "authorized_keys",
      `# mine\nssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7n me\nno-pty,command="echo x" ${text(at("ssh.pub"))}`,
    ),
    "ssh-keygen, public half of a protected key": at("ssh-locked"),
    "node-forge, PKCS#1": write(
      "forge.pub",
      forge.pki.publicKeyToRSAPublicKeyPem(forge.pki.publicKeyFromPem(text(at("spki.pub")))),
    ),
    "node-forge, SPKI": write(
      "forge-spki.pub",
      forge.pki.publicKeyToPem(forge.pki.publicKeyFromPem(text(at("spki.pub")))),
    ),
    "a JWK": write("public.jwk", JSON.stringify({ ...jwk(own), d: undefined, p: undefined, q: undefined })),
  }
  const openForms: Readonly<Record<string, string>> = {
    "OpenSSL, PKCS#1 PEM": made("pkcs1.pem", ["rsa", "-in", own, "-traditional"]),
    "OpenSSL, PKCS#1 DER": made("pkcs1.der", ["rsa", "-in", own, "-traditional", "-outform", "DER"]),
    "OpenSSL, PKCS#8 PEM": made("pkcs8.pem", ["pkcs8", "-topk8", "-nocrypt", "-in", own]),
    "OpenSSL, PKCS#8 DER": made("pkcs8.der", ["pkcs8", "-topk8", "-nocrypt", "-in", own, "-outform", "DER"]),
    "OpenSSL, parameters of a curve before it": write(
      "parameters.pem",
      openssl(["ecparam", "-name", "prime256v1"]).toString() + text(own),
    ),
    "OpenSSL, a certificate of somebody else before it": write(
      "other-first.pem",
      text(authority) + text(own),
    ),
    "ssh-keygen, OpenSSH": at("ssh"),
    "ssh-keygen, PEM": sshKey("ssh-pem", own, "", "-m", "PEM"),
    "ssh-keygen, PKCS#8": sshKey("ssh-pkcs8", own, "", "-m", "PKCS8"),
    "node-forge, PKCS#1": write(
      "forge.pem",
      forge.pki.privateKeyToPem(forge.pki.privateKeyFromPem(text(own))),
    ),
    "a JWK": write("private.jwk", JSON.stringify(jwk(own))),
    "a JWK set": write("set.jwk", JSON.stringify({ keys: [{ kty: "oct", k: "AAAA" }, jwk(own)] })),
  }
  const pfx = (name: string, ...options: string[]): string =>
    made(name, ["pkcs12", "-export", "-inkey", own, "-in", at("certificate.pem"), ...out, ...options])
  const lockedForms: Readonly<Record<string, string>> = {
    "OpenSSL, PBES2 PEM": at("locked.pem"),
    "OpenSSL, PBES2 DER": made("locked.der", ["pkcs8", "-topk8", "-in", own, ...out, "-outform", "DER"]),
    "OpenSSL, PBES2 with scrypt": made("scrypt.pem", ["pkcs8", "-topk8", "-in", own, ...out, "-scrypt"]),
    "OpenSSL, PBES1 with 3DES": made("pbes1.pem", [
      "pkcs8",
      "-topk8",
      "-in",
      own,
      ...out,
      "-v1",
      "PBE-SHA1-3DES",
    ]),
    "OpenSSL, Proc-Type with AES": made("proc-type.pem", [
      "rsa",
      "-in",
      own,
      "-traditional",
      "-aes256",
      ...out,
    ]),
    "OpenSSL, Proc-Type with 3DES": made("proc-type-3des.pem", [
      "rsa",
      "-in",
      own,
      "-traditional",
      "-des3",
      ...out,
    ]),
    "OpenSSL, certificate and PBES2": at("both.pem"),
    "OpenSSL, PFX": pfx("openssl.pfx"),
    "OpenSSL, PFX of OpenSSL 1": pfx("legacy.pfx", "-legacy"),
    "ssh-keygen, OpenSSH": at("ssh-locked"),
    "ssh-keygen, AES-CBC": sshKey("ssh-cbc", own, password, "-a", "4", "-Z", "aes128-cbc"),
    "ssh-keygen, AES-GCM": sshKey("ssh-gcm", own, password, "-a", "4", "-Z", "aes256-gcm@openssh.com"),
    "ssh-keygen, PEM": sshKey("ssh-locked-pem", own, password, "-m", "PEM"),
    "node-forge, PBES2": write(
      "forge-locked.pem",
      forge.pki.encryptRsaPrivateKey(forge.pki.privateKeyFromPem(text(own)), password, {
        algorithm: "aes256",
      }),
    ),
    "node-forge, Proc-Type": write(
      "forge-proc-type.pem",
      forge.pki.encryptRsaPrivateKey(forge.pki.privateKeyFromPem(text(own)), password, {
        legacy: true,
        algorithm: "aes128",
      }),
    ),
    "node-forge, PFX with AES": forgePfx("forge-aes.pfx", { algorithm: "aes256" }),
    "node-forge, PFX with 3DES": forgePfx("forge-3des.pfx", { algorithm: "3des" }),
  }

  before(async () => {
    write("password", `${password}\n`)
    write("wrong-password", "close sesame\n")
    write("file", "")
    writeFileSync(path.join(tree, "file"), "content")
    await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree])
  })

  const cat = (...options: string[]): string[] => ["cat", ...options, image, "file"]

  describe("A4: build takes as a public key", () => {
    let count = 0
    const all = [
      ...Object.entries(publicForms),
      ...Object.entries(openForms).map(([form, file]) => [`${form} (its public half)`, file] as const),
    ]
    for (const [form, file] of all)
      it(form, async () => {
        const built = path.join(images, `public-${++count}.sif`)
        await sifcryptOk(["build", "--pem-path", file, built, tree])
        assert.equal((await sifcryptOk(["cat", "--pem-path", own, built, "file"])).text, "content")
      })
  })

  describe("A4: open takes as a private key", () => {
    for (const [form, file] of Object.entries(openForms))
      it(form, async () => {
        assert.equal((await sifcryptOk(cat("--pem-path", file))).text, "content")
      })
  })

  describe("A5: a protected key is told from a wrong password and from a wrong key", () => {
    for (const [form, file] of Object.entries(lockedForms))
      it(form, async () => {
        const right = ["--pem-path", file, "--key-passphrase-file", passwordFile]
        assert.equal((await sifcryptOk(cat(...right))).text, "content")
        for (const [options, code, hint] of [
          [[], "ERR_KEY_LOCKED", /hint: give --key-passphrase-file FILE, or run it at a terminal/],
          [
            ["--key-passphrase-file", wrongPasswordFile],
            "ERR_KEY_PASSPHRASE",
            /hint: this is the password of the key file, not of the image/,
          ],
        ] as const) {
          const result = await sifcrypt(cat("--pem-path", file, ...options))
          assert.equal(result.status, 22, result.stderr)
          assert.match(result.stderr, hint)
          assert.ok(
            result.stderr.includes(path.basename(file)) && !result.stderr.includes("sesame"),
            result.stderr,
          )
          await assert.rejects(
            open(image, {
              unlock: [
                {
                  key: { file },
                  password: options.length > 0 ? { file: wrongPasswordFile } : undefined,
                },
              ],
            }),
            (error) => error instanceof ContainerError && error.code === code,
          )
        }
      })

    it("another key behind the right password", async () => {
      const options = ["--pem-path", at("locked-other.pem"), "--key-passphrase-file", passwordFile]
      const result = await sifcrypt(cat(...options))
      assert.equal(result.status, 22)
      assert.match(result.stderr, /was not encrypted for this key .*locked-other\.pem/)
      assert.match(result.stderr, /hint: use the private key that belongs to the public key/)
    })

    it("built for with its password, where the public half cannot be read without", async () => {
      const built = path.join(images, "locked.sif")
      const args = ["build", "--pem-path", at("locked.pem"), built, tree]
      const refused = await sifcrypt(args)
      assert.equal(refused.status, 22)
      assert.match(refused.stderr, /its password is needed and none was given/)
      await sifcryptOk([...args, "--key-passphrase-file", passwordFile])
      assert.equal((await sifcryptOk(["cat", "--pem-path", own, built, "file"])).text, "content")
    })

    it("asked for on the terminal, again after a wrong one, without echo", async () => {
      const args = cat("--pem-path", at("locked.pem"))
      const right = await sifcrypt(args, typing(`wrong one,${password}`))
      assert.equal(right.status, 0, right.text)
      assert.match(
        right.text,
        /Enter passphrase for .+locked\.pem: [^]*try again[^]*Enter passphrase for [^]*content/,
      )
      assert.doesNotMatch(right.text, /wrong one|sesame/)
      const wrong = await sifcrypt(args, typing("a1,b2,c3,d4"))
      assert.equal(wrong.status, 22, wrong.text)
      assert.equal(wrong.text.match(/Enter passphrase/g)?.length, 3)
      assert.match(wrong.text, /hint: this is the password of the key file/)
    })
  })

  describe("A4: refused, each with what was found and what is needed", () => {
    const ec = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    const weak = made("weak.pem", ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"])
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", at("ed25519")])
    chmodSync(at("ed25519"), 0o644)
    const cut = (file: string): string =>
      write(`cut-${path.basename(file)}`, readFileSync(file).subarray(0, 600))
    const opening: readonly (readonly [string, string, string, RegExp, RegExp])[] = [
      [
        "a public key",
        keys.publicKey,
        "ERR_KEY_PUBLIC",
        /private key is needed, found a PKCS#1 public key/,
        /takes the private key/,
      ],
      [
        "a certificate",
        at("certificate.pem"),
        "ERR_KEY_PUBLIC",
        /private key is needed, found an X\.509 cert/,
        /takes the private key/,
      ],
      [
        "an OpenSSH line",
        at("ssh.pub"),
        "ERR_KEY_PUBLIC",
        /found an OpenSSH public key/,
        /takes the private key/,
      ],
      ["an EC key", made("ec.pem", ec), "ERR_KEY_TYPE", /RSA key is needed, found an EC key/, /for RSA keys/],
      [
        "an Ed25519 key",
        made("ed.pem", ["genpkey", "-algorithm", "ED25519"]),
        "ERR_KEY_TYPE",
        /found an Ed25519 key/,
        /for RSA keys/,
      ],
      [
        "an OpenSSH Ed25519 key",
        at("ed25519"),
        "ERR_KEY_TYPE",
        /OpenSSH private key of type ssh-ed25519/,
        /for RSA keys/,
      ],
      [
        "an RSA-PSS key",
        made("pss.pem", ["genpkey", "-algorithm", "RSA-PSS"]),
        "ERR_KEY_TYPE",
        /RSA-PSS key, which can only sign/,
        /for RSA keys/,
      ],
      [
        "a PEM key cut short",
        cut(own),
        "ERR_KEY_DAMAGED",
        /RSA PRIVATE KEY is damaged or cut short/,
        /copy it again/,
      ],
      [
        "a DER key cut short",
        cut(at("pkcs8.der")),
        "ERR_KEY_DAMAGED",
        /the DER is damaged or cut short/,
        /copy it again/,
      ],
      [
        "an OpenSSH key cut short",
        cut(at("ssh")),
        "ERR_KEY_DAMAGED",
        /OPENSSH PRIVATE KEY is damaged/,
        /copy it again/,
      ],
      [
        "a JWK cut short",
        cut(at("private.jwk")),
        "ERR_KEY_DAMAGED",
        /JSON of a JWK is damaged/,
        /copy it again/,
      ],
      [
        "text",
        write("hello", "hello\n"),
        "ERR_KEY_FORMAT",
        /private key is needed, found no key of a known form/,
        /openssl rsa/,
      ],
      [
        "an empty file",
        write("empty", ""),
        "ERR_KEY_FORMAT",
        /private key is needed, found nothing/,
        /openssl rsa/,
      ],
      [
        "a cipher that OpenSSL 3 has given up",
        made("des.pem", ["rsa", ...legacy, "-in", own, "-traditional", "-des", ...out]),
        "ERR_KEY_UNSUPPORTED",
        /RSA PRIVATE KEY under DES-CBC, which is not supported/,
        /write it anew/,
      ],
      [
        "PBES1 with DES",
        made("pbes1-des.pem", ["pkcs8", ...legacy, "-topk8", "-in", own, "-v1", "PBE-MD5-DES", ...out]),
        "ERR_KEY_UNSUPPORTED",
        /under 1\.2\.840\.113549\.1\.5\.3, which is not supported/,
        /write it anew/,
      ],
      [
        "OpenSSH's own cipher",
        sshKey("ssh-chacha", own, password, "-Z", "chacha20-poly1305@openssh.com"),
        "ERR_KEY_UNSUPPORTED",
        /under chacha20-poly1305@openssh\.com and bcrypt/,
        /ssh-keygen -p -Z aes256-ctr/,
      ],
      [
        "an OpenSSH key that takes minutes",
        write("ssh-slow", manyRounds(readFileSync(at("ssh-locked")))),
        "ERR_KEY_UNSUPPORTED",
        /with 2147483647 rounds of bcrypt \(at most 500 in a file\)/,
        /write it anew/,
      ],
    ]
    for (const [what, file, code, says, hint] of opening)
      it(`to open: ${what}`, async () => {
        const result = await sifcrypt(cat("--pem-path", file, "--key-passphrase-file", passwordFile))
        assert.equal(result.status, 22, result.stderr)
        assert.match(result.stderr, says)
        assert.match(result.stderr, hint)
        await assert.rejects(
          open(image, { unlock: [{ key: { file: file }, password: { bytes: Buffer.from(password) } }] }),
          (error) => error instanceof ContainerError && error.code === code,
        )
      })

    it("to build: a weak key, which still opens what was built for it", async () => {
      const result = await sifcrypt(["build", "--pem-path", weak, path.join(images, "weak.sif"), tree])
      assert.equal(result.status, 22)
      assert.match(result.stderr, /1024 bits is too weak[^]*hint: make a new pair/)
      const opened = await sifcrypt(cat("--pem-path", weak))
      assert.match(opened.stderr, /was not encrypted for this key/)
    })
  })

  it("S35: every form cut off anywhere gives one of our codes", async () => {
    const files = new Set([
      ...Object.values(publicForms),
      ...Object.values(openForms),
      ...Object.values(lockedForms),
    ])
    const codes = new Map<string, number>()
    for (const name of files) {
      const file = readFileSync(name)
      for (let end = 0; end < file.length - 1; end += 16)
        for (const parse of [parsePublicKey, parsePrivateKey])
          try {
            // Some are whole before their end: text, comments, another key.
            await parse(file.subarray(0, end), "cut")
          } catch (error) {
            assert.ok(error instanceof ContainerError, `${name} at ${end}: ${String(error)}`)
            codes.set(error.code, (codes.get(error.code) ?? 0) + 1)
          }
    }
    assert.ok((codes.get("ERR_KEY_DAMAGED") ?? 0) > 1000, JSON.stringify([...codes]))
  })

  describe("A7: secrets come", () => {
    /** The command with these files as descriptors 3, 4, … */
    async function withDescriptors(args: readonly string[], files: readonly string[]): Promise<string> {
      const fds = files.map((file) => openSync(file, "r"))
      try {
        const result = await finish(startSifcrypt(args, { stdio: ["pipe", "pipe", "pipe", ...fds] }))
        assert.equal(result.status, 0, result.stderr)
        return result.text
      } finally {
        for (const fd of fds) closeSync(fd)
      }
    }

    it("from descriptors: key and passphrase, to build and to open", async () => {
      const built = path.join(images, "descriptors.sif")
      const kdf = ["--pbkdf", "pbkdf2:1000"]
      await withDescriptors(
        ["build", ...kdf, "--key-fd", "3", "--passphrase-fd", "4", built, tree],
        [at("spki.pub.der"), passwordFile],
      )
      assert.equal(await withDescriptors(["cat", "--key-fd", "3", built, "file"], [at("ssh")]), "content")
      assert.equal(
        await withDescriptors(["cat", "--passphrase-fd", "3", built, "file"], [passwordFile]),
        "content",
      )
      const result = await sifcrypt(["cat", "--passphrase-fd", "0", built, "file"], { input: password })
      assert.equal(result.text, "content", result.stderr)
    })

    it("from a descriptor once, though a build opens its source with it, too", async () => {
      const built = path.join(images, "again.sif")
      await withDescriptors(["build", "--key-fd", "3", built, image], [own])
      assert.equal((await sifcryptOk(["cat", "--pem-path", own, built, "file"])).text, "content")
    })

    it("from no descriptor that is not open, or for output", async () => {
      for (const fd of ["1", "2", "-1", "x", "99"]) {
        const result = await sifcrypt(cat("--key-fd", fd))
        assert.equal(result.status, 20, result.stderr)
      }
    })

    it("from a command, in whose environment no secret is", async () => {
      const env = { SIFCRYPT_ENCRYPTION_PASSPHRASE: "sesame", APPTAINER_ENCRYPTION_PEM_DATA: "sesame" }
      const command = `env | grep -q sesame && exit 9; cat '${own}'`
      assert.equal((await sifcryptOk(cat("--key-command", command), { env })).text, "content")
      const failed = await sifcrypt(cat("--key-command", "echo no such secret >&2; exit 7"))
      assert.equal(failed.status, 22)
      assert.match(
        failed.stderr,
        /no such secret\n[^]*the key command failed: it ended with status 7\n[^]*hint: run the command/,
      )
    })
  })
})

/** An OpenSSH key that asks for 2^31-1 rounds. */
function manyRounds(file: Buffer): string {
  const lines = file.toString().trim().split("\n")
  const der = Buffer.from(lines.slice(1, -1).join(""), "base64")
  // Name of the KDF, length of its options, length of the salt, the salt, the rounds.
  const at = der.indexOf("bcrypt") + 6 + 4 + 4 + 16
  der.writeUInt32BE(0x7fff_ffff, at)
  return `${lines[0] ?? ""}\n${der.toString("base64")}\n${lines.at(-1) ?? ""}\n`
}
