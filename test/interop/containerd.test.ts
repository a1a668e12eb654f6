// Encrypted images in a live containerd: what decrypts their layers there is ours, under the name of imgcrypt's.
import assert from "node:assert/strict"
import { copyFileSync, existsSync, mkdirSync, readdirSync, rmSync, symlinkSync } from "node:fs"
import path from "node:path"
import { oci } from "../../lib/index.ts"
import { sifcrypt, packageRoot } from "../support/cli.ts"
import { Layout } from "../support/layout.ts"
import { Registry } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"
import { vectorPath } from "../vectors/load.ts"
import { Containerd } from "./containerd.ts"

const keyFile = (name: string): string => vectorPath(`ocicrypt/keys/${name}`)

// containerd tells what the program said, or that it gave nothing (e3b0c442… is the SHA-256 of that), whichever it learns first.
const refusal = /its MAC is another one|wrong diff id .*sha256:e3b0c442/

describe("encrypted images in a live containerd", () => {
  const folder = newFolder("containerd")
  const file = (name: string): string => path.join(folder, name)
  const plain = `oci:${vectorPath("oci/layout")}`
  let containerd: Containerd

  before(async () => {
    mkdirSync(file("keys/deep"), { recursive: true })
    const decoder = file("ctd-decoder")
    symlinkSync(path.join(packageRoot, "dist/cli/main.js"), decoder)
    containerd = await Containerd.start(file("containerd"), decoder, ["--decryption-keys-path", file("keys")])
  })
  after(async () => {
    await containerd[Symbol.asyncDispose]()
  })

  const committed = (): number =>
    containerd.client("snapshots", "--snapshotter", "native", "ls").split("Committed").length - 1
  /** Those that were unpacked are not unpacked again. */
  const forgetSnapshots = (): void => {
    const snapshots = (...args: string[]): string =>
      containerd.client("snapshots", "--snapshotter", "native", ...args)
    for (let rows; (rows = [...snapshots("ls").matchAll(/^(sha256:\w+) +(sha256:\w+)?/gm)]).length > 0;) {
      const parents = new Set(rows.map(([, , parent]) => parent))
      for (const [, key = ""] of rows)
        if (!parents.has(key))
          try {
            snapshots("rm", key)
          } catch (error) {
            // Whose image is gone is taken away by containerd itself, too.
            if (!String(error).includes("does not exist: not found")) throw error
          }
    }
  }
  /** What the top layer's file system has. */
  const unpacked = (): string[] => {
    const all = readdirSync(containerd.snapshots).sort((one, other) => Number(one) - Number(other))
    return readdirSync(path.join(containerd.snapshots, all.at(-1) ?? "")).sort()
  }

  it("leave nothing of a layer that was changed", async () => {
    const layout = new Layout("changed", "ocicrypt/skopeo")
    const [base, ...others] = layout.manifest.layers
    assert.ok(base !== undefined)
    const changed = layout.blob(base.digest)
    changed[changed.length - 1] = (changed.at(-1) ?? 0) ^ 1
    layout.manifest.layers = [{ ...base, ...layout.add(changed, base.mediaType) }, ...others]
    layout.write()
    const archive = file("changed.tar")
    await oci.copy({
      source: `oci:${layout.folder}`,
      target: `oci-archive:${archive}:example.org/it:changed`,
    })
    layout.remove()
    assert.throws(
      () =>
        containerd.client(
          "images",
          "import",
          "--snapshotter",
          "native",
          "--key",
          keyFile("rsa1.pem"),
          archive,
        ),
      refusal,
    )
    assert.equal(committed(), 0)
  })

  it("are unpacked by our ctd-decoder, with the client's key", async () => {
    const recipients = [
      { jwe: { file: keyFile("rsa1.pub.pem") } },
      { pgp: { file: keyFile("pgp1.pub.gpg") } },
    ]
    const archive = file("encrypted.tar")
    await oci.encrypt({ source: plain, target: `oci-archive:${archive}:example.org/it:enc`, recipients })
    assert.throws(() => containerd.client("images", "import", "--snapshotter", "native", archive))
    assert.equal(committed(), 0)
    containerd.client("images", "import", "--snapshotter", "native", "--key", keyFile("rsa1.pem"), archive)
    assert.equal(committed(), 3)
    assert.ok(unpacked().includes("bin"))
    assert.match(containerd.client("images", "layerinfo", "example.org/it:enc"), /jwe,pgp/)
  })

  it("are unpacked with keys of the node, and imgcrypt's own encryption is", async () => {
    containerd.client("images", "rm", "example.org/it:enc")
    forgetSnapshots()
    assert.equal(committed(), 0)
    const archive = file("plain.tar")
    await oci.copy({ source: plain, target: `oci-archive:${archive}:example.org/it:plain` })
    containerd.client("images", "import", "--no-unpack", archive)
    const [name, made] = ["example.org/it:plain", "example.org/it:theirs"]
    containerd.client("images", "encrypt", "--recipient", `jwe:${keyFile("rsa2.pub.pem")}`, name, made)
    const theirs = file("theirs.tar")
    containerd.client("images", "export", theirs, made)
    containerd.client("images", "rm", "--sync", name, made)
    // The client's key is another one.
    const client = ["--skip-decrypt-auth", "--key", keyFile("rsa1.pem")]
    const node = ["images", "import", "--snapshotter", "native", ...client, theirs]
    assert.throws(() => containerd.client(...node))
    copyFileSync(keyFile("rsa2.pem"), file("keys/deep/rsa2.pem"))
    containerd.client(...node)
    assert.equal(committed(), 3)
    assert.ok(unpacked().includes("bin"))
    // And we open what it wrote.
    const unlock = [{ key: { file: keyFile("rsa2.pem") } }]
    const source = `oci-archive:${theirs}`
    const back = await oci.decrypt({ source, target: `oci:${file("back")}:it`, unlock })
    assert.ok(back.digest.startsWith("sha256:"))
  })
})

