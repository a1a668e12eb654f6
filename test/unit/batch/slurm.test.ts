import assert from "node:assert/strict"
import { writeFileSync } from "node:fs"
import path from "node:path"
import { slurm } from "../../../lib/batch/slurm.ts"
import { newFolder } from "../../support/scratch.ts"

describe("Slurm's commands", () => {
  const folder = newFolder("slurm-commands")
  const { PATH } = process.env
  before(() => {
    // As one whose controller's machine hangs, or who says why not.
    writeFileSync(path.join(folder, "squeue"), "#!/bin/sh\ntrap '' TERM\nexec sleep 60\n", { mode: 0o755 })
    writeFileSync(path.join(folder, "sbatch"), "#!/bin/sh\necho 'no such account' >&2; exit 1\n", {
      mode: 0o755,
    })
    process.env["PATH"] = `${folder}:${PATH ?? ""}`
  })
  after(() => {
    process.env["PATH"] = PATH
  })

  it("have their time, and then are said to have had it", async () => {
    const code = "ERR_BATCH_SCHEDULER"
    await assert.rejects(slurm("squeue", [], { patienceMs: 200 }), {
      code,
      message: "squeue gave no answer within 0.2 s",
    })
    await assert.rejects(slurm("sbatch", []), { code, message: "sbatch: no such account" })
    const reason = new Error("enough")
    await assert.rejects(slurm("squeue", [], { signal: AbortSignal.abort(reason) }), reason)
  })
})
