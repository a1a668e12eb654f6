// Definition files, built by the command as root and as an ordinary user.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { createHash, randomBytes } from "node:crypto"
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import { userInfo } from "node:os"
import path from "node:path"
import { build, open, readDefinition, readMetadata } from "../../lib/index.ts"
import { subordinateIds } from "../../lib/runtime/subordinate-ids.ts"
import { signerName } from "../../lib/signing/dsse.ts"
import { idOf, isRoot, sifcrypt, sifcryptOk, startSifcrypt, type As, type Result } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { processesOfGroup, waitFor } from "../support/processes.ts"
import { Registry } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"
import { flipBit, placesOf, signWithTree, testSigner } from "../support/verity.ts"
import { vectorPath } from "../vectors/load.ts"

const users: readonly As[] = isRoot ? ["self", "user"] : ["user"]
const nameOf = (as: As): string => (as === "self" && isRoot ? "root" : "an ordinary user")

/** Has somebody more ids than one in a user namespace? Whom root becomes for these tests /etc/subuid does not name. */
function keepsOwners(as: As): boolean {
  if (isRoot) return as === "self"
  const { username, uid, gid } = userInfo()
  return subordinateIds(username, uid, gid) !== undefined
}

for (const as of users)
  describe(`build of a definition file as ${nameOf(as)}`, () => {
    const keys = testKeys()
    const place = newFolder("definition", idOf(as))
    const at = (name: string): string => path.join(place, name)
    const define = (name: string, text: string): string => {
      writeFileSync(at(name), text)
      return name
    }
    const buildHere = (
      args: readonly string[],
      env: Readonly<Record<string, string>> = {},
    ): Promise<Result> => sifcrypt(["build", ...args], { as, cwd: place, env })

    before(() => {
      execFileSync("cp", ["-a", makeRootTree(), at("base")])
      for (const applet of ["mknod", "chmod", "dd", "su", "df", "tr"])
        symlinkSync("busybox", at(`base/bin/${applet}`))
      if (isRoot) execFileSync("chown", ["-Rh", `${idOf(as)}:${idOf(as)}`, place])
    })

    it("encrypts what scripts have made, and runs it", async () => {
      define(
        "main.def",
        `Bootstrap: localimage
From: base

%arguments
WHO=world
%post
echo "hello {{ WHO }}" > /etc/hello
echo 'export LATE=late' >> "$SINGULARITY_ENVIRONMENT"
chown 12:34 /etc/hello
%environment
export GREETING="from the image"
%runscript
cat /etc/hello
echo "$GREETING $LATE" "$@"
%test
test -f /etc/hello
echo tested as $(id -u)
%labels
Author somebody
`,
      )
      const made = await buildHere(["--pem-path", keys.publicKey, "main.sif", "main.def"])
      assert.equal(made.status, 0, made.stderr)
      assert.match(made.text, /^tested as 0$/m)
      const run = await sifcryptOk(["run", "--pem-path", keys.privateKey, at("main.sif"), "a  b"], { as })
      assert.equal(run.text, "hello world\nfrom the image late a  b\n")
      const info = await sifcryptOk(["info", "--json", at("main.sif")], { as })
      assert.equal((JSON.parse(info.text) as { kind: string }).kind, "luks")
      assert.ok(!readFileSync(at("main.sif")).includes("somebody"), "its metadata is inside the encryption")
      const owner = await sifcryptOk(
        ["ls", "-l", "--json", "--pem-path", keys.privateKey, at("main.sif"), "/etc/hello"],
        { as },
      )
      const [{ uid, gid } = { uid: -1, gid: -1 }] = JSON.parse(owner.text) as { uid: number; gid: number }[]
      assert.deepEqual([uid, gid], keepsOwners(as) ? [12, 34] : [0, 0])
    })

    it("starts from an encrypted image, with its key", async () => {
      define("next.def", "Bootstrap: localimage\nFrom: main.sif\n\n%post\ncat /etc/hello > /etc/again\n")
      const flags = ["--source-pem-path", keys.privateKey, "--pem-path", keys.publicKey]
      const made = await buildHere([...flags, "next.sif", "next.def"])
      assert.equal(made.status, 0, made.stderr)
      await using image = await open(at("next.sif"), { unlock: [{ key: { file: keys.privateKey } }] })
      assert.equal((await image.readFile("/etc/again")).toString(), "hello world\n")
      assert.match(
        (await image.readFile("/.singularity.d/bootstrap_history/Apptainer0")).toString(),
        /From: base/,
      )
      const wrong = await buildHere([
        "--source-pem-path",
        keys.otherPrivateKey,
        "--pem-path",
        keys.publicKey,
        "no.sif",
        "next.def",
      ])
      assert.equal(wrong.status, 22)
      assert.ok(!existsSync(at("no.sif")))
    })

    it("gives the same squashfs for the same SOURCE_DATE_EPOCH", async () => {
      define("same.def", "Bootstrap: localimage\nFrom: base\n\n%post\necho x > /etc/x\n%labels\nA b\n")
      const env = { SOURCE_DATE_EPOCH: "1700000000" }
      for (const name of ["one.sif", "two.sif"]) {
        const made = await buildHere([name, "same.def"], env)
        assert.equal(made.status, 0, made.stderr)
      }
      const digest = (name: string): string =>
        createHash("sha256")
          .update(readFileSync(at(name)))
          .digest("hex")
      assert.equal(digest("one.sif"), digest("two.sif"))
    })

    it("says which line of which script failed, and leaves nothing", async () => {
      define("fail.def", "Bootstrap: localimage\nFrom: base\n\n%post\necho before\nfalse\n")
      const made = await buildHere(["fail.sif", "fail.def"])
      assert.equal(made.status, 25)
      assert.match(made.stderr, /fail\.def:4: %post failed: exit status 1/)
      assert.equal(made.text, "before\n")
      assert.ok(!existsSync(at("fail.sif")))
    })

    it("runs chosen sections only", async () => {
      define(
        "some.def",
        "Bootstrap: localimage\nFrom: base\n\n%post\necho x > /etc/post\n%labels\nA b\n%test\nexit 1\n",
      )
      assert.equal((await buildHere(["--section", "labels", "labels.sif", "some.def"])).status, 0)
      assert.equal((await buildHere(["-T", "untested.sif", "some.def"])).status, 0)
      assert.equal((await buildHere(["tested.sif", "some.def"])).status, 25)
      await using labels = await open(at("labels.sif"))
      const names = (await labels.list("/etc")).map(({ name }) => name)
      assert.ok(!names.includes("post"))
      assert.match((await labels.readFile("/.singularity.d/labels.json")).toString(), /"A": "b"/)
      await using untested = await open(at("untested.sif"))
      assert.equal((await untested.readFile("/.singularity.d/test")).toString(), "#!/bin/sh\n\nexit 1\n\n")
      assert.equal((await buildHere(["--section", "pots", "x.sif", "some.def"])).status, 20)
    })

    it("makes a sandbox, and updates it", async () => {
      define("box.def", "Bootstrap: localimage\nFrom: base\n\n%post\necho one > /etc/one\n")
      define("more.def", "Bootstrap: localimage\nFrom: base\n\n%post\ncat /etc/one > /etc/two\n")
      const made = await buildHere(["--sandbox", "box", "box.def"])
      assert.equal(made.status, 0, made.stderr)
      assert.equal(readFileSync(at("box/etc/one"), "utf8"), "one\n")
      assert.equal((await buildHere(["--sandbox", "box", "box.def"])).status, 23)
      const updated = await buildHere(["--update", "box", "more.def"])
      assert.equal(updated.status, 0, updated.stderr)
      assert.equal(readFileSync(at("box/etc/two"), "utf8"), "one\n")
      assert.ok(existsSync(at("box/.singularity.d/bootstrap_history/Apptainer0")))
      assert.equal((await buildHere(["-F", "--sandbox", "box", "box.def"])).status, 0)
      assert.ok(!existsSync(at("box/etc/two")))
      assert.deepEqual(
        readdirSync(place).filter((name) => name.startsWith(".")),
        [],
      )
      assert.equal((await buildHere(["-e", "--sandbox", "box2", "box.def"])).status, 25)
    })

    it("has the image say of its apps what it says of itself", async () => {
      define(
        "apps.def",
        "Bootstrap: localimage\nFrom: base\n\n%apphelp tool\nof the tool\n%applabels tool\nKind app\n",
      )
      const made = await buildHere(["apps.sif", "apps.def"])
      assert.equal(made.status, 0, made.stderr)
      const { apps, origin } = await readMetadata(at("apps.sif"))
      assert.deepEqual([origin, Object.keys(apps)], ["objects", ["tool"]])
      assert.equal(apps["tool"]?.helpfile, "of the tool\n")
      assert.deepEqual(apps["tool"].labels, { Kind: "app", SCIF_APP_NAME: "tool" })
    })

    it("ends what a script leaves running, and shows it no process of ours", async () => {
      define(
        "daemon.def",
        "Bootstrap: localimage\nFrom: base\n\n%post\nsleep 600 &\ncat /proc/[0-9]*/cmdline | tr '\\0' ' ' > /etc/seen\n",
      )
      const made = await buildHere(["daemon.sif", "daemon.def"])
      assert.equal(made.status, 0, made.stderr)
      await using image = await open(at("daemon.sif"))
      assert.doesNotMatch((await image.readFile("/etc/seen")).toString(), /node|sifcrypt-starter/)
    })

    it("binds what scripts are to see, and leaves no trace of it", async () => {
      writeFileSync(at("seen"), "seen by post\n")
      define("bind.def", "Bootstrap: localimage\nFrom: base\n\n%post\ncat /opt-file > /etc/bound\n")
      const made = await buildHere(["-B", `${at("seen")}:/opt-file:ro`, "bind.sif", "bind.def"])
      assert.equal(made.status, 0, made.stderr)
      await using image = await open(at("bind.sif"))
      assert.equal((await image.readFile("/etc/bound")).toString(), "seen by post\n")
      assert.ok(!(await image.list("/")).some(({ name }) => name === "opt-file"))
    })

    it("stops at the memory it may take, and says so", async () => {
      define(
        "large.def",
        "Bootstrap: localimage\nFrom: base\n\n%post\ndd if=/dev/zero of=/data/large bs=1M count=100\n",
      )
      const made = await buildHere([
        "--scratch",
        "memory",
        "--scratch-memory",
        "32m",
        "large.sif",
        "large.def",
      ])
      assert.equal(made.status, 25)
      assert.match(made.stderr, /the scratch is full: it holds 32 MiB/)
      assert.ok(!existsSync(at("large.sif")))
    })

    it("frees stages that no later one needs", async () => {
      const fill = (name: string): string => `dd if=/dev/zero of=/data/${name} bs=1M count=20 2>/dev/null\n`
      define(
        "stages.def",
        `Bootstrap: localimage\nFrom: base\nStage: one\n%post\necho 1 > /etc/one\n${fill("one")}
Bootstrap: localimage\nFrom: base\n%post\n${fill("unnamed")}
Bootstrap: localimage\nFrom: base\nStage: two\n%files from one\n/etc/one\n%post\necho 2 > /etc/two\n${fill("two")}
Bootstrap: localimage\nFrom: base\n%files from two\n/etc/one\n/etc/two\n%post\n${fill("last")}`,
      )
      // Two of them at a time, with their bases, and no third.
      const made = await buildHere([
        "--scratch",
        "memory",
        "--scratch-memory",
        "56m",
        "stages.sif",
        "stages.def",
      ])
      assert.equal(made.status, 0, made.stderr)
      await using image = await open(at("stages.sif"))
      for (const [name, text] of [
        ["one", "1\n"],
        ["two", "2\n"],
      ] as const)
        assert.equal((await image.readFile(`/etc/${name}`)).toString(), text)
    })

    it("--fix-perms gives the owner the right to read, write and enter everything", async () => {
      define(
        "perms.def",
        `Bootstrap: localimage\nFrom: base\n\n%post
mkdir -p /data/closed/deep; echo x > /data/closed/deep/file; ln -s file /data/closed/deep/link
chmod 4411 /data/closed/deep/file; chmod 000 /data/closed/deep; chmod 055 /data/closed
`,
      )
      const made = await buildHere(["--fix-perms", "perms.sif", "perms.def"])
      assert.equal(made.status, 0, made.stderr)
      await using image = await open(at("perms.sif"))
      const modes: Record<string, string> = {}
      for (const name of ["closed", "closed/deep", "closed/deep/file"])
        modes[name] = ((await image.stat(`/data/${name}`)).mode & 0o7777).toString(8)
      assert.deepEqual(modes, { closed: "755", "closed/deep": "700", "closed/deep/file": "4611" })
      const left = await buildHere(["-F", "perms.sif", "perms.def"])
      assert.equal(left.status, 0, left.stderr)
      await using asMade = await open(at("perms.sif"))
      assert.equal((await asMade.stat("/data/closed")).mode & 0o777, 0o55)
    })

    it("takes an ordinary folder if it is told to, and removes it", async () => {
      define("plain.def", "Bootstrap: localimage\nFrom: base\n\n%post\ndf -P / | cat > /etc/where\n")
      mkdirSync(at("tmp"), { recursive: true })
      chmodSync(at("tmp"), 0o1777)
      const flags = ["--plain-tmp", "--pem-path", keys.publicKey]
      const made = await buildHere([...flags, "plain.sif", "plain.def"], { TMPDIR: at("tmp") })
      assert.equal(made.status, 0, made.stderr)
      assert.match(made.stderr, /lies unencrypted in/)
      assert.deepEqual(readdirSync(at("tmp")), [])
      // Also when it is killed: one of its processes outlives it.
      define("killed.def", "Bootstrap: localimage\nFrom: base\n\n%post\necho ready\nsleep 60\n")
      const child = startSifcrypt(["build", "--plain-tmp", "--tmpdir", at("tmp"), "no.sif", "killed.def"], {
        as,
        cwd: place,
      })
      let printed = ""
      child.stdout?.on("data", (text: Buffer) => (printed += text.toString()))
      await waitFor("the script", () => printed.includes("ready"))
      assert.equal(readdirSync(at("tmp")).length, 1)
      child.kill("SIGKILL")
      await waitFor("the end of its folder", () => readdirSync(at("tmp")).length === 0)
    })

    it("writes nothing plain to a disk, and is gone when it is killed", async () => {
      define(
        "secret.def",
        "Bootstrap: localimage\nFrom: base\n\n%post\necho marker-of-the-secret-build > /etc/secret\necho ready\nsleep 60\n",
      )
      mkdirSync(at("empty"), { recursive: true })
      chmodSync(at("empty"), 0o1777)
      const group = 54_000 + idOf(as)
      const child = startSifcrypt(["build", "--pem-path", keys.publicKey, "secret.sif", "secret.def"], {
        as,
        cwd: place,
        env: { TMPDIR: at("empty") },
        ...(isRoot ? { group } : {}),
      })
      let printed = ""
      child.stdout?.on("data", (text: Buffer) => (printed += text.toString()))
      await waitFor("the script", () => (printed.includes("ready") ? true : undefined))
      assert.deepEqual(readdirSync(at("empty")), [])
      assert.ok(!existsSync(at("secret.sif")))
      child.kill("SIGKILL")
      if (isRoot)
        await waitFor("the end of all processes", () =>
          processesOfGroup(group).length === 0 ? true : undefined,
        )
      assert.deepEqual(readdirSync(at("empty")), [])
      assert.ok(!existsSync(at("secret.sif")))
      assert.ok(!readFileSync("/proc/self/mountinfo", "utf8").includes("stage-"))
    })

    it("does not let an image's links lead %files out of it", async () => {
      const outside = at("outside")
      writeFileSync(outside, "untouched\n")
      chmodSync(outside, 0o666)
      execFileSync("cp", ["-a", at("base"), at("trap")])
      symlinkSync(outside, at("trap/data/out"))
      symlinkSync(place, at("trap/data/folder"))
      writeFileSync(at("payload"), "payload\n")
      define(
        "trap.def",
        "Bootstrap: localimage\nFrom: trap\n\n%files\npayload /data/out\npayload /data/folder/outside\n",
      )
      const made = await buildHere(["trap.sif", "trap.def"])
      assert.equal(made.status, 0, made.stderr)
      assert.equal(readFileSync(outside, "utf8"), "untouched\n")
    })

    it("names what to take instead of a library", async () => {
      define("library.def", "Bootstrap: library\nFrom: ubuntu:22.04\n\n%post\ntrue\n")
      const made = await buildHere(["library.sif", "library.def"])
      assert.equal(made.status, 20)
      assert.match(
        made.stderr,
        /library\.def:1: Bootstrap: library is not offered: .* docker .* or debootstrap/,
      )
    })

    it("prints one JSON value with --json, whatever scripts print", async () => {
      define("json.def", "Bootstrap: localimage\nFrom: base\n\n%post\necho chatter\n")
      const made = await buildHere(["--json", "json.sif", "json.def"])
      assert.equal(made.status, 0, made.stderr)
      assert.equal((JSON.parse(made.text) as { output: string }).output, "json.sif")
      assert.match(made.stderr, /^chatter$/m)
    })

    it("leaves nothing on the machine of what scripts leave behind", async () => {
      const mark = `sifcrypt-left-${process.pid}`
      const folders = ["/tmp", "/var/tmp", "/dev/shm"]
      const touch = folders.map((folder) => `echo x > ${folder}/${mark}`).join("\n")
      define("left.def", `Bootstrap: localimage\nFrom: base\n\n%post\n${touch}\n`)
      const made = await buildHere(["--force", "left.sif", "left.def"])
      const left = folders.filter((folder) => existsSync(path.join(folder, mark)))
      for (const folder of left) rmSync(path.join(folder, mark))
      assert.deepEqual([made.status, left], [0, []], made.stderr)
    })

    it("keeps keys out of scripts", async () => {
      define(
        "environment.def",
        'Bootstrap: localimage\nFrom: base\n\n%setup\nenv > "$APPTAINER_ROOTFS/etc/setup-env"\n%post\nenv > /etc/post-env\n',
      )
      const env = { APPTAINER_ENCRYPTION_PASSPHRASE: "never-seen-by-scripts", OTHER: "seen on this machine" }
      const made = await buildHere(["environment.sif", "environment.def"], env)
      assert.equal(made.status, 0, made.stderr)
      await using image = await open(at("environment.sif"))
      const setup = (await image.readFile("/etc/setup-env")).toString()
      assert.match(setup, /^OTHER=seen on this machine$/m)
      assert.doesNotMatch(setup, /never-seen/)
      const post = (await image.readFile("/etc/post-env")).toString()
      assert.doesNotMatch(post, /never-seen|^OTHER=/m)
      assert.match(post, /^APPTAINER_LABELS=\/\.build\.labels$/m)
    })
  })

