// mocha's spec output, and beside it the exact counts: appended to the file that SIFCRYPT_COUNTS names as one line
// `count PASSED FAILED SKIPPED`, then a line `skip TITLE: REASON` for each skipped test. A skip without a reason
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
      const explained = skipped.filter((test) => reasonOf(test) !== undefined)
      const unexplained = skipped.length - explained.length
      const { passes, failures } = runner.stats
      const lines = [`count ${passes} ${failures + unexplained} ${explained.length}`]
      for (const test of skipped)
        lines.push(`skip ${test.fullTitle()}: ${reasonOf(test) ?? "no reason given: a failure"}`)
      appendFileSync(file, `${lines.join("\n")}\n`)
    })
  }
}
