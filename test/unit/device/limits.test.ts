import assert from "node:assert/strict"
import { limitError } from "../../../lib/device/limits.ts"

describe("a limit", () => {
  const system = (code: string, syscall: string): Error => Object.assign(new Error(code), { code, syscall })
  const limitOf = (error: unknown): string | undefined => limitError("what", error)?.limit

  it("is found wherever among the causes it is", () => {
    assert.equal(limitOf(system("EMFILE", "pipe2")), "files")
    assert.equal(limitOf(system("ENFILE", "open")), "files")
    assert.equal(limitOf(new Error("above", { cause: system("EFBIG", "pwrite") })), "size")
    assert.match(limitError("what", system("EMFILE", "open"))?.message ?? "", /^what: .*\(ulimit -n\)$/)
  })

  it("is nothing else", () => {
    assert.equal(limitOf(system("ENOENT", "open")), undefined)
    assert.equal(limitOf(undefined), undefined)
    // What an image asks for, and not what this process may do.
    for (const syscall of ["layer_limit", "layer_names", "squashfs_read"])
      assert.equal(limitOf(system("EFBIG", syscall)), undefined, syscall)
  })
})