describe("build of a definition file with subordinate ids", () => {
  it("keeps the owners that scripts give", async function () {
    if (!isRoot) skip(this, "needs root, to give a user subordinate ids")
    const place = newFolder("definition-ids", idOf("nobody"))
    writeFileSync(path.join(place, "ids"), "nobody:200000:65536\n")
    execFileSync("cp", ["-a", makeRootTree(), path.join(place, "base")])
    writeFileSync(
      path.join(place, "x.def"),
      "Bootstrap: localimage\nFrom: base\n\n%post\necho x > /etc/owned; chown 12:34 /etc/owned\n",
    )
    const bind = 'mount --bind $0/ids /etc/subuid && mount --bind $0/ids /etc/subgid && exec "$@"'
    await sifcryptOk(["build", "x.sif", "x.def"], {
      as: "nobody",
      cwd: place,
      wrapper: ["unshare", "--mount", "sh", "-c", bind, place],
    })
    await using image = await open(path.join(place, "x.sif"))
    const owners = (await image.list("/etc")).map(({ name, uid, gid }) => [name, uid, gid])
    assert.deepEqual(
      owners.filter(([name]) => name === "owned" || name === "passwd"),
      [
        ["owned", 12, 34],
        ["passwd", 0, 0],
      ],
    )
    const tmp = newFolder("tmp", idOf("nobody"))
    await sifcryptOk(["build", "-F", "--plain-tmp", "--tmpdir", tmp, "x.sif", "x.def"], {
      as: "nobody",
      cwd: place,
      wrapper: ["unshare", "--mount", "sh", "-c", bind, place],
    })
    assert.deepEqual(readdirSync(tmp), [], "files of other owners are removed as well")
  })
})

