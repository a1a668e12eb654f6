// The processes of a container, as /proc tells of them.
import assert from "node:assert/strict"
import { descendantsOf } from "../../../lib/container/container-processes.ts"
import { packageRoot, runProgram } from "../../support/cli.ts"

describe("descendantsOf", () => {
  it("has none of a process that is gone", () => {
    assert.deepEqual(descendantsOf(2 ** 22), [])
  })

  it("says so where no descriptor is left, and does not take it for a process without children", async () => {
    const script = `
      import { spawn } from "node:child_process"
      import { openSync } from "node:fs"
      import { descendantsOf } from "./lib/container/container-processes.ts"
      const child = spawn("sleep", ["300"], { stdio: "ignore" })
      console.log(descendantsOf(process.pid).some(({ pid }) => pid === child.pid))
      try { for (;;) openSync("/dev/null", "r") } catch {}
      try { descendantsOf(process.pid) } catch ({ code }) { console.log(code) }
      child.kill()
    `
    const words = [process.execPath, "--import", "tsx", "--input-type=module", "-e", script]
    const limited = ["sh", "-c", 'ulimit -n 100; exec "$@"', "sh", ...words]
    const { text, stderr } = await runProgram(limited, { as: "self", cwd: packageRoot })
    assert.equal(text, "true\nEMFILE\n", stderr)
  })
})
