// Key rings beside a live Apptainer: keys that are made there are listed and used here, and the reverse.
import assert from "node:assert/strict"
import { copyFileSync, mkdirSync, readFileSync } from "node:fs"
import path from "node:path"
import { isRoot, sifcrypt, sifcryptOk } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"
import { inPeer, SharedFolder } from "./peer.ts"

interface Listing {
  readonly kind: string
  readonly keys: readonly {
    readonly fingerprint: string
    readonly userIds: readonly string[]
    readonly bits?: number
  }[]
}

describe("key rings beside a live Apptainer", function () {
  let shared: SharedFolder
  /** The peer's ring: its name there, and here. */
  let inside: string
  let here: string

  before(function () {
    if (!isRoot) skip(this, "needs root, as the peer does")
    shared = new SharedFolder()
    inside = path.join(shared.inside, "rings")
    here = path.join(shared.path, "rings")
  })

  after(() => {
    shared[Symbol.dispose]()
  })

  const apptainer = (...args: readonly string[]): string =>
    inPeer("env", `APPTAINER_KEYSDIR=${inside}`, "apptainer", ...args)

  function own(): { readonly env: Readonly<Record<string, string>>; readonly as: "self" } {
    return { env: { SIFCRYPT_KEYSDIR: path.join(newFolder("ring"), "keys") }, as: "self" }
  }

  async function image(name: string): Promise<string> {
    const built = path.join(newFolder("image"), name)
    await sifcryptOk(["build", built, makeRootTree()], { as: "self" })
    copyFileSync(built, path.join(shared.path, name))
    return path.join(shared.path, name)
  }

  it("lists in place what the peer made, signs with it, and the peer verifies", async function () {
    this.timeout(120_000)
    const args = ["--name", "Peer", "--email", "peer@example.org", "--comment", "test", "--password", ""]
    apptainer("key", "newpair", ...args, "--push=false", "--bit-length", "2048")
    const ours = own()
    const env = { ...ours.env, APPTAINER_KEYSDIR: here }
    for (const secret of [[], ["-s"]]) {
      const result = await sifcryptOk(["key", "list", "--json", ...secret], { ...ours, env })
      const peer = (JSON.parse(result.text) as Listing[]).find(({ kind }) => kind === "peer")
      assert.deepEqual(
        peer?.keys.map(({ userIds, bits }) => [userIds, bits]),
        [[["Peer (test) <peer@example.org>"], 2048]],
      )
      // The peer says the same of it.
      const shown = apptainer("key", "list", ...secret)
      assert.ok(shown.includes(peer.keys[0]?.fingerprint ?? "none"))
      // Line by line the same table, but for what only ours has.
      const lines = (await sifcryptOk(["key", "list", ...secret], { ...ours, env })).text.split("\n")
      for (const line of shown.split("\n").slice(1)) assert.ok(lines.includes(line), line)
    }
    const file = await image("by-us.sif")
    await sifcryptOk(["sign", file], { ...ours, env })
    assert.match(apptainer("verify", "--local", path.join(shared.inside, "by-us.sif")), /Verified|Peer/)
    await sifcryptOk(["verify", file], { ...ours, env })
  })

  it("imports what the peer exports, and the peer imports what is exported here", async function () {
    this.timeout(120_000)
    const ours = own()
    const peers = (
      JSON.parse((await sifcryptOk(["key", "list", "--json", "-d", here], ours)).text) as Listing[]
    )[0]
    const theirs = peers?.keys[0]?.fingerprint ?? ""
    // The peer's command asks for a number on the terminal; its ring is the same packets.
    await sifcryptOk(["key", "import", path.join(here, "pgp-public")], ours)
    const listed = JSON.parse((await sifcryptOk(["key", "list", "--json"], ours)).text) as Listing[]
    assert.equal(listed[0]?.keys[0]?.fingerprint, theirs)

    for (const [type, armor] of [
      ["rsa", ["-a"]],
      ["ed25519", []],
    ] as const) {
      const args = ["-N", type, "-E", `${type}@example.org`, "-b", "2048", "--type", type, "-P", "", "--json"]
      const made = JSON.parse((await sifcryptOk(["key", "newpair", ...args], ours)).text) as {
        fingerprint: string
      }
      const name = `${type}.key`
      await sifcryptOk(
        ["key", "export", ...armor, "-k", made.fingerprint, path.join(shared.path, name)],
        ours,
      )
      apptainer("key", "import", path.join(shared.inside, name))
      assert.match(apptainer("key", "list"), new RegExp(made.fingerprint))
      const file = await image(`${type}.sif`)
      await sifcryptOk(["sign", "-k", made.fingerprint, file], ours)
      const verified = apptainer("verify", "--local", path.join(shared.inside, `${type}.sif`))
      assert.match(verified, new RegExp(`${type}@example\\.org|Verified`))
    }
  })

  it("the peer uses a ring of ours in place, and signs with it", async function () {
    this.timeout(120_000)
    const ours = own()
    const args = ["-N", "Ours", "-E", "ours@example.org", "-b", "2048", "-P", "", "--json"]
    const made = JSON.parse((await sifcryptOk(["key", "newpair", ...args], ours)).text) as {
      fingerprint: string
    }
    const place = path.join(shared.path, "ours")
    mkdirSync(place, { mode: 0o700 })
    for (const name of ["pgp-public", "pgp-secret"])
      copyFileSync(path.join(ours.env["SIFCRYPT_KEYSDIR"] ?? "", name), path.join(place, name))
    const withOurs = `APPTAINER_KEYSDIR=${path.join(shared.inside, "ours")}`
    assert.match(
      inPeer("env", withOurs, "apptainer", "key", "list", "--secret"),
      new RegExp(made.fingerprint),
    )
    const file = await image("in-place.sif")
    const before = readFileSync(file).length
    inPeer("env", withOurs, "apptainer", "sign", path.join(shared.inside, "in-place.sif"))
    assert.notEqual(readFileSync(file).length, before)
    await sifcryptOk(["verify", file, "--require", made.fingerprint], ours)
    assert.equal((await sifcrypt(["verify", file], own())).status, 26)
  })
})
