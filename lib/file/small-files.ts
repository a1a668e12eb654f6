// Small files that belong together: all of them appear, or none does.
import { randomBytes } from "node:crypto"
import type { Stats } from "node:fs"
import { link, rename, rm, stat } from "node:fs/promises"
import path from "node:path"
import { thenUndone } from "../disposal.ts"
import { Output, outputError } from "./output.ts"

/** One of them. */
export interface SmallFile {
  readonly path: string
  readonly bytes: Buffer
  /** Whatever the umask says. */
  readonly mode: number
}

type Undo = () => Promise<void>

/** A second name for the file that is to be replaced, so that it can come back; undefined where there is none. */
async function keepFormer(target: string): Promise<string | undefined> {
  const name = path.join(path.dirname(target), `.${path.basename(target)}.${randomBytes(12).toString("hex")}`)
  try {
    await link(target, name)
    return name
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return undefined
    throw outputError(target, "replace", cause)
  }
}

const isSame = (one: Stats, other: Stats): boolean => one.dev === other.dev && one.ino === other.ino

/**
 * Writes the files and gives them their names, in this order. When one of them cannot have its name, those before it lose
 * theirs again, and what they replaced is back.
 *
 * @param replace - What exists is replaced.
 * @throws BuildError `ERR_BUILD_EXISTS`, `ERR_BUILD_OUTPUT`.
 */
export async function writeTogether(files: readonly SmallFile[], replace: boolean): Promise<void> {
  const outputs: Output[] = []
  const formers: string[] = []
  const undo: Undo[] = []
  const written = async (): Promise<void> => {
    try {
      for (const { path: target, bytes, mode } of files) {
        const output = await Output.create(target, replace, mode)
        outputs.push(output)
        await output.file.chmod(mode)
        await output.write(bytes, 0)
      }
      for (const output of outputs) {
        const { target } = output
        const former = replace ? await keepFormer(target) : undefined
        if (former !== undefined) formers.push(former)
        const own = await output.file.stat()
        // It may have its name although that failed: when its folder could not be synced.
        undo.push(async () => {
          if (former !== undefined) await rename(former, target)
          else if (isSame(own, await stat(target))) await rm(target)
        })
        await output.publish(replace)
      }
    } catch (error) {
      // The first failure is the one to tell.
      for (const step of undo.reverse()) await step().catch(() => undefined)
      throw error
    }
  }
  await thenUndone(written, async () => {
    for (const former of formers) await rm(former, { force: true })
    for (const output of outputs) await output[Symbol.asyncDispose]()
  })
}
