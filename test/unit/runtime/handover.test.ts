// Which failures of a start make user space take over: as the attendant is told, and as the library decides.
import assert from "node:assert/strict"
import { constants } from "node:os"
import { isAboutMachine } from "../../../lib/runtime/engine.ts"
import { machineFailures } from "../../../lib/runtime/handover.ts"
import { Told } from "../../../lib/runtime/starter-protocol.ts"

const { errno } = constants
const ELIBACC = 79

describe("failures that are about the machine", () => {
  const numbers = [
    ...[errno.EPERM, errno.ENOENT, errno.EIO, errno.EACCES, errno.EBUSY, errno.EEXIST, errno.ENODEV],
    ...[errno.EINVAL, errno.ENOTSUP, errno.ENOMEM, ELIBACC],
  ]
  // What only the kernel engine does: user space may do better.
  for (const step of ["loop_attach", "crypt_activate", "verity_activate", "mount"])
    it(`are the same to both at ${step}`, () => {
      for (const number of numbers) {
        const told = new Told({ engine: "kernel", image: "image.sif" })
        told.add(`${JSON.stringify({ event: "error", step, errnoNumber: number, message: "no" })}\n`)
        const listed = [`${step}:*`, `*:${number}`, `${step}:${number}`].some((one) =>
          machineFailures.includes(one),
        )
        assert.equal(listed, isAboutMachine(told.failure), `${step}:${number} ${told.failure?.code ?? ""}`)
      }
    })
})
