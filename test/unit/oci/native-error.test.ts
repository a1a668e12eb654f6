import assert from "node:assert/strict"
import { layerError } from "../../../lib/oci/native-error.ts"

/** As the addon throws it. */
const failure = (syscall: string): Error =>
  Object.assign(new Error(`${syscall}: the reason`), { syscall, errno: -27 })

describe("layerError", () => {
  for (const [syscall, code] of [
    ["layer_work", "ERR_OCI_WORK"],
    ["layer_limit", "ERR_OCI_LIMIT"],
    ["layer_names", "ERR_OCI_LIMIT"],
    ["layer_format", "ERR_OCI_FORMAT"],
    ["layer_digest", "ERR_OCI_DIGEST"],
    ["layer_unsupported", "ERR_OCI_UNSUPPORTED"],
  ] as const)
    it(`is ${code} for ${syscall}, with the reason alone`, () => {
      const error = layerError("layer 1", failure(syscall))
      assert.deepEqual([error?.code, error?.message], [code, "layer 1: the reason"])
      // That of names is nobody's to raise.
      assert.equal(error?.limit, syscall === "layer_limit" ? "layers" : undefined)
    })

  it("is nothing for what is not about layers", () => {
    assert.equal(layerError("layer 1", failure("write")), undefined)
    assert.equal(layerError("layer 1", new Error("x")), undefined)
    assert.equal(layerError("layer 1", "layer_work"), undefined)
  })
})
