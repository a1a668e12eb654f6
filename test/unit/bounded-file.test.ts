// Whoever names a file may name a device or a pipe: neither memory nor time may go on it without end.
import assert from "node:assert/strict"
import { execFileSync, spawn } from "node:child_process"
import { writeFileSync, type Stats } from "node:fs"
import path from "node:path"
import { readBounded, readBoundedSync, TooLarge } from "../../lib/bounded-file.ts"
import { info } from "../../lib/encryption/certificate-files.ts"
import { readKeys } from "../../lib/container/keyring.ts"
import { readSecretFile } from "../../lib/encryption/secret-sources.ts"
import { readEnvFile } from "../../lib/runtime/env-file.ts"
import { readResources } from "../../lib/runtime/resources.ts"
import { readProfile } from "../../lib/runtime/seccomp.ts"
import { certifiedKey } from "../../lib/signing/certificate.ts"
import { readKeyring, readSignerKey } from "../../lib/signing/keys.ts"
import { readDefinition } from "../../lib/definition/definition-build.ts"
import { newFolder } from "../support/scratch.ts"
import { vector } from "../vectors/load.ts"

describe("readBounded", () => {
  let folder: string
  let pipe: string
  before(() => {
    folder = newFolder("bounded-file")
    pipe = path.join(folder, "pipe")
    execFileSync("mkfifo", [pipe])
  })

  it("reads a file of just the limit, and none of more", async () => {
    const file = path.join(folder, "file")
    for (const size of [0, 1, 4095, 4096, 4097]) {
      writeFileSync(file, Buffer.alloc(size, 7))
      if (size > 4096) {
        await assert.rejects(readBounded(file, 4096), TooLarge)
        assert.throws(() => readBoundedSync(file, 4096), TooLarge)
      } else {
        assert.equal((await readBounded(file, 4096)).length, size)
        assert.equal(readBoundedSync(file, 4096).length, size)
      }
    }
  })

  it("reads nothing of what its reader refuses", async () => {
    const file = path.join(folder, "refused")
    writeFileSync(file, "")
    const check = (info: Stats): void => {
      throw new Error(`no file of ${info.size} bytes`)
    }
    await assert.rejects(readBounded(file, 100, { check }), { message: "no file of 0 bytes" })
    // It would be waited for.
    await assert.rejects(readBounded(pipe, 100, { check }), { message: "no file of 0 bytes" })
  })

  it("reads what has no size of its own", async () => {
    assert.match((await readBounded("/proc/self/status", 1 << 16)).toString(), /^Name:/)
    assert.match(readBoundedSync("/proc/self/status", 1 << 16).toString(), /^Name:/)
  })

  it("reads a pipe whose writer comes late and writes in pieces", async () => {
    const writer = spawn("sh", ["-c", `exec >"$1"; printf a; sleep 0.1; printf b`, "sh", pipe])
    const ended = new Promise((resolve) => writer.once("close", resolve))
    assert.equal((await readBounded(pipe, 100)).toString(), "ab")
    await ended
  })

  it("lets go of a pipe that nobody writes to when it is told to", async () => {
    const controller = new AbortController()
    const reading = readBounded(pipe, 100, { signal: controller.signal })
    controller.abort(new Error("enough"))
    await assert.rejects(reading, /enough/)
  })

  const readers: readonly (readonly [string, (file: string) => unknown])[] = [
    ["a secret", (file) => readSecretFile(file, 1 << 20)],
    ["a signer's key", readSignerKey],
    ["a key ring", readKeyring],
    ["keys to import", readKeys],
    ["a signer's certificate", (certificate) => certifiedKey({ certificate })],
    ["the roots", (roots) => certifiedKey({ certificate: vector("certificates/ec-infinity.pem"), roots })],
    ["a certificate to tell of", info],
    ["a cgroups file", readResources],
    ["a seccomp profile", (file) => readProfile(file, [])],
    ["a file of variables", (file) => readEnvFile(file, {}, [])],
    ["arguments of a build", (buildArgumentFile) => readDefinition("/dev/null", { buildArgumentFile })],
  ]
  for (const [what, read] of readers)
    it(`ends with an error where ${what} is a device without an end`, async () => {
      await assert.rejects(async () => read("/dev/zero"), { code: /^ERR_/, message: /\/dev\/zero/ })
    })
})