describe("build of a definition file with subordinate ids of several ranges, by number", () => {
  it("keeps the owners that scripts give, whatever the user's group", async function () {
    if (!isRoot) skip(this, "needs root, to give a user subordinate ids")
    const [uid, gid] = [2345, 2346]
    const place = newFolder("definition-ranges", uid)
    writeFileSync(path.join(place, "ids"), `${uid}:300000:1000\n${uid}:400000:1000\n`)
    execFileSync("cp", ["-a", makeRootTree(), path.join(place, "base")])
    const script = "echo x > /etc/owned; chown 5:1500 /etc/owned"
    writeFileSync(path.join(place, "x.def"), `Bootstrap: localimage\nFrom: base\n\n%post\n${script}\n`)
    const files = [
      ["ids", "subuid"],
      ["ids", "subgid"],
      ["passwd", "passwd"],
    ]
    const binds = files.map(([from = "", to = ""]) => `mount --bind "$0/${from}" /etc/${to} && `)
    const bind = `${binds.join("")}exec "$@"`
    // newuidmap wants to know a name.
    writeFileSync(
      path.join(place, "passwd"),
      `root:x:0:0::/root:/bin/sh\nranged:x:${uid}:${gid}::/:/bin/sh\n`,
    )
    const become = ["setpriv", `--reuid=${uid}`, `--regid=${gid}`, "--clear-groups"]
    await sifcryptOk(["build", "x.sif", "x.def"], {
      as: "self",
      cwd: place,
      wrapper: ["unshare", "--mount", "sh", "-c", bind, place, ...become],
    })
    await using image = await open(path.join(place, "x.sif"))
    const owned = (await image.list("/etc")).find(({ name }) => name === "owned")
    assert.deepEqual([owned?.uid, owned?.gid], [5, 1500])
  })
})

