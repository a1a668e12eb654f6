import assert from "node:assert/strict"
import {
  chmodSync,
  chownSync,
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { execOptionTable, type ExecOptionRow, type ExecOptions } from "../../../lib/runtime/options.ts"
import {
  heldKeyNote,
  heldKeys,
  sharedFolder,
  sharingDigest,
  sharingSession,
} from "../../../lib/runtime/sharing.ts"
import type { StarterSource } from "../../../lib/runtime/starter-protocol.ts"
import { idOf, isRoot } from "../../support/cli.ts"
import { newFolder } from "../../support/scratch.ts"

describe("what payloads that share a container have in common", () => {
  const file = path.join(newFolder("sharing"), "image")
  writeFileSync(file, "image")
  const fd = openSync(file, "r")
  after(() => {
    closeSync(fd)
    rmSync(path.join(sharedFolder(), "secret"), { force: true })
  })
  const plain: StarterSource = { image: file, fd, offset: 0, size: 5, unlocked: undefined }
  const encrypted = (key: number): StarterSource => ({
    ...plain,
    unlocked: { dataKey: { bytes: Buffer.alloc(64, key) }, segment: undefined } as never,
  })
  const digest = (options: ExecOptions, source = plain, session = "s", composed: unknown[] = []): string =>
    sharingDigest(source, options, session, composed)

  it("is all that is asked for, but what concerns the command alone", () => {
    const base = digest({})
    assert.match(base, /^[0-9a-f]{64}$/)
    const alone = new Set(["sharens", "noSharens", "preserveFds"])
    for (const [key, [, , , more]] of Object.entries<ExecOptionRow>(execOptionTable)) {
      const isAlone = more?.joins === true || alone.has(key)
      assert.equal(digest({ [key]: "x" }) === base, isAlone, key)
    }
    const contents = ["one", "two"].map((text) => [{ path: "/x", content: Buffer.from(text) }])
    assert.equal(new Set([base, ...contents.map((files) => digest({ files }))]).size, 3)
    // Bytes are bytes, whatever they lie in.
    const [same = []] = contents.map((files) =>
      files.map((file) => ({ ...file, content: Uint8Array.from(file.content) })),
    )
    assert.equal(digest({ files: same }), digest({ files: contents[0] }))
    assert.equal(digest({ onNotice: () => undefined, stdio: "inherit", timeoutMs: 5 }), base)
  })

  it("is the image as it is now, the key that opens it, the session, and what comes of it", () => {
    const all = [
      digest({}),
      digest({}, { ...plain, offset: 4096 }),
      digest({}, encrypted(1)),
      digest({}, encrypted(2)),
      digest({}, plain, "t"),
      digest({}, plain, "s", [new Map([["a", 1]])]),
      digest({}, plain, "s", [new Map([["a", 2]])]),
    ]
    assert.equal(new Set(all).size, all.length)
    assert.equal(digest({}, encrypted(1)), digest({}, encrypted(1)))
    const before = digest({})
    utimesSync(file, 1, 1)
    assert.notEqual(digest({}), before)
  })

  it("is named under a secret of this user's where there is no key", () => {
    const secret = path.join(sharedFolder(), "secret")
    rmSync(secret, { force: true })
    const before = digest({})
    const { mode, size } = statSync(secret)
    assert.deepEqual([mode & 0o777, size], [0o600, 32])
    assert.equal(digest({}), before)
    // Another one, another name; that of an encrypted image is under its key.
    const named = digest({}, encrypted(1))
    writeFileSync(secret, Buffer.alloc(32, 1))
    assert.notEqual(digest({}), before)
    assert.equal(digest({}, encrypted(1)), named)
    for (const spoil of [
      () => {
        chmodSync(secret, 0o640)
      },
      () => {
        writeFileSync(secret, "short")
      },
    ]) {
      spoil()
      assert.throws(() => digest({}), { code: "ERR_INSTANCE_FOLDER" })
      rmSync(secret)
    }
    digest({})
    assert.deepEqual(
      readdirSync(sharedFolder()).filter((name) => name.startsWith("secret")),
      ["secret"],
    )
  })

  it("is nothing for what has to be alone", async () => {
    const sharens = true
    assert.equal(await sharingSession({}, []), undefined)
    assert.equal(await sharingSession({ sharens, noSharens: true }, []), undefined)
    assert.notEqual(await sharingSession({ sharens }, []), undefined)
    const image = { source: "/x", destination: "/x", readOnly: true, image: { path: "/", id: undefined } }
    for (const [options, places] of [
      [{ writable: true }, []],
      [{ overlay: ["x"] }, []],
      [{ memory: 1 << 20 }, []],
      [{ applyCgroups: "x" }, []],
      [{}, [image]],
    ] as const)
      await assert.rejects(sharingSession({ ...options, sharens }, places), { code: "ERR_RUN_OPTION" })
  })

  it("is looked for in vain where the folder cannot be listed", () => {
    const uid = isRoot ? idOf("nobody") : (process.geteuid?.() ?? 0)
    const runtime = newFolder("unlisted", uid)
    for (const name of ["sifcrypt", "sifcrypt/shared"]) {
      mkdirSync(path.join(runtime, name), { mode: 0o700 })
      chownSync(path.join(runtime, name), uid, uid)
    }
    const shared = path.join(runtime, "sifcrypt", "shared")
    chmodSync(shared, 0o300)
    const { XDG_RUNTIME_DIR: before } = process.env
    process.env["XDG_RUNTIME_DIR"] = runtime
    if (isRoot) process.seteuid?.(uid)
    try {
      assert.throws(() => readdirSync(shared), { code: "EACCES" })
      assert.equal(heldKeys(), undefined)
    } finally {
      if (isRoot) process.seteuid?.(0)
      if (before === undefined) delete process.env["XDG_RUNTIME_DIR"]
      else process.env["XDG_RUNTIME_DIR"] = before
      chmodSync(shared, 0o700)
    }
  })

  it("is held in a small file that is no kernel's, whatever a note says", () => {
    const folder = newFolder("held")
    const place = (name: string, size: number): string => {
      writeFileSync(path.join(folder, name), Buffer.alloc(size, "k"))
      return path.join(folder, name)
    }
    const find = (held: string): Uint8Array | undefined => {
      const there = openSync(held, "r")
      const note = path.join(sharedFolder(), `${process.pid}.lock`)
      try {
        writeFileSync(note, heldKeyNote("one", process.pid, there))
        return heldKeys()?.("one")
      } finally {
        rmSync(note, { force: true })
        closeSync(there)
      }
    }
    assert.deepEqual(find(place("small", 92)), Buffer.alloc(92, "k"))
    // What the kernel makes up has no size, and may have no end.
    for (const other of ["/proc/self/status", "/dev/zero", folder, place("large", 5000), place("empty", 0)])
      assert.equal(find(other), undefined, other)
  })
})
