// What a command does when one of its system calls fails (test/support/survival.ts).
import assert from "node:assert/strict"
import { createHash, createPrivateKey, createPublicKey, generateKeyPairSync } from "node:crypto"
import {
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { Readable, Writable } from "node:stream"
import type { CommandRow } from "../../lib/cli/command.ts"
import { commands } from "../../lib/cli/commands.ts"
import { absent } from "../../lib/cli/commands/absent.ts"
import { probes } from "../../lib/cli/commands/probe.ts"
import {
  build,
  encrypt,
  KeyError,
  type ContainerError,
  listRecipients,
  LuksError,
  oci,
  open,
  sif,
  verify,
} from "../../lib/index.ts"
import { isRoot, runProgram, sifcrypt, sifcryptOk, type Result } from "../support/cli.ts"
import { keep, type Kept } from "../support/kept.ts"
import { passphrase, testKeys } from "../support/keys.ts"
import { decoderPayload } from "../support/layer-payload.ts"
import { mountsIn } from "../support/processes.ts"
import { Registry } from "../support/registry.ts"
import { skip } from "../support/skip.ts"
import { isSoak } from "../support/soak.ts"
import { digestOf, Place, Survival, type State, type Work } from "../support/survival.ts"
import { makeRootTree } from "../support/trees.ts"

/** Commands of which no call fails here, and why. */
const untried: Readonly<Record<string, readonly string[]>> = {
  "they fail in test/slurm/faults.test.ts": [
    ...[
      "submit",
      "status",
      "tail",
      "logs",
      "cancel",
      "unlock",
      "prefetch",
      "prune",
      "delete",
      "config import",
    ],
    ...["serve-node", "task", "broker", "relay", "fetch"],
  ].map((name) => `batch ${name}`),
  "what they do another does as well: exec, cat, instance start and compose up, mount, image recipients rotate, key import":
    [
      ...["run", "shell", "test", "ls", "instance run", "instance rm", "oci-runtime", "unmount"],
      ...["down", "exec", "run", "start", "stop", "restart", "pull", "build"].map(
        (name) => `compose ${name}`,
      ),
      ...["image recipients add", "image recipients remove", "network rm", "key pull", "key global"],
    ],
  "they write nothing, and have no secret": [
    ...[
      "recipient list",
      "sif list",
      "sif header",
      "sif info",
      "info",
      "map",
      "inspect",
      "run-help",
      "mounts",
    ],
    ...["image list", "image inspect", "image layerinfo", "image recipients list", "network list"],
    ...["instance list", "instance stats", "instance logs", "network inspect", "ecl check", "cache list"],
    ...["compose ps", "compose logs", "compose images", "compose config", "cert info", "cert list"],
    ...["key list", "key push", "key search", "registry list", "completion", "version"],
  ],
  "it keeps nothing, and who has asked it hears that it ends": ["serve-build"],
}

describe("a system call that fails", function () {
  this.timeout(isSoak ? 36_000_000 : 120_000)
  const keys = testKeys()
  // fusermount3 serves only users whom passwd knows.
  const as = "nobody"
  const survival = new Survival(as, 82_000)
  const signer = generateKeyPairSync("ed25519")
  const original = (name: string): string => survival.original(name)
  const copied = (...names: readonly string[]): ((place: Place) => void) => survival.copied(...names)
  const unlock = [{ key: { file: keys.privateKey } }]
  let registry: Registry | undefined
  let host = ""
  const password = ["--password-file", keys.passphraseFile]
  let kept: Kept

  before(async function () {
    if (!isRoot) skip(this, "needs root, to answer for the kernel")
    if (process.arch !== "x64") skip(this, "knows the system calls of x86-64 only")
    const tree = makeRootTree()
    cpSync(tree, original("tree"), { recursive: true, verbatimSymlinks: true })
    await build({ output: original("plain.sif"), source: tree })
    await encrypt({
      image: original("plain.sif"),
      output: original("image.sif"),
      recipients: [{ key: { file: keys.publicKey } }],
    })
    await build({
      output: original("shared.sif"),
      source: tree,
      recipients: [keys.publicKey, keys.otherPublicKey].map((file) => ({ key: { file } })),
    })
    const pem = signer.privateKey.export({ type: "pkcs8", format: "pem" })
    writeFileSync(original("signer.pem"), pem, { mode: 0o644 })
    writeFileSync(
      original("signer.pub.pem"),
      signer.publicKey.export({ type: "spki", format: "pem" }).toString(),
    )
    writeFileSync(
      original("image.def"),
      "Bootstrap: localimage\nFrom: plain.sif\n%post\n    echo made >/data/made\n",
    )
    writeFileSync(
      original("compose.yaml"),
      `name: faults
x-sifcrypt: { pem_path: "${keys.privateKey}" }
services:
  one: { image: ./image.sif, network_mode: none, entrypoint: sleep 300 }
`,
    )
    registry = await Registry.start()
    host = registry.host
    for (const name of ["image.sif", "plain.sif"])
      await sifcryptOk(["push", "-U", original(name), `oras://${host}/${name.replace(".sif", "")}:1`], {
        as: "self",
      })
    const layout = original("layout")
    cpSync(path.join(import.meta.dirname, "..", "vectors", "oci", "layout"), layout, { recursive: true })
    await registry.push(`oci:${layout}`, "layers:1")
    kept = await keep(survival.folder, keys)
    await writeLayer()
    await survival.compile(["build", "encrypt", "exec"])
  })

  /** What containerd has for its decoder of an encrypted layer, and what that makes of it. */
  async function writeLayer(): Promise<void> {
    const { manifest } = await oci.inspect({ source: `oci:${original("encrypted")}` })
    const [layer] = manifest?.layers ?? []
    assert.ok(layer !== undefined)
    const bytes = readFileSync(original(path.join("encrypted", "blobs", ...layer.digest.split(":"))))
    const payload = decoderPayload(layer, [readFileSync(keys.privateKey)])
    const made: Buffer[] = []
    const output = new Writable({
      write(chunk: Buffer, _, done): void {
        made.push(chunk)
        done()
      },
    })
    await oci.decodeLayer({ payload: { bytes: payload }, input: Readable.from([bytes]), output })
    writeFileSync(original("layer"), bytes)
    writeFileSync(original("payload"), payload)
    writeFileSync(original("layer.plain"), Buffer.concat(made))
  }

  after(async () => {
    survival.end()
    await registry?.[Symbol.asyncDispose]()
  })

  async function holds(image: string, file: string, content: string): Promise<void> {
    await using opened = await open(image, { unlock, unsigned: "allow" })
    assert.equal((await opened.readFile(file)).toString(), content)
  }

  /** A new file that is whole or not there. */
  const made =
    (name: string, file = "/data/hello", content = "hello\n") =>
    async (place: Place): Promise<State> => {
      const image = place.in("work", name)
      if (!existsSync(image)) return "old"
      await holds(image, file, content)
      return "new"
    }

  /** What a user's changes of images are kept apart by. */
  const locks = /^run\/sifcrypt/

  /** What is in the cache is what its name says. */
  function cacheIsWhole(place: Place): void {
    for (const name of place.files().filter((one) => one.startsWith("cache/"))) {
      const [, digest] = /\/([0-9a-f]{64})$/.exec(name) ?? []
      if (digest !== undefined && lstatSync(place.in(name)).isFile() && !name.includes("images"))
        assert.equal(digestOf(place.in(name)), digest)
    }
  }

  /** Can the other one open it still? */
  const changed =
    (name: string) =>
    async (place: Place): Promise<State> => {
      const image = place.in("work", name)
      await holds(image, "/data/hello", "hello\n")
      try {
        await using opened = await open(image, { unlock: [{ key: { file: keys.otherPrivateKey } }] })
        assert.equal((await opened.readFile("/data/hello")).toString(), "hello\n")
        return "old"
      } catch (error) {
        if (error instanceof KeyError || error instanceof LuksError) return "new"
        throw error
      }
    }

  /** An image whose objects can still be read, and whose root file system, if that has not changed. */
  const withObjects =
    (isNew: (objects: readonly sif.SifObject[]) => boolean) =>
    async (place: Place): Promise<State> => {
      const image = place.in("work", "objects.sif")
      await holds(image, "/data/hello", "hello\n")
      await using opened = await sif.openSif(image)
      return isNew(opened.objects) ? "new" : "old"
    }

  /** What the user keeps, in a folder that is made before. */
  const copiedTo = (name: string, ...folder: readonly string[]): ((place: Place) => void) => {
    return (place) => {
      cpSync(original(name), place.in(...folder), { recursive: true })
    }
  }

  /** Do layers and manifests of a layout have the digests that they are called by? */
  function layoutIsWhole(layout: string): void {
    const blobs = path.join(layout, "blobs", "sha256")
    for (const name of existsSync(blobs) ? readdirSync(blobs) : [])
      if (/^[0-9a-f]{64}$/.test(name)) assert.equal(digestOf(path.join(blobs, name)), name)
  }

  /** Is an image in the store, and is the store whole? */
  const stored = async (place: Place): Promise<boolean> => {
    layoutIsWhole(place.in(...storeFolder))
    const { text } = await sifcryptOk(["image", "list", "--json"], place.options)
    return text.includes("kept")
  }

  /** The keys of a ring, private ones, whose every file is whole. */
  const inRing = async (place: Place): Promise<boolean> =>
    (await sifcryptOk(["key", "list", "--secret", "-d", "ring"], place.options)).text.includes(
      "one@example.org",
    )

  const printed =
    (text: string) =>
    (_: Place, { text: output }: Result): State => {
      if (output === text) return "new"
      assert.ok(text.startsWith(output), output)
      return "old"
    }

  const certificates = ["home", ".sifcrypt", "certificates"]
  const storeFolder = ["home", ".local", "share", "sifcrypt", "images"]

  const works: Readonly<Record<string, Work>> = {
    build: {
      prepare: copied("tree"),
      args: () => ["build", "--pem-path", keys.publicKey, "made.sif", "tree"],
      known: [/^node clone3? /],
      state: made("made.sif"),
      outputs: /^work\/made\.sif$/,
    },
    "build over another": {
      prepare: copied("tree", "image.sif"),
      args: () => ["build", "-F", "--pem-path", keys.publicKey, "image.sif", "tree"],
      state: async (place) => {
        await holds(place.in("work", "image.sif"), "/data/hello", "hello\n")
        return survival.isSame(place, "image.sif") ? "old" : "new"
      },
    },
    "build, gocryptfs": {
      prepare: copied("tree"),
      args: () => ["build", "--format", "gocryptfs", "--pem-path", keys.publicKey, "made.sif", "tree"],
      state: made("made.sif"),
      outputs: /^work\/made\.sif$/,
    },
    "build of a definition": {
      prepare: copied("image.def", "plain.sif"),
      args: () => ["build", "--pem-path", keys.publicKey, "made.sif", "image.def"],
      known: [/^node write socket/, /^node read socket/, /^node ioctl socket/],
      state: made("made.sif", "/data/made", "made\n"),
      outputs: /^work\/made\.sif$/,
    },
    encrypt: {
      prepare: copied("plain.sif"),
      args: () => ["encrypt", "--pem-path", keys.publicKey, "plain.sif", "made.sif"],
      state: made("made.sif"),
      outputs: /^work\/made\.sif$/,
    },
    decrypt: {
      prepare: copied("image.sif"),
      args: () => ["decrypt", "--pem-path", keys.privateKey, "image.sif", "made.sif"],
      state: made("made.sif"),
      outputs: /^work\/made\.sif$/,
    },
    sign: {
      prepare: copied("image.sif"),
      args: () => ["sign", "--key", original("signer.pem"), "--tree", "image.sif"],
      state: async (place) => {
        const image = place.in("work", "image.sif")
        await holds(image, "/data/hello", "hello\n")
        {
          await using opened = await sif.openSif(image)
          if (!opened.objects.some(({ type }) => type === sif.DataType.signature)) return "old"
        }
        assert.equal((await verify(image, { keys: [createPublicKey(signer.privateKey)] })).verified, true)
        return "new"
      },
      outputs: locks,
    },
    "recipient add": {
      prepare: copied("image.sif"),
      args: () => [
        "recipient",
        "add",
        "--pem-path",
        keys.privateKey,
        "--recipient",
        keys.otherPublicKey,
        "image.sif",
      ],
      state: async (place) => {
        const image = place.in("work", "image.sif")
        await holds(image, "/data/hello", "hello\n")
        return (await listRecipients(image)).filter(({ stale }) => !stale).length > 1 ? "new" : "old"
      },
      outputs: locks,
    },
    "recipient remove": {
      prepare: copied("shared.sif"),
      args: () => ["recipient", "remove", "--pem-path", keys.privateKey, "shared.sif", keys.otherPublicKey],
      state: changed("shared.sif"),
      outputs: locks,
    },
    "recipient rotate": {
      prepare: copied("shared.sif"),
      args: () => [
        ...["recipient", "rotate", "--pem-path", keys.privateKey, "--keep", keys.publicKey],
        "shared.sif",
      ],
      state: changed("shared.sif"),
      outputs: locks,
    },
    reencrypt: {
      prepare: copied("image.sif"),
      args: () => [
        ...["reencrypt", "--pem-path", keys.privateKey, "--recipient", keys.publicKey],
        ...["image.sif", "made.sif"],
      ],
      state: made("made.sif"),
      outputs: /^work\/made\.sif$/,
    },
    extract: {
      prepare: copied("image.sif"),
      args: () => ["extract", "--pem-path", keys.privateKey, "image.sif", "made"],
      state: (place) => {
        const file = place.in("work", "made", "data", "hello")
        return existsSync(file) && readFileSync(file, "utf8") === "hello\n" ? "new" : "old"
      },
      outputs: /^work\/made(?:\/|$)/,
    },
    "overlay create": {
      args: () => ["overlay", "create", "--sparse", "--create-dir", "/one/two", "made.img"],
      state: async (place) => {
        if (!existsSync(place.in("work", "made.img"))) return "old"
        const { status, text } = await runProgram(["e2fsck", "-n", "-f", place.in("work", "made.img")], {
          as,
        })
        assert.equal(status, 0, text)
        return "new"
      },
      known: [/^node read socket/, /^node ioctl socket/],
      // Where nothing is heard of mkfs, nobody removes its empty folders.
      outputs: /^work\/made\.img$|^tmp\/sifcrypt-overlay-/,
    },
    "sif add": {
      prepare: copied("image.sif", "image.def"),
      args: () => ["sif", "add", "--datatype", "7", "image.sif", "image.def"],
      state: async (place) => {
        await holds(place.in("work", "image.sif"), "/data/hello", "hello\n")
        await using opened = await sif.openSif(place.in("work", "image.sif"))
        return opened.objects.some(({ type }) => type === sif.DataType.generic) ? "new" : "old"
      },
      outputs: locks,
    },
    "cert create": {
      args: () => [
        ...["cert", "create", "--file-prefix", "made", "--bits", "2048"],
        ...["--password-file", keys.passphraseFile],
      ],
      state: (place) => {
        const files = place.files().filter((name) => name.startsWith("work/made"))
        assert.ok([0, 3].includes(files.length), files.join(", "))
        return files.length === 0 ? "old" : "new"
      },
      known: [/^node fsync .*\/work$/],
      outputs: /^work\/made(?:\.pfx|-public(?:-pkcs1)?\.pem)$/,
    },
    "cert convert": {
      prepare: copied("kept.pfx"),
      args: () => [
        ...["cert", "convert", "--to", "pkcs8", "--new-password-file", keys.passphraseFile],
        ...[...password, "kept.pfx", "made.pem"],
      ],
      state: (place) => {
        if (!existsSync(place.in("work", "made.pem"))) return "old"
        const text = readFileSync(place.in("work", "made.pem"), "utf8")
        assert.match(text, /^-----BEGIN ENCRYPTED PRIVATE KEY-----/)
        const key = createPrivateKey({ key: text, passphrase })
        const made = createPublicKey(key).export({ type: "spki", format: "pem" })
        assert.equal(made, readFileSync(original("kept-public.pem"), "utf8"))
        return "new"
      },
      outputs: /^work\/made\.pem$/,
    },
    "cert add": {
      prepare: copied("kept.pfx"),
      args: () => ["cert", "add", ...password, "kept.pfx"],
      state: async (place) => {
        const { text } = await sifcryptOk(["cert", "list"], place.options)
        return text.includes(kept.thumbprint) ? "new" : "old"
      },
      outputs: /^home\/\.sifcrypt/,
    },
    "cert del": {
      prepare: copiedTo("certificates", ...certificates),
      args: () => ["cert", "del", kept.thumbprint],
      state: async (place) => {
        const { text } = await sifcryptOk(["cert", "list"], place.options)
        return text.includes(kept.thumbprint) ? "old" : "new"
      },
      outputs: /^home\/\.sifcrypt/,
    },
    "sif new": {
      args: () => ["sif", "new", "made.sif"],
      state: async (place) => {
        if (!existsSync(place.in("work", "made.sif"))) return "old"
        await using opened = await sif.openSif(place.in("work", "made.sif"))
        assert.deepEqual(opened.objects, [])
        return "new"
      },
      outputs: /^work\/made\.sif$/,
    },
    "sif dump": {
      prepare: copied("objects.sif"),
      args: () => ["sif", "dump", String(kept.generic), "objects.sif"],
      state: printed("a text\n"),
    },
    "sif del": {
      prepare: copied("objects.sif"),
      args: () => ["sif", "del", String(kept.generic), "objects.sif"],
      state: withObjects((objects) => !objects.some(({ id }) => id === kept.generic)),
      outputs: locks,
    },
    "sif setprim": {
      prepare: copied("objects.sif"),
      args: () => ["sif", "setprim", String(kept.system), "objects.sif"],
      state: withObjects((objects) => {
        const primary = objects.filter(({ partition }) => partition?.type === sif.PartitionType.primarySystem)
        assert.equal(primary.length, 1)
        return primary[0]?.id === kept.system
      }),
      outputs: locks,
    },
    verify: {
      prepare: copied("signed.sif", "signer.pub.pem"),
      args: () => ["verify", "--json", "--key", "signer.pub.pem", "signed.sif"],
      state: (_, { status, text }) => {
        if (status !== 0) return "old"
        assert.equal((JSON.parse(text) as { verified: boolean }).verified, true)
        return "new"
      },
    },
    "key newpair": {
      args: () => [
        ...["key", "newpair", "-N", "One", "-E", "one@example.org", "--type", "ed25519", "-P", ""],
        ...["-d", "ring"],
      ],
      state: async (place) => {
        const listed = await sifcryptOk(["key", "list", "--secret", "-d", "ring"], place.options)
        return listed.text.includes("one@example.org") ? "new" : "old"
      },
      outputs: /^work\/ring(?:\/|$)/,
    },
    "key import": {
      prepare: copied("secret.pgp"),
      args: () => ["key", "import", "-d", "ring", "secret.pgp"],
      state: async (place) => ((await inRing(place)) ? "new" : "old"),
      outputs: /^work\/ring(?:\/|$)/,
    },
    "key export": {
      prepare: copied("ring"),
      args: () => ["key", "export", "--secret", "-d", "ring", "made.pgp"],
      state: async (place) => {
        if (!existsSync(place.in("work", "made.pgp"))) return "old"
        await sifcryptOk(["key", "import", "-d", "again", "made.pgp"], place.options)
        return "new"
      },
      outputs: /^work\/(?:made\.pgp$|again(?:\/|$)|ring(?:\/|$))/,
    },
    "key remove": {
      prepare: copied("ring"),
      args: () => ["key", "remove", "--secret", "-d", "ring", kept.fingerprint],
      state: async (place) => {
        const { text } = await sifcryptOk(["key", "list", "-d", "ring"], place.options)
        assert.ok(text.includes("one@example.org"), "the public key stays")
        return (await inRing(place)) ? "old" : "new"
      },
      outputs: /^work\/ring\//,
    },
    "image load": {
      prepare: copied("kept.tar"),
      args: () => ["image", "load", "--input", "kept.tar"],
      state: async (place) => ((await stored(place)) ? "new" : "old"),
      outputs: /^home\/\.local|^run\/sifcrypt/,
    },
    "image copy": {
      prepare: copied("layout"),
      args: () => ["image", "copy", "oci:layout", "store:kept"],
      state: async (place) => ((await stored(place)) ? "new" : "old"),
      outputs: /^home\/\.local|^run\/sifcrypt/,
    },
    "image save": {
      prepare: copiedTo("store", ...storeFolder),
      args: () => ["image", "save", "--output", "made.tar", "kept"],
      state: async (place) => {
        assert.ok(await stored(place))
        if (!existsSync(place.in("work", "made.tar"))) return "old"
        await using opened = await open(`oci-archive:${place.in("work", "made.tar")}`)
        assert.ok((await opened.list("/")).length > 0)
        return "new"
      },
      outputs: /^work\/made\.tar$|^home\/\.local|^run\/sifcrypt/,
    },
    "image rm": {
      prepare: copiedTo("store", ...storeFolder),
      args: () => ["image", "rm", "kept"],
      state: async (place) => ((await stored(place)) ? "old" : "new"),
      outputs: /^home\/\.local|^run\/sifcrypt/,
    },
    "image decrypt": {
      prepare: copied("encrypted"),
      args: () => ["image", "decrypt", "--key", keys.privateKey, "oci:encrypted", "oci:made"],
      state: async (place) => {
        layoutIsWhole(place.in("work", "made"))
        if (!existsSync(place.in("work", "made", "index.json"))) return "old"
        await using opened = await open(`oci:${place.in("work", "made")}`)
        assert.ok((await opened.list("/")).length > 0)
        return "new"
      },
      outputs: /^work\/made(?:\/|$)|^run\/sifcrypt/,
    },
    "ctd-decoder": {
      prepare: copied("layer", "payload"),
      args: () => ["ctd-decoder"],
      start: (place, wrapper, args) => {
        const words = [...wrapper, "sh", "-c", 'exec "$@" 3<payload', "sh"]
        return sifcrypt(args, {
          ...place.options,
          wrapper: words,
          input: readFileSync(place.in("work", "layer")),
        })
      },
      state: (_, { stdout }) => {
        const whole = readFileSync(original("layer.plain"))
        // All of it is verified before.
        assert.ok(whole.subarray(0, stdout.length).equals(stdout))
        return stdout.length === whole.length ? "new" : "old"
      },
    },
    "image recipients rotate": {
      prepare: copied("encrypted"),
      args: () => [
        ...["image", "recipients", "rotate", "--key", keys.privateKey],
        ...["--recipient", `jwe:${keys.otherPublicKey}`, "oci:encrypted:kept"],
      ],
      state: async (place) => {
        layoutIsWhole(place.in("work", "encrypted"))
        const opens = async (file: string): Promise<boolean> => {
          try {
            await using opened = await open(`oci:${place.in("work", "encrypted")}`, {
              unlock: [{ key: { file } }],
            })
            return (await opened.list("/")).length > 0
          } catch (error) {
            // By its code: tsx loads what is imported late a second time, with classes of its own.
            if ((error as Partial<ContainerError>).code === "ERR_KEY_MISMATCH") return false
            throw error
          }
        }
        if (await opens(keys.privateKey)) return "old"
        assert.ok(await opens(keys.otherPrivateKey))
        return "new"
      },
      outputs: /^work\/encrypted\/|^run\/sifcrypt/,
    },
    link: {
      args: () => ["link", "made", "apptainer"],
      state: (place) => {
        if (!place.files().includes("work/made/apptainer")) return "old"
        assert.match(readlinkSync(place.in("work", "made", "apptainer")), /\/dist\/cli\/main\.js$/)
        return "new"
      },
      outputs: /^work\/made(?:\/apptainer)?$/,
    },
    "network create": {
      args: () => ["network", "create", "--subnet", "10.77.0.0/24", "made"],
      state: async (place) => {
        const { text } = await sifcryptOk(["network", "list", "--json"], place.options)
        return text.includes("10.77.0.0") ? "new" : "old"
      },
      known: [/^node mkdir .*\/run\/sifcrypt$/, /^node mkdir .*\/networks$/],
      outputs: /^run\/sifcrypt/,
    },
    "registry login": {
      args: () => ["registry", "login", "--no-https", "-u", "user", "--password-stdin", host],
      start: (place, wrapper, args) => sifcrypt(args, { ...place.options, wrapper, input: "secret\n" }),
      state: async ({ options }) => {
        const { text } = await sifcryptOk(["registry", "list", "--json"], options)
        return text.includes(host) ? "new" : "old"
      },
      outputs: /^home\/\.apptainer/,
    },
    "registry logout": {
      prepare: (place) => {
        const auths = Object.fromEntries(
          ["one.example", "two.example"].map((name) => [name, { auth: "YTpi" }]),
        )
        mkdirSync(place.in("home", ".apptainer"), { mode: 0o700 })
        const file = place.in("home", ".apptainer", "docker-config.json")
        writeFileSync(file, JSON.stringify({ auths }), { mode: 0o600 })
      },
      args: () => ["registry", "logout", "one.example"],
      state: async ({ options }) => {
        const { text } = await sifcryptOk(["registry", "list", "--json"], options)
        assert.ok(text.includes("two.example"))
        return text.includes("one.example") ? "old" : "new"
      },
      outputs: /^home\/\.apptainer/,
    },
    view: {
      prepare: (place) => {
        copied("image.sif")(place)
        mkdirSync(place.in("work", "mount"))
      },
      args: () => ["view", "--pem-path", keys.privateKey, "image.sif", "mount"],
      state: async (place) => {
        if (mountsIn(place.folder).length === 0) return "old"
        const file = place.in("work", "mount", "root.squashfs")
        const { status, text, stderr } = await runProgram(["head", "-c", "4", file], { as })
        if (status !== 0) assert.match(stderr, /: (?:Input\/output error|Cannot allocate memory)\n$/)
        else assert.equal(text, "hsqs")
        return "new"
      },
      after: async ({ folder: place, options }) => {
        if (mountsIn(place).length > 0) await sifcryptOk(["unmount", "mount"], options)
      },
    },
    "image encrypt": {
      prepare: copied("layout"),
      args: () => ["image", "encrypt", "--recipient", `jwe:${keys.publicKey}`, "oci:layout", "oci:made"],
      state: async (place) => {
        if (!existsSync(place.in("work", "made", "index.json"))) return "old"
        await using opened = await open(`oci:${place.in("work", "made")}`, { unlock })
        assert.ok((await opened.list("/")).length > 0)
        return "new"
      },
      outputs: /^work\/made(?:\/|$)|^run\/sifcrypt/,
    },
    pull: {
      args: () => ["pull", "made.sif", `oras://${host}/image:1`],
      state: async (place) => {
        cacheIsWhole(place)
        return await made("made.sif")(place)
      },
      outputs: /^work\/made\.sif$|^cache\//,
    },
    "build of layers": {
      args: () => ["build", "--pem-path", keys.publicKey, "made.sif", `docker://${host}/layers:1`],
      state: async (place) => {
        cacheIsWhole(place)
        const image = place.in("work", "made.sif")
        if (!existsSync(image)) return "old"
        await using opened = await open(image, { unlock })
        assert.ok((await opened.list("/")).length > 0)
        return "new"
      },
      outputs: /^work\/made\.sif$|^cache\//,
    },
    push: {
      prepare: copied("image.sif"),
      args: ({ group }) => ["push", "-U", "image.sif", `oras://${host}/pushed-${group}:1`],
      state: async ({ group }) => {
        const url = `http://${host}/v2/pushed-${group}/manifests/1`
        const accept = "application/vnd.oci.image.manifest.v1+json"
        const reply = await fetch(url, { headers: { accept } })
        if (reply.status === 404) return "old"
        const { layers } = (await reply.json()) as { layers: { digest: string }[] }
        for (const { digest } of layers) {
          const blob = await fetch(`http://${host}/v2/pushed-${group}/blobs/${digest}`)
          const bytes = Buffer.from(await blob.arrayBuffer())
          assert.equal(`sha256:${createHash("sha256").update(bytes).digest("hex")}`, digest)
        }
        return "new"
      },
    },
    "cache clean": {
      prepare: ({ folder: place }) => {
        const blobs = path.join(place, "cache", "sifcrypt", "cache", "blobs", "sha256")
        mkdirSync(blobs, { recursive: true, mode: 0o700 })
        writeFileSync(path.join(blobs, createHash("sha256").update("blob").digest("hex")), "blob")
      },
      args: () => ["cache", "clean"],
      known: [/^node openat .*\/blobs\/sha256$/],
      state: (place) => {
        cacheIsWhole(place)
        return place.files().some((name) => /\/[0-9a-f]{64}$/.test(name)) ? "old" : "new"
      },
      outputs: /^cache\//,
    },
    cat: {
      prepare: copied("image.sif"),
      args: () => ["cat", "--pem-path", keys.privateKey, "image.sif", "/data/hello"],
      state: printed("hello\n"),
    },
    exec: {
      prepare: copied("image.sif"),
      args: () => [
        "exec",
        "--engine",
        "userspace",
        "--pem-path",
        keys.privateKey,
        "image.sif",
        "cat",
        "/data/hello",
      ],
      state: printed("hello\n"),
    },
    instance: {
      prepare: copied("image.sif"),
      args: () => [
        "instance",
        "start",
        "--engine",
        "userspace",
        "--pem-path",
        keys.privateKey,
        "image.sif",
        "one",
      ],
      state: async (place) => {
        const { text } = await sifcryptOk(["instance", "list", "--json"], place.options)
        if (!text.includes('"running"')) return "old"
        const asked = ["exec", "instance://one", "cat", "/data/hello"]
        assert.equal((await sifcryptOk(asked, place.options)).text, "hello\n")
        return "new"
      },
      after: async ({ options }) => {
        await sifcrypt(["instance", "stop", "--force", "one"], options)
      },
      known: [
        ...[/^sifcrypt-starter write socket/, /^node openat \/proc\/\d+\/stat$/],
        ...[/^node write socket/, /^node read socket/, /^sifcrypt-starter openat \/proc$/],
      ],
      // Logs stay, and the folder that they are in.
      outputs: /^(?:home|run)\//,
    },
    "instance stop": {
      prepare: copied("image.sif"),
      args: () => ["instance", "stop", "one"],
      start: async (place, wrapper, args) => {
        const started = ["instance", "start", "--engine", "userspace", "--pem-path", keys.privateKey]
        await sifcryptOk([...started, "image.sif", "one"], place.options)
        return await sifcrypt(args, { ...place.options, wrapper })
      },
      state: async ({ options }) => {
        const { text } = await sifcryptOk(["instance", "list", "--json"], options)
        return text.includes('"running"') ? "old" : "new"
      },
      after: async ({ options }) => {
        await sifcrypt(["instance", "stop", "--force", "one"], options)
      },
      outputs: /^(?:home|run)\//,
    },
    mount: {
      prepare: (place) => {
        copied("image.sif")(place)
        mkdirSync(place.in("work", "mount"))
      },
      args: () => ["mount", "--engine", "userspace", "--pem-path", keys.privateKey, "image.sif", "mount"],
      state: async (place) => {
        if (mountsIn(place.folder).length === 0) return "old"
        const file = place.in("work", "mount", "data", "hello")
        const { status, text, stderr } = await runProgram(["cat", file], { as })
        // What fails when it is read fails for the reader.
        if (status !== 0) assert.match(stderr, /: (?:Input\/output error|Cannot allocate memory)\n$/)
        else assert.equal(text, "hello\n")
        return "new"
      },
      after: async ({ folder: place, options }) => {
        if (mountsIn(place).length > 0) await sifcryptOk(["unmount", "mount"], options)
      },
      known: [/^sifcrypt-starter mmap -/],
    },
    compose: {
      prepare: copied("compose.yaml", "image.sif"),
      args: () => ["compose", "up", "-d"],
      state: async ({ options }) => {
        const { text } = await sifcryptOk(["compose", "ps", "--json"], options)
        return text.includes("running") ? "new" : "old"
      },
      after: async ({ options }) => {
        await sifcrypt(["compose", "down", "-t", "1"], options)
      },
      outputs: /^(?:home|run)\//,
    },
  }

  survival.tests(works)

  it("is tried of every command that writes something or has a secret", () => {
    const leaves = ({ name, commands: below = [] }: CommandRow): string[] =>
      below.length === 0 ? [name] : below.flatMap(leaves).map((one) => `${name} ${one}`)
    const all = commands.filter((row) => ![...absent, ...probes].includes(row)).flatMap(leaves)
    const place = new Place(survival.original("nowhere"), 0, as, {})
    const lines = Object.values(works).map(({ args }) => `${args(place).join(" ")} `)
    const tried = new Set(all.filter((name) => lines.some((line) => line.startsWith(`${name} `))))
    const told = Object.values(untried).flat()
    assert.deepEqual(
      all.filter((name) => !tried.has(name) && !told.includes(name)),
      [],
    )
    assert.deepEqual(
      told.filter((name) => tried.has(name) || !all.includes(name)),
      [],
    )
  })
})
