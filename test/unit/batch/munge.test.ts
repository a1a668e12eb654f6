import assert from "node:assert/strict"
import { writeFileSync } from "node:fs"
import path from "node:path"
import { forgeableMunge } from "../../../lib/batch/authenticators.ts"
import { newFolder } from "../../support/scratch.ts"

describe("forgeableMunge", () => {
  it("knows the versions that let users forge credentials, and what a distribution has mended", async () => {
    const folder = newFolder("munge")
    const former = process.env["PATH"]
    const found: (string | undefined)[] = []
    try {
      process.env["PATH"] = `${folder}:${former ?? ""}`
      for (const version of ["0.5.17", "0.5.18", "0.6.0", "1.0.0", "unknown"]) {
        writeFileSync(path.join(folder, "munge"), `#!/bin/sh\necho 'munge-${version} (2022-06-22)'\n`, {
          mode: 0o755,
        })
        found.push(await forgeableMunge(path.join(folder, "none")))
      }
    } finally {
      process.env["PATH"] = former
    }
    assert.deepEqual(found, ["0.5.17", undefined, undefined, undefined, "of an unknown version"])
  })
})
