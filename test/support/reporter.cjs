// mocha's spec output, and behind it what took longest: tests and hooks, and the files that they are in. Beside it the
// exact counts: appended to the file that SIFCRYPT_COUNTS names as one line `count PASSED FAILED SKIPPED`, with lines
// `skip TITLE: REASON` and `failed TITLE`, and below it `why LINE` for what it said, for each test of that kind. A skip without a reason (support/skip.ts gives one) counts as a failure.
const { appendFileSync } = require("node:fs")
const { relative } = require("node:path")
const { reporters, Runner } = require("mocha")

const { EVENT_HOOK_END, EVENT_RUN_END, EVENT_TEST_END, EVENT_TEST_FAIL, EVENT_TEST_PENDING } =
  Runner.constants

/** Of what a failed test says, so many lines of so many characters are said once more at the end of the run. */
const whyLines = 20
const whyWidth = 500

/** How many of the slowest are named. */
const named = 10
/** What took less is not worth a line. */
const slowMs = 1000

function reasonOf(test) {
  for (let owner = test; owner !== undefined; owner = owner.parent)
    if (owner.skipReason !== undefined) return owner.skipReason
  return undefined
}

/** Of a difference only what differs. */
function whyOf(said) {
  const lines = said.split("\n").filter((line) => line.trim() !== "")
  const differing = lines.filter((line) => /^[+-] /.test(line))
  return (differing.length > 0 ? lines.slice(0, 1).concat(differing) : lines)
    .slice(0, whyLines)
    .map((line) => `why ${line.slice(0, whyWidth)}`)
}

function printSlowest(what, times) {
  const slowest = times.filter(([, ms]) => ms >= slowMs).sort(([, a], [, b]) => b - a)
  if (slowest.length === 0) return
  console.log(`  slowest ${what}:`)
  for (const [name, ms] of slowest.slice(0, named))
    console.log(`  ${(ms / 1000).toFixed(1).padStart(7)} s  ${name}`)
  console.log()
}

module.exports = class extends reporters.Spec {
  constructor(runner, options) {
    super(runner, options)
    const skipped = []
    const failed = []
    const times = []
    const files = new Map()
    const keepTime = (runnable) => {
      const ms = runnable.duration ?? 0
      const file = relative(process.cwd(), runnable.file ?? "")
      times.push([runnable.fullTitle(), ms])
      files.set(file, (files.get(file) ?? 0) + ms)
    }
    runner.on(EVENT_TEST_END, keepTime)
    runner.on(EVENT_HOOK_END, keepTime)
    runner.on(EVENT_TEST_FAIL, (test, error) =>
      failed.push([test.fullTitle(), String(error?.message ?? error)]),
    )
    runner.on(EVENT_TEST_PENDING, (test) => skipped.push(test))
    runner.once(EVENT_RUN_END, () => {
      printSlowest("tests and hooks", times)
      printSlowest("files", [...files])
      const file = process.env.SIFCRYPT_COUNTS
      if (file === undefined) return
      const lines = failed.flatMap(([title, said]) => [`failed ${title}`, ...whyOf(said)])
      let unexplained = 0
      for (const test of skipped) {
        const reason = reasonOf(test)
        if (reason !== undefined) lines.push(`skip ${test.fullTitle()}: ${reason}`)
        else {
          unexplained++
          console.error(`  skipped without a reason, a failure: ${test.fullTitle()}`)
        }
      }
      lines.push(`count ${runner.stats.passes} ${runner.stats.failures + unexplained} ${skipped.length}`)
      appendFileSync(file, `${lines.join("\n")}\n`)
    })
  }
}
