// Images that were cut or changed, disks that are full or may not be written, and what of the plain text gets to a disk.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { randomBytes } from "node:crypto"
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  truncateSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import {
  finish,
  isRoot,
  packageRoot,
  runProgram,
  sifcrypt,
  sifcryptOk,
  startProgram,
  startSifcrypt,
  userId,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { seeded } from "../support/random.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

const random = seeded()

describe("a damaged image", () => {
  const keys = testKeys()
  const folder = newFolder("damage", userId)
  const credentials = ["--pem-path", keys.privateKey]
  const images = {
    encrypted: path.join(folder, "encrypted.sif"),
    gocryptfs: path.join(folder, "gocryptfs.sif"),
    plain: path.join(folder, "plain.sif"),
  }
  const tree = makeRootTree()

  before(async () => {
    await sifcryptOk(["build", "--pem-path", keys.publicKey, images.encrypted, tree])
    await sifcryptOk(["build", "--format", "gocryptfs", "--pem-path", keys.publicKey, images.gocryptfs, tree])
    await sifcryptOk(["build", images.plain, tree])
  })

  function copyOf(image: string, name: string): { file: string; bytes: Buffer } {
    const bytes = readFileSync(image)
    return { file: path.join(folder, name), bytes }
  }

  for (const kind of ["encrypted", "gocryptfs", "plain"] as const)
    it(`A16: ${kind}, cut off anywhere, is an error that gives both sizes`, async function () {
      this.timeout(60_000)
      const { file, bytes } = copyOf(images[kind], `cut-${kind}.sif`)
      const size = bytes.length
      const offsets = [
        0,
        1,
        31,
        32,
        127,
        128,
        4095,
        4096,
        32_768,
        40_000,
        size >> 2,
        size >> 1,
        size - 4096,
        size - 1,
      ]
      const commands = [["sif", "list"], ["info"], ["ls", ...credentials], ["cat", ...credentials]]
      for (const [index, offset] of offsets.entries()) {
        writeFileSync(file, bytes)
        truncateSync(file, offset)
        const command = commands[index % commands.length]!
        const args = [...command, file, ...(command[0] === "cat" ? ["/bin/busybox"] : [])]
        const result = await sifcrypt(args, { timeoutMs: 20_000 })
        assert.equal(result.status, 21, `${args.join(" ")} at ${offset}: ${result.stderr}`)
        assert.equal(result.text, "")
        assert.ok(result.stderr.includes(file))
        if (offset > 33_000) assert.ok(result.stderr.includes(String(offset)), result.stderr)
      }
    })

  it("S6: with any byte changed is read, or refused, and never crashes", async function () {
    this.timeout(60_000)
    const { file, bytes } = copyOf(images.plain, "changed.sif")
    const start = 4096
    const end = bytes.length
    for (let i = 0; i < 40; i++) {
      const changed = Buffer.from(bytes)
      // The superblock and the tables at the end, where the structure is.
      const at = i % 2 === 0 ? start + random(96) : end - 1 - random(2000)
      changed[at] = randomBytes(1)[0]!
      writeFileSync(file, changed)
      const target = newFolder("changed", userId)
      const result = await sifcrypt(["extract", file, target], { timeoutMs: 20_000 })
      assert.equal(result.signal, null, `offset ${at}`)
      assert.ok([0, 21, 25].includes(result.status ?? -1), `offset ${at}: ${result.stderr}`)
    }
  })

  it("A16: encrypted with gocryptfs, whose data was changed, is no wrong key, and EIO where it is mounted", async () => {
    const { file, bytes } = copyOf(images.gocryptfs, "bad-block.sif")
    // In the middle of the partition: in a file, which is larger than all the rest.
    bytes[bytes.length >> 1]! ^= 1
    writeFileSync(file, bytes)
    const target = newFolder("bad-block", userId)
    const extracted = await sifcrypt(["extract", ...credentials, file, target])
    assert.equal(extracted.status, 21, extracted.stderr)
    assert.match(
      extracted.stderr,
      /bad-block\.sif: the encrypted data was changed: .*block \d+ is not authentic/,
    )
    // Whether the program itself or what it reads is damaged: it fails, and the block is told of once.
    const ran = await sifcrypt([
      "exec",
      "--engine",
      "userspace",
      ...credentials,
      file,
      ...["/bin/busybox", "md5sum", "/bin/busybox"],
    ])
    assert.notEqual(ran.status, 0)
    assert.equal(
      ran.stderr.match(/^sifcrypt: encrypted block \d+ is not authentic$/gm)?.length,
      1,
      ran.stderr,
    )
    const mountPoint = newFolder("bad-block-mount", 65534)
    const user = { as: "nobody" } as const
    await sifcryptOk(["mount", "--engine", "userspace", ...credentials, file, mountPoint], user)
    try {
      const read = await runProgram(["cat", path.join(mountPoint, "bin", "busybox")], user)
      assert.equal(read.status, 1)
      assert.match(read.stderr, /Input\/output error/)
      assert.equal((await runProgram(["cat", path.join(mountPoint, "data", "hello")], user)).text, "hello\n")
    } finally {
      await sifcryptOk(["unmount", mountPoint], user)
    }
    bytes[bytes.length >> 1]! ^= 1

    // The first block holds the superblock: nothing starts.
    const outer = path.join(folder, "outer.sqfs")
    writeFileSync(outer, bytes.subarray(bytes.indexOf("hsqs", 0, "latin1")))
    const name =
      /squashfs-\d+$/m.exec(execFileSync("unsquashfs", ["-l", outer], { encoding: "utf8" }))?.[0] ?? ""
    const ciphertext = execFileSync("unsquashfs", ["-cat", outer, name], { maxBuffer: 1 << 26 })
    bytes[bytes.indexOf(ciphertext.subarray(0, 64)) + 40]! ^= 1
    writeFileSync(file, bytes)
    for (const command of [
      ["ls", ...credentials, file],
      ["exec", ...credentials, file, "true"],
    ]) {
      const result = await sifcrypt(command)
      assert.equal(result.status, 21, result.stderr)
      assert.match(result.stderr, /block 0 is not authentic/)
      assert.doesNotMatch(result.stderr, /wrong (key|passphrase)|not encrypted for/)
    }
  })

  it("A16: whose data was changed is no wrong key", async () => {
    const { file, bytes } = copyOf(images.encrypted, "bad-data.sif")
    // The superblock is in the first sector after the header of 4 MiB, which starts at a page.
    const header = bytes.indexOf("LUKS\xba\xbe", 0, "latin1")
    bytes[header + (4 << 20) + 10]! ^= 1
    writeFileSync(file, bytes)
    for (const command of [["ls"], ["exec", "--engine", "userspace"]]) {
      const [name = "", ...flags] = command
      const result = await sifcrypt([
        name,
        ...flags,
        ...credentials,
        file,
        ...(name === "exec" ? ["true"] : []),
      ])
      assert.equal(result.status, 21, result.stderr)
      assert.match(result.stderr, /bad-data\.sif/)
      assert.doesNotMatch(result.stderr, /wrong (key|passphrase)|not encrypted for/)
    }
  })
})

describe("A8: a disk", () => {
  const keys = testKeys()
  const tree = newFolder("large-tree")
  const mounts: string[] = []

  before(function () {
    if (!isRoot) skip(this, "needs root, to mount small file systems")
    for (let i = 0; i < 8; i++) writeFileSync(path.join(tree, `random-${i}`), randomBytes(4 << 20))
  })

  after(() => {
    for (const mount of mounts) execFileSync("umount", ["-l", mount])
  })

  function mountTmpfs(options: string): string {
    const place = newFolder("disk")
    execFileSync("mount", ["-t", "tmpfs", "-o", options, "tmpfs", place])
    mounts.push(place)
    return place
  }

  it("that is full fails the build, and nothing is left", async () => {
    const place = mountTmpfs("size=16m,mode=777")
    const image = path.join(place, "image.sif")
    const result = await sifcrypt(["build", "--pem-path", keys.publicKey, image, tree])
    assert.equal(result.status, 25)
    const full = new RegExp(
      `cannot write .*image\\.sif: no space left on the device\\n.*hint: \`df -h ${place}\``,
    )
    assert.match(result.stderr, full)
    assert.deepEqual(readdirSync(place), [])
    assert.match(execFileSync("df", ["--output=used", place], { encoding: "utf8" }), /\n\s*0\n$/)
  })

  it("that is full keeps the image that was to be replaced", async () => {
    const place = mountTmpfs("size=16m,mode=777")
    const image = path.join(place, "image.sif")
    writeFileSync(image, "previous", { mode: 0o666 })
    const result = await sifcrypt(["build", "-F", image, tree])
    assert.equal(result.status, 25)
    assert.equal(readFileSync(image, "utf8"), "previous")
    assert.deepEqual(readdirSync(place), ["image.sif"])
  })

  it("that is full fails an extraction", async () => {
    const image = path.join(newFolder("to-extract", userId), "image.sif")
    await sifcryptOk(["build", image, tree])
    const result = await sifcrypt(["extract", image, mountTmpfs("size=16m,mode=777")])
    assert.equal(result.status, 25)
    assert.match(result.stderr, /No space left|no space left/)
  })

  it("that holds the build's root in plain, and is full, has no advice to do that", async () => {
    const definition = path.join(newFolder("to-define", userId), "image.def")
    writeFileSync(
      definition,
      "Bootstrap: scratch\n\n%setup\n    head -c 32m /dev/zero >$APPTAINER_ROOTFS/large\n",
    )
    const place = mountTmpfs("size=16m,mode=777")
    const words = ["build", "--plain-tmp", "--tmpdir", place, `${definition}.sif`, definition]
    const { stderr } = await sifcrypt(words)
    assert.match(stderr, /hint: --tmpdir DIR names a folder with more room\n$/)
  })

  it("that is read-only fails the build before it starts", async () => {
    const place = mountTmpfs("ro")
    const result = await sifcrypt(["build", path.join(place, "image.sif"), tree], { as: "self" })
    assert.equal(result.status, 25)
    assert.match(result.stderr, /the file system is read-only/)
  })

  it("without room for files of any size limit fails the build", async () => {
    const place = newFolder("limit", userId)
    const wrapper = ["sh", "-c", 'ulimit -f 20000; exec "$@"', "sh"]
    const result = await sifcrypt(["build", path.join(place, "image.sif"), tree], { wrapper })
    assert.equal(result.status, 24, `${String(result.signal)} ${result.stderr}`)
    assert.match(result.stderr, /the file would be too large\n.*hint: `ulimit -f`/)
    assert.deepEqual(readdirSync(place), [])
  })
})

describe("a limit of the process, or of who runs it", () => {
  const keys = testKeys()
  const folder = newFolder("limits", userId)
  const image = path.join(folder, "image.sif")
  const tree = makeRootTree()
  const under = (limit: string): { readonly wrapper: readonly string[] } => ({
    wrapper: ["sh", "-c", `ulimit ${limit}; exec "$@"`, "sh"],
  })
  const opening = ["ls", "--pem-path", keys.privateKey, image]
  const building = ["build", "-F", "--pem-path", keys.publicKey, path.join(folder, "other.sif"), tree]

  before(async () => {
    await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree])
  })

  it("is not the image's fault", async () => {
    for (const [words, limit, option] of [
      [opening, "-n 19", "-n"],
      [opening, "-n 22", "-n"],
      [opening, "-f 100", "-f"],
      [building, "-n 22", "-n"],
      [building, "-f 100", "-f"],
    ] as const) {
      const { status, stderr } = await sifcrypt(words, under(limit))
      assert.equal(status, 24, `${limit}: ${stderr}`)
      assert.match(
        stderr,
        new RegExp(`^sifcrypt: [^\\n]+\\nsifcrypt: hint: \`ulimit ${option}\` [^\\n]+\\n$`),
        limit,
      )
    }
  })

  it("ends the worker of a build in a sentence", async () => {
    const worker = path.join(packageRoot, "dist", "definition", "workspace-start.js")
    const { text, stderr } = await finish(
      startProgram([process.execPath, worker, "1", "0"], { as: "self", ...under("-n 26") }),
    )
    assert.match(text, /ERR_ENV_LIMIT.*the workspace of the build did not start: .*\(ulimit -n\)/s)
    assert.equal(stderr, "")
  })

  it("that a build's files meet is named", async () => {
    const base = path.join(folder, "plain.sif")
    const definition = path.join(folder, "image.def")
    await sifcryptOk(["build", base, tree])
    writeFileSync(definition, `Bootstrap: localimage\nFrom: ${base}\n`)
    const words = ["build", "-F", path.join(folder, "other.sif"), definition]
    const { status, stderr } = await sifcrypt(words, under("-f 4"))
    assert.equal(status, 24, stderr)
    assert.match(stderr, /hint: `ulimit -f`/)
  })

  it("that only who has a name may mount is told to who has none", async function () {
    if (!isRoot) return skip(this, "needs root, to be a user that passwd does not know")
    const target = newFolder("nameless", 3457)
    const key = path.join(newFolder("nameless-key", 3457), "key.pem")
    writeFileSync(key, readFileSync(keys.privateKey), { mode: 0o644 })
    const wrapper = ["setpriv", "--reuid=3457", "--regid=3457", "--clear-groups"]
    const { status, stderr } = await sifcrypt(["mount", "--pem-path", key, image, target], {
      as: "self",
      wrapper,
    })
    assert.equal(status, 24, stderr)
    assert.match(stderr, /uid 3457 has no entry in passwd\n.*hint: ask the administrator for an entry/)
  })
})

