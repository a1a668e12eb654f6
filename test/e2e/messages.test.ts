// What is said of failures: a sentence that begins with the command's name, and a hint that helps where it is given.
import assert from "node:assert/strict"
import { readdirSync, writeFileSync } from "node:fs"
import path from "node:path"
import { hintFor } from "../../lib/cli/hints.ts"
import { sentence } from "../../lib/cli/sentence.ts"
import { KeyProvider } from "../../lib/ocicrypt/key-provider.ts"
import { cli, runProgram, sifcrypt, sifcryptOk, userId, type CommandOptions } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"
import { vectorPath } from "../vectors/load.ts"

describe("messages", () => {
  const keys = testKeys()
  const folder = newFolder("messages", userId)
  const tree = makeRootTree()
  const options: CommandOptions = { cwd: folder }

  before(async () => {
    await sifcryptOk(["build", "--pem-path", keys.publicKey, "encrypted.sif", tree], options)
    await sifcryptOk(["build", "rootfs.sif", tree], options)
    writeFileSync(path.join(folder, "image.def"), "Bootstrap: scratch\n")
    const ext = Buffer.alloc(4096)
    ext.write("#!/usr/bin/env run-singularity\n")
    ext.writeUInt16LE(0xef53, 31 + 0x438)
    writeFileSync(path.join(folder, "ext.img"), ext)
  })

  /** The message without the name in front, and the hint. */
  async function told(args: readonly string[]): Promise<readonly [string, string]> {
    const before = readdirSync(folder)
    const { stderr } = await sifcrypt(args, options)
    assert.deepEqual(readdirSync(folder), before)
    const lines = stderr.trimEnd().split("\n")
    for (const line of lines.filter((one) => one !== "")) assert.ok(line.startsWith("sifcrypt: "), stderr)
    const [message = "", hint = ""] = lines.map((line) => line.slice("sifcrypt: ".length))
    return [message, hint.replace(/^hint: /, "")]
  }

  for (const [what, args, message, hint] of [
    [
      "an option behind IMAGE is the payload's",
      ["exec", "encrypted.sif", "--pem-path", keys.privateKey, "echo"],
      /no key was given$/,
      /^options stand before IMAGE: --pem-path behind it is the payload's$/,
    ],
    [
      "a key that nobody gave",
      ["exec", "encrypted.sif", "echo"],
      /no key was given$/,
      /^give --pem-path FILE/,
    ],
    [
      "OUTPUT and SOURCE of build were swapped, and a folder is OUTPUT",
      ["build", tree, "out.sif"],
      /it is a folder$/,
      new RegExp(`^OUTPUT comes first: \`sifcrypt build out\\.sif ${tree}\`$`),
    ],
    [
      "OUTPUT and SOURCE of build were swapped, and nobody is told to replace a definition file",
      ["build", "image.def", "out.sif"],
      /image\.def exists$/,
      /^OUTPUT comes first: `sifcrypt build out\.sif image\.def`$/,
    ],
    ["an image that exists", ["build", "rootfs.sif", tree], /exists$/, /-F \(--force\) replaces it/],
    [
      "an overlay cannot be forced",
      ["overlay", "create", "image.def"],
      /image\.def exists/,
      /^choose another name$/,
    ],
    [
      "OUTPUT and SOURCE of pull were swapped",
      ["pull", "docker://a", "a.sif"],
      /pull a\.sif docker:\/\/a$/,
      /--help/,
    ],
    [
      "a pair without a password",
      ["cert", "create", "--file-prefix", "pair", "--subject", "CN=pair"],
      /password/,
      /^give --password-file FILE/,
    ],
    [
      "where to read of options is what everybody has",
      ["exec", "--pids-limit", "many", "rootfs.sif", "echo"],
      /--pids-limit: many/,
      /^`sifcrypt exec --help-all` says/,
    ],
    [
      "where to read of a command in a group of a group",
      ["batch", "config", "import"],
      /^missing required argument 'folder'$/,
      /^`sifcrypt batch config import --help` tells more$/,
    ],
    [
      "the same once it runs",
      ["image", "recipients", "add", "store:a"],
      /^--recipient says/,
      /^`sifcrypt image recipients add --help` tells more$/,
    ],
    [
      "no command of a group",
      ["image", "recipients", "nosuch"],
      /^there is no command 'nosuch'$/,
      /^`sifcrypt image recipients --help` tells more$/,
    ],
    ["no command", ["nosuch"], /^there is no command 'nosuch'$/, /^`sifcrypt --help` tells more$/],
    [
      "a key file that is not there",
      ["ls", "--pem-path", "none.pem", "encrypted.sif"],
      /^cannot read the key file none\.pem: there is no such file$/,
      /^$/,
    ],
    [
      "a value that the API refuses, by its flag",
      ["build", "--remote", "none", "out.sif", "image.def"],
      /^--remote is ssh:/,
      /^$/,
    ],
    [
      "a folder where a map is wanted",
      ["map", tree],
      /a folder has no layout$/,
      /^`sifcrypt build IMAGE FOLDER`/,
    ],
    [
      "a certificate that is not in the store",
      ["cert", "del", "0".repeat(40)],
      /no certificate has the thumbprint 0+$/,
      /^`sifcrypt cert list` shows/,
    ],
    [
      "layers without a key",
      ["image", "decrypt", `oci:${vectorPath("ocicrypt/skopeo")}`, "oci:plain:it"],
      /no key was given/,
      /^give --key KEY; `sifcrypt image decrypt --help` says/,
    ],
    [
      "plain layers where encrypted ones are demanded",
      ["build", "--require-encrypted", "out.sif", `oci:${vectorPath("oci/layout")}`],
      /no layer is encrypted$/,
      /or leave out --require-encrypted/,
    ],
    [
      "a cache that is not there, which nobody makes",
      ["batch", "prune", "--cache", path.join(folder, "none")],
      /^$/,
      /^$/,
    ],
    [
      "a configuration of jobs that is not there",
      ["batch", "submit", "none.yaml"],
      /^cannot read none\.yaml: there is no such file$/,
      /^docs\/batch\.md says/,
    ],
    [
      "a file that is not there",
      ["ls", "none.sif"],
      /^cannot [a-z ]+ none\.sif: no such file or directory$/,
      /^$/,
    ],
    [
      "a name where a file is wanted",
      ["sif", "list", "docker://a"],
      /^cannot open docker:\/\/a: no such file or directory$/,
      /^`sifcrypt pull FILE docker:\/\/a` makes a SIF of it/,
    ],
    [
      "an image of Singularity 2",
      ["exec", "ext.img", "true"],
      /ext\.img: not a SIF image/,
      /^as root `mount -o ro,loop,offset=31 ext\.img DIR`/,
    ],
    ["the same of a configuration", ["-c", "none", "cache", "list"], /^cannot open none: no such file/, /^$/],
    ["a definition for an option", ["exec", "--env-file", "none", "rootfs.sif", "echo"], /no such file/, /./],
  ] as const)
    it(`tell of ${what}`, async () => {
      const [said, advised] = await told(args)
      assert.match(said, message)
      assert.doesNotMatch(said, /E[A-Z]{3,}: /)
      assert.match(advised, hint)
    })
})

