// Programs of others that are run to their end.
import assert from "node:assert/strict"
import { ProgramFailure, runProgram } from "../../lib/outside-program.ts"
import { packageRoot, runProgram as run } from "../support/cli.ts"

describe("runProgram", () => {
  it("tells that a program cannot be started, whatever keeps it from that", async () => {
    const fails = async (
      words: readonly string[],
      why: ProgramFailure["why"],
      what: RegExp,
    ): Promise<void> => {
      const [program = "", ...args] = words
      await assert.rejects(runProgram(program, args, { env: {}, limit: 10 }), (error) => {
        assert.ok(error instanceof ProgramFailure)
        assert.equal(error.why, why)
        assert.match(error.message, what)
        return true
      })
    }
    await fails(["/no/such/program"], "absent", /^is not installed$/)
    await fails(["/etc/passwd"], "unstartable", /^cannot be started: .*EACCES/)
    await fails(["/bin/true", "x".repeat(1 << 20)], "unstartable", /^cannot be started: .*E2BIG/)
  })

  it("ends what does not want to, when it is late, writes too much or is asked to", async () => {
    const stubborn = (first: string): Parameters<typeof runProgram>[1] => [
      ...["-c", `trap '' TERM; ${first}; while :; do sleep 0.1; done`],
    ]
    const options = { env: { PATH: process.env["PATH"] }, limit: 10 }
    await Promise.all([
      assert.rejects(runProgram("sh", stubborn("yes"), options), /wrote more than 10 bytes/),
      assert.rejects(
        runProgram("sh", stubborn(":"), { ...options, timeoutMs: 100 }),
        /gave no answer within 0\.1 s/,
      ),
      assert.rejects(runProgram("sh", stubborn(":"), { ...options, signal: AbortSignal.timeout(100) }), {
        name: "TimeoutError",
      }),
    ])
  })

  it("tells so where no descriptor is left, and the caller goes on", async () => {
    const script = `
      import { openSync } from "node:fs"
      import { runProgram } from "./lib/outside-program.ts"
      const tries = async () => await runProgram("/bin/true", [], { env: {}, limit: 10 })
      await tries()
      try { for (;;) openSync("/dev/null", "r") } catch {}
      await tries().catch(({ why, message }) => console.log(why, message))
      setTimeout(() => console.log("on"), 50)
    `
    const words = [process.execPath, "--import", "tsx", "--input-type=module", "-e", script]
    const limited = ["sh", "-c", 'ulimit -n 100; exec "$@"', "sh", ...words]
    const { text, stderr } = await run(limited, { as: "self", cwd: packageRoot })
    assert.equal(text, "unstartable cannot be started: spawn /bin/true EMFILE\non\n", stderr)
  })
})
