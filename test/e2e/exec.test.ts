// `sifcrypt exec`, `run` and `shell` through the userspace engine, as root and as an ordinary user.
import assert from "node:assert/strict"
import { randomBytes } from "node:crypto"
import { once } from "node:events"
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  realpathSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import {
  finish,
  homeInside,
  homeOf,
  isRoot,
  sifcrypt,
  sifcryptOk,
  startSifcrypt,
  userId,
  type As,
  type CommandOptions,
  type Result,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { allProcesses, holdsFuse, noneOfGroup, processesOfGroup, waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

describe("running in an image", () => {
  const keys = testKeys()
  const folder = newFolder("exec", userId)
  const image = path.join(folder, "image.sif")
  const credentials = ["--engine", "userspace", "--pem-path", keys.privateKey]
  const bare = path.join(folder, "bare.sif")

  before(async () => {
    const tree = makeRootTree()
    mkdirSync(path.join(tree, ".singularity.d", "env"), { recursive: true })
    writeFileSync(path.join(tree, ".singularity.d", "env", "90-environment.sh"), "export FROM_IMAGE=image\n")
    const script = path.join(tree, ".singularity.d", "runscript")
    writeFileSync(script, '#!/bin/sh\necho "run: $*"\nexit 5\n')
    chmodSync(script, 0o755)
    writeFileSync(path.join(tree, "bin", "no-program"), "text")
    await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree])
    const shellless = newFolder("shellless")
    mkdirSync(path.join(shellless, "bin"))
    for (const name of ["dev", "proc", "sys", "etc", "tmp"]) mkdirSync(path.join(shellless, name))
    writeFileSync(path.join(shellless, "bin", "busybox"), readFileSync(path.join(tree, "bin", "busybox")))
    chmodSync(path.join(shellless, "bin", "busybox"), 0o755)
    symlinkSync("busybox", path.join(shellless, "bin", "echo"))
    await sifcryptOk(["build", bare, shellless])
  })

  for (const as of ["user", "self"] as const satisfies readonly As[]) {
    const name = as === "user" ? "an ordinary user" : "root"

    describe(`as ${name}`, () => {
      before(function () {
        if (as === "self" && !isRoot) skip(this, "needs root")
      })

      const uid = as === "user" ? userId : 0
      const exec = (
        args: readonly string[],
        options: CommandOptions = {},
        flags: readonly string[] = [],
      ): Promise<Result> =>
        sifcrypt(["exec", ...credentials, ...flags, image, ...args], { as, cwd: folder, ...options })
      const sh = (
        script: string,
        options: CommandOptions = {},
        flags: readonly string[] = [],
      ): Promise<Result> => exec(["sh", "-c", script], options, flags)
      async function output(
        script: string,
        options: CommandOptions = {},
        flags: readonly string[] = [],
      ): Promise<string> {
        const result = await sh(script, options, flags)
        assert.equal(result.stderr, "")
        assert.equal(result.status, 0)
        return result.text
      }

      it("gives the payload's exit status", async () => {
        for (const status of [0, 7, 255]) assert.equal((await sh(`exit ${status}`)).status, status)
      })

      it("ends by the signal that killed the payload", async () => {
        assert.equal((await sh("kill -9 $$")).signal, "SIGKILL")
        assert.equal((await sh("kill -TERM $$")).signal, "SIGTERM")
      })

      it("ends with 255 and a message when the command is not there or no program", async () => {
        for (const command of ["no-such-command", "/no/such/command", "/data", "no-program"]) {
          const result = await exec([command])
          assert.equal(result.status, 255, `${command}: ${result.stderr}`)
          assert.ok(result.stderr.includes(command), result.stderr)
        }
      })

      it("keeps arguments as they are", async () => {
        const args = [
          "a b",
          "",
          "'quoted' \"twice\"",
          "$HOME $(id)",
          "new\nline",
          "*",
          "-x",
          "--engine",
          "ünï",
        ]
        const result = await exec(["sh", "-c", 'for a in "$@"; do echo "<$a>"; done', "sh", ...args])
        assert.equal(result.text, args.map((arg) => `<${arg}>\n`).join(""))
      })

      it("passes standard input through unchanged, 20 MB of it", async () => {
        const input = randomBytes(20 << 20)
        const result = await exec(["cat"], { input })
        assert.equal(result.status, 0)
        assert.ok(result.stdout.equals(input))
      })

      it("keeps standard output and standard error apart", async () => {
        const result = await sh("echo out; echo err >&2")
        assert.equal(result.text, "out\n")
        assert.equal(result.stderr, "err\n")
      })

      it("is the same user inside as outside, with a name", async () => {
        assert.equal(await output("echo $(id -u) $(id -g)"), `${uid} ${uid}\n`)
        const passwd = await output("cat /etc/passwd")
        assert.ok(passwd.split("\n").some((line) => line.split(":")[2] === String(uid)))
        assert.notEqual(await output("id -un"), "")
      })

      it("has the home, the working directory and /tmp of outside", async () => {
        assert.equal(await output("echo $PWD; pwd"), `${folder}\n${folder}\n`)
        const file = path.join(homeOf(as), "written inside")
        await output(`echo hello > "${file}"`)
        assert.equal(readFileSync(file, "utf8"), "hello\n")
        assert.equal(statSync(file).uid, uid)
        assert.equal(statSync(file).gid, uid)
      })

      it("has /proc, /sys and /dev", async () => {
        const text = await output(
          "ls -d /proc/self /sys/kernel /dev/null /dev/fd; echo x > /dev/null; cat /dev/null",
        )
        assert.equal(text.trim().split("\n").length, 4)
      })

      it("sees the host's resolv.conf and hosts", async () => {
        for (const file of ["/etc/resolv.conf", "/etc/hosts"])
          if (existsSync(file))
            assert.equal(await output(`cat ${file}`), readFileSync(realpathSync(file), "utf8"))
      })

      it("cannot write to the image", async () => {
        for (const place of ["/file", "/data/hello", "/etc/file", "/bin/sh"]) {
          const result = await sh(`echo x > ${place}`)
          assert.notEqual(result.status, 0, place)
          assert.match(result.stderr, /Read-only file system|Permission denied/)
        }
        assert.equal(await output("cat /data/hello"), "hello\n")
      })

      it("runs with no_new_privs, and without capabilities unless it is root", async () => {
        const status = await output("cat /proc/self/status")
        assert.match(status, /^NoNewPrivs:\t1$/m)
        if (as === "user")
          for (const set of ["Inh", "Prm", "Eff", "Bnd", "Amb"])
            assert.match(status, new RegExp(`^Cap${set}:\\t0{16}$`, "m"))
      })

      it("S7: has a root that is nosuid, nodev and read-only", async () => {
        const mounts = (await output("cat /proc/self/mounts")).split("\n").map((line) => line.split(" "))
        const options =
          mounts
            .filter(([, target]) => target === "/")
            .at(-1)?.[3]
            ?.split(",") ?? []
        for (const option of ["ro", "nosuid", "nodev"]) assert.ok(options.includes(option), options.join())
      })

      it("S21: has no open descriptors besides 0, 1 and 2", async () => {
        // 3 is what ls reads the folder with.
        const text = await output("ls /proc/self/fd")
        assert.deepEqual(text.trim().split("\n").map(Number), [0, 1, 2, 3])
        const shell = await output("ls -l /proc/$$/fd; true")
        assert.doesNotMatch(shell, /sif|fuse|pipe:.*\b(9|8|7|6|5|4) ->/)
      })

      describe("S21: descriptors that are given to it", () => {
        const given = path.join(folder, `given-${as}`)
        const withTwo = async (
          flags: readonly string[],
          script: string,
        ): Promise<{ readonly result: Result; readonly told: string }> => {
          writeFileSync(given, "from outside\n")
          const file = openSync(given, "r")
          const child = startSifcrypt(["exec", ...credentials, ...flags, image, "sh", "-c", script], {
            as,
            cwd: folder,
            stdio: ["pipe", "pipe", "pipe", file, "pipe"],
          })
          closeSync(file)
          const told: Buffer[] = []
          child.stdio[4]?.on("data", (chunk: Buffer) => told.push(chunk))
          const result = await finish(child)
          return { result, told: Buffer.concat(told).toString() }
        }

        it("do not reach the payload", async () => {
          const { result } = await withTwo([], "ls /proc/self/fd")
          assert.equal(result.stderr, "")
          assert.equal(result.text, "0\n1\n2\n3\n")
        })
        for (const flags of [[], ["--pid"], ["--containall"]])
          it(`do with --preserve-fds ${flags.join(" ")}, and no others`, async () => {
            const script = "ls /proc/self/fd; cat <&3; echo from inside >&4"
            const { result, told } = await withTwo(["--preserve-fds", "2", ...flags], script)
            assert.equal(result.stderr, "")
            assert.equal(result.text, "0\n1\n2\n3\n4\n5\nfrom outside\n")
            assert.equal(told, "from inside\n")
          })
        for (const flags of [[], ["--pid"], ["--containall"]])
          it(`are those of a list ${flags.join(" ")}, whatever lies between them`, async () => {
            writeFileSync(given, "from outside\n")
            const file = openSync(given, "r")
            const child = startSifcrypt(
              [
                "exec",
                ...credentials,
                "--preserve-fds",
                "9,5",
                ...flags,
                image,
                "sh",
                "-c",
                "ls -l /proc/$$/fd; cat <&9",
              ],
              {
                as,
                cwd: folder,
                stdio: ["pipe", "pipe", "pipe", file, file, file, "ignore", "ignore", "pipe", file],
              },
            )
            closeSync(file)
            const result = await finish(child)
            assert.equal(result.stderr, "")
            const numbers = [...result.text.matchAll(/ (\d+) -> /g)].map(([, fd]) => Number(fd))
            // A shell may keep one of its own, far up.
            assert.deepEqual(
              numbers.filter((fd) => fd > 2 && fd <= 9),
              [5, 9],
              result.text,
            )
            assert.match(result.text, /from outside\n$/)
          })
        it("the socket that PMI_FD names is among them, and nothing else that it may name", async () => {
          const parallel = async (fd: string, flags: readonly string[] = []): Promise<readonly number[]> => {
            writeFileSync(given, "from outside\n")
            const file = openSync(given, "r")
            const child = startSifcrypt(
              ["exec", ...credentials, ...flags, image, "sh", "-c", "ls -l /proc/$$/fd; echo $PMI_FD"],
              {
                as,
                cwd: folder,
                env: { PMI_FD: fd },
                stdio: ["pipe", "pipe", "pipe", file, file, file, "pipe"],
              },
            )
            closeSync(file)
            const result = await finish(child)
            assert.equal(result.stderr, "")
            assert.ok(result.text.endsWith(`\n${fd}\n`), result.text)
            return [...result.text.matchAll(/ (\d+) -> /g)]
              .map(([, one]) => Number(one))
              .filter((one) => one > 2 && one < 9)
          }
          assert.deepEqual(await parallel("6"), [6])
          assert.deepEqual(await parallel("6", ["--preserve-fds", "2"]), [3, 4, 6])
          for (const fd of ["3", "7", "8", "600", "1", "-1", "six"])
            assert.deepEqual(await parallel(fd), [], fd)
        })
        it("are those that were asked for", async () => {
          const { result } = await withTwo(["--preserve-fds", "1"], "ls /proc/self/fd")
          assert.equal(result.text, "0\n1\n2\n3\n4\n")
        })
        it("have to be there: none of this command's own is passed on", async () => {
          for (const count of ["3", "5", "200"]) {
            const { result } = await withTwo(["--preserve-fds", count], "true")
            assert.equal(result.status, 255)
            assert.match(result.stderr, /--preserve-fds: descriptor 5 was not given to this process/)
          }
          const secret = await withTwo(["--passphrase-fd", "3", "--preserve-fds", "1"], "true")
          assert.match(secret.result.stderr, /--preserve-fds: a secret is read from descriptor 3/)
          for (const count of ["-1", "1025"])
            assert.match((await withTwo(["--preserve-fds", count], "true")).result.stderr, /--preserve-fds: /)
        })
      })

      describe("binds", () => {
        const outside = newFolder("outside", userId)
        writeFileSync(path.join(outside, "file"), "from outside\n")
        chmodSync(outside, 0o777)

        it("a folder to a place that the image has", async () => {
          assert.equal(await output("cat /data/file", {}, ["--bind", `${outside}:/data`]), "from outside\n")
        })
        it("a folder to a place that the image does not have", async () => {
          const text = await output("cat /no/such/place/file", {}, ["-B", `${outside}:/no/such/place`])
          assert.equal(text, "from outside\n")
        })
        it("a file", async () => {
          const text = await output("cat /data/hello", {}, [
            "-B",
            `${path.join(outside, "file")}:/data/hello`,
          ])
          assert.equal(text, "from outside\n")
        })
        it("for writing", async () => {
          await output(`echo ${as} > /data/written-${as}`, {}, ["-B", `${outside}:/data:rw`])
          assert.equal(readFileSync(path.join(outside, `written-${as}`), "utf8"), `${as}\n`)
        })
        it("for reading only", async () => {
          const result = await sh("echo x > /data/denied", {}, ["-B", `${outside}:/data:ro`])
          assert.notEqual(result.status, 0)
          assert.match(result.stderr, /Read-only file system/)
          assert.equal(existsSync(path.join(outside, "denied")), false)
        })
        it("several, also in one option", async () => {
          const flags = ["-B", `${outside}:/data,${outside}:/more:ro`, "-B", `${outside}:/third`]
          const text = await output("cat /data/file /more/file /third/file", {}, flags)
          assert.equal(text, "from outside\n".repeat(3))
        })
        it("S17: not a folder whose name only starts alike", async () => {
          const similar = `${outside}2`
          mkdirSync(similar, { recursive: true })
          writeFileSync(path.join(similar, "other"), "x")
          const result = await sh(`ls /safe2`, {}, ["-B", `${outside}:/safe`])
          assert.notEqual(result.status, 0)
        })
        it("and says what is wrong with one", async () => {
          for (const [bind, message] of [
            [`${outside}/missing:/data`, /the source does not exist/],
            [`${outside}:relative`, /absolute/],
            [`${outside}:/data:rx`, /rx is not a valid bind option/],
            [":/data", /no source/],
          ] as const) {
            const result = await sh("true", {}, ["-B", bind])
            assert.equal(result.status, 255)
            assert.match(result.stderr, message)
          }
        })
      })

      describe("environment", () => {
        it("is the host's, where the image does not say otherwise", async () => {
          const env = { FROM_HOST: "host value", FROM_IMAGE: "host", ODD: "a'b\"c\n$d\\" }
          const text = await output('echo "$FROM_HOST|$FROM_IMAGE|$ODD"', { env })
          assert.equal(text, "host value|image|a'b\"c\n$d\\\n")
        })
        it("takes --env above all", async () => {
          const flags = ["--env", "FROM_IMAGE=mine", "--env", "EMPTY=", "--env", "EQUALS=a=b"]
          const env = { APPTAINERENV_FROM_IMAGE: "apptainer", APPTAINERENV_X: "x", EMPTY: "full" }
          const text = await output('echo "$FROM_IMAGE|${EMPTY-unset}|$EQUALS|$X"', { env }, flags)
          assert.equal(text, "mine||a=b|x\n")
        })
        it("is empty with --cleanenv", async () => {
          const env = { FROM_HOST: "host", TERM: "xterm", https_proxy: "http://proxy" }
          const text = await output('echo "${FROM_HOST-unset}|$TERM|$https_proxy|$LANG"', { env }, [
            "--cleanenv",
          ])
          assert.equal(text, "unset|xterm|http://proxy|C\n")
        })
        it("has the image's PATH, not the host's", async () => {
          assert.doesNotMatch(
            await output("echo $PATH", { env: { LD_LIBRARY_PATH: "/nonexistent" } }),
            /node/,
          )
        })
        it("A7: holds no key and no setting of ours or the peers", async () => {
          const env = {
            SIFCRYPT_ENCRYPTION_PASSPHRASE: "do not leak 1",
            APPTAINER_ENCRYPTION_PASSPHRASE: "do not leak 2",
            SINGULARITY_ENCRYPTION_PEM_DATA: "do not leak 3",
            SIFCRYPT_DEBUG: "0",
          }
          const text = await output("env; cat /proc/self/environ", { env })
          assert.doesNotMatch(text, /do not leak|SIFCRYPT_|_ENCRYPTION_/)
        })
        it("refuses what is no assignment", async () => {
          const result = await sh("true", {}, ["--env", "nonsense"])
          assert.equal(result.status, 255)
          assert.match(result.stderr, /NAME=VALUE/)
        })
      })

      describe("working directory", () => {
        it("is what --pwd says", async () => {
          assert.equal(await output("pwd", {}, ["--pwd", "/data"]), "/data\n")
        })
        it("that is not there is an error", async () => {
          const result = await sh("true", {}, ["--pwd", "/nowhere"])
          assert.equal(result.status, 255)
          assert.match(result.stderr, /no folder \/nowhere/)
        })
        it("is home or / where the host's belongs to the image", async () => {
          const { text, stderr } = await sh("pwd", { cwd: "/opt" })
          assert.ok(["/\n", `${homeInside(as)}\n`, "/home\n"].includes(text), text)
          assert.ok(stderr.endsWith(`/opt is not there inside: ${text.trim()} takes its place\n`), stderr)
        })
      })

      it("does not wait for what the payload leaves behind, and does not leave it running", async function () {
        const started = performance.now()
        const marker = `300.${String(process.pid)}${as === "user" ? "1" : "2"}`
        const result = await sh(`sleep ${marker} & echo done`)
        assert.equal(result.text, "done\n")
        assert.equal(result.status, 0)
        assert.ok(performance.now() - started < 15_000)
        await waitFor("the end of the background process", () =>
          allProcesses().every(({ command }) => !command.endsWith(`sleep ${marker}`)),
        )
      })

      describe("signals", () => {
        async function started(
          script: string,
          trap: string = "",
        ): Promise<{ kill: (signal: NodeJS.Signals) => void; result: Promise<Result> }> {
          const child = startSifcrypt(
            ["exec", ...credentials, image, "sh", "-c", `${trap}echo ready; ${script}`],
            {
              as,
              cwd: folder,
            },
          )
          const ready = once(child.stdout!, "data")
          const result = finish(child)
          await ready
          return { kill: (signal) => child.kill(signal), result }
        }

        for (const [signal, status] of [
          ["SIGTERM", 143],
          ["SIGINT", 130],
          ["SIGHUP", 129],
        ] as const)
          it(`${signal} ends the payload and the command with ${status}`, async () => {
            // A shell alone ignores SIGINT while it waits for a command.
            const { kill, result } = await started("exec sleep 300")
            kill(signal)
            const end = await result
            assert.equal(
              end.signal === null
                ? end.status
                : 128 + (signal === "SIGTERM" ? 15 : signal === "SIGINT" ? 2 : 1),
              status,
            )
          })

        it("that the payload handles leave it its own exit status", async () => {
          const { kill, result } = await started("while :; do sleep 0.05; done", "trap 'exit 9' TERM; ")
          kill("SIGTERM")
          assert.equal((await result).status, 9)
        })

        it("for the payload's own use reach it", async () => {
          const { kill, result } = await started("while :; do sleep 0.05; done", "trap 'exit 10' USR1; ")
          kill("SIGUSR1")
          assert.equal((await result).status, 10)
        })
      })

      it("run starts the image's run script", async () => {
        const result = await sifcrypt(["run", ...credentials, image, "a b", "c"], { as, cwd: folder })
        assert.equal(result.text, "run: a b c\n")
        assert.equal(result.status, 5)
      })

      it("shell reads commands from standard input", async () => {
        const result = await sifcrypt(["shell", ...credentials, image], {
          as,
          cwd: folder,
          input: "id -u\nexit 3\n",
        })
        assert.equal(result.text, `${uid}\n`)
        assert.equal(result.status, 3)
      })

      it("works in an image without a shell", async () => {
        const options = { as, cwd: folder }
        const result = await sifcryptOk(
          ["exec", "--engine", "userspace", bare, "/bin/echo", "hello"],
          options,
        )
        assert.equal(result.text, "hello\n")
        const refused = await sifcrypt(["shell", "--engine", "userspace", bare], options)
        assert.equal(refused.status, 1)
        assert.match(refused.stderr, /there is no shell in the image/)
        const missing = await sifcrypt(["exec", "--engine", "userspace", bare, "/bin/nothing"], options)
        assert.equal(missing.status, 255)
        assert.match(missing.stderr, /nothing/)
      })

      it("auto picks an engine that works here", async () => {
        const result = await sifcryptOk(["exec", "--pem-path", keys.privateKey, image, "echo", "hello"], {
          as,
        })
        assert.equal(result.text, "hello\n")
      })

      it("A7, S24: keys are in no command line and no environment of ours, and the key's holder cannot be read", async function () {
        if (!isRoot) skip(this, "needs root, to mark and to read all processes of a command")
        const group = 71_000 + (as === "user" ? 1 : 2)
        const passphrase = `secret ${randomBytes(16).toString("hex")}`
        const file = path.join(folder, `passphrase-${as}`)
        writeFileSync(file, passphrase, { mode: 0o644 })
        const secretImage = path.join(folder, `secret-${as}.sif`)
        await sifcryptOk([
          "build",
          "--pem-path",
          keys.publicKey,
          "--passphrase-file",
          file,
          secretImage,
          makeRootTree(),
        ])
        const child = startSifcrypt(
          [
            "exec",
            "--engine",
            "userspace",
            "--passphrase-file",
            file,
            secretImage,
            "sh",
            "-c",
            "echo ready; read x",
          ],
          { as, group, cwd: folder },
        )
        const ready = once(child.stdout!, "data")
        const end = finish(child, { holdInput: true })
        await ready
        const all = processesOfGroup(group)
        assert.ok(all.length >= 4, "launcher, starter, server and payload")
        for (const { pid, command } of all) {
          assert.ok(!command.includes(passphrase))
          assert.ok(!readFileSync(`/proc/${pid}/environ`, "utf8").includes(passphrase), command)
        }
        const server = all.find(({ pid, program }) => program.endsWith("sifcrypt-starter") && holdsFuse(pid))
        assert.ok(server, "a process serves the image")
        // An undumpable process belongs to root in /proc, so that its user can neither trace nor read it.
        assert.equal(statSync(`/proc/${server.pid}/mem`).uid, 0)
        const core = /Max core file size\s+(\S+)/.exec(
          readFileSync(`/proc/${server.pid}/limits`, "utf8"),
        )?.[1]
        assert.equal(core, "0")
        child.stdin!.end("\n")
        assert.equal((await end).status, 0)
        await noneOfGroup(group, "the end of all processes")
      })
    })
  }

  describe("needs little", () => {
    /** Programs that are not there for the command. */
    const without = (...programs: string[]): string[] => [
      "unshare",
      "--mount",
      "sh",
      "-c",
      `for name in ${programs.join(" ")}; do for folder in /usr/bin /usr/sbin /bin /sbin /usr/local/bin; do
        [ ! -e $folder/$name ] || mount --bind /dev/null $folder/$name; done; done; exec "$@"`,
      "sh",
    ]

    before(function () {
      if (!isRoot) skip(this, "needs root, to hide programs in a mount namespace")
    })

    it("A23: no cryptsetup, dmsetup or squashfs program", async () => {
      const target = path.join(newFolder("few-programs", userId), "image.sif")
      const wrapper = without(
        "cryptsetup",
        "dmsetup",
        "mksquashfs",
        "unsquashfs",
        "squashfuse",
        "gocryptfs",
        "losetup",
      )
      await sifcryptOk(["build", "--pem-path", keys.publicKey, target, makeRootTree()], { wrapper })
      const flags = ["--pem-path", keys.privateKey, target]
      assert.equal((await sifcryptOk(["cat", ...flags, "/data/hello"], { wrapper })).text, "hello\n")
      assert.equal((await sifcryptOk(["exec", ...flags, "cat", "/data/hello"], { wrapper })).text, "hello\n")
    })

    it("A39: no fusermount3 and no other program with the setuid bit", async () => {
      const wrapper = without(
        "fusermount3",
        "fusermount",
        "mount",
        "umount",
        "newuidmap",
        "newgidmap",
        "su",
        "sudo",
      )
      const result = await sifcryptOk(["exec", ...credentials, image, "cat", "/data/hello"], { wrapper })
      assert.equal(result.text, "hello\n")
    })

    it("says that crun is missing", async () => {
      const result = await sifcrypt(["exec", ...credentials, image, "true"], { wrapper: without("crun") })
      assert.equal(result.status, 24)
      assert.match(result.stderr, /crun/)
    })

    it("says that /dev/fuse is missing", async () => {
      const script = `mount -t tmpfs dev /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9
        ln -s /proc/self/fd /dev/fd; exec "$@"`
      const wrapper = ["unshare", "--mount", "sh", "-c", script, "sh"]
      const result = await sifcrypt(["exec", ...credentials, image, "true"], { wrapper })
      assert.equal(result.status, 24, result.stderr)
      assert.match(result.stderr, /\/dev\/fuse/)
    })

    it("says that there are no user namespaces", async () => {
      // The kernel gives none to a process in a changed root.
      const root = newFolder("root")
      const wrapper = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        `mount --rbind / ${root}; exec chroot ${root} "$@"`,
        "sh",
      ]
      const result = await sifcrypt(["exec", ...credentials, image, "true"], { wrapper })
      assert.equal(result.status, 24, result.stderr)
      assert.match(result.stderr, /user namespace|userns/)
    })

    it("A17: says that the kernel engine needs root", async () => {
      const result = await sifcrypt([
        "exec",
        "--engine",
        "kernel",
        "--pem-path",
        keys.privateKey,
        image,
        "true",
      ])
      assert.equal(result.status, 24)
      assert.match(result.stderr, /the kernel engine needs root[^]*hint: .*--engine userspace/)
    })
  })
})
