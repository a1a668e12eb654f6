// mocha's spec output, and beside it the exact counts: appended to the file that SIFCRYPT_COUNTS names as one line
// `count PASSED FAILED SKIPPED`, with a line `skip TITLE: REASON` for each skipped test. A skip without a reason
// (support/skip.ts gives one) counts as a failure.
const { appendFileSync } = require("node:fs")
const { reporters, Runner } = require("mocha")

const { EVENT_RUN_END, EVENT_TEST_PENDING } = Runner.constants

function reasonOf(test) {
  for (let owner = test; owner !== undefined; owner = owner.parent)
    if (owner.skipReason !== undefined) return owner.skipReason
  return undefined
}

module.exports = class extends reporters.Spec {
  constructor(runner, options) {
    super(runner, options)
    const skipped = []
    runner.on(EVENT_TEST_PENDING, (test) => skipped.push(test))
    runner.once(EVENT_RUN_END, () => {
      const file = process.env.SIFCRYPT_COUNTS
      if (file === undefined) return
      const lines = []
      let unexplained = 0
      for (const test of skipped) {
        const reason = reasonOf(test)
        if (reason !== undefined) lines.push(`skip ${test.fullTitle()}: ${reason}`)
        else {
          unexplained++
          console.error(`  skipped without a reason, a failure: ${test.fullTitle()}`)
        }
      }
      lines.push(`count ${runner.stats.passes} ${runner.stats.failures + unexplained} ${lines.length}`)
      appendFileSync(file, `${lines.join("\n")}\n`)
    })
  }
}
