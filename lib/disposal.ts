// What is undone where something fails. A leaf: imports nothing of ours.

/** What `work` makes of a resource, whose it is from then on. If that fails, or comes to nothing, the resource is disposed of. */
export async function madeOf<T>(
  resource: AsyncDisposable | Disposable,
  work: () => T | Promise<T>,
): Promise<T> {
  let made: T | undefined
  try {
    return (made = await work())
  } finally {
    if (made === undefined)
      if (Symbol.asyncDispose in resource) await resource[Symbol.asyncDispose]()
      else resource[Symbol.dispose]()
  }
}

/** What `work` comes to, after which `undo` takes back what was made for it. Where both fail, it is the failure of `work` that is told. */
export async function thenUndone<T>(work: () => Promise<T>, undo: () => Promise<unknown>): Promise<T> {
  let made: T
  try {
    made = await work()
  } catch (error) {
    await undo().catch(() => undefined)
    throw error
  }
  await undo()
  return made
}
