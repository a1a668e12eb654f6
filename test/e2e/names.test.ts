// The command under the names of the peers: what programs that call them ask first, and options before the command.
import assert from "node:assert/strict"
import { chmodSync, lstatSync, mkdirSync, readlinkSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { cli, isRoot, sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { namesFolder, underNames } from "../support/names.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

const names = ["apptainer", "singularity", "run-singularity"]
/** Nothing is kept there: other tests share a home. */
const emptyCache = newFolder("cache", userId)

describe("link", () => {
  it("puts the names of the peers into a folder, once more as well as for the first time", async () => {
    const folder = path.join(newFolder("link"), "bin")
    for (let i = 0; i < 2; i++) {
      await sifcryptOk(["link", folder], { as: "self" })
      for (const name of names) assert.equal(readlinkSync(path.join(folder, name)), cli)
    }
  })

  it("leaves what is there alone unless it is told, and then makes none of the links", async () => {
    const folder = newFolder("link")
    writeFileSync(path.join(folder, "singularity"), "a program\n")
    const refused = await sifcrypt(["link", folder], { as: "self" })
    assert.equal(refused.status, 23)
    assert.match(refused.stderr, /singularity exists and is not a link to this command\n/)
    assert.throws(() => lstatSync(path.join(folder, "apptainer")), { code: "ENOENT" })
    await sifcryptOk(["link", "-F", folder], { as: "self" })
    assert.equal(readlinkSync(path.join(folder, "singularity")), cli)
  })

  it("takes the place of a link to a package that was moved", async () => {
    const folder = newFolder("link")
    symlinkSync("/gone/dist/cli/main.js", path.join(folder, "apptainer"))
    await sifcryptOk(["link", folder, "apptainer"], { as: "self" })
    assert.equal(readlinkSync(path.join(folder, "apptainer")), cli)
    assert.throws(() => lstatSync(path.join(folder, "singularity")), { code: "ENOENT" })
  })

  it("knows no other names", async () => {
    const refused = await sifcrypt(["link", newFolder("link"), "docker"], { as: "self" })
    assert.equal(refused.status, 20)
    assert.match(
      refused.stderr,
      /'docker' .*choices are apptainer, singularity, run-singularity, ctd-decoder, ctr-enc, sifcrypt-oci, squashfuse_ll\.\n/,
    )
  })
})

describe("under the names of the peers", () => {
  const keys = testKeys()
  const folder = newFolder("names", userId)
  const image = path.join(folder, "image.sif")
  const encrypted = path.join(folder, "encrypted.sif")

  const failing = path.join(folder, "failing.def")

  before(async () => {
    const tree = makeRootTree()
    mkdirSync(path.join(tree, ".singularity.d"))
    writeFileSync(failing, `Bootstrap: localimage\nFrom: ${tree}\n%post\nfalse\n`)
    const script = path.join(tree, ".singularity.d", "runscript")
    writeFileSync(script, '#!/bin/sh\necho "run: $*"\nexit 4\n')
    chmodSync(script, 0o755)
    await sifcryptOk(["build", image, tree])
    await sifcryptOk(["build", "--pem-path", keys.publicKey, encrypted, tree])
    for (const file of [image, encrypted]) chmodSync(file, 0o755)
  })

  it("the version is read by workflow programs as they read the peers'", async () => {
    for (const name of ["apptainer", "singularity"]) {
      const { text } = await underNames([name, "--version"])
      // snakemake: starts with "apptainer", the last word is a version of 1.0.0 or later; cwltool and toil: this expression, numbers
      // between the dots; spython and scripts: the first line, words between blanks.
      const [, flavor, version = ""] = /^(.+) version ([0-9.]+)\n$/.exec(text) ?? []
      assert.equal(flavor, "apptainer")
      assert.match(version, /^[1-9]\d*\.\d+\.\d+$/)
      assert.equal((await underNames([name, "version"])).text, `${version}\n`)
    }
  })

  it("our own name says who we are", async () => {
    assert.match((await sifcryptOk(["--version"])).text, /^sifcrypt version \d+\.\d+\.\d+\n$/)
    assert.match((await sifcryptOk(["version"])).text, /^\d+\.\d+\.\d+\n$/)
  })

  it("messages and their hints begin with the name that was called", async () => {
    for (const [name, args, status] of [
      ["apptainer", ["exec", path.join(folder, "none.sif"), "true"], 25],
      ["singularity", ["exec", encrypted, "true"], 22],
      ["singularity", ["exec", "--no-such-option", image, "true"], 20],
      ["apptainer", ["no-such-command"], 20],
      ["run-singularity", [encrypted], 22],
      // Of what interprets scripts inside, of its own script, and of a build.
      ["singularity", ["exec", image, "no-such-program"], 255],
      ["apptainer", ["exec", "--env", "SINGULARITYENV_X=1", "--pid", image, "/etc"], 255],
      ["apptainer", ["run", "--app", "none", image], 1],
      ["singularity", ["exec", "--no-init", "--env", "_sifcrypt_name=x", image, "no-such-program"], 255],
      ["apptainer", ["build", "--sandbox", path.join(folder, "defined"), failing], 25],
    ] as const) {
      const result = await underNames([name, ...args])
      assert.equal(result.status, status, result.stderr)
      // What the script itself is heard with, and what a build says that it does.
      const lines = result.stderr.split("\n").filter((line) => line !== "" && !line.startsWith("+ "))
      assert.notEqual(lines.length, 0)
      for (const line of lines) assert.ok(line.startsWith(`${name}: `), line)
      assert.doesNotMatch(result.stderr, /sifcrypt /)
    }
  })

  it("an image that is called as a program runs by its launch line", async () => {
    const plain = await underNames([image, "a", "--pid"])
    assert.deepEqual([plain.text, plain.status], ["run: a --pid\n", 4], plain.stderr)
    const env = { APPTAINER_ENCRYPTION_PEM_PATH: keys.privateKey }
    const opened = await underNames([encrypted, "--version"], { env })
    assert.deepEqual([opened.text, opened.status], ["run: --version\n", 4], opened.stderr)
  })

  it("what is no command has no help either", async () => {
    for (const words of [["nosuch"], ["cache", "nosuch"], ["key", "nosuch", "deeper"], ["-q", "nosuch"]])
      for (const help of [[], ["--help"], ["-h"]]) {
        const result = await underNames(["singularity", ...words, ...help])
        assert.equal(result.status, 20, [...words, ...help].join(" "))
        assert.equal(result.text, "")
        assert.match(result.stderr, /^singularity: there is no command 'nosuch'\n/)
      }
    for (const words of [
      ["--help"],
      ["exec", "--help"],
      ["cache", "list", "--help"],
      ["help", "exec"],
      ["-h"],
    ])
      assert.equal((await underNames(["singularity", ...words])).status, 0, words.join(" "))
  })

  it("groups that the peers show help of, named alone, are no failure, and are one under our name", async () => {
    for (const words of [
      ["sif"],
      ["oci"],
      ["oci", "help"],
      ["remote"],
      ["keyserver"],
      ["registry"],
      ["config"],
    ]) {
      const { status, text, stderr } = await underNames(["apptainer", ...words])
      assert.deepEqual([status, stderr], [0, ""], words.join(" "))
      assert.ok(text.startsWith(`Usage: apptainer ${words[0] ?? ""} `), text)
    }
    for (const words of [["instance"], ["capability"], ["oci", "list"]])
      assert.notEqual((await underNames(["apptainer", ...words])).status, 0, words.join(" "))
    for (const group of ["sif", "oci"]) assert.notEqual((await sifcrypt([group])).status, 0, group)
  })

  it("help of a command in a group is that command's", async () => {
    const { status, text } = await underNames(["apptainer", "-q", "help", "sif", "list"])
    assert.equal(status, 0)
    assert.match(text, /^Usage: apptainer sif list /)
    const unknown = await underNames(["apptainer", "help", "sif", "nosuch"])
    assert.deepEqual([unknown.status, unknown.text], [20, ""])
  })

  it("options before the command, and their variables, say how much is told", async () => {
    const link = (words: readonly string[], env: Readonly<Record<string, string>> = {}) =>
      underNames(["apptainer", ...words, "cache", "clean", "--dry-run"], {
        env: { SIFCRYPT_CACHEDIR: emptyCache, ...env },
      })
    const news = /^apptainer: would remove 0 blobs/
    assert.match((await link([])).stderr, news)
    for (const words of [["-v"], ["--verbose"], ["-d"], ["--debug"], ["--nocolor"], ["--quiet=false"]])
      assert.match((await link(words)).stderr, news, words.join(" "))
    // The last is what snakemake asks for.
    for (const words of [
      ["-q"],
      ["--quiet"],
      ["-s"],
      ["--silent"],
      ["-qs"],
      ["--quiet", "--silent"],
      ["-q=1"],
    ])
      assert.equal((await link(words)).stderr, "", words.join(" "))
    for (const [name, value] of [
      ["APPTAINER_SILENT", "1"],
      ["SINGULARITY_QUIET", "true"],
      ["SIFCRYPT_QUIET", "T"],
      ["APPTAINER_MESSAGELEVEL", "-1"],
      ["SINGULARITY_MESSAGELEVEL", "-3"],
    ] as const)
      assert.equal((await link([], { [name]: value })).stderr, "", name)
    assert.match((await link(["--verbose"], { APPTAINER_SILENT: "1" })).stderr, news)
  })

  it("warnings are told quietly, and errors always", async () => {
    const env = { APPTAINER_PID: "0", SINGULARITY_PID: "1" }
    const run = async (...words: string[]): Promise<string> =>
      (await underNames(["apptainer", ...words, "exec", image, "echo"], { env })).stderr
    assert.match(await run("-q"), /^apptainer: SINGULARITY_PID and APPTAINER_PID have different values/)
    assert.equal(await run("-s"), "")
    const missing = await underNames(["apptainer", "-s", "exec", path.join(folder, "none.sif"), "true"])
    assert.match(missing.stderr, /^apptainer: .*none\.sif/)
    // By whoever tells of a payload that did not start, too.
    const unstarted = await underNames(["apptainer", "--silent", "exec", "--cwd", "/none", image, "echo"])
    assert.equal(unstarted.status, 255)
    assert.match(unstarted.stderr, /^apptainer: /)
  })

  it("a configuration that is named has to be there", async () => {
    const file = path.join(await namesFolder(), "apptainer.conf")
    writeFileSync(file, "allow pid ns = yes\n")
    for (const words of [["-c", file], ["--config", file], [`--config=${file}`]])
      assert.equal((await underNames(["apptainer", ...words, "exec", image, "echo"])).status, 0)
    assert.equal((await underNames(["apptainer", "-c", "/none.conf", "exec", image, "true"])).status, 25)
  })

  it("flags are true and false in every spelling of Go's", async () => {
    const run = (...words: string[]) =>
      underNames(["apptainer", "exec", ...words, image, "sh", "-c", "echo $$"], {
        env: { APPTAINER_PID: "1" },
      })
    const isFirst = async (...words: string[]): Promise<boolean> => {
      const result = await run(...words)
      assert.equal(result.status, 0, result.stderr)
      return Number(result.text) < 5
    }
    for (const word of ["1", "t", "T", "true", "TRUE", "True"]) {
      assert.equal(await isFirst(`--pid=${word}`), true)
      assert.equal(await isFirst(`-p=${word}`), true)
    }
    for (const word of ["0", "f", "F", "false", "FALSE", "False"])
      assert.equal(await isFirst(`--pid=${word}`), false, "a flag is stronger than its variable")
    assert.equal(await isFirst("--pid", "--pid=false"), false)
    assert.equal(await isFirst("--pid=false", "-p"), true)
    const refused = await run("--pid=yes")
    assert.equal(refused.status, 20)
    assert.match(
      refused.stderr,
      /^apptainer: option '-p, --pid' is true or false, and takes no other value\n/,
    )
    const secret = await underNames(["apptainer", "exec", "--passphrase=hunter2", encrypted, "echo"])
    assert.equal(secret.status, 20)
    assert.doesNotMatch(secret.stderr, /hunter2/)
    // Behind the image it is the payload's, and a value with an equals sign is that value.
    const passed = await underNames(["apptainer", "exec", "-B=/etc:/data", image, "echo", "--pid=yes"])
    assert.equal(passed.text, "--pid=yes\n", passed.stderr)
  })
})

describe("what scripts ask first", () => {
  const ask = (...words: string[]) =>
    underNames(["apptainer", ...words], { env: { SIFCRYPT_CACHEDIR: emptyCache } })

  it("is answered with what there is, which is nothing", async () => {
    for (const [words, output] of [
      [["plugin", "list"], /^There are no plugins installed\.\n$/],
      [["remote", "list"], /^\nNAME +URI +DEFAULT\? +GLOBAL\? +EXCLUSIVE\? +SECURE\?\n$/],
      [["registry", "list"], /^\nURI +USER +FILE\n$/],
      [["keyserver", "list"], /https:\/\//],
      [
        ["buildcfg"],
        /^PACKAGE_NAME=apptainer\nPACKAGE_VERSION=1\.4\.5\n[^]*^APPTAINER_CONF_FILE=\/etc\/apptainer\//m,
      ],
      [["buildcfg", "SYSCONFDIR"], /^\/etc\n$/],
      [["buildcfg", "SESSIONDIR"], /^\/var\/lib\/apptainer\/mnt\/session\n$/],
      [["cache", "list"], /^0 blobs/],
      [["cache", "list", "-v", "-T", "library,oci"], /^0 blobs/],
      [["instance", "list"], /^INSTANCE NAME +PID +IP +IMAGE/],
      [["instance", "list", "-a"], /^INSTANCE NAME +PID +IP +IMAGE/],
    ] as const) {
      const { status, text, stderr } = await ask(...words)
      assert.deepEqual([status, stderr], [0, ""], words.join(" "))
      assert.match(text, output)
    }
  })

  it("is refused with the reason where the answer would have to be one", async () => {
    for (const words of [
      ["remote", "login", "-u", "me"],
      ["remote", "status"],
    ]) {
      const { status, stderr } = await ask(...words)
      assert.equal(status, 255, words.join(" "))
      assert.match(stderr, /does not exist here: .{20}/)
    }
    assert.equal((await ask("buildcfg", "NO_SUCH_NAME")).status, 20)
    assert.equal((await ask("cache", "list", "-T", "nonsense")).status, 20)
  })

  it("no instance that could be stopped is a failure for the peers, and done under our own name", async () => {
    for (const words of [["--all"], ["-a", "--force"], ["no-such-*"]]) {
      const { status, stderr } = await ask("instance", "stop", ...words)
      assert.equal(status, 255, words.join(" "))
      assert.match(stderr, /^apptainer: no instance of yours that fits is running\n/)
    }
    await sifcryptOk(["instance", "stop", "no-such-*"])
  })

  it("root sees the instances of a user as that user, and others only their own", async function () {
    const denied = await ask("instance", "list", "-u", "root")
    if (userId !== 0) assert.match(denied.stderr, /only root sees the instances of root/)
    if (!isRoot) return
    const asRoot = (...words: string[]) =>
      underNames(["apptainer", "instance", "list", ...words], { as: "self" })
    const { status, text, stderr } = await asRoot("-u", "nobody")
    assert.deepEqual([status, text.trim().split("\n").length, stderr], [0, 1, ""])
    assert.match((await asRoot("-u", "no-such-user")).stderr, /there is no user no-such-user/)
  })
})
