// The processes of a container, found from its starter's.
import { readFileSync } from "node:fs"
import { setTimeout as sleep } from "node:timers/promises"
import { STAY } from "../runtime/bundle.ts"
import { startTimeOf, tellsOfNone } from "./instance-state.ts"

const LOOK_MS = 20

/** A process that has been started. */
export interface Started {
  readonly pid: number
  readonly parent: number
  readonly startTime: string
}

export function childrenOf(parent: number): Started[] {
  try {
    const children = readFileSync(`/proc/${parent}/task/${parent}/children`, "utf8").trim().split(" ")
    return children.flatMap((child) => {
      const startTime = startTimeOf(Number(child))
      return startTime === undefined ? [] : [{ pid: Number(child), parent, startTime }]
    })
  } catch (error) {
    if (!tellsOfNone(error)) throw error
    return []
  }
}

export function descendantsOf(parent: number): Started[] {
  return childrenOf(parent).flatMap((child) => [child, ...descendantsOf(child.pid)])
}

/** What the first process of one is told. */
const isFirst = (word: string): boolean => word === STAY || word === "--init"

/** The container's first process, once it is what stays: before, it is not all in the container yet. */
export function firstProcess(starter: number): number | undefined {
  for (const container of childrenOf(starter))
    for (const runtime of childrenOf(container.pid))
      for (const { pid } of childrenOf(runtime.pid))
        try {
          if (readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").some(isFirst)) return pid
        } catch (error) {
          if (!tellsOfNone(error)) throw error
        }
  return undefined
}

/** Waits until what stays is there; false: the starter has ended before. */
export async function stays(starter: number, startTime: string): Promise<boolean> {
  while (startTimeOf(starter) === startTime) {
    if (firstProcess(starter) !== undefined) return true
    await sleep(LOOK_MS)
  }
  return false
}
