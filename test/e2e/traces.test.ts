// What a run leaves lying about, and what it makes while it runs: nothing.
import assert from "node:assert/strict"
import { once } from "node:events"
import { createPrivateKey, generateKeyPairSync, randomBytes } from "node:crypto"
import { chmodSync, chownSync, mkdirSync, readdirSync, writeFileSync } from "node:fs"
import path from "node:path"
import {
  finish,
  idOf,
  isRoot,
  sifcrypt,
  sifcryptOk,
  startProgram,
  startSifcrypt,
  type As,
  type CommandOptions,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { typingUnseen } from "../support/terminal.ts"
import { makeRootTree } from "../support/trees.ts"

describe("traces", () => {
  it("S9, S10: makes no folder and no file of its own, temporary or not", async () => {
    const user = idOf("user")
    const home = newFolder("traces-home", user)
    const temporary = newFolder("traces-tmp", user)
    const env = { HOME: home, TMPDIR: temporary, XDG_RUNTIME_DIR: temporary, XDG_CACHE_HOME: home }
    // But for what V8 compiled of the command.
    const look = (): string[] => [
      ...readdirSync(home, { recursive: true, encoding: "utf8" }).filter(
        (name) => !/^sifcrypt(?:\/code(?:\/(?:command|run)-[0-9a-f]{64}-[^/]*\.cache)?)?$/.test(name),
      ),
      ...readdirSync(temporary),
    ]
    const image = path.join(newFolder("traces", user), "image.sif")
    const { publicKey, privateKey } = testKeys()
    await sifcryptOk(["build", "--pem-path", publicKey, image, makeRootTree()], { env })
    assert.deepEqual(look(), [])
    assert.deepEqual(readdirSync(path.dirname(image)), ["image.sif"])
    const script = "echo started; read line"
    const args = ["exec", "--engine", "userspace", "--pem-path", privateKey, image, "sh", "-c", script]
    const running = startSifcrypt(args, { env, holdInput: true })
    try {
      await once(running.stdout ?? assert.fail(), "data")
      assert.deepEqual(look(), [])
      assert.deepEqual(readdirSync(path.dirname(image)), ["image.sif"])
    } finally {
      running.stdin?.end("\n")
      await once(running, "close")
    }
    assert.equal(running.exitCode, 0)
    assert.deepEqual(look(), [])
  })

  describe("that another user could see", () => {
    /** Looks at every process and into folders that all share, as fast as it can, until its input ends. */
    const watch = `
      import { readdirSync, readFileSync, statSync } from "node:fs"
      import path from "node:path"
      const secrets = JSON.parse(readFileSync(0, "utf8").split("\\n")[0]).map((text) => Buffer.from(text, "latin1"))
      const [environ, ...folders] = process.argv.slice(1)
      const seen = new Set()
      const look = (file) => {
        try {
          const bytes = readFileSync(file)
          secrets.forEach((secret, i) => { if (bytes.includes(secret)) seen.add(i + " in " + file.replace(/\\d+/, "PID")) })
        } catch {} // gone, or not for us
      }
      const lookInto = (folder, depth) => {
        let names = []
        try { names = readdirSync(folder, { withFileTypes: true }) } catch { return }
        for (const entry of names) {
          const file = path.join(folder, entry.name)
          secrets.forEach((secret, i) => { if (file.includes(secret.toString("latin1"))) seen.add(i + " as a name") })
          if (entry.isDirectory() && depth < 4) lookInto(file, depth + 1)
          else if (entry.isFile() && statSync(file, { throwIfNoEntry: false })?.size < 65536) look(file)
        }
      }
      process.stdout.write("watching\\n")
      let passes = 0
      let asked = false
      process.once("SIGTERM", () => { asked = true })
      while (!asked) {
        for (const pid of readdirSync("/proc").filter((name) => /^\\d+$/.test(name) && Number(name) !== process.pid)) {
          look("/proc/" + pid + "/cmdline")
          if (environ === "environ") look("/proc/" + pid + "/environ")
        }
        if (passes++ % 8 === 0) for (const folder of folders) lookInto(folder, 0)
        await new Promise((resolve) => setTimeout(resolve, 2))
      }
      process.stdout.write(JSON.stringify({ passes, seen: [...seen].sort() }))`

    interface Seen {
      readonly passes: number
      readonly seen: readonly string[]
    }

    async function watching(
      as: As,
      environ: boolean,
      secrets: readonly string[],
      folders: readonly string[],
      during: () => Promise<void>,
    ): Promise<Seen> {
      const kind = environ ? "environ" : "no environ"
      const argv = [process.execPath, "--input-type=module", "-e", watch, "--", kind, ...folders]
      const watcher = startProgram(argv, { as })
      // Not as arguments: it would find them there.
      const ended = finish(watcher, { input: `${JSON.stringify(secrets)}\n` })
      await once(watcher.stdout ?? assert.fail(), "data")
      try {
        await during()
      } finally {
        watcher.kill("SIGTERM")
      }
      const { text, stderr } = await ended
      assert.equal(stderr, "")
      return JSON.parse(text.replace("watching\n", "")) as Seen
    }

    const user = idOf("user")

    /** A folder that is its owner's alone. */
    function privateFolder(name: string): string {
      const folder = newFolder(name, user)
      chmodSync(folder, 0o700)
      return folder
    }

    function privateFile(folder: string, name: string, content: string): string {
      const file = path.join(folder, name)
      writeFileSync(file, content, { mode: 0o600 })
      if (isRoot) chownSync(file, user, user)
      return file
    }

    it("S30, S31: is neither a secret nor plain content, in arguments, environments or shared folders", async function () {
      if (!isRoot) return skip(this, "needs root, to be two users")
      this.timeout(120_000)
      const keys = privateFolder("watched-keys")
      const pair = generateKeyPairSync("rsa", {
        modulusLength: 2048,
        publicKeyEncoding: { type: "spki", format: "pem" },
        privateKeyEncoding: { type: "pkcs8", format: "pem" },
      })
      const passphrase = `passphrase-${randomBytes(16).toString("hex")}`
      const content = `content-${randomBytes(16).toString("hex")}`
      const privateKey = privateFile(keys, "key.pem", pair.privateKey)
      const publicKey = privateFile(keys, "key.pub.pem", pair.publicKey)
      const passphraseFile = privateFile(keys, "passphrase", `${passphrase}\n`)
      const tree = makeRootTree()
      mkdirSync(path.join(tree, "private"))
      writeFileSync(path.join(tree, "private", "file"), content)
      chownSync(tree, user, user)
      chmodSync(tree, 0o700)
      // What others can look into.
      const shared = newFolder("watched-shared", user)
      const home = newFolder("watched-home", user)
      const temporary = newFolder("watched-tmp", user)
      const env = { HOME: home, TMPDIR: temporary, XDG_RUNTIME_DIR: temporary, XDG_CACHE_HOME: home }
      const folders = [shared, home, temporary, "/dev/shm"]
      const password = `password-${randomBytes(16).toString("hex")}`
      const lockedKey = privateFile(
        keys,
        "locked.pem",
        createPrivateKey(pair.privateKey)
          .export({ type: "pkcs8", format: "pem", cipher: "aes-256-cbc", passphrase: password })
          .toString(),
      )
      const passwordFile = privateFile(keys, "password", password)
      const locked = ["--pem-path", lockedKey, "--key-passphrase-file", passwordFile]
      const secrets = [passphrase, password, content, ...pair.privateKey.split("\n").slice(4, 12)]

      const image = path.join(shared, "image.sif")
      const noTerminal: CommandOptions = { env, wrapper: ["setsid", "--wait"], input: `${passphrase}\n` }
      const exec = ["exec", "--engine", "userspace"]
      const onTerminal = "test -t 0 && test -t 1 && test -t 2 && sleep 0.5"
      const build = ["build", "-F", "--pbkdf", "pbkdf2:1000", "--pem-path", publicKey]
      const instance = `watched-${process.pid}`
      const join = ["exec", `instance://${instance}`]
      const commands: readonly (readonly [readonly string[], CommandOptions?])[] = [
        [[...build, "--passphrase-file", passphraseFile, image, tree]],
        [[...build, "--passphrase", image, tree], noTerminal],
        [["ls", "--pem-path", privateKey, image]],
        [["ls", "--passphrase-file", passphraseFile, image]],
        [["ls", ...locked, image]],
        // The wrapper's shell opens the file, as a user's would.
        [
          ["ls", "--passphrase-fd", "9", image],
          { env, wrapper: ["sh", "-c", `exec "$@" 9<"${passphraseFile}"`, "sh"] },
        ],
        [[...exec, ...locked, image, "sleep", "1"]],
        [["cat", "--passphrase", image, "/data/hello"], noTerminal],
        [[...exec, "--pem-path", privateKey, image, "sleep", "1"]],
        [[...exec, "--passphrase-file", passphraseFile, image, "sleep", "1"]],
        [["instance", "start", "--engine", "userspace", ...locked, image, instance]],
        [[...join, "sh", "-c", "cat /private/file; sleep 0.5"]],
        [[...join, "sleep", "0.5"], { env, ...typingUnseen("") }],
        [["instance", "stop", instance]],
        [["instance", "run", "--engine", "userspace", "--passphrase-file", passphraseFile, image, instance]],
        [["instance", "stop", "--force", instance]],
        [[...exec, "--passphrase", image, "sh", "-c", onTerminal], { env, ...typingUnseen(passphrase) }],
        [
          [...exec, "--pem-path", lockedKey, image, "sh", "-c", onTerminal],
          { env, ...typingUnseen(password) },
        ],
      ]
      const during = async (): Promise<void> => {
        try {
          for (const [args, options = { env }] of commands) await sifcryptOk(args, options)
        } finally {
          await sifcrypt(["instance", "stop", "--force", instance], { env })
        }
      }
      // Nobody reads the environment of others; root, who does, finds no secret in it either.
      let root: Seen | undefined
      const other = await watching("nobody", false, secrets, folders, async () => {
        root = await watching("self", true, secrets, [], during)
      })
      for (const { passes, seen } of [other, root ?? assert.fail()]) {
        assert.deepEqual(seen, [])
        assert.ok(passes > 20, `${passes} passes`)
      }
    })

    it("would be seen", async function () {
      if (!isRoot) return skip(this, "needs root, to be two users")
      const secret = randomBytes(16).toString("hex")
      const shared = newFolder("watched-control", user)
      const { seen } = await watching("nobody", false, [secret], [shared], async () => {
        const shell = startProgram(["sh", "-c", `sleep 2; : ${secret}`], { stdio: "ignore" })
        writeFileSync(path.join(shared, "file"), secret)
        await once(shell, "close")
      })
      assert.deepEqual(seen, [
        "0 in /proc/PID/cmdline",
        `0 in ${path.join(shared, "file").replace(/\d+/, "PID")}`,
      ])
    })
  })
})