describe("build of a definition file with Fingerprints:", () => {
  it("takes a base that they signed", async () => {
    const place = newFolder("definition-signed", idOf("user"))
    const base = path.join(place, "base.sif")
    await sifcryptOk(["build", base, makeRootTree()])
    const signed = await sifcryptOk(["sign", "--json", "--key", vectorPath("sif/ed25519-private.pem"), base])
    const fingerprint = /SHA256:[A-Za-z0-9+/=]+/.exec(signed.text)?.[0] ?? ""
    const source = path.join(place, "x.def")
    writeFileSync(source, `Bootstrap: localimage\nFrom: ${base}\nFingerprints: ${fingerprint}\n`)
    const keys = { keyPaths: [vectorPath("sif/ed25519-public.pem")] }
    await build({ source, output: path.join(place, "x.sif"), fingerprintKeys: keys })
    assert.ok(existsSync(path.join(place, "x.sif")))
  })

  it("refuses one that they signed with its hash tree, and that was changed since", async () => {
    const place = newFolder("definition-tree", idOf("user"))
    const tree = makeRootTree()
    // What does not compress is most of the image, so its middle is in this file.
    writeFileSync(path.join(tree, "random"), randomBytes(4 << 20))
    const base = path.join(place, "base.sif")
    await sifcryptOk(["build", base, tree])
    await signWithTree(base)
    const { partition } = await placesOf(base)
    flipBit(base, partition.offset + Math.floor(partition.size / 2))
    const { publicKey, file } = testSigner()
    const source = path.join(place, "x.def")
    writeFileSync(
      source,
      `Bootstrap: localimage\nFrom: ${base}\nFingerprints: ${signerName(publicKey) ?? ""}\n`,
    )
    await assert.rejects(
      build({ source, output: path.join(place, "x.sif"), fingerprintKeys: { keyPaths: [file] } }),
      { code: "ERR_SIGNATURE_INVALID", message: /was changed since it was signed/ },
    )
    assert.ok(!existsSync(path.join(place, "x.sif")))
  })

  it("refuses one that they did not sign", async () => {
    const place = newFolder("definition-fingerprints", idOf("user"))
    await sifcryptOk(["build", path.join(place, "base.sif"), makeRootTree()])
    writeFileSync(
      path.join(place, "x.def"),
      `Bootstrap: localimage\nFrom: base.sif\nFingerprints: ${"AB".repeat(20)}, ${"CD".repeat(20)}\n`,
    )
    const made = await sifcrypt(["build", "x.sif", "x.def"], { cwd: place })
    assert.equal(made.status, 26, made.stderr)
    assert.ok(!existsSync(path.join(place, "x.sif")))
  })
})