describe("encrypted images on a node of Kubernetes", () => {
  it("are pulled from a registry and unpacked by our ctd-decoder, with keys of the node, or not at all", async () => {
    const folder = newFolder("node")
    const file = (name: string): string => path.join(folder, name)
    mkdirSync(file("keys"))
    copyFileSync(keyFile("rsa1.pem"), file("keys/rsa1.pem"))
    symlinkSync(path.join(packageRoot, "dist/cli/main.js"), file("ctd-decoder"))
    await using registry = await Registry.start()
    const push = async (source: string, name: string): Promise<string> => {
      const target = `${registry.host}/${name}:1`
      await oci.copy({ source, target: `docker://${target}` })
      return target
    }
    const encrypted = await push(`oci:${vectorPath("ocicrypt/skopeo")}`, "encrypted")
    const layout = new Layout("node-changed", "ocicrypt/skopeo")
    const [base, ...others] = layout.manifest.layers
    assert.ok(base !== undefined)
    const changed = layout.blob(base.digest)
    changed[0] = (changed[0] ?? 0) ^ 1
    layout.manifest.layers = [{ ...base, ...layout.add(changed, base.mediaType) }, ...others]
    layout.write()
    const damaged = await push(`oci:${layout.folder}`, "damaged")
    layout.remove()
    const args = ["--decryption-keys-path", file("keys")]
    await using containerd = await Containerd.start(file("containerd"), file("ctd-decoder"), args, true)
    // containerd tells what the program said, or that the layer is not the one, whichever it learns first.
    const pull = async (image: string, why: RegExp): Promise<void> => {
      const { status, message } = await containerd.pull(image)
      assert.notEqual(status, "0")
      assert.match(message, new RegExp(`${why.source}|wrong diff id`))
    }
    await pull(damaged, /its MAC is another one/)
    rmSync(file("keys/rsa1.pem"))
    await pull(encrypted, /no key was given/)
    // What was begun it may have removed already, or not.
    const written = readdirSync(containerd.snapshots, { recursive: true, withFileTypes: true })
    assert.deepEqual(
      written.filter((entry) => !entry.isDirectory()),
      [],
    )
    copyFileSync(keyFile("rsa1.pem"), file("keys/rsa1.pem"))
    assert.deepEqual(await containerd.pull(encrypted), { status: "0", message: "" })
    const top = readdirSync(containerd.snapshots).sort((one, other) => Number(one) - Number(other))
    assert.ok(readdirSync(path.join(containerd.snapshots, top.at(-1) ?? "")).includes("bin"))
  })
})

describe("ctd-decoder", () => {
  it("says that containerd starts it", async () => {
    const folder = newFolder("decoder")
    const linked = await sifcrypt(["link", folder, "ctd-decoder"], { as: "self" })
    assert.equal(linked.status, 0, linked.stderr)
    assert.ok(existsSync(path.join(folder, "ctd-decoder")))
    const refused = await sifcrypt(["ctd-decoder"])
    assert.equal(refused.status, 20)
    assert.match(refused.stderr, /through descriptor 3/)
  })
})