describe("what speaks with a program", () => {
  for (const command of ["serve-build", "ctd-decoder"])
    it(`writes nothing for one to a terminal: ${command}`, async () => {
      const line = `exec '${process.execPath}' '${cli}' ${command}`
      const { status, text } = await runProgram([
        "script",
        "--quiet",
        "--return",
        "--command",
        line,
        "/dev/null",
      ])
      assert.equal(status, 20, text)
      assert.match(text, /^sifcrypt: [a-z]+ starts it: [^\r\n]+\r\nsifcrypt: hint: [^\r\n]+\r\n$/)
    })
})

describe("hintFor", () => {
  it("tells somebody whose registry cannot be reached nothing of certificates", () => {
    const options = new Set(["--no-https", "--cert-dir"])
    const hint = (code: string): string =>
      hintFor("ERR_OCI_REGISTRY", { command: "pull", options, words: [], cause: { code } }) ?? ""
    for (const code of ["ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED"])
      assert.match(hint(code), /^check the address/)
    for (const code of ["EPROTO", "SELF_SIGNED_CERT_IN_CHAIN"])
      assert.match(hint(code), /--no-https.*--cert-dir/)
  })

  it("names an option for a limit that it raises, where there is that option", () => {
    const hint = (limit: "layers" | "memory" | undefined, command: string, ...options: string[]): string =>
      hintFor("ERR_OCI_LIMIT", {
        ...{ command, limit, options: new Set(options), words: ["oras://host/name"], cause: undefined },
      }) ?? ""
    assert.match(hint("layers", "exec", "--max-layer-size"), /^if you trust the image, --max-layer-size GIB/)
    assert.match(hint("memory", "exec", "--max-layer-size"), /pull` fetches it to a file$/)
    for (const none of [hint(undefined, "pull", "--max-layer-size"), hint("layers", "image load")])
      assert.match(none, /^no option allows more/)
  })

  it("sends nobody to the address of a builder who is the builder", () => {
    const at = { options: new Set<string>(), words: [], cause: undefined }
    assert.match(hintFor("ERR_BUILD_REMOTE", { command: "build", ...at }) ?? "", /ssh HOST/)
    assert.equal(hintFor("ERR_BUILD_REMOTE", { command: "serve-build", ...at }), undefined)
  })

  it("explains no configuration of a key provider that was found and has said why it fails", async () => {
    const at = { command: "image decrypt", options: new Set<string>(), words: [] }
    const hint = (cause: unknown): string | undefined => hintFor("ERR_KEY_PROVIDER", { ...at, cause })
    assert.match(hint(undefined) ?? "", /OCICRYPT_KEYPROVIDER_CONFIG/)
    const failed = new KeyProvider({ name: "failing", parameters: [] }, { path: "/bin/false", args: [] })
    await assert.rejects(failed.wrap(Buffer.alloc(1)), ({ cause }: Error) => hint(cause) === undefined)
  })

  it("speaks of no option that the command does not have", () => {
    const at = { command: "sif list", options: new Set<string>(), words: [], cause: undefined }
    assert.equal(hintFor("ERR_KEY_LOCKED", at), undefined)
    assert.equal(hintFor("ERR_BUILD_EXISTS", at), "choose another name")
    // Other programs' options stand in backquotes.
    assert.match(hintFor("ERR_KEY_FORMAT", at) ?? "", /openssl/)
  })
})

describe("sentence", () => {
  for (const [message, said] of [
    ["ENOENT: no such file or directory, open '/x'", "cannot open /x: no such file or directory"],
    [
      "cannot read the key file k: EISDIR: illegal operation on a directory, read",
      "cannot read the key file k: it is a folder",
    ],
    ["EACCES: permission denied, scandir '/it's, here'", "cannot read /it's, here: permission denied"],
    [
      "EXDEV: cross-device link not permitted, rename 'a' -> 'b'",
      "cannot rename a to b: cross-device link not permitted",
    ],
    ["EISDIR: illegal operation on a directory, read", "cannot read: it is a folder"],
    [
      "cannot read key.pem: EACCES: permission denied, open 'key.pem'",
      "cannot read key.pem: permission denied",
    ],
    ["a.sif: no key was given", "a.sif: no key was given"],
  ] as const)
    it(`makes one of ${message}`, () => {
      assert.equal(sentence(message), said)
    })
})
