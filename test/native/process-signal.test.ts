// A signal reaches the process that is meant, and no other that has its number.
import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { readFileSync } from "node:fs"
import { constants } from "node:os"
import { loadAddon } from "../../lib/native/load.ts"

describe("signalProcess", () => {
  it("S20: signals a process by number and start, and nobody by one of the two", async () => {
    const child = spawn("sleep", ["300"], { stdio: "ignore" })
    await once(child, "spawn")
    const pid = child.pid ?? 0
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8")
    const startTime = stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? ""
    const signal = constants.signals.SIGTERM
    const addon = loadAddon()
    assert.equal(addon.signalProcess({ pid, startTime: `${startTime}1`, signal }), false)
    assert.equal(addon.signalProcess({ pid: process.pid, startTime, signal }), false)
    assert.equal(child.signalCode, null)
    assert.equal(addon.signalProcess({ pid, startTime, signal }), true)
    await once(child, "exit")
    assert.equal(child.signalCode, "SIGTERM")
    assert.equal(addon.signalProcess({ pid, startTime, signal }), false)
  })
})
