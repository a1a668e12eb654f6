// How the ranks of a node have their key from the first of them, and nobody else has it.
import assert from "node:assert/strict"
import { randomBytes } from "node:crypto"
import { once } from "node:events"
import { readdirSync, readFileSync, readlinkSync } from "node:fs"
import { connect } from "node:net"
import { buffer } from "node:stream/consumers"
import {
  askFirstRank,
  KeyGiver,
  newStepWord,
  STEP_VARIABLE,
  takeStepWord,
} from "../../../lib/batch/rank-key.ts"
import { isRoot, runProgram } from "../../support/cli.ts"
import { skip } from "../../support/skip.ts"

/** Empty: it is closed again. */
function linkOf(file: string): string {
  try {
    return readlinkSync(file)
  } catch {
    return ""
  }
}

describe("the key of a step's ranks", () => {
  const word = (): Buffer => takeStepWord({ [STEP_VARIABLE]: newStepWord() }) ?? assert.fail()
  const never = new AbortController().signal

  /** This process's sockets without files, as the machine's users see them. */
  const places = (): string[] => {
    const own = new Set(readdirSync("/proc/self/fd").map((fd) => linkOf(`/proc/self/fd/${fd}`)))
    return readFileSync("/proc/net/unix", "latin1")
      .split("\n")
      .map((line) => /(\d+) @(sifcrypt-[0-9a-f]{64})/.exec(line))
      .flatMap((found) => (own.has(`socket:[${found?.[1] ?? ""}]`) ? [found?.[2] ?? ""] : []))
  }

  it("is given to each of the others once, whether they come before it is there or after", async () => {
    const step = word()
    const early = askFirstRank(step, "n1", never)
    const giver = await KeyGiver.listen(step, "n1", 2)
    const secret = randomBytes(48)
    // One that waits for it, and one of another node, which has a first rank of its own.
    await using other = await KeyGiver.listen(step, "n2", 1)
    other.give(undefined)
    assert.deepEqual(await askFirstRank(step, "n2", never), Buffer.alloc(0))
    const needle = Buffer.from(secret)
    giver.give(secret)
    secret.fill(0)
    assert.deepEqual(await early, needle)
    const served = giver.served(never)
    assert.deepEqual(await askFirstRank(step, "n1", never), needle)
    await served
    await assert.rejects(askFirstRank(step, "n1", never), /the first rank on this node has no key to give/)
    await giver[Symbol.asyncDispose]()
    assert.equal(places().length, 1)
  })

  it("is nobody's who does not know the word, and no other user's", async function () {
    if (!isRoot) skip(this, "needs root, to be another user")
    const step = word()
    await using giver = await KeyGiver.listen(step, "n1", 1)
    giver.give(Buffer.from("secret"))
    const [place = ""] = places()
    for (const said of [newStepWord(), "", step.toString("hex").slice(2), `${step.toString("hex")}00`]) {
      const socket = connect(`\0${place}`)
      await once(socket, "connect")
      socket.end(`${said}\n`)
      socket.on("error", () => undefined)
      assert.equal((await buffer(socket).catch(() => Buffer.alloc(0))).length, 0, said)
    }
    const script = `import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1].encode().replace(b"@", b"\\0").ljust(108, b"\\0"))
try:
    s.send(sys.argv[2].encode() + b"\\n")
    print(s.recv(100))
except OSError:
    print(b"")
`
    const stranger = await runProgram(["/usr/bin/python3", "-c", script, `@${place}`, step.toString("hex")], {
      as: "nobody",
    })
    assert.equal(stranger.text, "b''\n", stranger.stderr)
    assert.deepEqual(await askFirstRank(step, "n1", never), Buffer.from("secret"))
  })

  it("is not waited for when the first rank has none, or the rank is to end", async () => {
    const step = word()
    const giver = await KeyGiver.listen(step, "n1", 2)
    const waiting = assert.rejects(
      askFirstRank(step, "n1", never),
      /the first rank on this node has no key to give/,
    )
    const stopped = new AbortController()
    const ending = assert.rejects(askFirstRank(step, "n1", stopped.signal), /enough/)
    const nowhere = assert.rejects(askFirstRank(step, "n9", stopped.signal), /enough/)
    stopped.abort(new Error("enough"))
    await Promise.all([ending, nowhere])
    await giver[Symbol.asyncDispose]()
    await waiting
  })

  it("has a word that is taken out of the environment", () => {
    const environment = { [STEP_VARIABLE]: newStepWord(), OTHER: "stays" }
    assert.equal(takeStepWord(environment)?.length, 32)
    assert.deepEqual(environment, { OTHER: "stays" })
    assert.equal(takeStepWord(environment), undefined)
    assert.equal(takeStepWord({ [STEP_VARIABLE]: "short" }), undefined)
  })
})
