import assert from "node:assert/strict"
import type { InstanceStatus } from "../../../lib/index.ts"
import { stateOf } from "../../../lib/cli/instance-state.ts"

const running: InstanceStatus = {
  state: "running",
  health: undefined,
  exitCode: undefined,
  failure: undefined,
  restarts: 0,
  startedAt: 1,
  endedAt: undefined,
}

describe("the state of an instance, as tables show it", () => {
  for (const [shown, status] of [
    ["running", {}],
    ["running (unhealthy)", { health: "unhealthy" }],
    ["restarting (starting)", { state: "restarting", health: "starting", exitCode: 1 }],
    ["ended", { state: "ended" }],
    ["ended (0)", { state: "ended", exitCode: 0 }],
    ["ended (its starter was killed)", { state: "ended", exitCode: 3, failure: "its starter was killed" }],
    ["ended (\\x1b)", { state: "ended", failure: "\u001b" }],
  ] as const satisfies readonly (readonly [string, Partial<InstanceStatus>])[])
    it(shown, () => {
      assert.equal(stateOf({ ...running, ...status }), shown)
    })
})
