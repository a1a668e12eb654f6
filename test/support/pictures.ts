// The pictures in docs/pictures: what `sifcrypt map` draws of images that Apptainer made.
// `node --import tsx test/support/pictures.ts` writes them anew.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { gunzipSync } from "node:zlib"
import { mapImage } from "../../lib/index.ts"

const root = path.resolve(import.meta.dirname, "../..")
export const pictureFolder: string = path.join(root, "docs/pictures")

/** Names of the pictures, and of the images in test/vectors/peer. */
export const pictures: Readonly<Record<string, string>> = {
  encrypted: "luks-rsa2048",
  unprivileged: "gocryptfs-rsa2048",
}

/** One of them, drawn now. */
export async function draw(name: string): Promise<string> {
  const folder = mkdtempSync(path.join(tmpdir(), "sifcrypt-picture-"))
  try {
    const image = path.join(folder, `${name}.sif`)
    const packed = readFileSync(path.join(root, "test/vectors/peer", `${pictures[name] ?? ""}.sif.gz`))
    writeFileSync(image, gunzipSync(packed))
    return (await mapImage(image)).svg()
  } finally {
    rmSync(folder, { recursive: true })
  }
}

if (process.argv[1] === import.meta.filename) {
  mkdirSync(pictureFolder, { recursive: true })
  for (const name of Object.keys(pictures))
    writeFileSync(path.join(pictureFolder, `${name}.svg`), await draw(name))
}
