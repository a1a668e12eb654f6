// An image that was verified, or that the execution control list lets run, and whether its file is still what it was then.
//
// The descriptor is the same from the verification to the mount, so another file under the same name changes nothing. The file
// itself may be written to by whoever may write it. That is noticed by its times: a write moves the modification time, which its
// owner can set back, and the change time, which nobody can. Times have the grain of the kernel's clock, so the file has to be
// at rest for a moment before it is looked at.
import { fstatSync, type BigIntStats } from "node:fs"
import { setTimeout as sleep } from "node:timers/promises"
import { SignatureError } from "../errors.ts"
import type { SifImage } from "../sif/open.ts"

/** More than a tick of the slowest kernel clock (HZ=100). */
const REST_MS = 20
/** A file that is written to for longer than this many rests is not verified. */
const PATIENCE = 100

function changed(image: SifImage): SignatureError {
  return new SignatureError(
    "ERR_SIGNATURE_CHANGED",
    `${image.path} is being written to while it is verified`,
    {
      path: image.path,
    },
  )
}

function touched(image: SifImage): SignatureError {
  return new SignatureError(
    "ERR_SIGNATURE_CHANGED",
    `${image.path} was written to, renamed, linked or given another mode while it was read`,
    { path: image.path },
  )
}

function stateOf({ fd }: SifImage): BigIntStats {
  return fstatSync(fd, { bigint: true })
}

/** Was there a write that told of itself? */
function written(before: BigIntStats, now: BigIntStats): boolean {
  return before.size !== now.size || before.mtimeNs !== now.mtimeNs
}

/** The file's state once it has been at rest: a write from now on gives other times. */
async function atRest(image: SifImage): Promise<BigIntStats> {
  let state = stateOf(image)
  for (let tries = 0; tries < PATIENCE; tries++) {
    const age = BigInt(Date.now()) * 1_000_000n - state.ctimeNs
    if (age > BigInt(REST_MS) * 1_000_000n) return state
    await sleep(REST_MS)
    const next = stateOf(image)
    // A file server's clock may be ahead of ours: then it is enough that nothing moves.
    if (tries > 1 && next.ctimeNs === state.ctimeNs) return next
    state = next
  }
  throw changed(image)
}

/** An image that passed, and how it passed. */
export class Vouched {
  readonly #image: SifImage
  readonly #examine: () => Promise<unknown>
  #state: BigIntStats

  private constructor(image: SifImage, examine: () => Promise<unknown>, state: BigIntStats) {
    this.#image = image
    this.#examine = examine
    this.#state = state
  }

  /**
   * Examines an image.
   *
   * @param examine - Throws what speaks against it.
   * @throws SignatureError `ERR_SIGNATURE_CHANGED`, and what `examine` throws.
   */
  static async for(image: SifImage, examine: () => Promise<unknown>): Promise<Vouched> {
    const vouched = new Vouched(image, examine, await atRest(image))
    await examine()
    await vouched.check()
    return vouched
  }

  /**
   * Is it still what it was? A file that was written to is refused. One whose change time alone moved (it was renamed,
   * replaced, linked, or somebody set its times back) is examined again.
   *
   * @throws SignatureError `ERR_SIGNATURE_CHANGED`, and what the examination throws.
   */
  async check(): Promise<void> {
    const now = stateOf(this.#image)
    if (written(this.#state, now)) throw changed(this.#image)
    if (now.ctimeNs === this.#state.ctimeNs) return
    const state = await atRest(this.#image)
    await this.#examine()
    const after = stateOf(this.#image)
    if (written(this.#state, after) || after.ctimeNs !== state.ctimeNs) throw changed(this.#image)
    this.#state = state
  }

  /**
   * Was it left alone since it was looked at last? Asked when it was read meanwhile: what somebody has written, and taken back with its
   * modification time once that was read, another examination would not find.
   *
   * @throws SignatureError `ERR_SIGNATURE_CHANGED`.
   */
  checkRead(): void {
    const now = stateOf(this.#image)
    if (written(this.#state, now) || now.ctimeNs !== this.#state.ctimeNs) throw touched(this.#image)
  }

  /** Starts something from the image, and takes it back if the file was not left alone meanwhile. */
  async while<T>(start: () => Promise<T>, undo: (started: T) => PromiseLike<void>): Promise<T> {
    await this.check()
    const started = await start()
    try {
      this.checkRead()
      return started
    } catch (error) {
      await undo(started)
      throw error
    }
  }
}
