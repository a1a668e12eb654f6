// Whoever writes an image says how often private keys are tried on it: no oftener than this.
import { OciError } from "../errors.ts"

/** Operations with private keys for one image: a hundred layers, for ten recipients, with ten keys; some ten seconds. */
const MAX_ATTEMPTS = 10_000

export class Attempts {
  #left = MAX_ATTEMPTS

  /** @throws OciError `ERR_OCI_WORK`. */
  take(count: number, what: string): void {
    this.#left -= count
    if (this.#left < 0)
      throw new OciError("ERR_OCI_WORK", `${what}: keys were tried ${MAX_ATTEMPTS} times on this image`)
  }
}
