// What services may, of what root may.
import assert from "node:assert/strict"
import { capabilityOptions } from "../../../lib/compose/capabilities.ts"
import { allCapabilities } from "../../../lib/runtime/capabilities.ts"

/** What is left to root. */
function left(added: readonly string[], dropped: readonly string[]): string[] {
  const { addCaps, dropCaps } = capabilityOptions(added, dropped)
  return [...new Set([...allCapabilities(), ...addCaps])].filter((name) => !dropCaps.includes(name))
}

describe("capabilities of services", () => {
  it("are the usual ones of containers, without those that reach the machine", () => {
    const usual = left([], [])
    assert.equal(usual.length, 11)
    for (const name of ["SYS_ADMIN", "MKNOD", "NET_RAW", "SYS_MODULE", "SYS_PTRACE", "DAC_READ_SEARCH"])
      assert.ok(!usual.includes(`CAP_${name}`), name)
  })

  it("are those that a file adds and drops, and what it adds by name counts where all is dropped", () => {
    assert.deepEqual(left(["NET_RAW"], ["ALL"]), ["CAP_NET_RAW"])
    assert.deepEqual(left([], ["ALL"]), [])
    assert.ok(!left([], ["chown"]).includes("CAP_CHOWN"))
    assert.equal(left(["ALL"], []).length, allCapabilities().length)
    assert.throws(() => capabilityOptions(["nothing"], []), { code: "ERR_RUN_OPTION" })
  })
})
