// What a user keeps, for tests of commands that change it: a certificate, a key ring, a store of images, images that are signed or have more
// than a root file system in them.
import assert from "node:assert/strict"
import { cpSync } from "node:fs"
import { writeFile } from "node:fs/promises"
import path from "node:path"
import { sif } from "../../lib/index.ts"
import { sifcryptOk } from "./cli.ts"
import type { TestKeys } from "./keys.ts"

export interface Kept {
  /** Of the certificate that `certificates` has, which is `kept.pfx` as well. */
  readonly thumbprint: string
  /** Of the key in `ring`, which is `secret.pgp` as well. */
  readonly fingerprint: string
  /** A text in `objects.sif`, and its system partition beside the primary one. */
  readonly generic: number
  readonly system: number
}

/** Makes all that in a folder where there are `plain.sif`, `layout`, and `signer.pem`. The store, `store`, has `kept`, and so has `kept.tar`. */
export async function keep(folder: string, keys: TestKeys): Promise<Kept> {
  const env = {
    SIFCRYPT_CERTSDIR: path.join(folder, "certificates"),
    SIFCRYPT_STOREDIR: path.join(folder, "store"),
  }
  const made = async (...args: readonly string[]): Promise<string> =>
    (await sifcryptOk(args, { as: "self", cwd: folder, env })).text.trim()
  const at = (name: string): string => path.join(folder, name)
  const password = ["--password-file", keys.passphraseFile]

  await made("cert", "create", "--file-prefix", "kept", "--bits", "2048", ...password)
  const thumbprint = await made("cert", "add", ...password, "kept.pfx")

  const named = ["-N", "One", "-E", "one@example.org", "--type", "ed25519", "-P", ""]
  await made("key", "newpair", ...named, "-d", "ring")
  const [fingerprint] = /[0-9A-F]{40}/.exec(await made("key", "list", "-d", "ring")) ?? assert.fail()
  await made("key", "export", "--secret", "-d", "ring", "secret.pgp")

  cpSync(at("plain.sif"), at("objects.sif"))
  {
    await using opened = await sif.openSif(at("plain.sif"))
    const { id } = opened.objects.find(({ type }) => type === sif.DataType.partition) ?? assert.fail()
    await writeFile(at("root.squashfs"), sif.dump(opened, id))
  }
  await writeFile(at("text"), "a text\n")
  const added = async (...args: readonly string[]): Promise<number> =>
    (JSON.parse(await made("sif", "add", "--json", ...args)) as { id: number }).id
  const generic = await added("--datatype", "7", "objects.sif", "text")
  const partition = ["--datatype", "4", "--parttype", "1", "--partfs", "1", "--partarch", "2"]
  const system = await added(...partition, "objects.sif", "root.squashfs")

  cpSync(at("plain.sif"), at("signed.sif"))
  await made("sign", "--key", "signer.pem", "signed.sif")

  await made("image", "copy", "oci:layout", "store:kept")
  await made("image", "save", "--output", "kept.tar", "kept")
  await made("image", "encrypt", "--recipient", `jwe:${keys.publicKey}`, "oci:layout", "oci:encrypted:kept")
  return { thumbprint, fingerprint, generic, system }
}
