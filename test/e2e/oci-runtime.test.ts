// The OCI runtime under Debian's podman, and by itself: containers whose root is an encrypted image.
import assert from "node:assert/strict"
import { chmodSync, chownSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { listRecipients } from "../../lib/index.ts"
import {
  finish,
  idOf,
  isRoot,
  runProgram,
  sifcryptOk,
  startProgram,
  type As,
  type CommandOptions,
  type Result,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { mountsIn, processesOfGroup, signalGroup, waitFor } from "../support/processes.ts"
import { seeded } from "../support/random.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { times } from "../support/soak.ts"
import { makeRootTree } from "../support/trees.ts"

const MARKER = "marker-41d7-inside"
const random = seeded()
const kills = times("SIFCRYPT_KILLS", 40, 4)
// Of this run alone: another one may have left something.
let nextGroup = 1_000_000 + process.pid * 100

/** Everything of one user: who he is, where his files are. */
interface Place {
  readonly as: As
  readonly folder: string
  readonly image: string
  readonly key: string
}

describe("sifcrypt-oci", () => {
  const keys = testKeys()
  const links = newFolder("oci-links")
  const runtime = path.join(links, "sifcrypt-oci")
  const settings = path.join(links, "containers.conf")
  const places = new Map<As, Place>()

  /** Every file of it is the user's. */
  async function prepare(as: As): Promise<Place> {
    const folder = newFolder(`oci-${as}`, idOf(as))
    const own = (name: string, content?: string | Buffer): string => {
      const file = path.join(folder, name)
      if (content === undefined) mkdirSync(file, { mode: 0o700 })
      else writeFileSync(file, content, { mode: 0o600 })
      chownSync(file, idOf(as), idOf(as))
      return file
    }
    const tree = makeRootTree()
    writeFileSync(path.join(tree, "etc", "marker"), `${MARKER}\n`)
    const image = path.join(folder, "image.sif")
    await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree], { as })
    const key = own("key.pem", readFileSync(keys.privateKey))
    own("other.pem", readFileSync(keys.otherPrivateKey))
    for (const name of ["run", "empty", "bundle", ".config", ".config/sifcrypt"]) own(name)
    const [recipient] = await listRecipients(image)
    own(
      ".config/sifcrypt/keys.toml",
      `[[key]]\nrecipient = "${recipient?.fingerprint ?? ""}"\npem-path = "${key}"\n`,
    )
    return { as, folder, image, key }
  }

  before(async function () {
    if (!isRoot) skip(this, "needs root, to show another /sys/fs/cgroup and /etc/subuid")
    await sifcryptOk(["link", links, "sifcrypt-oci"], { as: "self" })
    for (const name of ["subuid", "subgid"]) writeFileSync(path.join(links, name), `nobody:300000:65536\n`)
    writeFileSync(
      settings,
      `[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime_supports_json = ["sifcrypt-oci"]
runtime_supports_nocgroup = ["sifcrypt-oci"]
[engine.runtimes]
sifcrypt-oci = ["${runtime}"]
`,
    )
    for (const as of ["self", "nobody"] as const) places.set(as, await prepare(as))
  })

  function placeOf(as: As): Place {
    const place = places.get(as)
    assert.ok(place !== undefined)
    return place
  }

  /** A shell of the user's, in which no cgroups are to be seen: this machine may have those of both versions. */
  function options({ as, folder }: Place): CommandOptions {
    return {
      as,
      cwd: folder,
      group: nextGroup,
      wrapper: [
        ...["unshare", "--mount", "sh", "-c"],
        // podman takes no runroot with a name of more than 50 bytes.
        `mount -t tmpfs tmpfs /sys/fs/cgroup && mount --bind ${folder}/run /mnt && mount --bind ${links}/subuid /etc/subuid && mount --bind ${links}/subgid /etc/subgid && exec "$@"`,
        "sh",
      ],
      env: {
        PATH: `${links}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`,
        HOME: folder,
        XDG_RUNTIME_DIR: path.join(folder, "run"),
        CONTAINERS_CONF: settings,
      },
    }
  }

  const podman = `p() { podman --log-level error --storage-driver vfs --root "$HOME/store" --runroot /mnt/podman --tmpdir "$HOME/run/libpod" --runtime sifcrypt-oci "$@"; }
of() { echo --network none --annotation "org.sifcrypt.image=$HOME/image.sif" "$@" --rootfs "$HOME/empty"; }
gone() { for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; p inspect -f '{{.State.Status}}' "$1" | grep -q exited && return; done; false; }
# What holds an ordinary user's namespaces for the next command.
trap 'for pause in "$HOME"/run/libpod/pause.pid "$HOME"/run/libpod/tmp/pause.pid; do [ ! -e "$pause" ] || kill "$(cat "$pause")"; done' EXIT
`

  async function shell(place: Place, script: string): Promise<Result> {
    nextGroup++
    return await runProgram(["bash", "-ec", script], options(place))
  }

  async function nothingLeft(folder: string): Promise<void> {
    const left = (): string[] => processesOfGroup(nextGroup).map(({ command }) => command)
    await waitFor("every process has ended", () => left().length === 0).catch((cause: unknown) => {
      const said = left().join("; ")
      signalGroup(nextGroup, "SIGKILL")
      throw new Error(`left behind: ${said}`, { cause })
    })
    assert.deepEqual(mountsIn(folder), [])
    assert.equal(existsSync("/run/sifcrypt/oci/root"), false)
  }

  for (const as of ["self", "nobody"] as const) {
    const who = as === "self" ? "root" : "an ordinary user"

    it(`A38: is podman's, for ${who}: keys.toml opens the image, which can be written to in memory`, async () => {
      const place = placeOf(as)
      const { status, text, stderr } = await shell(
        place,
        `${podman} p run --rm $(of) sh -c 'cat /etc/marker; id -u; echo x >/etc/marker && cat /etc/marker'; p ps -aq`,
      )
      assert.equal(status, 0, stderr)
      assert.equal(text, `${MARKER}\n0\nx\n`)
      await nothingLeft(place.folder)
    })

    it(`runs, is joined, ended and started again, for ${who}; nothing stays, whoever is killed`, async () => {
      const place = placeOf(as)
      const { status, text, stderr } = await shell(
        place,
        `${podman} p run -d --read-only --name one $(of) sleep 1000 >/dev/null
p exec one sh -c 'cat /etc/marker; touch /x 2>/dev/null || echo read-only'
grep -c image.sif /proc/self/mountinfo || true
kill -KILL $(p inspect -f '{{.State.Pid}}' one)
gone one
p start one >/dev/null
p exec one cat /etc/marker
p kill --signal KILL one >/dev/null
gone one
p inspect -f '{{.State.ExitCode}}' one
p start one >/dev/null
kill -KILL $(cat $(p inspect -f '{{.ConmonPidFile}}' one))
p rm -f -t 0 one >/dev/null
p ps -aq`,
      )
      assert.equal(status, 0, stderr)
      assert.equal(text, `${MARKER}\nread-only\n0\n${MARKER}\n137\n`)
      await nothingLeft(place.folder)
    })

    it(`makes containers of bundles, for ${who}, and passes on what else crun does`, async () => {
      const place = placeOf(as)
      writeBundle(place, { args: ["sleep", "1000"] })
      const { status, text, stderr } = await shell(
        place,
        `o="sifcrypt-oci --cgroup-manager=disabled --root=$HOME/state"
$o create --bundle bundle --pid-file "$HOME/pid" one >/dev/null 2>&1 </dev/null
$o state one | grep -o '"status": "[a-z]*"'
$o start one
until grep -q sleep "/proc/$(cat "$HOME/pid")/comm"; do sleep 0.05; done
$o exec one cat /etc/marker
$o state one | grep -o '"bundle": ".*"'
$o kill one KILL
while $o state one | grep -q running; do sleep 0.05; done
$o delete one
$o create --bundle bundle two >/dev/null 2>&1 </dev/null
$o delete --force two
$o list -q 2>/dev/null || $o list | tail -n +2`,
      )
      assert.equal(status, 0, stderr)
      assert.equal(text, `"status": "created"\n${MARKER}\n"bundle": "${place.folder}/bundle"\n`)
      await nothingLeft(place.folder)
    })

    it(`leaves nothing where it is killed at any moment, as ${who}`, async function () {
      this.timeout(kills * 30_000)
      const place = placeOf(as)
      writeBundle(place, { args: ["sleep", "1000"] })
      for (let i = 0; i < kills; i++) {
        nextGroup++
        const started = startProgram(
          [runtime, "--cgroup-manager=disabled", "run", "--bundle", "bundle", `kill-${i}`],
          { ...options(place), stdio: "ignore" },
        )
        const ended = finish(started)
        const runs = (): boolean => started.exitCode === null && started.signalCode === null
        await sleep(random(900))
        const victims = processesOfGroup(nextGroup)
        const victim = victims[random(Math.max(1, victims.length))]
        if (victim !== undefined) tryKill(victim.pid)
        // A container outlives a killed crun, until somebody deletes it; and nobody may have been there yet to be killed.
        const end = performance.now() + 15_000
        const remove = [runtime, "--cgroup-manager=disabled", "delete", "--force", `kill-${i}`]
        while ((runs() || processesOfGroup(nextGroup).length > 0) && performance.now() < end)
          await runProgram(remove, options(place))
        await ended
        await nothingLeft(place.folder).catch((cause: unknown) => {
          throw new Error(`${victim?.command ?? "nobody"} was killed`, { cause })
        })
      }
    })
  }

  function writeBundle(
    { as, folder, image, key }: Place,
    { args, annotations }: { args: readonly string[]; annotations?: object },
  ): void {
    const id = idOf(as)
    const mapping = [{ containerID: 0, hostID: id, size: 1 }]
    const rootless = id === 0 ? {} : { uidMappings: mapping, gidMappings: mapping }
    const file = path.join(folder, "bundle", "config.json")
    writeFileSync(
      file,
      JSON.stringify({
        ociVersion: "1.0.2",
        process: { terminal: false, user: { uid: 0, gid: 0 }, args, env: ["PATH=/bin:/usr/bin"], cwd: "/" },
        root: { path: path.relative(path.join(folder, "bundle"), image) },
        annotations: annotations ?? { "org.sifcrypt.key": key },
        mounts: [
          { destination: "/proc", type: "proc", source: "proc" },
          { destination: "/dev", type: "tmpfs", source: "tmpfs" },
        ],
        linux: {
          ...rootless,
          namespaces: ["pid", "mount", "ipc", ...(id === 0 ? [] : ["user"])].map((type) => ({ type })),
        },
      }),
    )
    chmodSync(file, 0o644)
  }

  function tryKill(pid: number): void {
    try {
      process.kill(pid, "SIGKILL")
    } catch {
      // It has ended since it was seen.
    }
  }

  it("has podman say why the image cannot be opened", async () => {
    const place = placeOf("self")
    const { status, stderr } = await shell(
      place,
      `${podman} p run --rm $(of --annotation org.sifcrypt.key=$HOME/other.pem) cat /etc/marker`,
    )
    assert.equal(status, 126)
    assert.match(
      stderr,
      /^Error: OCI runtime error: sifcrypt-oci: sifcrypt: \S+\/image\.sif was not encrypted for this key/,
    )
    await nothingLeft(place.folder)
  })

  for (const as of ["self", "nobody"] as const)
    it(`takes no annotations with a root that podman made of an image, which may have them itself: ${as}`, async () => {
      const place = placeOf(as)
      const { status, text, stderr } = await shell(
        place,
        `${podman} printf x >file; tar -cf- file | p import --quiet - stranger >/dev/null
p run --rm --network none --annotation "org.sifcrypt.image=$HOME/image.sif" stranger cat /etc/marker || { s=$?; p rmi -f stranger >/dev/null; exit $s; }`,
      )
      assert.equal(text, "")
      assert.equal(status, 126, stderr)
      assert.match(stderr, /its annotations may be those of the image that its root was made of/)
      await nothingLeft(place.folder)
    })

  it("logs as it is told to, and says what is wrong with a bundle", async () => {
    const place = placeOf("self")
    writeBundle(place, { args: ["true"], annotations: { "org.sifcrypt.kee": "/x" } })
    const { status, stderr } = await shell(
      place,
      "sifcrypt-oci --log=file:log --log-format=json run --bundle bundle one || { s=$?; cat log >&2; exit $s; }",
    )
    assert.equal(status, 255)
    const lines = stderr.trimEnd().split("\n")
    assert.match(lines[0] ?? "", /^sifcrypt: \S+config\.json: the annotation org\.sifcrypt\.kee is not known/)
    const { msg, level } = JSON.parse(lines.at(-1) ?? "") as { msg: string; level: string }
    assert.match(msg, /the annotation org\.sifcrypt\.kee is not known/)
    assert.equal(level, "error")
  })

  it("hands descriptors on, and nothing of its own", async () => {
    const place = placeOf("self")
    writeBundle(place, { args: ["sh", "-c", "cat <&3; ls /proc/self/fd; ulimit -Sn; env"] })
    const { status, text, stderr } = await shell(
      place,
      `ulimit -Sn 700; export SIFCRYPT_ENCRYPTION_PASSPHRASE=secret-7d; echo from-three | sh -c '
exec 3<&0 </dev/null; exec sifcrypt-oci --cgroup-manager=disabled run --preserve-fds 1 --bundle bundle one'`,
    )
    assert.equal(status, 0, stderr)
    assert.match(text, /^from-three\n0\n1\n2\n3\n4\n700\n/)
    assert.doesNotMatch(text, /SIFCRYPT|secret-7d/)
  })

  it("takes no other crun for it than the system's, whatever PATH says", async () => {
    const place = placeOf("self")
    const { status, text } = await shell(
      place,
      `mkdir evil && printf '#!/bin/sh\\necho evil\\n' >evil/crun && cp evil/crun . && chmod +x evil/crun crun
PATH="$PWD/evil:$PATH" sifcrypt-oci --version; PATH=":$PATH" sifcrypt-oci --root="$PWD/run" list; rm -r evil crun`,
    )
    assert.equal(status, 0)
    assert.match(text, /^crun version [^]*\nNAME /)
    assert.doesNotMatch(text, /evil/)
  })

  it("is crun for a bundle whose root is a folder", async () => {
    const place = placeOf("self")
    writeBundle(place, { args: ["sh", "-c", ":"], annotations: {} })
    const file = path.join(place.folder, "bundle", "config.json")
    const config = JSON.parse(readFileSync(file, "utf8")) as { root: object }
    writeFileSync(file, JSON.stringify({ ...config, root: { path: makeRootTree() } }))
    const { status, stderr } = await shell(
      place,
      "sifcrypt-oci --cgroup-manager=disabled run --bundle bundle one; sifcrypt-oci --version | grep -q '^crun '; sifcrypt-oci features | grep -q org.sifcrypt",
    )
    assert.equal(status, 0, stderr)
  })
})