describe("build of a definition file from an OCI image", () => {
  it("takes its files, and its variables in scripts, wherever it lies", async () => {
    const place = newFolder("definition-layers", idOf("user"))
    const blobs = path.join(place, "layout", "blobs", "sha256")
    mkdirSync(blobs, { recursive: true })
    const store = (bytes: Buffer): { digest: string; size: number } => {
      const hex = createHash("sha256").update(bytes).digest("hex")
      writeFileSync(path.join(blobs, hex), bytes)
      return { digest: `sha256:${hex}`, size: bytes.length }
    }
    const layer = store(
      execFileSync("tar", ["-C", makeRootTree(), "-c", "--owner=0", "--group=0", "."], {
        maxBuffer: 1 << 26,
      }),
    )
    const config = store(
      Buffer.from(
        JSON.stringify({
          architecture: "amd64",
          os: "linux",
          config: { Env: ["PATH=/usr/bin:/bin", "FROM_LAYERS=yes"] },
          rootfs: { type: "layers", diff_ids: [layer.digest] },
        }),
      ),
    )
    const oci = (what: string): string => `application/vnd.oci.image.${what}`
    const manifest = store(
      Buffer.from(
        JSON.stringify({
          schemaVersion: 2,
          mediaType: oci("manifest.v1+json"),
          config: { mediaType: oci("config.v1+json"), ...config },
          layers: [{ mediaType: oci("layer.v1.tar"), ...layer }],
        }),
      ),
    )
    const index = { schemaVersion: 2, manifests: [{ mediaType: oci("manifest.v1+json"), ...manifest }] }
    writeFileSync(path.join(place, "layout", "index.json"), JSON.stringify(index))
    writeFileSync(path.join(place, "layout", "oci-layout"), '{"imageLayoutVersion":"1.0.0"}')
    writeFileSync(
      path.join(place, "x.def"),
      'Bootstrap: oci\nFrom: layout\n\n%post\necho "$FROM_LAYERS" > /etc/seen\n',
    )
    await sifcryptOk(["build", "x.sif", "x.def"], { cwd: place })
    await using image = await open(path.join(place, "x.sif"))
    assert.equal((await image.readFile("/etc/seen")).toString(), "yes\n")
    assert.equal((await image.readFile("/data/hello")).toString(), "hello\n")

    // The same image from a registry and out of archives, each the base of a stage.
    await using registry = await Registry.start()
    await registry.push(`oci:${place}/layout`, "group/base:v1")
    for (const archive of ["oci-archive", "docker-archive"])
      execFileSync("skopeo", [
        ...["copy", "-q", "--insecure-policy", `oci:${place}/layout`],
        `${archive}:${place}/${archive}.tar:base:v1`,
      ])
    execFileSync("chmod", ["-R", "a+rX", place])
    const bases = [
      ["docker", `${registry.host}/group/base:v1`],
      ["oci-archive", "oci-archive.tar"],
      ["docker-archive", "docker-archive.tar"],
    ] as const
    const stages = bases.map(
      ([agent, from]) =>
        `Bootstrap: ${agent}\nFrom: ${from}\nStage: ${agent}\n%post\ncat /data/hello > /etc/${agent}; echo "$FROM_LAYERS" >> /etc/${agent}\n\n`,
    )
    const copies = bases.map(([agent]) => `%files from ${agent}\n/etc/${agent}\n`)
    writeFileSync(
      path.join(place, "all.def"),
      `${stages.join("")}Bootstrap: oci\nFrom: layout\n${copies.join("")}`,
    )
    await sifcryptOk(["build", "all.sif", "all.def"], { cwd: place })
    await using all = await open(path.join(place, "all.sif"))
    for (const [agent] of bases)
      assert.equal((await all.readFile(`/etc/${agent}`)).toString(), "hello\nyes\n", agent)
  })
})

