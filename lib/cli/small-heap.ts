import { setFlagsFromString } from "node:v8"

/**
 * For commands that read a whole image and hash it. Hashing is native and leaves only garbage here: V8 would spend more memory on
 * optimising the few lines around it, and on room for young objects, than all the buffers take.
 */
export function keepHeapSmall(): void {
  setFlagsFromString("--no-opt")
  setFlagsFromString("--semi-space-growth-factor=1")
}
