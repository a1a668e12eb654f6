// Images and options that made other runtimes touch the machine, as it was published of them.
import assert from "node:assert/strict"
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import {
  finish,
  isRoot,
  runProgram,
  sifcrypt,
  sifcryptOk,
  startSifcrypt,
  userId,
  type As,
} from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { isSoak } from "../support/soak.ts"
import { typing } from "../support/terminal.ts"
import { makeRootTree } from "../support/trees.ts"

describe("flaws of other runtimes", () => {
  const folder = newFolder("published", userId)
  // Where the links of the image lead to, for whoever resolves them on the machine.
  const outside = newFolder("published-outside", userId)
  const image = path.join(folder, "image.squashfs")

  before(async () => {
    writeFileSync(path.join(outside, "witness"), "as it was\n")
    const tree = makeRootTree()
    const links = {
      dev: ["null", "zero", "tty", "console", "ptmx", "fd", "stdin", "pts", "shm", "mqueue"],
      etc: ["passwd", "group", "hosts", "resolv.conf", "localtime"],
    }
    for (const [where, names] of Object.entries(links))
      for (const name of names) {
        const link = path.join(tree, where, name)
        await runProgram(["rm", "-rf", link], { as: "self" })
        mkdirSync(path.dirname(link), { recursive: true })
        symlinkSync(path.join(outside, `${where}-${name}`), link)
      }
    symlinkSync(outside, path.join(tree, "out"))
    await sifcryptOk(["build", image, tree])
  })

  const nothingHappened = (): void => {
    assert.deepEqual(readdirSync(outside), ["witness"])
    assert.equal(readFileSync(path.join(outside, "witness"), "utf8"), "as it was\n")
  }

  for (const as of ["user", "self"] as const satisfies readonly As[])
    describe(as === "user" ? "as an ordinary user" : "as root", () => {
      before(function () {
        if (as === "self" && !isRoot) skip(this, "needs root")
      })

      it("CVE-2024-21626: a working folder that is a descriptor is none, though whoever starts it has it", async () => {
        const root = openSync("/", "r")
        try {
          const numbers = isSoak ? Array.from({ length: 40 }, (_, index) => index + 3) : [3, 7, 9]
          for (const number of numbers) {
            const stdio = ["ignore", "pipe", "pipe", ...Array.from({ length: 8 }, () => root)] as const
            const args = ["exec", "--contain", "--pwd", `/proc/self/fd/${number}`, image, "ls"]
            const { status, text, stderr } = await finish(
              startSifcrypt(args, { as, cwd: folder, stdio: [...stdio] }),
            )
            assert.equal(status, 255, text)
            assert.equal(text, "")
            assert.match(stderr, /there is no folder|chdir .*: (No such file|Not a directory)/)
          }
        } finally {
          closeSync(root)
        }
      })

      it("CVE-2024-45310: what is bound where a link of the image leads makes nothing on the machine", async () => {
        const bound = path.join(folder, "bound")
        mkdirSync(bound, { recursive: true })
        const binds = [`${bound}:/out/folder`, `${image}:/out/file`, `${bound}:${outside}/deep/folder`]
        const script = `for i in /out/folder ${outside}/deep/folder; do [ -d $i ] || exit 1; done; [ -f /out/file ]`
        for (const flags of [[], ["--writable-tmpfs"]])
          await sifcryptOk(
            ["exec", "--contain", "--bind", binds.join(), ...flags, image, "sh", "-c", script],
            {
              as,
              cwd: folder,
            },
          )
        nothingHappened()
      })

      it("CVE-2025-52565, CVE-2026-41579: links where devices, terminals and files of /etc are mounted lead nowhere", async () => {
        const script =
          "for i in null zero tty ptmx console; do [ -c /dev/$i ] || exit 1; done; id -un; echo x >/dev/null"
        await sifcryptOk(["exec", "--contain", image, "sh", "-c", "[ -c /dev/null ] && [ -d /dev/pts ]"], {
          as,
          cwd: folder,
        })
        const { status, text } = await sifcrypt(["exec", "--contain", image, "sh", "-c", script], {
          as,
          cwd: folder,
          ...typing(""),
        })
        assert.equal(status, 0, text)
        nothingHappened()
      })
    })
})