describe("build() of a definition file", () => {
  it("does what the command does, and tells what happens", async () => {
    const place = newFolder("definition-api")
    const source = path.join(place, "x.def")
    writeFileSync(
      source,
      `Bootstrap: localimage\nFrom: ${makeRootTree()}\n\n%post\necho {{ A }}; echo wrong >&2\n`,
    )
    const steps: string[] = []
    const printed = { stdout: "", stderr: "" }
    const result = await build({
      source,
      output: path.join(place, "x.sif"),
      buildArguments: ["A=given"],
      onStep: (text) => steps.push(text),
      onOutput: (bytes, stream) => (printed[stream] += bytes.toString()),
    })
    assert.equal(result.encrypted, false)
    assert.equal(result.size, statSync(path.join(place, "x.sif")).size)
    assert.deepEqual(steps, ["stage 1 of 1", "running %post"])
    assert.equal(printed.stdout, "given\n")
    assert.match(printed.stderr, /^wrong$/m)
  })

  it("stops when its signal says so", async () => {
    const place = newFolder("definition-abort")
    const source = path.join(place, "x.def")
    writeFileSync(source, `Bootstrap: localimage\nFrom: ${makeRootTree()}\n\n%post\necho begun; sleep 60\n`)
    const controller = new AbortController()
    const reason = new Error("enough")
    await assert.rejects(
      build({
        source,
        output: path.join(place, "x.sif"),
        signal: controller.signal,
        onOutput: (bytes) => {
          if (bytes.toString().includes("begun")) controller.abort(reason)
        },
      }),
      reason,
    )
    assert.deepEqual(readdirSync(place), ["x.def"])
  })

  it("parses without building", async () => {
    const place = newFolder("definition-read")
    const file = path.join(place, "x.def")
    writeFileSync(file, "Bootstrap: docker\nFrom: debian:{{ V }}\n")
    writeFileSync(path.join(place, "args"), "# which\nV=12\n")
    const { stages } = await readDefinition(file, { buildArgumentFile: path.join(place, "args") })
    assert.equal(stages[0]?.headers.get("from"), "debian:12")
  })
})
