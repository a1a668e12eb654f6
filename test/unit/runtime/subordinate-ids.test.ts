import assert from "node:assert/strict"
import { idMapArguments, mappedRanges, parseRanges } from "../../../lib/runtime/subordinate-ids.ts"

describe("parseRanges", () => {
  it("takes the lines of the login name and of the user's number, all of them", () => {
    const text = "ann:100000:65536\nbob:200000:65536\n1000:300000:10\n ann:400000:1\n"
    assert.deepEqual(parseRanges(text, "ann", 1000), [
      { start: 100000, count: 65536 },
      { start: 300000, count: 10 },
      { start: 400000, count: 1 },
    ])
    assert.deepEqual(parseRanges(text, "eve", 1001), [])
  })

  it("takes no line that is malformed, empty or beyond the last id", () => {
    const text = "ann:1:0\nann:-1:5\nann:x:5\nann:1\nann\nann:4294967290:10\nann:0x10:5\nann:1e3:5\n"
    assert.deepEqual(parseRanges(text, "ann", 1000), [])
  })
})

describe("mappedRanges", () => {
  const ranges = [
    { start: 100000, count: 65536 },
    { start: 300000, count: 10 },
  ]

  it("are all of them on a machine of its own", () => {
    assert.deepEqual(mappedRanges(ranges, "         0          0 4294967295\n"), ranges)
  })

  it("are those within a container that it has, each on one line of its map", () => {
    assert.deepEqual(mappedRanges(ranges, "      1000       1000          1\n"), [])
    assert.deepEqual(mappedRanges(ranges, "0 1000 1\n1 100000 165535\n"), [ranges[0]])
    assert.deepEqual(mappedRanges(ranges, "0 1000 1\n1 100000 165534\n165535 900000 1000\n"), [])
    assert.deepEqual(mappedRanges(ranges, "0 1000 1\n300000 5 10\n"), [ranges[1]])
  })
})

describe("idMapArguments", () => {
  it("are as newuidmap takes them", () => {
    const map = [
      { inside: 0, outside: 1000, count: 1 },
      { inside: 1, outside: 100000, count: 65536 },
    ]
    assert.deepEqual(idMapArguments({ uids: map, gids: map.slice(0, 1) }), [
      "--uid-map=0:1000:1,1:100000:65536",
      "--gid-map=0:1000:1",
    ])
  })
})
