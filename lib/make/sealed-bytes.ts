// What a squashfs is made of, in plain, for somebody else: read piece by piece from where it lies, mostly encrypted.
import type { Tree } from "../device/tree.ts"
import type { Bytes } from "../units.ts"

const PIECE: Bytes = 1 << 20

/** @throws TreeError; the signal's reason. */
export async function* squashfsBytes(
  tree: Tree,
  size: Bytes,
  signal: AbortSignal | undefined,
): AsyncGenerator<Buffer, void, undefined> {
  for (let at = 0; at < size; at += PIECE) {
    signal?.throwIfAborted()
    yield await tree.readPlain(at, Math.min(PIECE, size - at))
  }
}
