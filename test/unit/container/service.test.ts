import assert from "node:assert/strict"
import { writeFileSync } from "node:fs"
import path from "node:path"
import { parseHealthcheck, parseStopSignal } from "../../../lib/container/image-service.ts"
import { parseRestart, serviceArguments, statusOf } from "../../../lib/container/service.ts"
import { newFolder } from "../../support/scratch.ts"

describe("services", () => {
  it("restart policies are read as they are written", () => {
    assert.deepEqual(parseRestart("on-failure:3"), { policy: "on-failure", retries: 3 })
    assert.deepEqual(parseRestart("unless-stopped"), { policy: "unless-stopped" })
    for (const wrong of ["", "never", "always:3", "on-failure:", "on-failure:-1", "on-failure:9999"])
      assert.throws(() => parseRestart(wrong), { code: "ERR_RUN_OPTION" }, wrong)
  })

  it("the starter is told of them in its words", () => {
    const files = { logOut: "/run/web.out", logErr: "/run/web.err" }
    assert.deepEqual(serviceArguments({}, files), [])
    assert.deepEqual(
      serviceArguments(
        {
          restart: { policy: "unless-stopped" },
          health: { command: ["true"], intervalMs: 0, retries: 2 },
          logs: { maxSize: 4096, maxFiles: 3 },
        },
        files,
      ),
      [
        ...["--restart=always", "--health=1,30000,0,2", "--log-out=/run/web.out", "--log-err=/run/web.err"],
        ...["--log-size=4096", "--log-files=3"],
      ],
    )
    assert.deepEqual(
      serviceArguments({ restart: { policy: "on-failure", retries: 2 }, health: "none" }, files),
      ["--restart=on-failure,2"],
    )
    assert.throws(() => serviceArguments({ logs: { maxSize: 10 } }, files), { code: "ERR_RUN_OPTION" })
  })

  it("an image's health check is read, and what makes no sense is refused", () => {
    const second = 1_000_000_000
    assert.deepEqual(parseHealthcheck({ Test: ["CMD-SHELL", "curl x"], Interval: second, Retries: 5 }), {
      command: ["/bin/sh", "-c", "curl x"],
      ...{ intervalMs: 1000, timeoutMs: undefined, startPeriodMs: undefined, retries: 5 },
    })
    assert.deepEqual(parseHealthcheck({ Test: ["CMD", "a", "b"] })?.command, ["a", "b"])
    for (const none of [undefined, null, {}, { Test: [] }, { Test: ["NONE"] }])
      assert.equal(parseHealthcheck(none), undefined)
    for (const wrong of [
      ...[
        [],
        "x",
        { Test: "x" },
        { Test: ["CMD"] },
        { Test: ["CMD-SHELL", "a", "b"] },
        { Test: ["SHELL", "a"] },
      ],
      ...[{ Test: ["CMD", 1] }, { Test: ["CMD", "a"], Interval: -1 }, { Test: ["CMD", "a"], Retries: 1.5 }],
    ])
      assert.throws(() => parseHealthcheck(wrong), TypeError, JSON.stringify(wrong))
  })

  it("an image's stop signal has a name or a number", () => {
    assert.equal(parseStopSignal("SIGQUIT"), "SIGQUIT")
    assert.equal(parseStopSignal("quit"), "SIGQUIT")
    assert.equal(parseStopSignal("15"), "SIGTERM")
    assert.equal(parseStopSignal(""), undefined)
    for (const wrong of ["SIGNONE", "0", 15, {}]) assert.throws(() => parseStopSignal(wrong), TypeError)
  })

  it("what has become of one stands in its journal; who was killed could not write it", () => {
    const file = path.join(newFolder("journal"), "web.journal")
    const write = (more: object): void => {
      const journal = {
        state: "running",
        health: "",
        code: -1,
        restarts: 0,
        startedAt: 5,
        endedAt: 0,
        failure: "",
      }
      writeFileSync(file, `${JSON.stringify({ ...journal, ...more })}   \n`)
    }
    write({ health: "healthy", restarts: 2 })
    const running = {
      ...{ state: "running", health: "healthy", exitCode: undefined, failure: undefined },
      ...{ restarts: 2, startedAt: 5, endedAt: undefined },
    }
    assert.deepEqual(statusOf(file, 1, true), running)
    assert.deepEqual(statusOf(file, 1, false), {
      ...running,
      ...{ state: "ended", health: undefined, failure: "its starter was killed" },
    })
    write({ state: "ended", code: 3, endedAt: 9 })
    assert.deepEqual(statusOf(file, 1, false), {
      ...{ state: "ended", health: undefined, exitCode: 3, failure: undefined },
      ...{ restarts: 0, startedAt: 5, endedAt: 9 },
    })
    for (const damaged of ["", "{", "[]", '{"state":"well"}', "x".repeat(9000)]) {
      writeFileSync(file, damaged)
      assert.equal(statusOf(file, 1, true).state, "running", damaged.slice(0, 20))
    }
  })
})
