// The command line of an OCI runtime.
import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import { ociRuntime } from "../../../lib/cli/commands/oci-runtime.ts"
import { logLine, RuntimeCall, withOwnFeatures } from "../../../lib/runtime/oci-words.ts"
import { skip } from "../../support/skip.ts"

describe("the words of an OCI runtime", () => {
  it("are read as conmon writes them", () => {
    const call = new RuntimeCall([
      ...["--log-format=json", "--log", "/run/log", "--systemd-cgroup"],
      ...["create", "--bundle", "/run/bundle", "--pid-file", "/run/pid", "--preserve-fds", "2", "id"],
    ])
    const { command, makesContainer, log, logsJson, bundle, config, preserved } = call
    assert.deepEqual(
      { command, makesContainer, log, logsJson, bundle, config, preserved },
      {
        ...{ command: "create", makesContainer: true, log: "/run/log", logsJson: true },
        ...{ bundle: "/run/bundle", config: "config.json", preserved: "2" },
      },
    )
    assert.deepEqual(call.withConfig("/session/config.json"), [
      ...[
        "--log-format=json",
        "--log",
        "/run/log",
        "--systemd-cgroup",
        "create",
        "--config=/session/config.json",
      ],
      ...["--bundle", "/run/bundle", "--pid-file", "/run/pid", "--preserve-fds", "2", "id"],
    ])
  })

  it("are read in every form that crun takes", () => {
    const call = new RuntimeCall([
      "--root=/r",
      "run",
      "id",
      "-b/one",
      "-b",
      "/two",
      "-f",
      "other.json",
      "--",
      "-x",
    ])
    assert.equal(call.makesContainer, true)
    assert.equal(call.bundle, "/two")
    assert.equal(call.config, "other.json")
    assert.equal(call.logsJson, false)
    assert.deepEqual(call.withConfig("/c"), [
      ...["--root=/r", "run", "--config=/c", "id", "-b/one", "-b", "/two", "--", "-x"],
    ])
  })

  it("are nobody else's: what stands behind an option is its value, behind a command no command", () => {
    assert.equal(new RuntimeCall(["--root", "create", "kill", "id"]).command, "kill")
    assert.equal(new RuntimeCall(["kill", "create"]).makesContainer, false)
    assert.equal(new RuntimeCall(["create", "id", "--pid-file", "--bundle=/x"]).bundle, ".")
    assert.equal(new RuntimeCall(["--version"]).command, undefined)
    assert.equal(new RuntimeCall([]).command, undefined)
    assert.equal(new RuntimeCall(["create", "--bundle"]).bundle, ".")
  })

  it("are shown in the help as crun takes them", function () {
    const [, words = ""] = ociRuntime.examples?.[0]?.[1].split(" -- ") ?? []
    const { stderr, error } = spawnSync("crun", words.split(" "), {
      cwd: import.meta.dirname,
      encoding: "utf8",
    })
    if (error !== undefined) skip(this, "needs crun")
    assert.match(stderr, /bundle/, "what is missing is the bundle, which crun would not look for otherwise")
  })

  it("have a log, of lines that engines read", () => {
    const time = new Date("2026-01-02T03:04:05.678Z")
    assert.equal(logLine("a\nb", false, time), "2026-01-02T03:04:05.678Z: a b\n")
    assert.deepEqual(JSON.parse(logLine('"a"', true, time)), {
      ...{ msg: '"a"', level: "error", time: "2026-01-02T03:04:05.678Z" },
    })
  })

  it("tell of features: the runtime's, and our annotations", () => {
    const said = {
      ociVersionMin: "1.0.0",
      ociVersionMax: "1.2.0",
      potentiallyUnsafeConfigAnnotations: ["run.oci."],
    }
    assert.deepEqual(JSON.parse(withOwnFeatures(JSON.stringify(said), "org.sifcrypt.")), {
      ...said,
      potentiallyUnsafeConfigAnnotations: ["run.oci.", "org.sifcrypt."],
    })
    assert.deepEqual(JSON.parse(withOwnFeatures(undefined, "org.sifcrypt.")), {
      ...{ ociVersionMin: "1.0.0", ociVersionMax: "1.0.2" },
      potentiallyUnsafeConfigAnnotations: ["org.sifcrypt."],
    })
  })
})
