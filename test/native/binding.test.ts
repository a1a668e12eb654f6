// How the addon lives in a Node process: symbols, memory. What of threads and of its end: teardown.test.ts.
import assert from "node:assert/strict"
import { readFileSync, rmSync, readdirSync } from "node:fs"
import path from "node:path"
import { pathToFileURL } from "node:url"
import {
  packageRoot,
  runProgram,
  sifcryptOk,
  userId,
  type CommandOptions,
  type Result,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

const api = JSON.stringify(pathToFileURL(path.join(packageRoot, "dist", "index.js")).href)

/** Runs a script of its own as an ES module. */
async function script(source: string, options: CommandOptions = {}): Promise<Result> {
  return await runProgram(
    [process.execPath, "--no-warnings", "--input-type=module", "--eval", source],
    options,
  )
}

describe("the addon in a process", () => {
  const keys = testKeys()
  const folder = newFolder("native", userId)
  const rsa = path.join(folder, "rsa.sif")
  const both = path.join(folder, "both.sif")
  const open = (image: string, credentials: object): string =>
    `await open(${JSON.stringify(image)}, { unlock: ${JSON.stringify(credentials)} })`
  const rsaCredentials = [{ key: { file: keys.privateKey } }]

  before(async () => {
    await sifcryptOk(["build", "--pem-path", keys.publicKey, rsa, makeRootTree()])
    await sifcryptOk([
      "build",
      "--pem-path",
      keys.publicKey,
      "--passphrase-file",
      keys.passphraseFile,
      both,
      newFolder("empty-tree"),
    ])
  })

  it("keeps libcryptsetup's OpenSSL apart from Node's", async function () {
    const libc = process.report.getReport() as unknown as { header: { glibcVersionRuntime?: string } }
    if (libc.header.glibcVersionRuntime === undefined) skip(this, "only glibc has LD_DEBUG=bindings")
    const output = path.join(folder, "bindings")
    const result = await script(
      `import { open } from ${api}
       const image = ${open(rsa, rsaCredentials)}
       console.log((await image.readFile("/data/hello")).toString())`,
      // Not through setpriv, whose output would come first and be root's.
      { as: "self", env: { LD_DEBUG: "bindings", LD_DEBUG_OUTPUT: output } },
    )
    assert.equal(result.status, 0, result.stderr)
    assert.match(result.text, /hello/)
    const logs = readdirSync(folder).filter((name) => name.startsWith("bindings."))
    const text = logs.map((name) => readFileSync(path.join(folder, name), "latin1")).join("\n")
    for (const name of logs) rmSync(path.join(folder, name))
    const bound = new Map<string, Set<string>>()
    const line =
      /binding file \S*(libcryptsetup|libcrypto|libssl)\.so\.\S* \[\d+\] to (\S+) \[\d+\]: normal symbol `([^']+)'/g
    for (const [, from = "", to = "", symbol = ""] of text.matchAll(line)) {
      if (!/^(EVP|OPENSSL|CRYPTO|ERR|RAND|BN|ASN1|X509|OSSL|HMAC|PKCS5|BIO|EC|RSA|SSL)_/.test(symbol))
        continue
      const targets = bound.get(from) ?? new Set<string>()
      bound.set(from, targets.add(path.basename(to)))
    }
    assert.ok(bound.has("libcryptsetup"), "libcryptsetup was loaded and uses OpenSSL")
    for (const [from, targets] of bound)
      for (const target of targets)
        assert.match(target, /^lib(crypto|ssl|cryptsetup)\.so\./, `${from} took a symbol from ${target}`)
  })

  /** Of the passphrase's keyslot: MiB, and how often it goes through them. */
  const statedCost = async (): Promise<{ readonly memory: number; readonly passes: number }> => {
    const { text } = await sifcryptOk(["info", both])
    assert.match(text, /Keyslot 0: +pbkdf2, 1000 iterations/)
    const [, memory = "", passes = ""] = /Keyslot 1: +argon2id, ([0-9.]+) MiB, (\d+) passes/.exec(text) ?? []
    return { memory: Number(memory), passes: Number(passes) }
  }

  it("A12: opens an RSA image with less than 64 MiB", async () => {
    const measure = (image: string, credentials: object): Promise<Result> =>
      script(
        `import { readFileSync } from "node:fs"
         import { open } from ${api}
         const memory = (name) => Number(new RegExp(name + ":\\\\s*(\\\\d+) kB").exec(readFileSync("/proc/self/status", "utf8"))[1])
         const before = memory("VmRSS")
         const image = ${open(image, credentials)}
         console.log(JSON.stringify({ before, peak: memory("VmHWM") }))`,
      )
    const of = async (image: string, credentials: object): Promise<number> => {
      const { text, stderr } = await measure(image, credentials)
      assert.equal(stderr, "")
      const { before, peak } = JSON.parse(text) as { before: number; peak: number }
      return (peak - before) / 1024
    }
    const forRsa = await of(rsa, rsaCredentials)
    assert.ok(forRsa < 64, `opening with a key took ${forRsa.toFixed(0)} MiB`)
    const forPassphrase = await of(both, [{ passphrase: { file: keys.passphraseFile } }])
    const { memory } = await statedCost()
    assert.ok(
      forPassphrase > memory - 56 && forPassphrase < memory + 64,
      `a passphrase costs ${memory} MiB, not ${forPassphrase.toFixed(0)}`,
    )
  })

  it("A12: states the cost of both kinds of keyslot", async () => {
    const { memory, passes } = await statedCost()
    // Less memory where the machine has little that is free while it is made; never less work.
    assert.ok(memory <= 256 && memory * passes >= 4 * 256, `${passes} passes over ${memory} MiB`)
  })
})
