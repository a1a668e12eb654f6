import type { InstanceStatus } from "../index.ts"
import { printable } from "./terminal.ts"

/** What has become of an instance, in a word or two. */
export function stateOf({ state, health, exitCode, failure }: InstanceStatus): string {
  const more = state === "ended" ? (failure ?? exitCode?.toString()) : health
  return more === undefined ? state : `${state} (${printable(more)})`
}
