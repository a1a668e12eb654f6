// gocryptfs images of a live Apptainer open here, and ours run there: all as an ordinary user on this machine's kernel.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { generateKeyPairSync } from "node:crypto"
import { chmodSync, copyFileSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { isRoot, sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { passphrase, testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { describeTree, makeRootTree } from "../support/trees.ts"
import { inPeer, inPeerAsUser, peerUser } from "./peer.ts"

const version = isRoot ? inPeer("apptainer", "--version").trim() : "Apptainer"

describe(`gocryptfs images beside ${version}, as an ordinary user`, () => {
  const keys = testKeys()
  const tree = makeRootTree()
  const { publicKey: largePublic, privateKey: largePrivate } = generateKeyPairSync("rsa", {
    modulusLength: 4096,
    publicKeyEncoding: { type: "pkcs1", format: "pem" },
    privateKeyEncoding: { type: "pkcs1", format: "pem" },
  })
  const secret = `APPTAINER_ENCRYPTION_PASSPHRASE=${passphrase}`
  let place: string

  before(async function () {
    if (!isRoot) skip(this, "needs root, to enter the peer")
    place = newFolder("gocryptfs", peerUser)
    copyFileSync(keys.publicKey, path.join(place, "key.pub.pem"))
    copyFileSync(keys.privateKey, path.join(place, "key.pem"))
    writeFileSync(path.join(place, "large.pub.pem"), largePublic)
    writeFileSync(path.join(place, "large.pem"), largePrivate)
    execFileSync("cp", ["-a", tree, path.join(place, "tree")])
    const format = ["--format", "gocryptfs"]
    const ours = (name: string): string => path.join(place, name)
    const two = ["--pem-path", keys.publicKey, "--pem-path", keys.otherPublicKey]
    await sifcryptOk(["build", ...format, ...two, ours("ours-rsa.sif"), tree], { as: "self" })
    const flags = ["--passphrase-file", keys.passphraseFile]
    await sifcryptOk(["build", ...format, ...flags, ours("ours-passphrase.sif"), tree], { as: "self" })
    // Apptainer cannot give away what belongs to nobody it knows.
    execFileSync("chown", ["-R", `${peerUser}:${peerUser}`, place])
  })

  for (const [what, name, env, build, flags] of [
    ["for RSA 2048", "rsa2048", [], ["--pem-path", "key.pub.pem"], ["--pem-path", "key.pem"]],
    ["for RSA 4096", "rsa4096", [], ["--pem-path", "large.pub.pem"], ["--pem-path", "large.pem"]],
    [
      "for a key in a variable",
      "pem-data",
      [`APPTAINER_ENCRYPTION_PEM_DATA=${readFileSync(keys.publicKey, "latin1")}`],
      ["-e"],
      ["--pem-path", "key.pem"],
    ],
    ["with a passphrase", "passphrase", [secret], ["-e"], ["--passphrase-file", keys.passphraseFile]],
    [
      "compressed by zstd",
      "zstd",
      [],
      ["--mksquashfs-args", "-comp zstd", "--pem-path", "key.pub.pem"],
      ["--pem-path", "key.pem"],
    ],
  ] as const)
    it(`A40: that it builds ${what} hold their tree here, and run`, async () => {
      const image = `peer-${name}.sif`
      const built = await inPeerAsUser(place, ["env", ...env, "apptainer", "build", ...build, image, "tree"])
      assert.equal(built.status, 0, built.stderr)
      const file = path.join(place, image)
      chmodSync(file, 0o644)
      assert.match((await sifcryptOk(["info", file])).text, /^Root: +gocryptfs, /m)
      const target = path.join(newFolder("gocryptfs-tree", userId), "tree")
      const open = flags.map((flag) => (flag.endsWith(".pem") ? path.join(place, flag) : flag))
      await sifcryptOk(["extract", ...open, file, target])
      assertHoldsTree(target)
      const ran = await sifcrypt(["exec", ...open, file, "/bin/sh", "-c", "cat /data/hello; exit 7"])
      assert.equal(ran.status, 7, ran.stderr)
      assert.equal(ran.text, "hello\n")
    })

  for (const [what, env, flags, image] of [
    ["with the first of two RSA keys", [], ["--pem-path", "key.pem"], "ours-rsa.sif"],
    ["with the passphrase", [secret], [], "ours-passphrase.sif"],
  ] as const)
    it(`A40: that are built here run there ${what}`, async () => {
      const command = [
        "apptainer",
        "exec",
        "--userns",
        ...flags,
        image,
        "/bin/sh",
        "-c",
        "cat /data/hello; exit 7",
      ]
      const { status, text, stderr } = await inPeerAsUser(place, ["env", ...env, ...command])
      assert.equal(status, 7, stderr)
      assert.equal(text, "hello\n")
    })

  for (const [what, name, flags] of [
    ["are built here", "ours-rsa.sif", ["--recipient", keys.otherPublicKey]],
    ["it builds", "peer-rsa2048.sif", []],
  ] as const)
    it(`A40: that ${what} run there after their recipients' secret was rotated`, async () => {
      const image = path.join(place, `rotated-${name}`)
      copyFileSync(path.join(place, name), image)
      const rotate = ["recipient", "rotate", "--pem-path", keys.privateKey, ...flags, image]
      await sifcryptOk(rotate, { as: "self" })
      execFileSync("chown", [`${peerUser}:${peerUser}`, image])
      const command = ["apptainer", "exec", "--userns", "--pem-path", "key.pem", path.basename(image)]
      const { status, text, stderr } = await inPeerAsUser(place, [...command, "cat", "/data/hello"])
      assert.equal(status, 0, stderr)
      assert.equal(text, "hello\n")
    })

  it("A40: that are built here pass its gocryptfs's check", async () => {
    const file = path.join(place, "ours-passphrase.sif")
    const [partition] = JSON.parse((await sifcryptOk(["sif", "list", "--json", file])).text) as {
      id: number
    }[]
    const { stdout } = await sifcryptOk(["sif", "dump", String(partition?.id), file])
    writeFileSync(path.join(place, "outer.sqfs"), stdout)
    writeFileSync(path.join(place, "password"), passphrase)
    execFileSync("chown", ["-R", `${peerUser}:${peerUser}`, place])
    const check =
      "unsquashfs -q -n -d inside outer.sqfs >/dev/null && gocryptfs -fsck -passfile password inside"
    const { status, text, stderr } = await inPeerAsUser(place, ["sh", "-c", check])
    assert.equal(status, 0, text + stderr)
    assert.match(text + stderr, /no problems found/)
  })

  /** What of the source tree the image must show: files and links. Apptainer adds to it and touches folders. */
  function assertHoldsTree(root: string): void {
    const found = describeTree(root, false)
    for (const [name, facts] of describeTree(tree, false))
      if (!facts.startsWith("40000")) assert.equal(found.get(name), facts, name)
  }
})
