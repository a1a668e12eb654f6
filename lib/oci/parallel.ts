// Several at a time: a registry answers more than one request, and none fills the line.

const PARALLEL = 3

/** Does `work` for each; after a failure nothing new is begun, and what was begun has ended when it is thrown. */
export async function inParallel<T>(items: Iterable<T>, work: (item: T) => Promise<void>): Promise<void> {
  const queue = [...items]
  let failed = false
  const worker = async (): Promise<void> => {
    for (let next; !failed && (next = queue.shift()) !== undefined;)
      try {
        await work(next)
      } catch (error) {
        failed = true
        throw error
      }
  }
  const results = await Promise.allSettled(Array.from({ length: PARALLEL }, worker))
  const failure = results.find((result) => result.status === "rejected")
  if (failure !== undefined) throw failure.reason
}
