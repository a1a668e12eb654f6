// How far something is, in words and as a bar; and when it is told.
import assert from "node:assert/strict"
import { execFileSync, spawnSync } from "node:child_process"
import path from "node:path"
import { humanTime, progressBar, progressLine, progressText } from "../../../lib/cli/progress.ts"

const MiB = 2 ** 20
const root = path.resolve(import.meta.dirname, "../../..")

describe("progressText", () => {
  it("has total, rate and time left, as far as they are known", () => {
    const first = { at: 0, bytes: 0 }
    const now = { at: 2000, bytes: 100 * MiB }
    assert.equal(progressText(first, now, 400 * MiB), "25%  100.0 MiB of 400.0 MiB, 50.0 MiB/s, 6 s left")
    assert.equal(progressText(first, now, undefined), "100.0 MiB, 50.0 MiB/s")
    assert.equal(progressText(now, now, 400 * MiB), "25%  100.0 MiB of 400.0 MiB")
    assert.equal(progressText(first, { at: 2000, bytes: 0 }, 0), "0 B of 0 B")
  })

  it("says times as people do", () => {
    assert.deepEqual([0.2, 99, 100, 6000, 7500].map(humanTime), [
      "1 s",
      "99 s",
      "2 min",
      "1 h 40 min",
      "2 h 5 min",
    ])
  })
})

describe("progressLine", () => {
  it("never wraps, whatever the label and the terminal", () => {
    const text = "25%  100.0 MiB of 400.0 MiB, 50.0 MiB/s, 6 s left"
    for (let columns = 1; columns < 140; columns++)
      for (const label of ["", "building image.sif", "x".repeat(200)])
        assert.ok(progressLine(label, text, 0.25, columns).length < columns)
    assert.equal(
      progressLine("building image.sif", text, 0.25, 100),
      `building image.sif [======>               ] ${text}`,
    )
    assert.deepEqual(
      [0, 0.5, 1].map((share) => progressBar(share, 6)),
      ["[>   ]", "[==> ]", "[====]"],
    )
  })
})

describe("Progress", () => {
  /** What is written to standard error, where a second passes between any two looks at the clock. */
  const told = (kind: string, env: Record<string, string> = {}): string => {
    const script = `
      let now = 0
      performance.now = () => (now += 1000)
      const { Progress, setProgress } = await import("./lib/cli/progress.ts")
      setProgress(${kind})
      const progress = new Progress("reading")
      for (let i = 1; i <= 20; i++) progress.update(i * ${MiB}, 40 * ${MiB})
      progress.done()`
    const args = ["--import", "tsx", "--input-type=module", "-e", script]
    return spawnSync(process.execPath, args, { cwd: root, env: { ...process.env, ...env }, encoding: "utf8" })
      .stderr
  }

  it("writes a line every few seconds where it is told to, wherever that goes", () => {
    for (const text of [told('"plain"'), told("undefined", { SIFCRYPT_PROGRESS: "plain" })]) {
      const lines = text.trimEnd().split("\n")
      assert.equal(lines.length, 3)
      assert.equal(lines[0], "sifcrypt: reading: 15%  6.0 MiB of 40.0 MiB, 1.0 MiB/s, 34 s left")
    }
  })

  it("writes nothing where nobody looks", () => {
    for (const kind of ["undefined", '"auto"', '"bar"', '"none"']) assert.equal(told(kind), "", kind)
  })
})

describe("on a terminal", () => {
  const drawn = `
    const progress = new Progress("reading")
    progress.update(1, 4)
    progress.done()`
  const shown = (env: Record<string, string>, what = drawn): string => {
    const script = `const { Progress, withProgress } = await import("./lib/cli/progress.ts"); ${what}`
    const command = `exec '${process.execPath}' --import tsx --input-type=module -e '${script.replaceAll("'", "'\\''")}'`
    return execFileSync("script", ["-qec", command, "/dev/null"], {
      cwd: root,
      env: { PATH: process.env["PATH"] ?? "", ...env },
      encoding: "utf8",
      stdio: ["ignore", "pipe", "inherit"],
    })
  }

  it("is a bar that leaves no trace, and without any colour", () => {
    const text = shown({ TERM: "xterm", NO_COLOR: "1" })
    assert.ok(text.startsWith("\r\u001b[Kreading [") && text.endsWith("] 25%  1 B of 4 B\r\u001b[K"), text)
    assert.equal(text.split("\u001b").length, 3)
    assert.equal(shown({ TERM: "xterm" }), text)
  })

  it("sends nothing to a dumb one that it does not know, nor where none is wanted", () => {
    assert.equal(shown({ TERM: "dumb" }), "")
    assert.equal(shown({}), "")
  })

  it("says at the end what was read, unless that was nothing", () => {
    const reading = (bytes: number): string =>
      shown(
        { TERM: "dumb" },
        `await withProgress("reading", async (on) => on(${bytes}, 4), "read image.sif")`,
      )
    assert.match(reading(4), /^sifcrypt: read image\.sif: 4 B in \d\.\d s\r\n$/)
    assert.equal(reading(0), "")
  })
})
