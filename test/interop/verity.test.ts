// Images with a signed hash tree, which a live Apptainer verifies and runs as any other, and trees that it signs.
import assert from "node:assert/strict"
import { generateKeyPairSync } from "node:crypto"
import { chmodSync, copyFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { open, sif, sign, verify } from "../../lib/index.ts"
import { isRoot, sifcryptOk, userId } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"
import { flipBit, placesOf } from "../support/verity.ts"
import { inPeer, inPeerAsUser, SharedFolder } from "./peer.ts"

describe("hash trees beside a live Apptainer", function () {
  let shared: SharedFolder
  let image: string
  const pair = generateKeyPairSync("ed25519")

  before(async function () {
    if (!isRoot) skip(this, "needs root, as the peer does")
    shared = new SharedFolder()
    image = path.join(newFolder("verity-interop", userId), "image.sif")
    await sifcryptOk(["build", image, makeRootTree()])
    for (const [name, key] of [
      ["private.pem", pair.privateKey.export({ type: "pkcs8", format: "pem" })],
      ["public.pem", pair.publicKey.export({ type: "spki", format: "pem" })],
    ] as const)
      writeFileSync(path.join(shared.path, name), key, { mode: 0o644 })
  })

  after(() => {
    if (isRoot) shared[Symbol.dispose]()
  })

  it("verifies and runs an image that was signed with a tree here", async () => {
    const file = path.join(path.dirname(image), "ours.sif")
    copyFileSync(image, file)
    await sign(file, { key: pair.privateKey }, { tree: true })
    chmodSync(file, 0o755)
    const inside = shared.take(file)
    inPeer("apptainer", "verify", "--key", path.join(shared.inside, "public.pem"), inside)
    const listed = inPeer("apptainer", "sif", "list", inside)
    assert.match(listed, /^2 +\|1 +\|1 .*Generic/m)
    const ran = await inPeerAsUser(path.dirname(file), [
      "apptainer",
      "exec",
      "--userns",
      "--no-mount",
      "home,cwd,tmp",
      file,
      "cat",
      "/data/hello",
    ])
    assert.equal(ran.text, "hello\n", ran.stderr)
    flipBit(path.join(shared.path, "ours.sif"), (await placesOf(file)).tree.offset + 5)
    assert.throws(() =>
      inPeer("apptainer", "verify", "--key", path.join(shared.inside, "public.pem"), inside),
    )
  })

  it("signs an image that has a tree, which its signature then vouches for here", async () => {
    const file = path.join(path.dirname(image), "theirs.sif")
    copyFileSync(image, file)
    // A first signature brings the tree; the peer's is the only one that is left.
    await sign(file, { key: generateKeyPairSync("ed25519").privateKey }, { tree: true })
    await sif.deleteObject(file, 3)
    const inside = shared.take(file)
    inPeer("apptainer", "sign", "--key", path.join(shared.inside, "private.pem"), inside)
    const signed = path.join(shared.path, "theirs.sif")
    const by = { keys: [pair.publicKey] }
    assert.equal((await verify(signed, by)).verified, true)
    const { partition } = await placesOf(signed)
    // Behind what is read when it is opened, and so not noticed before.
    flipBit(signed, partition.offset + Math.floor(partition.size / 2))
    await using opened = await open(signed, { verify: by })
    await assert.rejects(opened.readFile("/bin/busybox"), { code: "ERR_SIGNATURE_INVALID" })
  })
})
