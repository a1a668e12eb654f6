// What is verified is what runs: the file is swapped or written to at any time between the verification and the start.
import assert from "node:assert/strict"
import { generateKeyPairSync } from "node:crypto"
import {
  chmodSync,
  closeSync,
  copyFileSync,
  existsSync,
  linkSync,
  openSync,
  readFileSync,
  renameSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from "node:fs"
import path from "node:path"
import {
  addRecipients,
  build,
  ContainerError,
  decrypt,
  listInstances,
  listMounts,
  open,
  sif,
  view,
  type Image,
  type ViewOptions,
} from "../../lib/index.ts"
import { sifcrypt, sifcryptOk } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { signDsse } from "../support/signing.ts"
import { typing } from "../support/terminal.ts"
import { makeRootTree } from "../support/trees.ts"

type CopiedOptions = Required<Pick<ViewOptions, "image" | "verify" | "unlock">>

describe("an image that was verified", () => {
  const keys = testKeys()
  const signer = generateKeyPairSync("ed25519")
  const folder = newFolder("vouched")
  const signerFile = path.join(folder, "signer.pem")
  let signed: string
  let other: string
  /** A byte of its ciphertext. */
  let place: number

  before(async () => {
    writeFileSync(signerFile, signer.publicKey.export({ type: "spki", format: "pem" }))
    const make = async (name: string, text: string): Promise<string> => {
      const tree = makeRootTree()
      writeFileSync(path.join(tree, "data", "hello"), text)
      const file = path.join(folder, name)
      await sifcryptOk(["build", "--pem-path", keys.publicKey, file, tree], { as: "self" })
      return file
    }
    signed = await make("signed.sif", "hello\n")
    await signDsse(signed, signer.privateKey, [1, 2])
    other = await make("other.sif", "evil\n")
    await using image = await sif.openSif(signed)
    const partition = image.primary()
    place = partition.offset + partition.size - 5000
  })

  function copyOf(): string {
    const file = path.join(newFolder("copy"), "image.sif")
    copyFileSync(signed, file)
    return file
  }

  function writeInto(file: string): void {
    const fd = openSync(file, "r+")
    const [old = 0] = readFileSync(file).subarray(place, place + 1)
    writeSync(fd, Buffer.from([old ^ 1]), 0, 1, place)
    closeSync(fd)
  }

  function opened(file: string, onProgress: () => void = () => undefined): Promise<Image> {
    return open(file, {
      unlock: [{ key: { file: keys.privateKey } }],
      verify: { keys: [signer.publicKey], onProgress },
    })
  }

  function isChanged(error: unknown): boolean {
    return error instanceof ContainerError && error.code === "ERR_SIGNATURE_CHANGED"
  }

  async function says(image: Image): Promise<string> {
    await using running = await image.exec(["cat", "/data/hello"], { engine: "userspace" })
    const chunks: Buffer[] = []
    for await (const chunk of running.stdout as AsyncIterable<Buffer>) chunks.push(chunk)
    assert.equal((await running.exited).exitCode, 0)
    return Buffer.concat(chunks).toString()
  }

  it("S2: is not opened where only other objects of it are to be verified", async () => {
    const known = [signer.publicKey]
    let beside: number
    {
      await using image = await sif.openSif(signed)
      beside = image.primary().id === 1 ? 2 : 1
    }
    const verify = { keys: known, objects: [beside] }
    await assert.rejects(open(signed, { verify }), { code: "ERR_SIGNATURE_MISSING" })
    await assert.rejects(open(other, { verify: { keys: known, groups: [] } }), {
      code: "ERR_SIGNATURE_MISSING",
    })
  })

  it("S3: another file under its name, at any time, changes nothing of what runs", async () => {
    for (const when of ["while it is verified", "before it starts"]) {
      const file = copyOf()
      const swap = (): void => {
        copyFileSync(other, `${file}.new`)
        renameSync(`${file}.new`, file)
      }
      const early = when === "while it is verified"
      let swaps = early ? 0 : 1
      await using image = await opened(file, () => {
        if (swaps++ === 0) swap()
      })
      if (!early) swap()
      assert.equal(await says(image), "hello\n", when)
    }
  })

  for (const [what, write] of [
    ["one byte is written", writeInto],
    [
      "it is cut",
      (file: string): void => {
        truncateSync(file, statSync(file).size - 1)
      },
    ],
    [
      "the same bytes are written again",
      (file: string): void => {
        writeFileSync(file, readFileSync(file))
      },
    ],
  ] as const) {
    it(`S3: is refused when ${what} while it is verified`, async () => {
      const file = copyOf()
      let written = false
      await assert.rejects(
        async () => {
          const image = await opened(file, () => {
            if (!written) write(file)
            written = true
          })
          await image.close()
        },
        (error: unknown) => {
          // Whichever is noticed first: other data, or that it was written to.
          assert.ok(error instanceof ContainerError)
          assert.match(error.code, /^ERR_(?:SIGNATURE_(?:CHANGED|INVALID)|SIF_TRUNCATED)$/)
          return true
        },
      )
      assert.ok(written)
    })

    it(`S3: is not started when ${what} after it was verified`, async () => {
      const file = copyOf()
      await using image = await opened(file)
      write(file)
      await assert.rejects(image.exec(["cat", "/data/hello"]), isChanged)
      const target = newFolder("mnt")
      await assert.rejects(image.mount(target, { engine: "userspace" }), isChanged)
      assert.deepEqual(
        (await listMounts()).filter((mount) => mount.target === target),
        [],
      )
    })
  }

  it("S3: a write whose modification time is set back is found by verifying again", async () => {
    const file = copyOf()
    await using image = await opened(file)
    const { atime, mtime } = statSync(file)
    const times = statSync(file, { bigint: true })
    writeInto(file)
    utimesSync(file, atime, mtime)
    // Times of whole seconds can be restored exactly; others show by themselves.
    const exact = statSync(file, { bigint: true }).mtimeNs === times.mtimeNs
    await assert.rejects(image.exec(["cat", "/data/hello"]), (error: unknown) => {
      assert.ok(error instanceof ContainerError)
      assert.equal(error.code, exact ? "ERR_SIGNATURE_INVALID" : "ERR_SIGNATURE_CHANGED")
      return true
    })
  })

  it("S3: and with times of whole seconds, which can be restored exactly", async () => {
    const file = copyOf()
    const moment = new Date(1_700_000_000_000)
    utimesSync(file, moment, moment)
    await using image = await opened(file)
    writeInto(file)
    utimesSync(file, moment, moment)
    await assert.rejects(
      image.exec(["cat", "/data/hello"]),
      (error: unknown) => error instanceof ContainerError && error.code === "ERR_SIGNATURE_INVALID",
    )
  })

  it("S3: a mount whose file is written to while it is made is taken back", async () => {
    const file = copyOf()
    await using image = await opened(file)
    const target = newFolder("mnt")
    const mounting = image.mount(target, { engine: "userspace" })
    // The first look at the file is over; the server has yet to be started.
    queueMicrotask(() => {
      writeInto(file)
    })
    await assert.rejects(mounting, isChanged)
    assert.deepEqual(
      (await listMounts()).filter((mount) => mount.target === target),
      [],
    )
  })

  it("S3: one that is written to after it was verified is neither shown nor copied", async () => {
    const target = newFolder("mnt")
    const output = path.join(newFolder("copied"), "plain.sif")
    const verify = { keys: [signer.publicKey] }
    for (const make of [
      (options: CopiedOptions) => view({ ...options, target }),
      (options: CopiedOptions) => decrypt({ ...options, output }),
    ]) {
      const image = copyOf()
      const ask = (): Promise<Buffer> => {
        writeInto(image)
        return Promise.resolve(readFileSync(keys.privateKey))
      }
      await assert.rejects(make({ image, verify, unlock: [{ key: { ask } }] }), isChanged)
    }
    assert.deepEqual(
      (await listMounts()).filter((mount) => mount.target === target),
      [],
    )
    assert.equal(existsSync(output), false)
  })

  it("S3: a write that is taken back with its times, while the image is read, is found all the same", async () => {
    const moment = new Date(1_700_000_000_000)
    const unnoticed = (file: string): void => {
      writeInto(file)
      writeInto(file)
      utimesSync(file, moment, moment)
    }
    const quiet = (): string => {
      const file = copyOf()
      utimesSync(file, moment, moment)
      return file
    }
    const started = quiet()
    await using image = await opened(started)
    const target = newFolder("mnt")
    const mounting = image.mount(target, { engine: "userspace" })
    queueMicrotask(() => {
      unnoticed(started)
    })
    await assert.rejects(mounting, isChanged)
    assert.deepEqual(
      (await listMounts()).filter((mount) => mount.target === target),
      [],
    )
    const copied = quiet()
    const output = path.join(newFolder("copied"), "plain.sif")
    const ask = (): Promise<Buffer> => {
      unnoticed(copied)
      return Promise.resolve(readFileSync(keys.privateKey))
    }
    const verify = { keys: [signer.publicKey] }
    await assert.rejects(decrypt({ image: copied, verify, unlock: [{ key: { ask } }], output }), isChanged)
    assert.equal(existsSync(output), false)
    const recipients = [{ key: { file: keys.otherPrivateKey } }]
    await assert.rejects(addRecipients(copied, { verify, unlock: [{ key: { ask } }], recipients }), isChanged)
  })

  it("S3: nor is anything built of it: no script of a definition runs in such a base", async () => {
    const place = newFolder("based")
    const source = path.join(place, "image.def")
    const output = path.join(place, "output.sif")
    const name = (await signerName()) ?? ""
    for (const isWritten of [true, false]) {
      const image = copyOf()
      writeFileSync(source, `Bootstrap: localimage\nFrom: ${image}\nFingerprints: ${name}\n%post\necho ran\n`)
      const ask = (): Promise<Buffer> => {
        if (isWritten) writeInto(image)
        return Promise.resolve(readFileSync(keys.privateKey))
      }
      const steps: string[] = []
      const building = build({
        ...{ source, output, fingerprintKeys: { keys: [signer.publicKey] }, unlock: [{ key: { ask } }] },
        onStep: (step) => steps.push(step),
      })
      if (isWritten) await assert.rejects(building, isChanged)
      else await building
      assert.equal(steps.includes("running %post"), !isWritten)
      assert.equal(existsSync(output), !isWritten)
    }
  })

  it("S3: so is an instance, and one whose file was written to before does not start", async () => {
    const name = `vouched-${process.pid}`
    for (const when of ["before", "while it starts"]) {
      const file = copyOf()
      await using image = await opened(file)
      if (when === "before") writeInto(file)
      const starting = image.startInstance(name, [], { engine: "userspace" })
      if (when !== "before")
        queueMicrotask(() => {
          writeInto(file)
        })
      await assert.rejects(starting, isChanged, when)
      const running = (await listInstances()).filter((instance) => instance.name === name)
      for (const instance of running) await instance.stop({ signal: "SIGKILL" })
      assert.deepEqual(running, [], when)
    }
    const credentials = [{ key: { file: keys.privateKey } }]
    await using read = await open(signed, { unlock: credentials, purpose: "read" })
    await assert.rejects(read.startInstance(name), /opened for reading only/)
  })

  it("a change of its name, links or mode is no change of its content", async () => {
    const file = copyOf()
    await using image = await opened(file)
    linkSync(file, `${file}.link`)
    renameSync(file, `${file}.renamed`)
    chmodSync(`${file}.renamed`, 0o400)
    assert.equal(await says(image), "hello\n")
  })

  it("A25: a signer is demanded as --verify=FINGERPRINT, and what stands behind the image is the payload's", async () => {
    const name = (await signerName()) ?? ""
    const args = ["--signer-key", signerFile, "--pem-path", keys.privateKey]
    const good = await sifcryptOk(["exec", `--verify=${name}`, ...args, signed, "echo", "--verify=x"], {
      as: "self",
    })
    assert.equal(good.text, "--verify=x\n")
    const target = newFolder("mnt")
    const stranger = `SHA256:${"A".repeat(43)}`
    for (const command of [
      ["exec", `--verify=${stranger}`, ...args, signed, "echo"],
      ["run", `--verify=${stranger}`, ...args, signed],
      ["shell", `--verify=${stranger}`, ...args, signed],
      ["mount", ...args, signed, target, `--verify=${stranger}`],
      ["exec", "--require-signer", `${name},${stranger}`, ...args, signed, "echo"],
    ]) {
      const result = await sifcrypt(command, { as: "self" })
      assert.equal(result.status, 26, result.stderr)
      assert.match(result.stderr, /no good signature by SHA256:A{43}/)
    }
  })

  it("A25: a signer is demanded of what another image is made of, before anything is written", async () => {
    const name = (await signerName()) ?? ""
    const stranger = `SHA256:${"A".repeat(43)}`
    const output = path.join(newFolder("built"), "output.sif")
    const from = [
      "--signer-key",
      signerFile,
      "--pem-path",
      keys.publicKey,
      "--source-pem-path",
      keys.privateKey,
    ]
    const refused = await sifcrypt(["build", `--verify=${stranger}`, ...from, output, signed], { as: "self" })
    assert.equal(refused.status, 26, refused.stderr)
    const plain = path.join(newFolder("plain"), "plain.sif")
    await sifcryptOk(["decrypt", "--pem-path", keys.privateKey, signed, plain], { as: "self" })
    const unsigned = ["encrypt", `--verify=${name}`, "--signer-key", signerFile, "--pem-path", keys.publicKey]
    assert.equal((await sifcrypt([...unsigned, plain, output], { as: "self" })).status, 26)
    const folderSource = await sifcrypt(["build", "--verify", output, makeRootTree()], { as: "self" })
    assert.equal(folderSource.status, 25, folderSource.stderr)
    assert.match(folderSource.stderr, /is a folder, which nobody signs: it cannot be verified/)
    assert.ok(!existsSync(output))
    await sifcryptOk(["build", `--verify=${name}`, ...from, output, signed], { as: "self" })
    assert.ok(existsSync(output))
  })

  it("A25: the signer is looked at before anybody is asked for a key", async () => {
    const stranger = `SHA256:${"A".repeat(43)}`
    const args = ["exec", `--verify=${stranger}`, "--signer-key", signerFile, "--passphrase", signed, "echo"]
    const result = await sifcrypt(args, { as: "self", ...typing("secret") })
    assert.equal(result.status, 26)
    assert.doesNotMatch(result.text, /Enter encryption passphrase/)
  })

  async function signerName(): Promise<string | undefined> {
    const result = await sifcryptOk(["verify", "--json", "--key", signerFile, signed], { as: "self" })
    return (JSON.parse(result.text) as { signers: string[] }).signers[0]
  }
})
