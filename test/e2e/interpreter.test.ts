// Node, in which the command runs, obeys nobody but the command: not what is in the environment for others, not what the payload's
// words look like, no signal.
import assert from "node:assert/strict"
import { type ChildProcess } from "node:child_process"
import {
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import {
  cli,
  finish,
  isRoot,
  packageRoot,
  runProgram,
  sifcrypt,
  sifcryptOk,
  startSifcrypt,
  userId,
  type CommandOptions,
  type Result,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { listens, noneOfGroup, processesOfGroup, signalGroup, waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { Chance, seed, times } from "../support/soak.ts"
import { makeRootTree } from "../support/trees.ts"

const group = 75_813
const folder = newFolder("interpreter", userId)
const at = (name: string): string => path.join(folder, name)
const keys = testKeys()
const opener = ["--pem-path", keys.privateKey, at("image.sif")]
const exec = ["exec", "--engine", "userspace", ...opener]

/** What somebody's code would leave, if it were run. */
const mark = at("mark")
const hook = at("hook.cjs")

before(async () => {
  await sifcryptOk(["build", "--pem-path", keys.publicKey, at("image.sif"), makeRootTree()])
  writeFileSync(hook, `require("node:fs").writeFileSync(${JSON.stringify(mark)}, "")\n`)
  writeFileSync(at("hook.env"), `NODE_OPTIONS=--require ${hook}\n`)
  writeFileSync(at("node.config.json"), JSON.stringify({ nodeOptions: { import: hook } }))
  writeFileSync(at("openssl.cnf"), "openssl_conf = no such section\n[broken\n")
  for (const name of ["coverage", "compiled"]) {
    mkdirSync(at(name))
    if (isRoot) chownSync(at(name), userId, userId)
  }
})

/** Each makes some Node from 20.19 on do something else, write somewhere, or not start. */
const hostile: Readonly<Record<string, string>> = {
  NODE_OPTIONS: `--require ${hook} --inspect=127.0.0.1:0 --trace-exit`,
  NODE_CHANNEL_FD: "2",
  NODE_CHANNEL_SERIALIZATION_MODE: "advanced",
  NODE_COMPILE_CACHE: at("compiled"),
  NODE_DEBUG: "fs,net,tls,http,module,child_process",
  NODE_DEBUG_NATIVE: "mksnapshot,inspector_server,crypto",
  NODE_EXTRA_CA_CERTS: at("no such file"),
  NODE_ICU_DATA: at("no such file"),
  NODE_NO_WARNINGS: "0",
  NODE_PATH: folder,
  NODE_PENDING_DEPRECATION: "1",
  NODE_PRESERVE_SYMLINKS_MAIN: "1",
  NODE_REDIRECT_WARNINGS: at("warnings"),
  NODE_REPL_EXTERNAL_MODULE: hook,
  NODE_TEST_CONTEXT: "child-v8",
  NODE_TLS_REJECT_UNAUTHORIZED: "0",
  NODE_UNIQUE_ID: "1",
  NODE_USE_ENV_PROXY: "1",
  NODE_USE_SYSTEM_CA: "1",
  NODE_V8_COVERAGE: at("coverage"),
  NODE_OF_SOME_LATER_RELEASE: "a\nexport NODE_NOT_SET=1\nb '\"$HOME` \\",
  NODE_EMPTY: "",
  OPENSSL_CONF: at("openssl.cnf"),
  OPENSSL_MODULES: folder,
  UV_THREADPOOL_SIZE: "1",
  WATCH_REPORT_DEPENDENCIES: "1",
}

/** Words that some Node looks for wherever they stand. */
const switches: readonly string[] = [
  ...["--env-file", at("hook.env"), `--env-file=${at("hook.env")}`, `--env-file-if-exists=${at("hook.env")}`],
  ...["--experimental-config-file", at("node.config.json")],
  ...[`--experimental-config-file=${at("node.config.json")}`, "--experimental-default-config-file"],
  ...["--config-file", at("node.config.json"), `--config-file=${at("node.config.json")}`],
  ...[
    "--require",
    hook,
    "-r",
    hook,
    "--import",
    hook,
    "--inspect",
    "--inspect-brk=0",
    "--inspect-wait",
    "--watch",
  ],
  ...["--", "-", "", "+", "++x", "+-x", "a b", "$HOME", "`id`", "*", "'", '"', "\\", "ü\n"],
]

/** bash by the name under which it is the shell of a system. */
function bashAsSh(): string {
  const link = at("sh")
  if (!existsSync(link)) symlinkSync("/bin/bash", link)
  return link
}

/** Those of the processes that have come of a command and take connections. */
function listening(): string[] {
  return processesOfGroup(group).flatMap(({ pid, command }) => (listens(pid) ? [`${pid} ${command}`] : []))
}

function assertUntouched(what: string): void {
  assert.equal(existsSync(mark), false, `${what}: other code was run`)
  for (const name of ["coverage", "compiled"]) assert.deepEqual(readdirSync(at(name)), [], what)
  assert.equal(existsSync(at("warnings")), false, what)
}

describe("the interpreter and what is meant for others", () => {
  const outcome = ({ status, text, stderr }: Result): object => ({ status, text, stderr })

  it("no variable of Node's changes what a command does, runs code or writes a file", async () => {
    const commands: readonly (readonly string[])[] = [
      ["--version"],
      ["ls", ...opener],
      ["ls", "--pem-path", keys.otherPrivateKey, at("image.sif")],
      [...exec, "cat", "/data/hello"],
      [...exec, "/no/such/program"],
      ["build", "--force", "--pem-path", keys.publicKey, at("again.sif"), at("image.sif")],
      ["key", "search", "-u", "http://127.0.0.1:1", "somebody"],
    ]
    for (const args of commands) {
      const [plain, other] = await Promise.all([
        sifcrypt(args, { cwd: folder }),
        sifcrypt(args, { cwd: folder, env: hostile }),
      ])
      assert.deepEqual(outcome(other), outcome(plain), args.join(" "))
      assertUntouched(args.join(" "))
    }
  })

  it("no word of the payload's is a switch of Node's, however the command is started", async () => {
    const linked = at("a link's folder")
    mkdirSync(linked)
    symlinkSync(cli, path.join(linked, "sif crypt"))
    const starts = [
      [cli],
      [path.join(linked, "sif crypt")],
      ...["sh", "bash", "busybox sh"].map((shell) => [...shell.split(" "), cli]),
    ]
    for (const start of starts) {
      const words = await runProgram(
        [...start, ...exec, "sh", "-c", `printf '%s\n' "$@"`, "sh", ...switches],
        { cwd: folder },
      )
      assert.equal(words.text, switches.map((word) => `${word}\n`).join(""), words.stderr)
      assertUntouched(start.join(" "))
    }
    // What is none of ours is refused as ever.
    const refused = await sifcrypt(["ls", ...switches.slice(0, 2), at("image.sif")], { cwd: folder })
    assert.equal(refused.status, 20)
    assert.match(refused.stderr, /^sifcrypt: unknown option '--env-file'/)
    assertUntouched("ls")
  })

  it("a shell that is told by the environment to print what it does prints no passphrase", async () => {
    const passphrase = "never to be printed"
    const env = { SHELLOPTS: "xtrace:verbose", SIFCRYPT_ENCRYPTION_PASSPHRASE: passphrase }
    const { stderr } = await runProgram([bashAsSh(), cli, "ls", at("image.sif")], { env })
    assert.doesNotMatch(stderr, new RegExp(passphrase))
  })

  it("what the environment tells the shell changes nothing that the command does", async () => {
    const shells = [["bash"], [bashAsSh()], ["dash"], ["busybox", "sh"]]
    const environments: readonly Readonly<Record<string, string>>[] = [
      { SHELLOPTS: "allexport:errexit:noclobber:noglob:nounset:posix:privileged" },
      { ENV: hook, BASH_ENV: "/nonexistent", POSIXLY_CORRECT: "1", CDPATH: folder, IFS: "-/ils" },
    ]
    const words = ["ls", "--pem-path", keys.privateKey, at("image.sif"), "/data"]
    const usual = await sifcrypt(words, { cwd: folder })
    assert.equal(usual.status, 0)
    for (const shell of shells)
      for (const env of environments) {
        const what = `${shell.join(" ")} ${JSON.stringify(env)}`
        const { text, status } = await runProgram([...shell, cli, ...words], { env, cwd: folder })
        assert.deepEqual([text, status], [usual.text, 0], what)
        assertUntouched(what)
      }
    // It reads what comes behind, which is not for it.
    assert.equal((await runProgram([bashAsSh(), cli, ...words], { env: { SHELLOPTS: "noexec" } })).status, 2)
  })

  it("leaves payloads the caller's limit on open files, which Node and Go raise for themselves", async () => {
    const script = ["sh", "-c", "ulimit -Sn; env | grep -ci '^_*sifcrypt_'"]
    for (const shell of [["sh"], ["bash"]])
      for (const [soft, env] of [
        ["300", {}],
        ["301", { SIFCRYPT_START_FILES: "7" }],
      ] as const) {
        const line = `ulimit -Sn ${soft} && exec "$@"`
        const { text, stderr } = await runProgram([...shell, "-c", line, "sh", cli, ...exec, ...script], {
          env,
          cwd: folder,
        })
        assert.equal(text, `${soft}\n0\n`, stderr)
      }
  })

  it("no shell that starts it keeps a variable from the payload that is none for a shell", async () => {
    const odd = {
      "a.b": "1",
      "c-d": "two words",
      "BASH_FUNC_f%%": "() {  echo called;\n echo twice\n}",
      é: "ü",
    }
    const words = [...exec, "/bin/env"]
    for (const shell of [["bash"], [bashAsSh()], ["dash"], ["busybox", "sh"]]) {
      const { text, stderr } = await runProgram([...shell, cli, ...words], {
        env: { ...odd, PLAIN: "x\n=y" },
      })
      for (const [name, value] of Object.entries(odd))
        assert.ok(
          `\n${text}`.includes(`\n${name}=${value}\n`),
          `${shell.join(" ")} ${name}: ${text}${stderr}`,
        )
      assert.doesNotMatch(text, /SIFCRYPT/)
    }
  })

  it("a word that is empty is a mistake of whoever wrote it, and no defect", async () => {
    for (const args of [
      ["ls", ""],
      ["verify", ""],
      ["build", "--pem-path", "", at("empty.sif"), folder],
    ]) {
      const { status, stderr } = await sifcrypt(args)
      assert.equal(status, 20, stderr)
      assert.match(stderr, /^sifcrypt: \S+ is empty\n$/)
    }
  })

  it("a value that nobody can take is a mistake of whoever wrote it, and no defect", async () => {
    for (const [args, expected] of [
      [["overlay", "create", "--create-dir", "made", at("overlay.img")], 20],
      [["overlay", "create", "-S", "--pem-path", keys.publicKey, at("overlay.img")], 20],
      [["exec", "--pids-limit", "-7", at("image.sif"), "true"], 255],
      [["build", "--arch", "none", at("none.sif"), folder], 25],
    ] as const) {
      const { status, stderr } = await sifcrypt(args)
      assert.equal(status, expected, stderr)
      assert.doesNotMatch(stderr, /defect/)
    }
  })

  it("thousands of words are passed on as they are", async () => {
    const many = Array.from({ length: 2345 }, (_, index) => (index % 7 === 0 ? `-${index}` : `${index}`))
    const { text } = await sifcryptOk([...exec, "echo", "--", ...many])
    assert.equal(text, `-- ${many.join(" ")}\n`)
  })

  it("the payload gets each variable as it was given, and no other", async () => {
    const names = Object.keys(hostile)
    const print = `for name in ${names.join(" ")} NODE_NOT_SET; do eval "printf '%s=%s\\n--\\n' $name \\"\\\${$name-unset}\\""; done; env | grep -c SIFCRYPT_`
    const { text, stderr } = await sifcrypt([...exec, "sh", "-c", print], { cwd: folder, env: hostile })
    const expected = names.map((name) => `${name}=${hostile[name] ?? ""}\n--\n`).join("")
    assert.equal(text, `${expected}NODE_NOT_SET=unset\n--\n0\n`, stderr)
  })

  it("helper programs of the caller's choice get them as well", async () => {
    const seen = at("seen")
    const command = `exec 3>'${seen}'; printf %s "$NODE_OPTIONS" >&3; env | grep -c SIFCRYPT_ >&3; cat '${keys.privateKey}'`
    await sifcryptOk(["ls", "--key-command", command, at("image.sif")], { cwd: folder, env: hostile })
    assert.equal(readFileSync(seen, "utf8"), `${hostile["NODE_OPTIONS"] ?? ""}0\n`)
  })

  describe("started as `node main.js`", () => {
    const env = { NODE_OPTIONS: "--inspect=127.0.0.1:0", UV_THREADPOOL_SIZE: "1" }

    it("are hidden from what it starts", async () => {
      const script = `export -p | grep -c SET_ASIDE; printf %s "$NODE_OPTIONS"`
      const { text } = await runProgram([process.execPath, cli, ...exec, "sh", "-c", script], { env })
      assert.equal(text, `0\n${env.NODE_OPTIONS}`)
    })

    it("open no debugger that stays open", async function () {
      if (!isRoot) skip(this, "needs root, to mark all processes that come of a command")
      const asked = ["ls", "--key-command", "echo asked >&2; sleep 300", at("image.sif")]
      const ended = runProgram([process.execPath, cli, ...asked], { env, group })
      try {
        await waitFor("the helper", () =>
          processesOfGroup(group).some(({ command }) => command === "sleep 300"),
        )
        assert.deepEqual(listening(), [])
      } finally {
        signalGroup(group, "SIGKILL")
        await ended
      }
    })
  })
})

describe("SIGUSR1", () => {
  const holds = `
import os, pty, sys
pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
try:
    while shown := os.read(fd, 4096):
        os.write(1, shown)
except OSError:
    pass
_, status = os.waitpid(pid, 0)
sys.exit(abs(os.waitstatus_to_exitcode(status)))
`
  const sources = at("sources")
  /** By what it waits for: how it is started, and what it has said by then. */
  const waiting: Readonly<
    Record<string, readonly [args: readonly string[], said: RegExp, options?: CommandOptions]>
  > = {
    "a prompt": [
      ["build", "--passphrase", at("prompted.sif"), sources],
      /: $/,
      { wrapper: ["python3", "-c", holds] },
    ],
    "a helper program": [["ls", "--key-command", "echo asked >&2; exec sleep 300", at("image.sif")], /asked/],
    "a script of a definition": [
      ["build", "--pem-path", keys.publicKey, at("defined.sif"), at("slow.def")],
      /begun/,
    ],
    "a payload": [
      [...exec, "sh", "-c", "trap 'exit 10' USR1; echo begun; while :; do sleep 0.05; done"],
      /begun/,
    ],
  }

  before(function () {
    if (!isRoot) skip(this, "needs root, to mark all processes that come of a command")
    mkdirSync(sources)
    writeFileSync(path.join(sources, "file"), "")
    const tree = makeRootTree()
    writeFileSync(at("slow.def"), `Bootstrap: localimage\nFrom: ${tree}\n%post\necho begun\nsleep 300\n`)
  })

  afterEach(() => {
    signalGroup(group, "SIGKILL")
  })

  /** The command gets it, whatever it has become, and all that Node runs for it; helpers and what serves a payload do not. */
  function signalOurs(command: ChildProcess): void {
    for (const { pid, program } of processesOfGroup(group)) {
      const name = path.basename(program)
      if (name !== "node" && (pid !== command.pid || name !== "sifcrypt-starter")) continue
      try {
        process.kill(pid, "SIGUSR1")
      } catch {
        // It was faster.
      }
    }
  }

  for (const [what, [args, said, options]] of Object.entries(waiting))
    it(`opens nothing in a command that waits for ${what}, and ends it or reaches the payload`, async () => {
      const child = startSifcrypt(args, { ...options, group, cwd: folder })
      const ended = finish(child)
      let output = ""
      for (const stream of [child.stdout, child.stderr])
        stream?.on("data", (chunk: Buffer) => {
          output += chunk.toString("latin1")
        })
      await waitFor("what it says", () => said.test(output), 30_000)
      for (;;) {
        signalOurs(child)
        const opened = listening()
        assert.deepEqual(opened, [])
        if ((await Promise.race([ended.then(() => true), sleep(20)])) === true) break
      }
      const { status, signal, stderr } = await ended
      assert.doesNotMatch(output, /Debugger listening|inspector/, stderr)
      assert.ok(
        signal === "SIGUSR1" || status === (what === "a payload" ? 10 : 138) || what === "a prompt",
        `${what}: ${String(status)} ${stderr}`,
      )
      assert.equal(existsSync(at("prompted.sif")) || existsSync(at("defined.sif")), false)
    })

  const rounds = times("SIFCRYPT_SIGNALS", 400, 16)

  it(`opens nothing at ${rounds} random moments of random commands, seed ${seed}`, async function () {
    this.timeout(rounds * 10_000)
    const chance = new Chance()
    const commands: readonly (readonly string[])[] = [
      [...exec, "cat", "/data/hello"],
      ["ls", ...opener],
      ["build", "--force", "--pem-path", keys.publicKey, at("random.sif"), cli],
      ["build", "--force", "--pem-path", keys.publicKey, at("random.sif"), path.join(packageRoot, "lib")],
      ["build", "--force", "--pem-path", keys.publicKey, at("random.sif"), at("slow.def")],
      ["inspect", ...opener],
      ["--help"],
    ]
    for (let round = 0; round < rounds; round++) {
      const args = chance.pick(commands)
      const child = startSifcrypt(args, { group, cwd: folder })
      const ended = finish(child)
      await sleep(chance.below(600))
      for (;;) {
        signalOurs(child)
        assert.deepEqual(listening(), [], `round ${round}, seed ${seed}: ${args.join(" ")}`)
        if ((await Promise.race([ended.then(() => true), sleep(chance.below(100))])) === true) break
      }
      const { stderr } = await ended
      assert.doesNotMatch(stderr, /Debugger listening/, args.join(" "))
      // The kernel's default undoes nothing, but what is left to it ends with the command.
      await noneOfGroup(group, "the end of all")
    }
  })
})
