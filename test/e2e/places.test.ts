// Where something is mounted in an image, or somebody works, and what is there already, or is not.
import assert from "node:assert/strict"
import { chmodSync, copyFileSync, mkdirSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import {
  cli,
  isRoot,
  runProgram,
  sifcrypt,
  sifcryptOk,
  userId,
  type As,
  type Result,
} from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

describe("places in an image", () => {
  const folder = newFolder("places", userId)
  const at = (name: string): string => path.join(folder, name)

  before(async () => {
    mkdirSync(at("home"))
    chmodSync(at("home"), 0o777)
    mkdirSync(at("bound"))
    writeFileSync(at("bound/file"), "bound\n")
    const links = {
      // Relative, absolute, out of the root, over a chain, over a folder that is not there and back.
      home: "var/home",
      tmp: "/sysroot/tmp",
      data: "../../../somewhere/data",
      chain: "chain-2",
      "chain-2": "/var/chain-3",
      "var/chain-3": "none/../four",
      "etc/resolv.conf": "../run/resolve/stub-resolv.conf",
      "etc/localtime": "/usr/share/zoneinfo/Nowhere",
      // To nowhere that anything could be mounted at.
      "var/tmp": "tmp",
      round: "round-2/x",
      "round-2": "round",
      file: "bin/busybox",
      long: `var/${"x".repeat(300)}`,
      top: "/",
      device: "dev/made",
      "etc/hosts": "/dev/made-hosts",
    }
    const tree = makeRootTree()
    for (const name of ["home", "tmp", "data"]) rmSync(path.join(tree, name), { recursive: true })
    mkdirSync(path.join(tree, "var"))
    for (const [name, target] of Object.entries(links)) symlinkSync(target, path.join(tree, name))
    await sifcryptOk(["build", at("links.sif"), tree])
  })

  for (const as of ["user", "self"] as const satisfies readonly As[])
    describe(as === "user" ? "as an ordinary user" : "as root", () => {
      before(function () {
        if (as === "self" && !isRoot) skip(this, "needs root")
      })

      const exec = (script: string, flags: readonly string[] = []): Promise<Result> =>
        sifcrypt(["exec", "--engine", "userspace", ...flags, at("links.sif"), "sh", "-c", script], {
          as,
          cwd: folder,
        })

      it("mounts where a link of the image leads, though nothing is there", async () => {
        const binds = ["/home/me", "/data", "/chain/deep"].flatMap((inside) => [
          "-B",
          `${at("bound")}:${inside}`,
        ])
        const result = await exec(
          "cat /var/home/me/file /somewhere/data/file /var/four/deep/file && " +
            "ls -d /tmp/. /sysroot/tmp && cat /etc/resolv.conf > /dev/null && cat /etc/localtime > /dev/null",
          binds,
        )
        assert.equal(result.stderr, "")
        assert.equal(result.text, `${"bound\n".repeat(3)}/sysroot/tmp\n/tmp/.\n`)
      })

      it("leaves out what the image has no place of the same kind for, unless it was asked for", async () => {
        const odd = at(`odd-${as}`)
        for (const name of ["etc/passwd", "etc/hosts", "bin"])
          mkdirSync(path.join(odd, name), { recursive: true })
        writeFileSync(path.join(odd, "tmp"), "a file\n")
        copyFileSync(path.join(makeRootTree(), "bin", "busybox"), path.join(odd, "bin", "cat"))
        await sifcryptOk(["build", "-F", at(`odd-${as}.sif`), odd], { as: "self" })
        for (const image of [odd, at(`odd-${as}.sif`)]) {
          const { text, stderr } = await sifcrypt(["exec", image, "cat", "/tmp"], { as, cwd: "/" })
          assert.equal(text, "a file\n", stderr)
          for (const what of ["/etc/passwd is a folder", "/etc/hosts is a folder", "/tmp is no folder"])
            assert.ok(stderr.includes(`sifcrypt: ${image}: ${what} inside: it is not bound\n`), stderr)
          const asked = await sifcrypt(["exec", "-B", `${at("bound")}:/tmp`, image, "cat", "/tmp"], {
            as,
            cwd: "/",
          })
          assert.equal(asked.status, 255)
          assert.ok(asked.stderr.includes(`${at("bound")}: /tmp is no folder inside\n`), asked.stderr)
        }
      })

      it("mounts in place of a link that leads to where nothing can be mounted", async () => {
        const places = ["/round/x", "/file", "/long", "/top/x", "/device", "/home/me"]
        const binds = places.flatMap((inside) => ["-B", `${at("bound")}:${inside}`])
        const result = await exec(
          `for place in ${places.join(" ")}; do cat $place/file; done && ls -d /var/tmp/. && cat /etc/hosts >/dev/null`,
          binds,
        )
        assert.equal(result.stderr, "")
        assert.equal(result.text, `${"bound\n".repeat(places.length)}/var/tmp/.\n`)
        assert.deepEqual(
          readdirSync("/dev").filter((name) => name.startsWith("made")),
          [],
        )
      })

      it("tells of an image for another machine before anything of it starts", async () => {
        const foreign = at(`foreign-${as}.sif`)
        await sifcryptOk(["build", "--arch", "s390x", foreign, at("bound")])
        for (const command of [
          ["exec", foreign, "true"],
          ["run", foreign],
          ["instance", "start", foreign, "x"],
        ]) {
          const result = await sifcrypt(command, { as })
          assert.match(
            result.stderr,
            /foreign-\w+\.sif is for s390x, and this machine is \w+\n.*hint: .*--arch/,
          )
          assert.equal(result.status, 24)
        }
      })

      it("has a home behind a link", async () => {
        const result = await exec("pwd && touch made && ls /var/home/me", [
          ...["--home", `${at("home")}:/home/me`],
          "--contain",
        ])
        assert.equal(result.stderr, "")
        assert.equal(result.text, "/home/me\nmade\n")
      })

      describe("where it works", () => {
        const payload = ["exec", "--engine", "userspace", at("links.sif"), "sh", "-c", "pwd"]
        const inFolder = (make: string, args: readonly string[]): Promise<Result> =>
          runProgram(["sh", "-c", `${make} && exec "$0" "$@"`, cli, ...args], { as, cwd: folder })
        const leave = (name: string): string => `mkdir ${name} && cd ${name} && rmdir ../${name}`

        it("goes on in another folder, and says so, where the working folder is gone", async () => {
          const result = await inFolder(leave("gone"), payload)
          assert.match(result.stderr, /sifcrypt: the working folder is not there any more/)
          assert.equal(result.status, 0, result.stderr)
        })

        it("goes on where the working folder cannot be reached any more", async () => {
          if (as === "self") return // Root reaches every folder.
          const closed = "mkdir -p closed/in && cd closed/in && chmod 0 .. "
          const result = await inFolder(closed, payload)
          chmodSync(at("closed"), 0o700)
          assert.match(result.stderr, /sifcrypt: the working folder cannot be reached/)
          assert.equal(result.status, 0, result.stderr)
        })

        it("says where it works instead of a folder that is not there inside", async () => {
          const result = await sifcrypt(payload, { as, cwd: "/opt" })
          assert.match(result.stderr, /the working folder \/opt is not there inside: .+ takes its place/)
          assert.equal(result.status, 0, result.stderr)
        })
      })
    })
})
