import assert from "node:assert/strict"
import { coveredError } from "../../../lib/container/mounts.ts"

describe("what is mounted there already", () => {
  it("is not why something cannot be mounted, unless nothing can be mounted over it", () => {
    const cause = new Error("user has no write access to mountpoint /proc")
    assert.equal(coveredError("/proc", cause), cause)
    assert.equal(coveredError("/proc/self/none", cause), cause)
  })
})
