// One grammar of counts, sizes, durations and lists, whatever the command.
import assert from "node:assert/strict"
import { InvalidArgumentError } from "commander"
import {
  BYTES,
  count,
  DAYS,
  duration,
  eachOf,
  GIBIBYTES,
  MEBIBYTES,
  parseDecimal,
  parseInteger,
  parseSize,
  SECONDS,
  size,
} from "../../../lib/cli/values.ts"

const MIB = 2 ** 20
const GIB = 2 ** 30

describe("size", () => {
  const read = size(MEBIBYTES, 1, 2 ** 24)
  for (const [text, bytes] of [
    ["64", 64 * MIB],
    ["1.5", 1.5 * MIB],
    ["0064", 64 * MIB],
    ["1048576b", MIB],
    ["2048k", 2 * MIB],
    ["100M", 100 * MIB],
    ["100MB", 100 * MIB],
    ["100MiB", 100 * MIB],
    ["1.5g", 1.5 * GIB],
    ["1.5GiB", 1.5 * GIB],
    ["1T", 1024 * GIB],
  ] as const)
    it(`reads ${text}`, () => {
      assert.equal(read(text), bytes)
    })

  for (const text of [
    "",
    " ",
    "1 m",
    "-1",
    "+1",
    "1e3",
    "0x10",
    "1,5",
    ".5",
    "1.",
    "1x",
    "m",
    "1mm",
    "1ib",
    "1.2345",
    "9".repeat(16),
    "0",
    "17t",
  ])
    // prettier-ignore
    it(`refuses ${JSON.stringify(text)}`, () => {
      assert.throws(() => read(text), InvalidArgumentError)
    })

  it("counts a number without a letter in the option's own unit", () => {
    assert.equal(size(BYTES, 1, 1e9)("512"), 512)
    assert.equal(size(GIBIBYTES, 1, 100)("64"), 64 * GIB)
    assert.equal(parseSize("1.5g"), 1.5 * GIB)
  })

  it("takes multiples of a step only, and says so", () => {
    const whole = size(MEBIBYTES, 64, 128, MIB)
    assert.equal(whole("65"), 65 * MIB)
    assert.throws(() => whole("64.5"), { message: /64 to 128 MiB in steps of 1; .*b, k, m, g, t/ })
  })
})

describe("duration", () => {
  for (const [unit, text, milliseconds] of [
    [SECONDS, "10", 10_000],
    [SECONDS, "1.001", 1001],
    [SECONDS, "30s", 30_000],
    [SECONDS, "5m", 300_000],
    [SECONDS, "1.5H", 5_400_000],
    [DAYS, "7", 7 * 86_400_000],
    [DAYS, "12h", 43_200_000],
    [DAYS, "2d", 2 * 86_400_000],
  ] as const)
    it(`reads ${text} in ${unit.name}`, () => {
      assert.equal(duration(unit, 0, 10_000)(text), milliseconds)
    })

  it("refuses what is too long or none, and says what it takes", () => {
    for (const text of ["101", "101d", "-1", "1w", "", "1ms"])
      assert.throws(() => duration(DAYS, 0, 100)(text), { message: /^It is 0 to 100 days; .*s, m, h, d/ })
  })
})

describe("count", () => {
  it("takes digits only, within its range", () => {
    const read = count(1, 99)
    assert.equal(read("07"), 7)
    for (const text of ["0", "100", "-1", "-0", "1.0", "1k", "1e1", "", "9".repeat(16)])
      assert.throws(() => read(text), { message: "It is 1 to 99." })
  })

  it("is apart from integers and decimals, which some options of exec take", () => {
    assert.deepEqual(["-1", "12", "1.5", "x"].map(parseInteger), [-1, 12, NaN, NaN])
    assert.deepEqual(["0.5", "2", "-1", "1e1"].map(parseDecimal), [0.5, 2, NaN, NaN])
  })
})

describe("eachOf", () => {
  const read = eachOf((word) => word)

  it("adds lists up, with commas and quotes as in CSV", () => {
    assert.deepEqual(read("a, b", undefined), ["a", "b"])
    assert.deepEqual(read('"c,d",e', ["a"]), ["a", "c,d", "e"])
  })

  // An empty list of signers would demand nobody.
  it("hands an empty word to what reads it, instead of dropping it", () => {
    assert.deepEqual(read("", undefined), [""])
    assert.deepEqual(read("a,,b", undefined), ["a", "", "b"])
  })

  it("refuses a quote that is not closed as an argument that is invalid", () => {
    assert.throws(() => read('"a', undefined), InvalidArgumentError)
  })
})
