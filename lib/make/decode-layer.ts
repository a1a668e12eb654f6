// One encrypted layer as a stream, for containerd, which asks a program to decrypt what it unpacks. Its ciphertext is kept in a file without
// a name until all of it was verified: not one byte of plaintext leaves before that.
import { createHash, timingSafeEqual } from "node:crypto"
import { readdirSync } from "node:fs"
import os from "node:os"
import path from "node:path"
import { Readable, Writable } from "node:stream"
import * as is from "../arguments.ts"
import { Credentials, type CredentialSource } from "../encryption/credentials.ts"
import { layerKeyring } from "../encryption/layer-keyring.ts"
import { readSecret, secretSource, type SecretSource } from "../encryption/secret-sources.ts"
import { KeyError, OciError } from "../errors.ts"
import { isEncryptedType, plainType } from "../ocicrypt/annotations.ts"
import { EncryptedLayers } from "../oci/encrypted-layers.ts"
import { MAX_LAYER_BYTES } from "../oci/image.ts"
import { MAX_PAYLOAD, readLayerPayload, wipePayload, type LayerPayload } from "../oci/layer-payload.ts"
import { streamBlob } from "../oci/store.ts"
import { TemporaryFile } from "../oci/temporary-file.ts"
import type { Bytes } from "../units.ts"

/** What {@link decodeLayer} decrypts, and where to. */
export interface DecodeLayerOptions {
  /** What containerd says of the layer, imgcrypt's payload: its descriptor, and keys. */
  readonly payload: SecretSource
  /** Private keys, each in a file, in folders of any depth. Links are refused. */
  readonly keysFolder?: string | undefined
  /** The ciphertext. */
  readonly input: Readable
  /** Gets the plaintext, and is not ended. */
  readonly output: Writable
  /** For the ciphertext meanwhile. Default: the system's. */
  readonly tmpFolder?: string | undefined
  readonly signal?: AbortSignal | undefined
}

/** What was deciphered. */
export interface DecodedLayer {
  /** Of what was written. */
  readonly mediaType: string
  readonly size: Bytes
}

const checkOptions = is.shape<DecodeLayerOptions>({
  payload: is.required(secretSource),
  keysFolder: is.path,
  input: is.required(is.instance(Readable, "a Readable")),
  output: is.required(is.instance(Writable, "a Writable")),
  tmpFolder: is.path,
  signal: is.abortSignal,
})

const MAX_KEY_FILES = 1000
const MAX_DEPTH = 16

function keyFilesIn(folder: string, depth = 0): string[] {
  if (depth > MAX_DEPTH)
    throw new KeyError("ERR_KEY_FORMAT", `${folder}: folders of keys deeper than ${MAX_DEPTH}`)
  let entries
  try {
    entries = readdirSync(folder, { withFileTypes: true })
  } catch (cause) {
    const { message } = cause as Error
    throw new KeyError("ERR_KEY_MISSING", `cannot read the folder of keys ${folder}: ${message}`, {
      path: folder,
      cause,
    })
  }
  return entries
    .sort((one, other) => (one.name < other.name ? -1 : 1))
    .flatMap((entry) => {
      const file = path.join(folder, entry.name)
      if (entry.isDirectory()) return keyFilesIn(file, depth + 1)
      if (entry.isFile()) return [file]
      throw KeyError.at(file, "ERR_KEY_FORMAT", "neither a file nor a folder, in a folder of keys")
    })
}

function openersOf({ keys, providers }: LayerPayload, folder: string | undefined): CredentialSource[] {
  const files = folder === undefined ? [] : keyFilesIn(folder)
  if (files.length > MAX_KEY_FILES)
    throw new KeyError("ERR_KEY_FORMAT", `${folder ?? ""}: more than ${MAX_KEY_FILES} files of keys`)
  return [
    ...keys.map(({ key, password }) => ({
      key: { bytes: key },
      password: password === undefined ? undefined : { bytes: password },
    })),
    ...files.map((file) => ({ key: { file } })),
    ...providers,
  ]
}

async function spool(
  input: Readable,
  file: TemporaryFile,
  limit: Bytes,
  signal: AbortSignal | undefined,
): Promise<Bytes> {
  let size: Bytes = 0
  for await (const piece of input as AsyncIterable<Buffer>) {
    signal?.throwIfAborted()
    if (size + piece.length > limit)
      throw new OciError("ERR_OCI_DIGEST", `the layer: more than the ${limit} bytes that it has`)
    await file.write(piece, size)
    size += piece.length
  }
  return size
}

async function writeTo(stream: Writable, piece: Buffer): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    stream.write(piece, (cause) => {
      if (cause instanceof Error) reject(cause)
      else resolve()
    })
  })
}

/**
 * Decrypts a layer as a stream processor of containerd's does. Nothing is written before all of it was verified.
 *
 * @throws KeyError, OciError `ERR_OCI_DIGEST`, `ERR_OCI_MAC`, `ERR_OCI_FORMAT` and others; the signal's reason.
 */
export async function decodeLayer(given: DecodeLayerOptions): Promise<DecodedLayer> {
  const {
    payload: source,
    keysFolder,
    input,
    output,
    signal,
    tmpFolder = os.tmpdir(),
  } = checkOptions(given, "options")
  const found = await readSecret(source, { limit: MAX_PAYLOAD, what: "the payload", signal })
  if (found === undefined) throw new KeyError("ERR_KEY_MISSING", "the payload: there is nobody to ask")
  const payload = readLayerPayload(found.bytes)
  try {
    const { layer } = payload
    if (!isEncryptedType(layer.mediaType))
      throw new OciError(
        "ERR_OCI_FORMAT",
        `the layer: it is of type ${layer.mediaType.slice(0, 200)}, which is not encrypted`,
      )
    if (layer.size > MAX_LAYER_BYTES)
      throw new OciError("ERR_OCI_LIMIT", `the layer: it has more than ${MAX_LAYER_BYTES} bytes`)
    using credentials = new Credentials(openersOf(payload, keysFolder))
    using layers = new EncryptedLayers(
      "the layer",
      layerKeyring(credentials, { isNamed: true, signal }),
      signal,
    )
    // Whoever has no key for it does not get it first.
    await layers.unwrap([layer])
    await using file = await TemporaryFile.create(tmpFolder)
    await file.unlink()
    const size = await spool(input, file, layer.size, signal)
    if (size < layer.size) throw new OciError("ERR_OCI_DIGEST", `the layer: ${size} bytes of ${layer.size}`)
    const { blob, digest } = await layers.open(layer, { fd: file.file.fd, offset: 0, size })
    const hash = createHash("sha256")
    for await (const piece of streamBlob(blob)) {
      signal?.throwIfAborted()
      hash.update(piece)
      await writeTo(output, piece)
    }
    if (!timingSafeEqual(hash.digest(), digest ?? Buffer.alloc(32)))
      throw new OciError("ERR_OCI_DIGEST", "the layer: its ciphertext has changed meanwhile")
    return { mediaType: plainType(layer.mediaType), size }
  } finally {
    wipePayload(payload)
  }
}
