import type { Context, Runnable } from "mocha"

/**
 * Skips the running test, or in a `before` hook the whole suite, and says why: what this machine lacks. The reason is
 * printed at the end of the run, and in CI a skipped test is a failure.
 */
export function skip(context: Context, reason: string): never {
  const running = context.test as Runnable & { readonly type: string }
  const before = running.title.startsWith('"before all"')
  const owner = before ? running.parent : (context.currentTest ?? running)
  Object.assign(owner ?? running, { skipReason: reason })
  return context.skip()
}