describe("A18: the plain text of a tree", () => {
  const keys = testKeys()
  const markers = Array.from({ length: 8 }, () => randomBytes(32))

  function search(disk: string): number {
    const fd = openSync(disk, "r")
    const piece = Buffer.alloc(4 << 20)
    const overlap = 64
    let found = 0
    try {
      for (let at = 0; ; at += piece.length - overlap) {
        const length = readSync(fd, piece, 0, piece.length, at)
        found += markers.filter((marker) => piece.subarray(0, length).includes(marker)).length
        if (length < piece.length) return found
      }
    } finally {
      closeSync(fd)
    }
  }

  it("gets to no disk while an image is built, nor after it", async function () {
    if (!isRoot) skip(this, "needs root, to make a file system whose raw bytes can be searched")
    const disk = path.join(newFolder("disk-image"), "disk")
    execFileSync("truncate", ["-s", "96M", disk])
    execFileSync("mkfs.ext4", ["-q", "-F", "-E", "lazy_itable_init=0,nodiscard", disk])
    const place = newFolder("searched")
    try {
      execFileSync("mount", ["-o", "loop", disk, place], { stdio: "pipe" })
    } catch {
      return skip(this, "this kernel or container mounts no file by a loop device")
    }
    try {
      const source = newFolder("marked-tree")
      for (const [index, marker] of markers.entries()) {
        // What does not compress is found as it is, compressed or not.
        const content = Buffer.concat([marker, randomBytes(3 << 20), marker])
        writeFileSync(path.join(source, `file-${index}`), content)
      }
      for (const folder of ["home", "tmp", "out"]) mkdirSync(path.join(place, folder), { mode: 0o777 })
      execFileSync("chmod", ["777", ...["home", "tmp", "out"].map((name) => path.join(place, name))])
      const env = { TMPDIR: path.join(place, "tmp"), HOME: path.join(place, "home") }
      const plain = path.join(place, "out", "plain.sif")
      await sifcryptOk(["build", plain, source], { env })
      execFileSync("sync", ["-f", place])
      assert.ok(search(disk) > 0, "the search finds what is written plain")
      execFileSync("rm", [plain])
      execFileSync("umount", [place])
      execFileSync("mkfs.ext4", ["-q", "-F", "-E", "lazy_itable_init=0", disk])
      execFileSync("dd", ["if=/dev/zero", `of=${disk}`, "bs=1M", "count=96", "status=none"])
      execFileSync("mkfs.ext4", ["-q", "-F", "-E", "lazy_itable_init=0,nodiscard", disk])
      assert.equal(search(disk), 0)
      execFileSync("mount", ["-o", "loop", disk, place])
      mkdirSync(path.join(place, "out"))
      execFileSync("chmod", ["777", path.join(place, "out")])

      const image = path.join(place, "out", "image.sif")
      const args = ["build", "--compression", "xz", "--pem-path", keys.publicKey, image, source]
      const child = startSifcrypt(args, {
        env: { TMPDIR: path.join(place, "out"), HOME: path.join(place, "out") },
      })
      const end = finish(child)
      let rounds = 0
      while (child.exitCode === null) {
        execFileSync("sync", ["-f", place])
        assert.equal(search(disk), 0, "during the build")
        rounds++
        await sleep(5)
      }
      assert.equal((await end).status, 0)
      assert.ok(rounds > 2)
      execFileSync("sync", ["-f", place])
      assert.equal(search(disk), 0, `after the build, and ${rounds} times during it`)
      const { stdout } = await sifcryptOk(["cat", "--pem-path", keys.privateKey, image, "file-0"])
      assert.ok(stdout.subarray(0, 32).equals(markers[0]!))
      execFileSync("sync", ["-f", place])
      assert.equal(search(disk), 0, "after reading")
    } finally {
      execFileSync("umount", ["-l", place])
    }
  })
})
