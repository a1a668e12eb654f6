// What the options of exec, run and shell make the payload see, as root and as an ordinary user. What the peers do with the
// same options is compared in test/peer; here is what they do not have, and root.
import assert from "node:assert/strict"
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import {
  homeInside,
  isRoot,
  runProgram,
  sifcrypt,
  sifcryptOk,
  userId,
  type As,
  type CommandOptions,
  type Result,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

describe("options of a run", () => {
  const keys = testKeys()
  const folder = newFolder("options", userId)
  const image = path.join(folder, "image.sif")
  const outside = newFolder("options-outside", userId)
  writeFileSync(path.join(outside, "file"), "outside\n")

  before(async () => {
    const tree = makeRootTree()
    mkdirSync(path.join(tree, ".singularity.d", "env"), { recursive: true })
    writeFileSync(path.join(tree, ".singularity.d", "env", "90-environment.sh"), "export FROM_IMAGE=image\n")
    await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree])
  })

  for (const as of ["user", "self"] as const satisfies readonly As[])
    describe(as === "user" ? "as an ordinary user" : "as root", () => {
      before(function () {
        if (as === "self" && !isRoot) skip(this, "needs root")
      })

      const run = (flags: readonly string[], script: string, options: CommandOptions = {}): Promise<Result> =>
        sifcrypt(
          [
            "exec",
            "--engine",
            "userspace",
            "--pem-path",
            keys.privateKey,
            ...flags,
            image,
            "sh",
            "-c",
            script,
          ],
          {
            as,
            cwd: folder,
            ...options,
          },
        )
      async function output(
        flags: readonly string[],
        script: string,
        options: CommandOptions = {},
      ): Promise<string> {
        const { status, stderr, text } = await run(flags, script, options)
        assert.equal(stderr, "")
        assert.equal(status, 0)
        return text
      }

      it("--contain: nothing of the host but its kernel, and no device beyond the usual", async () => {
        const [, , inTmp = "none"] = homeInside(as).split("/")
        const script =
          `ls -A /tmp /var/tmp ~ | busybox grep -cvE '^$|:$|^${inTmp}$'; ` +
          "ls /dev/sda /dev/kmsg /dev/mem /dev/fuse 2>/dev/null | wc -l; pwd"
        // A home in /tmp is a place there.
        const home = homeInside(as)
        assert.equal(await output(["--contain"], script), `0\n0\n${home}\n`)
        assert.equal(
          await output(
            ["-c"],
            "echo x > /dev/null; head -c4 /dev/zero | wc -c; echo y > /dev/shm/y; cat /dev/shm/y",
          ),
          "4\ny\n",
        )
      })

      it("--contain with --bind shows what is asked for", async () => {
        assert.equal(await output(["-c", "-B", `${outside}:/tmp/in`], "cat /tmp/in/file"), "outside\n")
      })

      it("--contain limits what an ordinary user writes in memory", async function () {
        if (as === "self") return // root's limit is the kernel's
        const { status, stderr } = await run(["-c"], "head -c 70000000 /dev/zero > /tmp/large")
        assert.notEqual(status, 0)
        assert.match(stderr, /No space left|I\/O error/)
      })

      it("--workdir keeps what --contain and --scratch would lose", async () => {
        const work = newFolder("work", userId)
        chmodSync(work, 0o777)
        await output(
          ["-c", "-W", work, "-S", "/scratch/deep"],
          "echo t > /tmp/t; echo v > /var/tmp/v; echo s > /scratch/deep/s",
        )
        assert.equal(readFileSync(path.join(work, "tmp", "t"), "utf8"), "t\n")
        assert.equal(readFileSync(path.join(work, "var_tmp", "v"), "utf8"), "v\n")
        assert.equal(readFileSync(path.join(work, "scratch", "scratch", "deep", "s"), "utf8"), "s\n")
        assert.equal(statSync(path.join(work, "tmp")).mode & 0o7777, 0o1777)
      })

      it("--home shows another folder as home, to programs and in passwd", async () => {
        const flags = ["--home", `${outside}:/elsewhere/me`]
        assert.equal(await output(flags, "cd; pwd; cat file"), "/elsewhere/me\noutside\n")
        assert.match(await output(flags, "cat /etc/passwd"), /:\/elsewhere\/me:/)
      })

      it("--no-mount leaves out /proc, /sys and /dev as well", async () => {
        assert.equal(await output(["--no-mount", "sys"], "ls /sys | wc -l"), "0\n")
        assert.match(
          (await run(["--no-mount", "nonsense"], "true")).stderr,
          /nonsense: there is no such mount/,
        )
      })

      it("--env-file and --env, values literal unless --eval is given", async () => {
        const file = path.join(outside, "variables")
        writeFileSync(file, 'A="file $HOST"\nB=file\n')
        const flags = ["--env-file", file, "--env", "B=option $HOME,FROM_IMAGE=mine"]
        const script = 'echo "$A|$B|$FROM_IMAGE"'
        const options = { env: { HOST: "host" } }
        assert.equal(await output(flags, script, options), "file host|option $HOME|mine\n")
        const home = homeInside(as)
        assert.equal(await output(["--eval", ...flags], script, options), `file host|option ${home}|mine\n`)
        const evaluated = ["--eval", "--no-eval", ...flags]
        assert.equal(await output(evaluated, script, options), "file host|option $HOME|mine\n")
      })

      it("--no-env leaves out variables of the host", async () => {
        assert.equal(
          await output(["--no-env", "A,B"], 'echo "${A-none} ${B-none} $C"', {
            env: { A: "1", B: "2", C: "3" },
          }),
          "none none 3\n",
        )
      })

      it("SIFCRYPT_ variables stand for options, before the peers'", async () => {
        const env = { SIFCRYPT_CWD: "/data", APPTAINER_CWD: "/bin", SINGULARITY_CONTAIN: "true" }
        const { text, stderr, status } = await run([], `pwd; ls -d '${folder}' 2>/dev/null; true`, { env })
        assert.equal(status, 0)
        assert.equal(text, "/data\n")
        assert.match(stderr, /APPTAINER_CWD and SIFCRYPT_CWD have different values: the latter counts/)
      })

      it("a home that is nowhere is made in memory, and nothing lies over the root: both are told", async () => {
        const flags = ["--home", "/no/such/folder", "-B", `${outside}:/`]
        const { status, text, stderr } = await run(flags, "touch $HOME/x; ls $HOME; ls -d /data")
        assert.deepEqual([status, text], [0, "x\n/data\n"], stderr)
        assert.match(stderr, /--home: there is no folder \/no\/such\/folder on this machine, so it is empty/)
        assert.match(stderr, /bind .*: left out, nothing is bound over the root/)
      })

      it("options that make no sense end with 255, and say which", async () => {
        for (const [flags, message] of [
          [["--dns", "nowhere"], /--dns: nowhere is no address/],
          [["--home", "/dev/null"], /--home: \/dev\/null is no folder/],
          [["--scratch", "relative"], /--scratch: relative is not an absolute path/],
          [["-c", "--workdir", "/no/such/folder"], /--workdir: there is no folder/],
          [["-B", `${outside}:in`], /the destination must be an absolute path/],
          [["-B", `${outside}:/in:image-src=/x`], /image-src and id are for images/],
          [["--fusemount", "x"], /--fusemount: /],
        ] as const) {
          const { status, stderr } = await run(flags, "true")
          assert.equal(status, 255, stderr)
          assert.match(stderr, message)
        }
      })
    })

  describe("--nv and --rocm", () => {
    it("show a host's processors, in a tree that stands for such a host", async function () {
      if (!isRoot) skip(this, "needs root, to put devices and a list where the host has them")
      const host = newFolder("gpu-host")
      const library32 = path.join(host, "libold-gpu.so.1")
      writeFileSync(path.join(host, "nvliblist.conf"), `nvidia-smi\nlibown-gpu.so\n${library32}\n`)
      // elf(5): 32 bits, and EM_386 in e_machine.
      writeFileSync(library32, Buffer.from(`7f454c46010101${"00".repeat(9)}03000300`, "hex"))
      const library = ["-Wl,-soname,libown-gpu.so.1", "-o", path.join(host, "libown-gpu.so.1")]
      const compiled = await runProgram(["cc", "-shared", "-x", "c", "/dev/null", ...library], { as: "self" })
      assert.equal(compiled.status, 0, compiled.stderr)
      writeFileSync(path.join(host, "nvidia-smi"), "#!/bin/sh\necho smi\n", { mode: 0o755 })
      // In a mount namespace of its own the host gets a list, a library, a program, and nodes in /dev.
      const prepare = `set -e
        mount -t tmpfs lists /etc/apptainer 2>/dev/null || { mount -t tmpfs etc /mnt; cp -a /etc/. /mnt; mkdir -p /mnt/apptainer; mount --move /mnt /etc; }
        cp ${host}/nvliblist.conf /etc/apptainer/
        mount -t tmpfs local /mnt && cp -a /usr/local/bin/. ${host}/nvidia-smi /mnt/ && mount --move /mnt /usr/local/bin
        mount --bind ${host} /usr/local/share
        ldconfig -C /etc/ld.so.cache /usr/local/share
        mkdir -p /mnt/dev && mount -t tmpfs dev /mnt && mkdir /mnt/dev && cp -a /dev/null /dev/zero /dev/random /dev/urandom /dev/tty /dev/full /dev/fuse /mnt/dev/
        mkdir -p /mnt/dev/dri /mnt/dev/pts /mnt/dev/shm && mknod /mnt/dev/nvidia0 c 1 3 && mknod /mnt/dev/dri/card0 c 1 3 && mknod /mnt/dev/kfd c 1 3
        chmod 666 /mnt/dev/nvidia0 /mnt/dev/kfd /mnt/dev/dri/card0
        mount --rbind /mnt/dev /dev
        umount -l /mnt
        exec "$@"`
      const inHost = (args: readonly string[], env: CommandOptions["env"] = {}): Promise<Result> =>
        sifcrypt(args, {
          as: "user",
          cwd: folder,
          env,
          wrapper: ["unshare", "-m", "--propagation", "private", "sh", "-c", prepare, "sh"],
        })
      const exec = (...flags: readonly string[]): Promise<Result> =>
        inHost([
          ...["exec", "--pem-path", keys.privateKey, ...flags, image, "sh", "-c"],
          "ls /.singularity.d/libs; nvidia-smi; ls /dev | grep -E 'nvidia|kfd|dri'; ls /dev/dri",
        ])
      const nv = await exec("--contain", "--nv")
      assert.match(nv.text, /^libown-gpu\.so\.1\nsmi\nnvidia0\n$/m, nv.stderr)
      const rocm = await exec("--contain", "--rocm")
      assert.match(rocm.text, /^dri\nkfd\ncard0\n$/m, rocm.stderr)
      const off = await exec("--contain", "--nv", "--no-nv")
      assert.doesNotMatch(off.text, /own-gpu|nvidia0/)
      const show = "cd /.singularity.d; echo libs*/*; echo $LD_LIBRARY_PATH; nvidia-smi"
      const both = await inHost([
        ...["exec", "--pem-path", keys.privateKey, "--nv", "--compat32"],
        image,
        "sh",
        "-c",
        show,
      ])
      assert.match(
        both.text,
        /^libs\/libown-gpu\.so\.1 libs32\/libold-gpu\.so\.1\n.*:?\/\.singularity\.d\/libs32\nsmi\n$/,
        both.stderr,
      )
      const neither = await inHost([
        "exec",
        "--pem-path",
        keys.privateKey,
        "--compat32",
        image,
        "sh",
        "-c",
        ":",
      ])
      assert.equal(neither.status, 0, neither.stderr)
      assert.match(
        neither.stderr,
        /^sifcrypt: --compat32 changes nothing: --nv and --rocm are not asked for/m,
      )
      // As the peers: what builds sees them, and nothing of them stays.
      const definition = path.join(folder, "gpu.def")
      writeFileSync(
        definition,
        `Bootstrap: localimage\nFrom: ${makeRootTree()}\n%post\n${show}\n%test\nnvidia-smi\n`,
      )
      for (const [flags, env] of [
        [["--nv"], {}],
        [[], { APPTAINER_NV: "1" }],
      ] as const) {
        const built = await inHost(
          ["build", ...flags, "-F", "--sandbox", path.join(folder, "gpu"), definition],
          env,
        )
        assert.match(built.text, /^libs\/libown-gpu\.so\.1\n.*\nsmi\n(?:.*\n)*smi\n/m, built.stderr)
        assert.deepEqual(readdirSync(path.join(folder, "gpu", ".singularity.d", "libs")), [])
        assert.equal(existsSync(path.join(folder, "gpu", "usr", "bin", "nvidia-smi")), false)
      }
    })
  })

  describe("images that would choose what is covered", () => {
    for (const place of ["dev", "proc", "sys", "etc"])
      it(`S17: /${place} as a link is refused, whoever runs it`, async () => {
        const tree = makeRootTree()
        if (existsSync(path.join(tree, place)) && readdirSync(path.join(tree, place)).length === 0)
          rmdirSync(path.join(tree, place))
        else await runProgram(["rm", "-r", path.join(tree, place)], { as: "self" })
        symlinkSync(`..${outside}`, path.join(tree, place))
        const hostile = path.join(folder, `${place}.sif`)
        await sifcryptOk(["build", hostile, tree])
        for (const as of isRoot ? (["user", "self"] as const) : (["user"] as const)) {
          const { status, stderr } = await sifcrypt(["exec", hostile, "true"], { as, cwd: folder })
          assert.equal(status, 255)
          assert.match(stderr, new RegExp(`/${place} in the image is no folder but a symlink`))
        }
        assert.deepEqual(
          readdirSync(outside)
            .sort()
            .filter((name) => name !== "variables"),
          ["file"],
        )
      })
  })

  describe("overlays that would choose what is covered", () => {
    for (const place of ["dev", "etc"])
      it(`S17: /${place} as a link in an overlay is refused`, async () => {
        const overlay = newFolder("overlay", userId)
        for (const name of ["upper", "work"]) {
          mkdirSync(path.join(overlay, name))
          if (isRoot) chownSync(path.join(overlay, name), userId, userId)
        }
        symlinkSync(outside, path.join(overlay, "upper", place))
        const { status, stderr } = await sifcrypt(
          ["exec", "--pem-path", keys.privateKey, "--plain-overlay", "--overlay", overlay, image, "true"],
          { cwd: folder },
        )
        assert.equal(status, 255, stderr)
        assert.match(stderr, new RegExp(`/${place} is no folder, in the image or what lies over it`))
        assert.equal(existsSync(path.join(outside, "passwd")), false)
      })
  })

  describe("programs that are started", () => {
    it("S17: come from fixed places, whatever the caller's search path says", async () => {
      const traps = newFolder("traps", userId)
      const trace = path.join(traps, "trace")
      writeFileSync(trace, "")
      if (isRoot) chownSync(trace, userId, userId)
      for (const name of ["crun", "env", "sh", "ldconfig", "fusermount3", "sifcrypt-starter"])
        writeFileSync(path.join(traps, name), `#!/bin/sh\necho ${name} >> ${trace}\nexit 99\n`, {
          mode: 0o755,
        })
      const file = path.join(outside, "assignments")
      writeFileSync(file, "A=file\n")
      const { text, status, stderr } = await sifcrypt(
        [
          "exec",
          "--nv",
          "--env-file",
          file,
          "--pem-path",
          keys.privateKey,
          image,
          "/bin/sh",
          "-c",
          'echo "$A"',
        ],
        {
          cwd: folder,
          env: {
            PATH: `${traps}:${process.env["PATH"] ?? ""}`,
            ENV: path.join(traps, "sh"),
            BASH_ENV: path.join(traps, "sh"),
          },
        },
      )
      assert.equal(stderr, "")
      assert.equal(status, 0)
      assert.equal(text, "file\n")
      assert.equal(readFileSync(trace, "utf8"), "")
    })
  })

  describe("commands that do not exist here", () => {
    for (const name of ["capability", "config", "oci", "checkpoint", "search", "delete"])
      it(`${name} says why`, async () => {
        const { status, stderr } = await sifcrypt([name, "list", "--anything"])
        assert.equal(status, 255)
        assert.match(stderr, new RegExp(`^sifcrypt: ${name} does not exist here: .{20}`))
      })
  })
})
