// What is left in a process's memory of keys, passphrases and secrets once an image is closed: nothing.
import assert from "node:assert/strict"
import { createPrivateKey, randomBytes } from "node:crypto"
import { execFileSync } from "node:child_process"
import { chmodSync, copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { createInterface } from "node:readline"
import { pathToFileURL } from "node:url"
import { openPartition } from "../../lib/encryption/unlock.ts"
import { openSif } from "../../lib/sif/open.ts"
import { Credentials } from "../../lib/encryption/credentials.ts"
import type { CredentialSource } from "../../lib/index.ts"
import { packageRoot, sifcryptOk, startProgram } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { searchMemory, type Needle } from "../support/memory.ts"
import { openssl } from "../support/openssl.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"
import { vector, vectorPath } from "../vectors/load.ts"

const api = JSON.stringify(pathToFileURL(path.join(packageRoot, "dist", "index.js")).href)

describe("the memory of a process that opened or built an image", () => {
  const keys = testKeys()
  const folder = newFolder("memory")
  const image = path.join(folder, "image.sif")
  const built = path.join(folder, "built.sif")
  const tree = makeRootTree()
  const passphrase = randomBytes(24).toString("hex")
  const passphraseFile = path.join(folder, "passphrase")
  const wrongFile = path.join(folder, "wrong")
  const wrong = randomBytes(24).toString("hex")

  before(async () => {
    writeFileSync(passphraseFile, passphrase)
    writeFileSync(wrongFile, wrong)
    const cheap = ["--pbkdf", "pbkdf2:1000"]
    const recipients = ["--pem-path", keys.publicKey, "--passphrase-file", passphraseFile]
    await sifcryptOk(["build", ...cheap, ...recipients, image, tree], { as: "self" })
  })

  /** Read here, never in the process that is looked into. */
  async function keysOf(file: string, credential: CredentialSource): Promise<Needle[]> {
    await using sif = await openSif(file)
    const { unlocked, secret, recipient } = await openPartition(
      sif,
      sif.primary(),
      new Credentials([credential]),
      {},
    )
    const volumeKey = { what: "volume key", bytes: unlocked.dataKey.bytes }
    // Without a message the secret is the passphrase.
    return recipient === undefined ? [volumeKey] : [volumeKey, { what: "secret", bytes: secret.bytes }]
  }

  const passphraseNeedle: Needle = { what: "passphrase", bytes: Buffer.from(passphrase) }

  /** The numbers as OpenSSL keeps them, lowest digits first, and as key files do. */
  function privateKeyNeedles(): Needle[] {
    const jwk = createPrivateKey(readFileSync(keys.privateKey)).export({ format: "jwk" })
    return [jwk.d, jwk.p, jwk.q].flatMap((number) => {
      const bytes = Buffer.from(number ?? "", "base64url")
      return [bytes, Buffer.from(bytes).reverse()].map((order) => ({ what: "private key", bytes: order }))
    })
  }

  /** Runs a script that calls `pause(name)`, and looks into its memory each time. */
  async function inspectAt(
    script: string,
    search: (pid: number, pause: string) => void | Promise<void>,
  ): Promise<void> {
    const source = `
      import { openSync, readSync, closeSync } from "node:fs"
      import { allocateSecret, build, open } from ${api}
      const [image, built, tree, passphraseFile, wrongFile, privateKey, publicKey] = process.argv.slice(1)
      const pause = async (name) => {
        await new Promise((resolve) => { process.stdin.once("data", resolve); process.stdout.write(name + "\\n") })
      }
      const collect = async () => {
        for (let i = 0; i < 10; i++) { gc(); await new Promise((resolve) => setImmediate(resolve)) }
      }
      const readPassphrase = () => {
        const passphrase = allocateSecret(${passphrase.length})
        const fd = openSync(passphraseFile)
        readSync(fd, passphrase)
        closeSync(fd)
        return passphrase
      }
      ${script}
      process.stdin.destroy()`
    const args = [image, built, tree, passphraseFile, wrongFile, keys.privateKey, keys.publicKey]
    const options = ["--expose-gc", "--no-warnings", "--input-type=module", "--eval", source]
    const child = startProgram([process.execPath, ...options, "--", ...args], {
      as: "self",
      stdio: ["pipe", "pipe", "inherit"],
    })
    const ended = new Promise<number | null>((resolve) => child.once("close", resolve))
    const { stdin, stdout, pid } = child
    assert.ok(stdin !== null && stdout !== null && pid !== undefined)
    try {
      for await (const pause of createInterface({ input: stdout })) {
        await search(pid, pause)
        stdin.write("\n")
      }
    } finally {
      child.kill("SIGKILL")
    }
    assert.equal(await ended, 0)
  }

  /** What was found, without where. */
  function kinds(found: readonly string[]): string[] {
    return [...new Set(found.map((text) => text.replace(/ in .+$/, "")))]
  }

  /** Searches for all needles at each pause, and expects these kinds. */
  async function expectAt(
    script: string,
    needles: readonly Needle[],
    expected: Readonly<Record<string, readonly string[]>>,
  ): Promise<void> {
    const seen: string[] = []
    await inspectAt(script, (pid, pause) => {
      seen.push(pause)
      const found = searchMemory(pid, needles)
      assert.deepEqual(kinds(found), expected[pause], `${pause}: ${found.join(", ")}`)
    })
    assert.deepEqual(seen, Object.keys(expected))
  }

  it("holds the volume key while the image is open, and nothing afterwards: an RSA key", async () => {
    const needles = [...(await keysOf(image, { key: { file: keys.privateKey } })), ...privateKeyNeedles()]
    await expectAt(
      `const opened = await open(image, { unlock: [{ key: { file: privateKey } }] })
       await opened.readFile("/data/hello")
       await collect() // the key object is OpenSSL's until Node collects it
       await pause("open")
       await opened.close()
       await pause("closed")`,
      needles,
      { open: ["volume key"], closed: [] },
    )
  })

  describe("given a private key", () => {
    const keyPassword = randomBytes(24).toString("hex")
    const passwordFile = path.join(folder, "key-password")
    const forms = path.join(folder, "forms")

    before(() => {
      writeFileSync(passwordFile, keyPassword)
      mkdirSync(forms)
      const pkcs1 = path.join(forms, "PKCS#1")
      copyFileSync(keys.privateKey, pkcs1)
      const password = "-passout FILE"
      const make = (line: string, name: string): void => {
        const words = line.split(" ").map((word) => (word === "FILE" ? `file:${passwordFile}` : word))
        openssl([...words, "-out", path.join(forms, name)])
      }
      make(`pkcs8 -topk8 -nocrypt -in ${pkcs1}`, "PKCS#8")
      make(`pkcs8 -topk8 -nocrypt -outform der -in ${pkcs1}`, "DER")
      make(`pkcs8 -topk8 -iter 1000 -in ${pkcs1} ${password}`, "encrypted PKCS#8")
      make(`rsa -traditional -aes256 -in ${pkcs1} ${password}`, "legacy PEM")
      const certificate = path.join(folder, "certificate.pem")
      openssl(["req", "-x509", "-key", pkcs1, "-subj", "/CN=memory", "-days", "2", "-out", certificate])
      make(`pkcs12 -export -iter 1000 -inkey ${pkcs1} -in ${certificate} ${password}`, "PKCS#12")
      for (const [name, given] of [
        ["OpenSSH", ""],
        ["encrypted OpenSSH", keyPassword],
      ] as const) {
        const file = path.join(forms, name)
        copyFileSync(pkcs1, file)
        chmodSync(file, 0o600)
        execFileSync("ssh-keygen", ["-q", "-p", "-a", "2", "-P", "", "-N", given, "-f", file])
      }
    })

    for (const form of [
      "PKCS#1",
      "PKCS#8",
      "DER",
      "encrypted PKCS#8",
      "legacy PEM",
      "PKCS#12",
      "OpenSSH",
      "encrypted OpenSSH",
    ])
      it(`holds nothing of it, nor of its password, once it is used: ${form}`, async () => {
        const file = path.join(forms, form)
        const needles = [
          ...(await keysOf(image, { key: { file: keys.privateKey } })),
          ...privateKeyNeedles(),
          { what: "text of the key", bytes: readFileSync(keys.privateKey).subarray(500, 1500) },
          { what: "text of the key", bytes: readFileSync(path.join(forms, "PKCS#8")).subarray(500, 1500) },
          { what: "text of the key", bytes: readFileSync(path.join(forms, "OpenSSH")).subarray(900, 1700) },
          { what: "password", bytes: Buffer.from(keyPassword) },
        ]
        await expectAt(
          `const unlock = [{ key: { file: ${JSON.stringify(file)} }, password: { file: ${JSON.stringify(passwordFile)} } }]
           const opened = await open(image, { unlock })
           await opened.readFile("/data/hello")
           await collect()
           await pause("open")
           await opened.close()
           await pause("closed")`,
          needles,
          { open: ["volume key"], closed: [] },
        )
      })
  })

  it("holds the content key while the image is open, and nothing afterwards: gocryptfs", async () => {
    const file = path.join(folder, "gocryptfs.sif")
    writeFileSync(file, vector("peer/gocryptfs-rsa2048.sif"))
    const key = vectorPath("peer/rsa_pri.pem")
    await expectAt(
      `const opened = await open(${JSON.stringify(file)}, { unlock: [{ key: { file: ${JSON.stringify(key)} } }] })
       await opened.list("/")
       await pause("open")
       await opened.close()
       await pause("closed")`,
      await keysOf(file, { key: { file: key } }),
      { open: ["volume key"], closed: [] },
    )
  })

  it("holds the volume key while the image is open, and nothing afterwards: a passphrase in a file", async () => {
    await expectAt(
      `const opened = await open(image, { unlock: [{ passphrase: { file: passphraseFile } }] })
       await opened.readFile("/data/hello")
       await pause("open")
       await opened.close()
       await pause("closed")`,
      [...(await keysOf(image, { passphrase: { file: passphraseFile } })), passphraseNeedle],
      { open: ["volume key"], closed: [] },
    )
  })

  it("holds a passphrase as long as its owner, and no longer", async () => {
    await expectAt(
      `const passphrase = readPassphrase()
       const opened = await open(image, { unlock: [{ passphrase: { bytes: passphrase } }] })
       await opened.readFile("/data/hello")
       await pause("owned")
       passphrase.fill(0)
       await pause("wiped")
       await opened.close()
       await pause("closed")`,
      [...(await keysOf(image, { key: { file: keys.privateKey } })), passphraseNeedle],
      { owned: ["passphrase", "volume key"], wiped: ["volume key"], closed: [] },
    )
  })

  it("holds nothing of a passphrase that did not fit", async () => {
    await expectAt(
      `await open(image, { unlock: [{ passphrase: { file: wrongFile } }] }).catch(() => undefined)
       await pause("refused")
       const passphrase = readPassphrase()
       await pause("control")`,
      [
        ...(await keysOf(image, { passphrase: { file: passphraseFile } })),
        { what: "wrong", bytes: Buffer.from(wrong) },
        passphraseNeedle,
      ],
      { refused: [], control: ["passphrase"] },
    )
  })

  it("holds nothing of a new image's keys once it is built", async () => {
    const seen: string[] = []
    await inspectAt(
      `const passphrase = readPassphrase()
       await build({
         output: built,
         source: tree,
         recipients: [{ key: { file: publicKey } }, { passphrase: { bytes: passphrase } }],
         passphraseKdf: { type: "pbkdf2", iterations: 1000 },
       })
       await pause("built")
       passphrase.fill(0)
       await pause("wiped")`,
      async (pid, pause) => {
        seen.push(pause)
        const needles = [...(await keysOf(built, { key: { file: keys.privateKey } })), passphraseNeedle]
        const found = searchMemory(pid, needles)
        assert.deepEqual(kinds(found), pause === "built" ? ["passphrase"] : [], found.join(", "))
      },
    )
    assert.deepEqual(seen, ["built", "wiped"])
  })

  it("holds nothing while a payload runs in an image that was closed", async () => {
    await expectAt(
      `const opened = await open(image, { unlock: [{ key: { file: privateKey } }] })
       const running = await opened.exec(["sleep", "60"], { engine: "userspace" })
       await collect()
       await pause("open")
       await opened.close()
       await pause("closed")
       running.kill("SIGKILL")
       await running.exited`,
      [...(await keysOf(image, { key: { file: keys.privateKey } })), ...privateKeyNeedles()],
      { open: ["volume key"], closed: [] },
    )
  })
})
