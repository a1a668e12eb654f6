// `ls`, `cat`, `extract`, `info` and `sif`: looking inside without a mount and without privilege.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs"
import { gunzipSync } from "node:zlib"
import { createHash, randomBytes } from "node:crypto"
import path from "node:path"
import { idOf, isRoot, packageRoot, runProgram, sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { open, type TreeEntry } from "../../lib/index.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { describeTree } from "../support/trees.ts"

describe("reading an image", () => {
  const keys = testKeys()
  const folder = newFolder("read", userId)
  const tree = newFolder("read-tree")
  const encrypted = path.join(folder, "encrypted.sif")
  const plain = path.join(folder, "plain.sif")
  const credentials = ["--pem-path", keys.privateKey]
  const large = randomBytes(3_000_001)

  before(async () => {
    mkdirSync(path.join(tree, "a", "b", "c"), { recursive: true })
    writeFileSync(path.join(tree, "a", "file"), "in a\n")
    writeFileSync(path.join(tree, "a", "b", "c", "deep"), "deep\n")
    writeFileSync(path.join(tree, "large"), large)
    writeFileSync(path.join(tree, "empty"), "")
    symlinkSync("a/file", path.join(tree, "link"))
    symlinkSync("../../../../../../etc/passwd", path.join(tree, "out"))
    symlinkSync("loop", path.join(tree, "loop"))
    chmodSync(path.join(tree, "a", "file"), 0o604)
    await sifcryptOk(["build", "--pem-path", keys.publicKey, encrypted, tree])
    await sifcryptOk(["build", plain, tree])
  })

  for (const [kind, image, flags] of [
    ["an encrypted image", encrypted, credentials],
    ["a plain image", plain, []],
  ] as const)
    describe(`A19: ${kind}, as an ordinary user`, () => {
      it("ls lists a folder", async () => {
        const { text } = await sifcryptOk(["ls", ...flags, image])
        assert.equal(text, "a\nempty\nlarge\nlink\nloop\nout\n")
        assert.equal((await sifcryptOk(["ls", ...flags, image, "a/b"])).text, "c\n")
        assert.equal((await sifcryptOk(["ls", ...flags, image, "/a/file"])).text.trim(), "file")
      })

      it("ls -R lists everything below", async () => {
        const { text } = await sifcryptOk(["ls", "-R", ...flags, image, "/a"])
        assert.deepEqual(text.trim().split("\n").sort(), ["/a/b", "/a/b/c", "/a/b/c/deep", "/a/file"])
      })

      it("ls -l shows modes, owners, sizes and targets", async () => {
        const { text } = await sifcryptOk(["ls", "-lR", ...flags, image])
        assert.match(text, /^-rw----r-- .*\b5\b.* \/a\/file$/m)
        assert.match(text, /^lrwxrwxrwx .* \/link -> a\/file$/m)
        assert.match(text, /^drwxr-xr-x .* \/a$/m)
        const json = JSON.parse((await sifcryptOk(["ls", "--json", ...flags, image])).text) as {
          name: string
        }[]
        assert.equal(json.length, 6)
      })

      it("cat writes files byte for byte, links followed", async () => {
        const { stdout } = await sifcryptOk(["cat", ...flags, image, "large", "/link", "empty", "a/b/c/deep"])
        assert.ok(stdout.equals(Buffer.concat([large, Buffer.from("in a\ndeep\n")])))
      })

      it("cat ends quietly when its reader goes away", async () => {
        const wrapper = ["sh", "-c", '{ "$@"; echo "status $?" >&2; } | head -c 10', "sh"]
        const result = await sifcrypt(["cat", ...flags, image, "large"], { wrapper })
        assert.equal(result.stdout.length, 10)
        assert.match(result.stderr, /^status (0|141)\n$/)
      })

      it("extract copies everything, or what is named", async () => {
        const all = path.join(newFolder("all", userId), "new")
        await sifcryptOk(["extract", ...flags, image, all])
        assert.deepEqual(describeTree(all, false), describeTree(tree, false))
        const some = newFolder("some", userId)
        const { text } = await sifcryptOk(["extract", "--json", ...flags, image, some, "/a/b", "empty"])
        assert.ok((JSON.parse(text) as { entries: number }).entries >= 3)
        assert.ok([...describeTree(some).keys()].some((name) => name.endsWith("/deep")))
        assert.equal(
          [...describeTree(some).keys()].some((name) => name.endsWith("/large")),
          false,
        )
      })

      it("extract makes a new folder the one that it copies, and leaves another as it is", async () => {
        const source = newFolder("root-folder")
        mkdirSync(path.join(source, "inner"))
        writeFileSync(path.join(source, "file"), "")
        execFileSync("python3", [
          "-c",
          "import os, sys; os.setxattr(sys.argv[1], 'user.note', b'root')",
          source,
        ])
        utimesSync(path.join(source, "inner"), 5000, 5000)
        chmodSync(path.join(source, "inner"), 0o750)
        chmodSync(source, 0o1711)
        if (isRoot) chownSync(source, 1234, 1235)
        utimesSync(source, 4000, 4000)
        const image = path.join(folder, `root-folder-${kind.split(" ").at(1) ?? ""}.sif`)
        await sifcryptOk(
          ["build", ...(flags.length === 0 ? [] : ["--pem-path", keys.publicKey]), image, source],
          {
            as: "self",
          },
        )
        for (const as of ["self", "user"] as const) {
          const place = newFolder("root-folder-out", idOf(as))
          const told = (name: string): unknown => {
            const { mode, uid, gid, mtimeMs } = statSync(path.join(place, name))
            return { mode: mode & 0o7777, uid, gid, mtimeMs }
          }
          const owner = as === "self" && isRoot ? { uid: 1234, gid: 1235 } : { uid: idOf(as), gid: idOf(as) }
          const wanted = { mode: 0o1711, ...owner, mtimeMs: 4_000_000 }
          await sifcryptOk(["extract", ...flags, image, path.join(place, "new")], { as })
          assert.deepEqual(told("new"), wanted, as)
          const note = "import os, sys; print(os.getxattr(sys.argv[1], 'user.note'))"
          assert.match(
            execFileSync("python3", ["-c", note, path.join(place, "new")], { encoding: "utf8" }),
            /root/,
          )
          // It may be there to keep others out.
          mkdirSync(path.join(place, "empty"))
          chmodSync(path.join(place, "empty"), 0o700)
          chownSync(path.join(place, "empty"), idOf(as), idOf(as))
          await sifcryptOk(["extract", ...flags, image, path.join(place, "empty")], { as })
          assert.equal((told("empty") as { mode: number }).mode, 0o700)
          await sifcryptOk(["extract", ...flags, image, path.join(place, "part"), "/inner"], { as })
          const inner = told("part") as { mode: number; mtimeMs: number }
          assert.deepEqual([inner.mode, inner.mtimeMs], [0o750, 5_000_000])
          // There is something in it: another image, or what only its owner may see.
          mkdirSync(path.join(place, "used"))
          writeFileSync(path.join(place, "used", "own"), "")
          chmodSync(path.join(place, "used"), 0o700)
          chownSync(path.join(place, "used"), idOf(as), idOf(as))
          await sifcryptOk(["extract", ...flags, image, path.join(place, "used")], { as })
          await sifcryptOk(["extract", ...flags, image, path.join(place, "both"), "/inner", "/file"], { as })
          for (const name of ["used", "both"])
            assert.notEqual((told(name) as { mode: number }).mode & 0o1000, 0o1000, name)
          assert.equal((told("used") as { mode: number }).mode, 0o700)
        }
      })

      it("what is not there is an error that names it", async () => {
        for (const inside of ["nothing", "/a/nothing", "a/b/nothing/below"]) {
          for (const command of ["ls", "cat"]) {
            const result = await sifcrypt([command, ...flags, image, inside])
            assert.equal(result.status, 25, `${command} ${inside}: ${result.stderr}`)
            assert.ok(result.stderr.includes(inside.split("/").at(-1)!), result.stderr)
          }
        }
        const target = newFolder("nothing", userId)
        const result = await sifcrypt(["extract", ...flags, image, target, "nothing"])
        assert.equal(result.status, 25)
        assert.deepEqual(readdirSync(target), [])
      })

      it("what is no file cannot be shown, and links lead nowhere outside", async () => {
        const directory = await sifcrypt(["cat", ...flags, image, "a"])
        assert.notEqual(directory.status, 0)
        assert.match(directory.stderr, /not a file but a directory/)
        for (const link of ["out", "loop"]) {
          const result = await sifcrypt(["cat", ...flags, image, link])
          assert.notEqual(result.status, 0, link)
          assert.equal(result.text, "")
        }
      })

      it("needs no /dev/fuse", async function () {
        if (!isRoot) skip(this, "needs root, to hide a device in a mount namespace")
        const wrapper = [
          "unshare",
          "--mount",
          "sh",
          "-c",
          'mount --bind /dev/null /dev/fuse; exec "$@"',
          "sh",
        ]
        assert.equal((await sifcryptOk(["cat", ...flags, image, "link"], { wrapper })).text, "in a\n")
      })
    })

  describe("names that are no UTF-8, or look like an escape", () => {
    const image = path.join(folder, "names.sif")
    const source = newFolder("names")
    /** As `ls` shows it. */
    const names: readonly (readonly [bytes: Buffer, shown: string])[] = [
      [Buffer.from("caf\xe9", "latin1"), "caf\\xe9"],
      [Buffer.from("caf\xe8", "latin1"), "caf\\xe8"],
      [Buffer.from("caf\\xe9"), "caf\\x5cxe9"],
      [Buffer.from("café"), "café"],
      [Buffer.from("a\nb"), "a\\x0ab"],
      [Buffer.from("a\\x0ab"), "a\\x5cx0ab"],
      [Buffer.from("unit\\x2dname"), "unit\\x2dname"],
      [Buffer.from("\u202etxt"), "\\xe2\\x80\\xaetxt"],
    ]
    const at = (place: string, ...parts: readonly Buffer[]): Buffer =>
      Buffer.concat(
        [place, ...parts].flatMap((part, i) => [Buffer.from(i === 0 ? "" : "/"), Buffer.from(part)]),
      )
    const inside = Buffer.from("d\xff", "latin1")

    before(async () => {
      mkdirSync(at(source, inside))
      for (const [bytes, shown] of names) {
        writeFileSync(at(source, bytes), `in ${shown}`)
        writeFileSync(at(source, inside, bytes), `below, in ${shown}`)
      }
      symlinkSync(names[0]?.[0] ?? "", at(source, Buffer.from("link")))
      await sifcryptOk(["build", image, source])
    })

    it("are listed so that they can be told apart, and each is what it says it is", async () => {
      const { text } = await sifcryptOk(["ls", image])
      const lines = text.trimEnd().split("\n")
      assert.deepEqual(lines.toSorted(), ["d\\xff", "link", ...names.map(([, shown]) => shown)].toSorted())
      for (const [, shown] of names) {
        assert.equal((await sifcryptOk(["cat", image, shown])).text, `in ${shown}`)
        assert.equal((await sifcryptOk(["cat", image, `/d\\xff/${shown}`])).text, `below, in ${shown}`)
      }
      assert.match((await sifcryptOk(["ls", "-l", image, "link"])).text, / link -> caf\\xe9\n$/)
      assert.equal((await sifcryptOk(["cat", image, "link"])).text, "in caf\\xe9")
    })

    it("are the same in JSON and to programs, which can give them back", async () => {
      const entries = JSON.parse((await sifcryptOk(["ls", "-R", "--json", image])).text) as TreeEntry[]
      assert.equal(new Set(entries.map((entry) => entry.path)).size, 2 + 2 * names.length)
      await using opened = await open(image)
      for (const entry of entries) {
        assert.deepEqual(await opened.stat(entry.path), entry)
        if (entry.type === "file")
          assert.match(
            (await opened.readFile(entry.path)).toString(),
            entry.path === `/${entry.name}` ? /^in / : /^below/,
          )
      }
    })

    it("are on disk what they were, whole and one by one", async () => {
      const whole = path.join(newFolder("names-out", userId), "new")
      await sifcryptOk(["extract", image, whole])
      const some = newFolder("names-some", userId)
      await sifcryptOk(["extract", image, some, ...names.map(([, shown]) => `/d\\xff/${shown}`)])
      for (const [bytes, shown] of names) {
        assert.equal(readFileSync(at(whole, bytes), "utf8"), `in ${shown}`)
        assert.equal(readFileSync(at(some, bytes), "utf8"), `below, in ${shown}`)
      }
    })
  })

  describe("S11: extraction", () => {
    it("does not follow links that are in the target", async () => {
      const outside = newFolder("outside", userId)
      const target = newFolder("target", userId)
      symlinkSync(outside, path.join(target, "a"))
      await sifcrypt(["extract", ...credentials, encrypted, target])
      assert.deepEqual(readdirSync(outside), [])
      // A file that is a link in the target is not written through either.
      const second = newFolder("second", userId)
      writeFileSync(path.join(outside, "victim"), "untouched")
      symlinkSync(path.join(outside, "victim"), path.join(second, "empty"))
      await sifcrypt(["extract", ...credentials, encrypted, second])
      assert.equal(readFileSync(path.join(outside, "victim"), "utf8"), "untouched")
    })

    it("does not follow links of the image", async () => {
      const source = newFolder("linked")
      const outside = newFolder("link-target", userId)
      symlinkSync(outside, path.join(source, "folder"))
      const image = path.join(folder, "linked.sif")
      await sifcryptOk(["build", image, source])
      const target = newFolder("link-extracted", userId)
      await sifcrypt(["extract", image, target, "folder", "folder/x"])
      assert.deepEqual(readdirSync(outside), [])
    })

    // A name of the same length is found in the directory table, which mksquashfs is told not to compress.
    const marker = "evil-name-00"
    for (const [what, name] of [
      ["..", ".."],
      [".", "."],
      ["a slash", "x/../../../y"],
      ["a leading slash", "/tmp/escaped"],
      ["a NUL", "evil\0name-00"],
    ] as const)
      it(`refuses a name that is or holds ${what}`, async () => {
        const source = newFolder("evil-tree")
        const original = marker.slice(0, name.length)
        writeFileSync(path.join(source, original), "evil")
        const squashfs = path.join(newFolder("evil"), "evil.squashfs")
        const quiet = ["-quiet", "-no-progress", "-no-xattrs"]
        execFileSync("mksquashfs", [source, squashfs, ...quiet, "-noI", "-noD", "-noF", "-comp", "gzip"], {
          stdio: "ignore",
        })
        const bytes = readFileSync(squashfs)
        const at = bytes.lastIndexOf(original)
        assert.ok(at > 0)
        bytes.write(name, at, "latin1")
        writeFileSync(squashfs, bytes)
        const image = path.join(newFolder("evil-image", userId), "image.sif")
        const parent = newFolder("evil-parent", userId)
        const target = path.join(parent, "target")
        mkdirSync(target)
        execFileSync("chown", [String(userId), target])
        // Whatever does not refuse the image beforehand must refuse the name.
        const built = await sifcrypt(["build", image, squashfs])
        if (built.status !== 0) {
          assert.equal(built.status === 25 || built.status === 21, true, built.stderr)
          assert.equal(existsSync(image), false)
          return
        }
        for (const args of [
          ["extract", image, target],
          ["ls", image],
        ]) {
          const result = await sifcrypt(args)
          assert.equal(result.status, 21, `${args[0] ?? ""}: ${result.stderr} ${result.text}`)
        }
        assert.deepEqual(readdirSync(parent), ["target"])
        assert.deepEqual(readdirSync(target), [])
        assert.equal(existsSync("/tmp/escaped"), false)
      })
  })

  describe("S28: info", () => {
    it("tells kind, cipher, cost and recipients without a key, and never speaks of authenticity", async () => {
      const { text } = await sifcryptOk(["info", encrypted])
      assert.match(text, /^Root: +luks, /m)
      assert.match(text, /aes-xts-plain64, 512 bit/)
      assert.match(text, /^RSA messages: 1$/m)
      assert.match(text, /^Readable without a key: (nothing but sizes|Cryptographic Message SHA256:\S+)$/m)
      const json = (await sifcryptOk(["info", "--json", encrypted])).text
      assert.equal((JSON.parse(json) as { kind: string }).kind, "luks")
      for (const output of [text, json, (await sifcryptOk(["info", plain])).text])
        assert.doesNotMatch(output, /authentic|verified|trusted|secure\b|integrity/i)
      assert.match((await sifcryptOk(["info", plain])).text, /Readable without a key: .*the root file system/)
    })

    it("A40: tells what stretches the password of an image encrypted with gocryptfs", async () => {
      const gocryptfs = path.join(folder, "gocryptfs.sif")
      const peer = path.join(packageRoot, "test", "vectors", "peer")
      writeFileSync(gocryptfs, gunzipSync(readFileSync(path.join(peer, "gocryptfs-rsa2048.sif.gz"))))
      const { text } = await sifcryptOk(["info", gocryptfs])
      assert.match(text, /^Root: +gocryptfs, /m)
      assert.match(text, /^Password: +scrypt, 64 MiB, N 65536, R 8, P 1$/m)
      assert.doesNotMatch(text, /the root file system/)
    })
  })

  describe("usage", () => {
    for (const args of [
      [],
      ["nonsense"],
      ["ls"],
      ["cat", encrypted],
      ["ls", "--nonsense", encrypted],
      ["sif"],
      ["exec", encrypted],
    ])
      it(`ends with 20: sifcrypt ${args.map((arg) => path.basename(arg)).join(" ")}`, async () => {
        const result = await sifcrypt(args)
        assert.equal(result.status, 20, result.stderr)
        assert.notEqual(result.stderr, "")
      })

    it("help and version go to standard output with 0", async () => {
      for (const args of [
        ["--help"],
        ["build", "--help"],
        ["exec", "--help"],
        ["sif", "--help"],
        ["--version"],
      ]) {
        const result = await sifcryptOk(args)
        assert.notEqual(result.text, "")
        assert.equal(result.stderr, "")
      }
    })

    it("names files that are not there or no images", async () => {
      const text = path.join(folder, "text")
      writeFileSync(text, "text\n".repeat(10_000))
      for (const command of ["ls", "info"]) {
        const missing = await sifcrypt([command, path.join(folder, "missing.sif")])
        assert.equal(missing.status, 25)
        assert.match(missing.stderr, /missing\.sif/)
        const other = await sifcrypt([command, text])
        assert.equal(other.status, 21)
        assert.match(other.stderr, /text[^]*hint: this is no SIF image/)
      }
    })
  })
})

for (const [title, name] of [
  ["A1: an image that Apptainer encrypted as root", "luks-rsa2048.sif"],
  ["A40: an image that Apptainer encrypted as an ordinary user", "gocryptfs-rsa2048.sif"],
] as const)
  describe(title, () => {
    const peer = path.join(packageRoot, "test", "vectors", "peer")
    const folder = newFolder("peer", 65534)
    const image = path.join(folder, name)
    const flags = ["--pem-path", path.join(peer, "rsa_pri.pem"), image]
    const manifest = readFileSync(path.join(peer, "manifest.txt"), "utf8").trim().split("\n")

    before(() => {
      writeFileSync(image, gunzipSync(readFileSync(path.join(peer, `${name}.gz`))), { mode: 0o644 })
    })

    /** Reads a folder's tree as the manifest does. */
    const asManifest = `cd "$0" && find . -type l -printf 'L %l %p\\n' -o -type f -exec sh -c '
    for file; do echo "F $(sha256sum <"$file" | cut -c1-64) $(stat -c "%a %s" "$file") $file"; done' sh {} +`

    /** The peer adds files of its own: compared is what the manifest names. */
    function assertManifest(text: string): void {
      const names = new Set(manifest.map((line) => line.split(" ").at(-1)))
      const found = text.split("\n").filter((line) => names.has(line.split(" ").at(-1)))
      assert.deepEqual(found.sort(), [...manifest].sort())
    }

    it("is listed by an ordinary user", async () => {
      const entries = JSON.parse((await sifcryptOk(["ls", "-R", "--json", ...flags])).text) as {
        path: string
        type: string
        mode: number
        size: number
        target?: string
      }[]
      for (const line of manifest) {
        const name = line.split(" ").at(-1)!.slice(1)
        const entry = entries.find((one) => one.path === name)
        if (line.startsWith("L")) assert.equal(entry?.target, line.split(" ")[1])
        else
          assert.equal(
            `${entry?.mode.toString(8) ?? ""} ${String(entry?.size)}`,
            line.split(" ").slice(2, 4).join(" "),
          )
      }
    })

    it("is read by an ordinary user", async () => {
      for (const line of manifest.filter((text) => text.startsWith("F"))) {
        const [, hash, , , name] = line.split(" ")
        const { stdout } = await sifcryptOk(["cat", ...flags, name!])
        assert.equal(createHash("sha256").update(stdout).digest("hex"), hash)
      }
    })

    it("is extracted by an ordinary user", async () => {
      const target = path.join(newFolder("peer-extracted", userId), "tree")
      await sifcryptOk(["extract", ...flags, target])
      const seen = await runProgram(["sh", "-c", asManifest, target])
      assertManifest(seen.text)
    })

    it("is mounted by an ordinary user", async () => {
      const target = path.join(folder, "mount")
      mkdirSync(target)
      if (isRoot) execFileSync("chown", ["65534", target])
      await sifcryptOk(["mount", "--engine", "userspace", ...flags, target], { as: "nobody" })
      try {
        const seen = await runProgram(["sh", "-c", asManifest, target], { as: "nobody" })
        assertManifest(seen.text)
      } finally {
        await sifcryptOk(["unmount", target], { as: "nobody" })
      }
    })

    it("runs for an ordinary user", async () => {
      const result = await sifcryptOk([
        "exec",
        "--engine",
        "userspace",
        ...flags,
        "sh",
        "-c",
        "cat /etc/secret; id -u",
      ])
      assert.match(result.text, new RegExp(`\\n${userId}\\n$`))
      const [secret] = result.text.split(/(?<=\n)(?=\d+\n$)/)
      const line = manifest.find((text) => text.endsWith("./etc/secret"))
      assert.equal(createHash("sha256").update(secret!).digest("hex"), line?.split(" ")[1])
    })

    it("becomes an image of ours for another key", async () => {
      const keys = testKeys()
      const own = path.join(newFolder("peer-converted", userId), "own.sif")
      const source = ["--source-pem-path", path.join(peer, "rsa_pri.pem"), "--pem-path", keys.publicKey]
      const result = await sifcryptOk(["build", ...source, own, image])
      assert.match(result.stderr, /kept inside the encryption: |^$/)
      const secret = await sifcryptOk(["cat", "--pem-path", keys.privateKey, own, "etc/secret"])
      assert.equal(secret.text.length, 13)
      assert.ok(lstatSync(own).isFile())
    })
  })
