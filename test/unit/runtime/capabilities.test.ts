import assert from "node:assert/strict"
import { allCapabilities, capabilityMask, parseCapabilities } from "../../../lib/runtime/capabilities.ts"

describe("parseCapabilities", () => {
  it("takes names as people write them", () => {
    assert.deepEqual(parseCapabilities(["cap_chown, net_raw", "KILL,"]), [
      "CAP_CHOWN",
      "CAP_NET_RAW",
      "CAP_KILL",
    ])
    assert.deepEqual(parseCapabilities(["all"]), allCapabilities())
    assert.deepEqual(parseCapabilities([]), [])
  })

  it("S18: refuses a name that is none, instead of leaving it out", () => {
    for (const name of ["CAP_", "CAP_CAP_CHOWN", "net raw", "everything"])
      assert.throws(() => parseCapabilities([name]), { code: "ERR_RUN_OPTION" }, name)
  })
})

describe("capabilityMask", () => {
  it("is as /proc shows it", () => {
    assert.equal(capabilityMask(["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"]), "10000000001")
    assert.equal(capabilityMask([]), "0")
  })
})
