// How much there is to read of a tree, found out while it is read: so that who waits knows how long.
import type { ReadableTree } from "../device/tree.ts"
import type { Bytes } from "../units.ts"

/** Adds up the content of files at and below paths, each inode once for each path. Disposing ends it. */
export class ContentCount implements AsyncDisposable {
  /** undefined: not known yet, or not to be known. */
  total: Bytes | undefined
  #ended = false
  readonly #done: Promise<void>

  constructor(tree: ReadableTree, paths: readonly string[]) {
    // What keeps it from being read keeps from being extracted, which tells of it.
    this.#done = this.#count(tree, paths).catch(() => undefined)
  }

  async #count(tree: ReadableTree, paths: readonly string[]): Promise<void> {
    let sum: Bytes = 0
    for (const path of paths) {
      const { type, size } = await tree.stat(path, true)
      if (type !== "directory") {
        if (type === "file") sum += size
        continue
      }
      const linked = new Set<number>()
      for await (const { entries } of tree.walk(path)) {
        if (this.#ended) return
        for (const { stat } of entries) {
          if (stat.type !== "file" || (stat.nlink > 1 && linked.has(stat.inode))) continue
          if (stat.nlink > 1) linked.add(stat.inode)
          sum += stat.size
        }
      }
    }
    if (paths.length > 0) this.total = sum
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#ended = true
    await this.#done
  }
}
