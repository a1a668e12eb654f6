// What Node runs in the workspace: the worker, or why there is none. Of a module that cannot be read Node tells the terminal only.
import { writeSync } from "node:fs"
import { limitError } from "../device/limits.ts"
import { encodeFrame } from "./frames.ts"
import { toWire } from "./wire-error.ts"
import type { Reply } from "./workspace-protocol.ts"

try {
  await import("./workspace-worker.ts")
} catch (error) {
  const limit = limitError("the workspace of the build did not start", error)
  const reply: Reply = { kind: "failed", error: toWire(limit ?? error) }
  writeSync(Number(process.argv[2]), encodeFrame(reply))
  process.exitCode = 1
}
