// The same command lines under the live peer and under us, as an ordinary user in the same surroundings on this kernel.
import assert from "node:assert/strict"
import { readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { cli, isRoot } from "../support/cli.ts"
import { skip } from "../support/skip.ts"
import { cases, otherImages, type Case } from "./cases.ts"
import { folder, inSurroundings, makeImages, type Side } from "./images.ts"
import { differences, parseEnvironment, parseMountTable } from "./normal.ts"

interface Outcome {
  readonly status: number
  readonly output: string
  readonly errors: string
}

const quoted = (word: string): string => `'${word.replaceAll("'", "'\\''")}'`

/** One case as a line of shell. */
function line(
  side: Side,
  { image, action, options = [], argv = [], env = {}, input }: Case,
  index: number,
): string {
  const program = side === "peer" ? ["apptainer", "--silent"] : [process.execPath, cli]
  const variables = Object.entries(env).map(([name, value]) => `${name}=${value}`)
  const file =
    image in otherImages
      ? otherImages[image as keyof typeof otherImages].replace("SIDE", side)
      : `${image}.sif`
  const command = ["env", ...variables, ...program, action, ...options, file, ...argv].map((word) =>
    // What the two write there must not meet.
    quoted(word === "WORK" ? `work-${side}` : word),
  )
  const place = `${side}-${index}`
  const stdin = input === undefined ? "/dev/null" : `${place}.in`
  if (input !== undefined) writeFileSync(path.join(folder, stdin), input)
  return `${command.join(" ")} <${stdin} >${place}.out 2>${place}.err; echo $? >${place}.status\n`
}

function outcome(side: Side, index: number): Outcome {
  const read = (kind: string): string => readFileSync(path.join(folder, `${side}-${index}.${kind}`), "utf8")
  return { status: Number(read("status")), output: read("out"), errors: read("err") }
}

/** What the peer adds to its caller's search path before it keeps it. */
const addedFolders = ":/bin:/usr/bin:/sbin:/usr/sbin:/usr/local/bin:/usr/local/sbin"

function withoutFolders(environment: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  const { USER_PATH } = environment
  if (USER_PATH?.endsWith(addedFolders) !== true) return environment
  return { ...environment, USER_PATH: USER_PATH.slice(0, -addedFolders.length) }
}

/** What is compared of an outcome. */
function compared(one: Case, { status, output }: Outcome): unknown {
  switch (one.compare ?? "output") {
    case "output":
      return { status, output }
    case "environment":
      return { status, environment: withoutFolders(parseEnvironment(output)) }
    case "mounts":
      return { status, mounts: parseMountTable(output) }
    case "json":
      return { status, json: JSON.parse(output) as unknown }
  }
}

describe("beside a live Apptainer", function () {
  this.timeout(300_000)

  before(async function () {
    if (!isRoot) skip(this, "making the surroundings needs root")
    await makeImages()
    const script = (side: Side): string => cases.map((one, index) => line(side, one, index)).join("")
    const sides: readonly Side[] = ["peer", "own"]
    await Promise.all(sides.map((side) => inSurroundings(side, script(side), side)))
  })

  for (const [index, one] of cases.entries())
    it(`${one.topic}: ${one.name}${one.differs === undefined ? "" : " (differs on purpose)"}`, () => {
      const peer = outcome("peer", index)
      const own = outcome("own", index)
      const found = differences(compared(one, peer), compared(one, own))
      const both = [...found, `peer: ${peer.errors}`, `own: ${own.errors}`].join("\n")
      if (one.differs === undefined) assert.ok(found.length === 0, both)
      else {
        assert.ok(found.length > 0, "there is no difference any more")
        if (one.ours?.status !== undefined) assert.equal(own.status, one.ours.status, both)
        if (one.ours?.output !== undefined) assert.match(own.output, one.ours.output, both)
      }
    })
})
