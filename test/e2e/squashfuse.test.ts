// The starter in the place of squashfuse_ll: its command line, what it shows, and how it ends.
import assert from "node:assert/strict"
import { execFileSync, type ChildProcess } from "node:child_process"
import {
  chmodSync,
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import {
  finish,
  isRoot,
  runProgram,
  sifcryptOk,
  startProgram,
  idOf,
  type As,
  type Result,
} from "../support/cli.ts"
import { allProcesses, descriptorsOf, mountsIn, processesBelow, waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { describeTree, makeRootTree } from "../support/trees.ts"

const OFFSET = 4096 * 3

describe("squashfuse_ll", () => {
  const tree = makeRootTree()
  const folder = newFolder("squashfuse")
  const image = path.join(folder, "image.sqfs")
  const bin = path.join(folder, "bin")
  const program = path.join(bin, "squashfuse_ll")

  before(async () => {
    writeFileSync(path.join(tree, "data", "large"), "a line of text\n".repeat(100_000))
    chmodSync(tree, 0o755)
    for (let i = 0; i < 90; i++) {
      const folder = path.join(tree, "home", `folder${i}`)
      mkdirSync(folder)
      for (let j = 0; j < 100; j++) symlinkSync(`${j}`, path.join(folder, `link${j}`))
    }
    const made = ["-quiet", "-no-progress", "-noappend", "-all-root"]
    execFileSync("mksquashfs", [tree, image, ...made])
    execFileSync("mksquashfs", [tree, path.join(folder, "lzo.sqfs"), ...made, "-comp", "lzo"])
    writeFileSync(path.join(folder, "inside"), Buffer.concat([Buffer.alloc(OFFSET), readFileSync(image)]))
    await sifcryptOk(["link", bin, "squashfuse_ll"], { as: "self" })
    assert.match(readlinkSync(program), /\/sifcrypt-starter[^/]*$/)
  })

  /** Who runs it, with a mount point of its own, which it has left in the end. */
  function place(as: As): { readonly target: string; readonly run: (...args: string[]) => Promise<Result> } {
    const target = newFolder("squashfuse-mount", idOf(as))
    return { target, run: (...args) => runProgram([program, ...args, target], { as }) }
  }

  const unmount = (target: string): void => {
    execFileSync("umount", [target])
  }

  /** The one process that serves a mount point, as its command line says. */
  const serverOf = (target: string): number => {
    const found = allProcesses().filter(({ command }) => command.endsWith(` ${target}`))
    assert.deepEqual(found.length, 1, found.map(({ command }) => command).join("\n"))
    return found[0]?.pid ?? 0
  }

  afterEach(() => {
    assert.deepEqual(
      mountsIn(path.dirname(folder)).filter((place) => place.includes("squashfuse")),
      [],
    )
  })

  it("says which owners it can show, in the words that Apptainer looks for", async () => {
    const { status, stderr, text } = await runProgram([program])
    assert.deepEqual([status, text], [2, ""])
    assert.match(stderr, /^squashfuse_ll: it takes ARCHIVE and MOUNTPOINT\nUsage: squashfuse_ll /)
    assert.match(stderr, / -o uid=/)
    assert.match((await runProgram([program, "--help"])).text, / -o uid=/)
  })

  it("refuses what it does not know, and what is no squashfs, before anything is mounted", async () => {
    const { target, run } = place("self")
    for (const [args, status, message] of [
      [["-o", "allow_other,nosuch", image], 2, /unknown option: -o nosuch\n/],
      [["-x", image], 2, /unknown option: -x\n/],
      [["-o", "offset=1k", image], 2, /-o offset: not a number/],
      [["-o", "uid=-1", image], 2, /-o uid: not a number/],
      [[image, image], 2, /it takes ARCHIVE and MOUNTPOINT\n/],
      [[path.join(folder, "none")], 1, /none: No such file or directory\n$/],
      [["-o", `offset=${Number.MAX_SAFE_INTEGER}`, image], 1, /image\.sqfs: it ends before that offset\n$/],
      [["-o", "offset=1", image], 1, /image\.sqfs: not a squashfs\n$/],
      [["-o", "subdir=none", image], 1, /none: No such file or directory\n$/],
      [["-o", "subdir=data/hello", image], 1, /data\/hello: Not a directory\n$/],
    ] as const) {
      const result = await run(...args)
      assert.equal(result.status, status, args.join(" "))
      assert.match(result.stderr, message)
    }
    for (const device of ["/dev/fd/0", "/dev/fd/99", "/dev/fd/x"])
      assert.equal((await runProgram([program, image, device])).status, 2, device)
    assert.deepEqual(mountsIn(target), [])
  })

  for (const as of ["self", "nobody"] as const satisfies readonly As[])
    it(`goes to the background when it has mounted, and ends with the mount, ${as === "self" ? "as root" : "as an ordinary user"}`, async function () {
      if (as === "nobody" && !isRoot) skip(this, "is what the other one is, too")
      const { target, run } = place(as)
      const owner = ["-o", "uid=1234,gid=4321,noexec,noatime", "-o", `offset=${OFFSET}`]
      assert.equal((await run(...owner, path.join(folder, "inside"))).status, 0)
      assert.notEqual(serverOf(target), 0)
      assert.match(
        readFileSync("/proc/self/mounts", "utf8"),
        new RegExp(`^squashfuse_ll ${target} fuse\\.squashfuse_ll ro,nosuid,nodev,noexec,noatime,`, "m"),
      )
      const wrapper =
        as === "self" ? [] : ["setpriv", `--reuid=${idOf(as)}`, `--regid=${idOf(as)}`, "--clear-groups"]
      const [command, ...rest] = [...wrapper, "find", target, "-type", "f", "-printf", "%U:%G %P\\n"]
      const found = execFileSync(command, rest, { encoding: "utf8" }).trim().split("\n").sort()
      assert.deepEqual(found, [
        "1234:4321 bin/busybox",
        "1234:4321 data/hello",
        "1234:4321 data/large",
        "1234:4321 etc/group",
        "1234:4321 etc/passwd",
      ])
      unmount(target)
      await waitFor("its end", () => !allProcesses().some(({ command }) => command.endsWith(` ${target}`)))
    })

  it("ends without a word when its mount is taken away", async () => {
    const { target, run } = place("self")
    // With several threads, of which some still wait when another finds that there is no mount any more.
    const read =
      'for i in 1 2 3 4 5 6 7 8; do { cat "$1/data/large"; find "$1/home/folder$i"; } >/dev/null & done; wait'
    for (let i = 0; i < 8; i++) {
      const ended = run("-f", image)
      await waitFor("its mount", () => mountsIn(target).length > 0)
      execFileSync("sh", ["-c", read, "sh", target])
      unmount(target)
      const { status, text, stderr } = await ended
      assert.deepEqual([status, text, stderr], [0, "", ""])
    }
  })

  it("shows what is in the image, owners that nobody asked for another of, and a folder of it", async function () {
    if (!isRoot) skip(this, "looks at files of root")
    const whole = place("self")
    assert.equal((await whole.run("-s", "-ofsname=a name", image)).status, 0)
    assert.match(readFileSync("/proc/self/mounts", "utf8"), /^a\\040name \S+ fuse\.squashfuse_ll ro,/m)
    // Names and types alone first, of so many that attributes are not offered any more; then all of each.
    const names = (root: string): string[] =>
      readdirSync(root, { recursive: true, withFileTypes: true })
        .map((entry) => `${path.relative(root, entry.parentPath)}/${entry.name} ${entry.isFile()}`)
        .sort()
    assert.deepEqual(names(whole.target), names(tree))
    assert.deepEqual(describeTree(whole.target), describeTree(tree))
    unmount(whole.target)
    const part = place("self")
    assert.equal((await part.run("-o", "subdir=/data,uid=0", image)).status, 0)
    assert.deepEqual(readdirSync(part.target), ["hello", "large"])
    assert.deepEqual(readdirSync(path.join(part.target, "..", path.basename(part.target))), [
      "hello",
      "large",
    ])
    assert.equal(statSync(path.join(part.target, "hello")).uid, 0)
    unmount(part.target)
  })

  it("serves a mount of its caller's, and ends with it", async function () {
    if (!isRoot) skip(this, "mounts by itself")
    const { target } = place("self")
    const options = "ro,fd=5,rootmode=40000,user_id=0,group_id=0,allow_other"
    const script = 'exec 5<>/dev/fuse; mount -i -t fuse.test -o "$1" test "$2" && exec "$3" -f "$4" /dev/fd/5'
    const child = startProgram(["bash", "-c", script, "bash", options, target, program, image], {
      as: "self",
    })
    const ended = finish(child)
    await waitFor("the mount", () => mountsIn(target).length > 0)
    assert.equal(readFileSync(path.join(target, "data", "hello"), "utf8"), "hello\n")
    unmount(target)
    assert.deepEqual(await ended.then(({ status, stderr }) => [status, stderr]), [0, ""])
  })

  /** In the foreground, until somebody was told through a FIFO. */
  async function inForeground(
    target: string,
    ...options: string[]
  ): Promise<{ readonly child: ChildProcess; readonly word: string; readonly ended: Promise<Result> }> {
    const pipe = path.join(newFolder("squashfuse-pipe"), "pipe")
    execFileSync("mkfifo", [pipe])
    const child = startProgram([program, "-f", "-o", `notify_pipe=${pipe}`, ...options, target], {
      as: "self",
    })
    const ended = finish(child)
    const { text } = await runProgram(["head", "-c1", pipe], { as: "self" })
    return { child, word: text, ended }
  }

  it("tells a FIFO how it went", async () => {
    const { target } = place("self")
    const mounted = await inForeground(target, image)
    assert.equal(mounted.word, "s")
    unmount(target)
    assert.equal((await mounted.ended).status, 0)
    const failed = await inForeground(path.join(target, "none"), image)
    assert.deepEqual([failed.word, (await failed.ended).status], ["f", 1])
  })

  it("asked to end, it takes the mount away and serves on for those who use it", async () => {
    const { target } = place("self")
    const { child, ended } = await inForeground(target, image)
    const fd = openSync(path.join(target, "data", "large"), "r")
    child.kill("SIGTERM")
    await waitFor("the end of the mount", () => mountsIn(target).length === 0)
    assert.match(readFileSync(fd, "utf8"), /^(a line of text\n){3}/)
    assert.equal(child.exitCode, null)
    closeSync(fd)
    assert.equal((await ended).status, 0)
  })

  it("killed, or interrupted, it leaves no mount", async () => {
    for (const signal of ["SIGKILL", "SIGINT"] as const) {
      const { target } = place("self")
      const { child, ended } = await inForeground(target, image)
      child.kill(signal)
      await ended
      await waitFor("the end of the mount", () => mountsIn(target).length === 0)
    }
  })

  it("unmounts what nobody has used for so long, and nothing that is in use", async () => {
    const [used, unused] = [place("self").target, place("self").target]
    const timeout = ["-o", "timeout=1", image]
    const first = await inForeground(used, ...timeout)
    const second = await inForeground(unused, ...timeout)
    const fd = openSync(path.join(used, "data", "hello"), "r")
    assert.equal((await second.ended).status, 0)
    assert.deepEqual([mountsIn(used).length, mountsIn(unused).length], [1, 0])
    closeSync(fd)
    assert.equal((await first.ended).status, 0)
    assert.deepEqual(mountsIn(used), [])
  })

  it("does so if the first of the two that unmount is killed", async () => {
    const { target } = place("self")
    const { child, ended } = await inForeground(target, "-o", "timeout=1", image)
    const guards = processesBelow(child.pid ?? 0).slice(1)
    const [first] = guards.map(({ pid }) => pid).sort((a, b) => a - b)
    process.kill(first ?? assert.fail(), "SIGKILL")
    assert.equal((await ended).status, 0)
    assert.deepEqual(mountsIn(target), [])
  })

  it("hands over what only another one reads, and says so if there is none", async () => {
    const { target } = place("self")
    const other = newFolder("squashfuse-other")
    const theirs = path.join(other, "squashfuse_ll")
    writeFileSync(theirs, '#!/bin/sh\nprintf "%s\\n" "$0" "$@"\nexit 7\n', { mode: 0o755 })
    const lzo = path.join(folder, "lzo.sqfs")
    // Ours under that name is passed over, wherever the link to it is.
    const env = { PATH: `relative::${bin}:${other}:/usr/bin:/bin` }
    const args = ["-f", "-o", "ro", lzo, target]
    const handed = await runProgram([program, ...args], { as: "self", env })
    assert.deepEqual([handed.text.trim().split("\n"), handed.status], [[theirs, ...args], 7], handed.stderr)
    const alone = await runProgram([program, ...args], { as: "self", env: { PATH: bin } })
    assert.equal(alone.status, 1)
    assert.match(
      alone.stderr,
      /lzo\.sqfs: compressed with lzo, .*; there is no other squashfuse_ll in PATH\n$/,
    )
    // A copy of ours hands over once.
    const copy = newFolder("squashfuse-copy")
    execFileSync("cp", ["-L", program, copy])
    const copied = await runProgram([program, ...args], { as: "self", env: { PATH: copy } })
    assert.equal(copied.status, 1)
  })

  it("has nothing open but its image, its device and what it was given", async () => {
    const { target } = place("self")
    const { child, ended } = await inForeground(target, image)
    const known =
      /^(?:\/dev\/(?:null|fuse)|pipe:.*|socket:.*|anon_inode:\[(?:eventfd|signalfd|eventpoll)\]|\/.*\/image\.sqfs)$/
    assert.deepEqual(
      descriptorsOf(child.pid ?? 0).filter((file) => !known.test(file)),
      [],
    )
    const mine = readFileSync(`/proc/${child.pid}/status`, "utf8")
    assert.match(mine, /^CapEff:\s0+$/m)
    assert.match(mine, /^Seccomp:\s2$/m)
    unmount(target)
    await ended
  })
})
