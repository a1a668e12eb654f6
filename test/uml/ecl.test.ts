// The execution control list and verified images with the kernel engine, as root.
import assert from "node:assert/strict"
import { copyFileSync, openSync, closeSync, writeSync } from "node:fs"
import path from "node:path"
import { ContainerError, open, sif } from "../../lib/index.ts"
import { sifcrypt, sifcryptOk, type Result } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { eclText, withSystemFiles } from "../support/policy.ts"
import { newFolder } from "../support/scratch.ts"
import { assertSettles, buildImage, kernelState, mountPoint, needsDeviceMapper } from "./guest.ts"

describe("the execution control list, kernel engine", function () {
  const images = newFolder("images")
  const env = { SIFCRYPT_KEYSDIR: path.join(newFolder("ring"), "keys") }
  const key = testKeys().privateKey
  const signed = path.join(images, "signed.sif")
  const unsigned = path.join(images, "unsigned.sif")
  let signer: string
  let stranger: string
  let ring: Buffer

  before(async function () {
    needsDeviceMapper(this)
    const pair = async (name: string): Promise<string> => {
      const args = ["-N", name, "-E", `${name}@example.org`, "--type", "ed25519", "-P", "", "--json"]
      const made = await sifcryptOk(["key", "newpair", ...args], { env, as: "self" })
      return (JSON.parse(made.text) as { fingerprint: string }).fingerprint
    }
    signer = await pair("ann")
    stranger = await pair("eve")
    ring = (await sifcryptOk(["key", "export", "-k", signer, "-"], { env, as: "self" })).stdout
    copyFileSync(await buildImage(["rsa"]), unsigned)
    copyFileSync(unsigned, signed)
    await sifcryptOk(["sign", "-k", signer, signed], { env, as: "self" })
  })

  function under(text: string, args: readonly string[]): Promise<Result> {
    const wrapper = withSystemFiles({
      "sifcrypt/ecl.toml": { text },
      "sifcrypt/global-pgp-public": { text: ring },
    })
    return sifcrypt(args, { wrapper, as: "self", cwd: "/" })
  }

  const run = (file: string): readonly string[] => [
    "exec",
    "--engine",
    "kernel",
    "--pem-path",
    key,
    file,
    "cat",
    "/data/hello",
  ]
  const list = (mode: string, ...signers: readonly string[]): string =>
    eclText([{ mode, folder: images, signers }])

  it("S3: runs what each mode allows", async () => {
    const before = kernelState()
    for (const text of [
      list("whitelist", stranger, signer),
      list("whitestrict", signer),
      list("blacklist", stranger),
    ]) {
      const result = await under(text, run(signed))
      assert.equal(result.status, 0, result.stderr)
      assert.equal(result.text, "hello\n")
    }
    await assertSettles(before)
  })

  it("S3: refuses what each mode does not, before a loop device or a mapping is there", async () => {
    const before = kernelState()
    for (const [text, file, message] of [
      [list("whitelist", stranger), signed, /none of the listed/],
      [list("whitestrict", signer, stranger), signed, /did not sign/],
      [list("blacklist", signer), signed, /signed it/],
      [list("whitelist", signer), unsigned, /no signature/],
      [list("whitelist", signer).replace(images, "/srv"), signed, /in no execgroup/],
      ["activated = tru", signed, /no valid TOML/],
    ] as const) {
      const options = ["--engine", "kernel", "--pem-path", "/nonexistent"]
      const result = await under(text, ["mount", ...options, file, mountPoint()])
      assert.equal(result.status, 26, result.stderr)
      assert.match(result.stderr, message)
    }
    assert.deepEqual(kernelState(), before)
  })

  it("S3: a verified image that is written to while it is mounted is taken back, mapping and all", async () => {
    const file = path.join(images, "written.sif")
    copyFileSync(signed, file)
    await using parsed = await sif.openSif(file)
    const { offset, size } = parsed.primary()
    const before = kernelState()
    const image = await open(file, {
      unlock: [{ key: { file: key } }],
      verify: { keyringPaths: [path.join(env.SIFCRYPT_KEYSDIR, "pgp-public")], require: [signer] },
    })
    try {
      const mounting = image.mount(mountPoint(), { engine: "kernel" })
      queueMicrotask(() => {
        const fd = openSync(file, "r+")
        writeSync(fd, Buffer.from([0x5a]), 0, 1, offset + size - 5000)
        closeSync(fd)
      })
      await assert.rejects(
        mounting,
        (error: unknown) => error instanceof ContainerError && error.code === "ERR_SIGNATURE_CHANGED",
      )
    } finally {
      await image.close()
    }
    await assertSettles(before)
  })
})
