// One system call of a command fails, each in its turn: the command says so or does without, and nothing is lost or left. `scripts/test.sh
// soak` does it with all of them, otherwise it is a few of each command. SIFCRYPT_KIND chooses one command, SIFCRYPT_CALLS
// those of its calls that a pattern knows: `PROGRAM NAME OBJECT`.
import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import {
  chmodSync,
  chownSync,
  cpSync,
  existsSync,
  lchownSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
} from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { exitMeanings } from "../../lib/cli/exit-codes.ts"
import { idOf, sifcrypt, type As, type CommandOptions, type Result } from "./cli.ts"
import { allFaults, callsOf, failing, lastFaults, someOf, type Call, type Fault } from "./faults.ts"
import { mountsIn, processesOfGroup, signalGroup } from "./processes.ts"
import { newFolder } from "./scratch.ts"
import { isSoak, repeat } from "./soak.ts"

const most = Number(process.env["SIFCRYPT_FAULTS"] ?? (isSoak ? Infinity : 1))
const only = process.env["SIFCRYPT_KIND"]
const chosen = new RegExp(process.env["SIFCRYPT_CALLS"] ?? "")
/** What runs by itself, as a broker that asks Slurm, ends when it looks next; where much runs at once, that takes its time. */
const settleMs = 30_000
/** A connection whose first write fails while it stays ends by its silence, after a minute. */
const commandMs = isSoak ? 150_000 : 30_000
/** Until a call is made that is to fail. */
const mostTries = 8
const statuses: ReadonlySet<number> = new Set(
  exitMeanings.map(([status]) => status).filter((one) => one !== 1),
)

export const digestOf = (file: string): string =>
  createHash("sha256").update(readFileSync(file)).digest("hex")

/** Folders of one run. */
export class Place {
  readonly folder: string
  /** A supplementary group that all has which comes of it. */
  readonly group: number
  readonly #as: As
  readonly #env: Readonly<Record<string, string>>
  constructor(folder: string, group: number, as: As, env: Readonly<Record<string, string>>) {
    this.folder = folder
    this.group = group
    this.#as = as
    this.#env = env
    for (const name of ["home", "tmp", "run", "cache", "work"])
      mkdirSync(this.in(name), { mode: 0o700, recursive: true })
  }
  in(...names: readonly string[]): string {
    return path.join(this.folder, ...names)
  }
  get options(): CommandOptions {
    const { folder, group } = this
    const as = this.#as
    const env = {
      ...this.#env,
      HOME: this.in("home"),
      TMPDIR: this.in("tmp"),
      XDG_RUNTIME_DIR: this.in("run"),
      XDG_CACHE_HOME: this.in("cache"),
    }
    return { as, group, env, cwd: path.join(folder, "work") }
  }
  /** Everything but what V8 has compiled of the command. */
  files(): string[] {
    return readdirSync(this.folder, { recursive: true, encoding: "utf8" })
      .filter((name) => !/^cache\/sifcrypt(?:\/code(?:\/|$)|$)/.test(name))
      .sort()
  }
  own(): void {
    const uid = idOf(this.#as)
    for (const name of readdirSync(this.folder, { recursive: true, encoding: "utf8" }))
      lchownSync(this.in(name), uid, uid)
    chownSync(this.folder, uid, uid)
  }
}

const wordsOf = ({ program, name, object }: Call): string => `${program} ${name} ${object}`

export type State = "old" | "new"

export interface Work {
  readonly prepare?: (place: Place) => void
  readonly args: (place: Place) => readonly string[]
  /** Runs it, where that is not just a command; a call of what is started behind these words fails. */
  readonly start?: (place: Place, wrapper: readonly string[], args: readonly string[]) => Promise<Result>
  /** What there is afterwards; an error if it is neither as it was nor as it should be. */
  readonly state: (place: Place, result: Result) => Promise<State> | State
  /** Other statuses than the command's own. */
  readonly statuses?: ReadonlySet<number>
  /** What it may leave, if it has succeeded or not. */
  readonly outputs?: RegExp
  /** What it did not survive at some time: always among them. */
  readonly known?: readonly RegExp[]
  /** Ends what goes on. */
  readonly after?: (place: Place) => Promise<void>
}

/** Runs commands of which calls fail, and looks at what is left. */
export class Survival {
  readonly folder: string
  readonly #as: As
  readonly #firstGroup: number
  readonly #others: () => readonly string[]
  /** What else commands get. */
  readonly env: Record<string, string> = {}
  #nextGroup: number

  /**
   * @param firstGroup - Of groups that nobody else uses.
   * @param others - What else there is on the machine, of which nothing new may be left.
   */
  constructor(as: As, firstGroup: number, others: () => readonly string[] = () => []) {
    this.folder = newFolder("faults")
    this.#as = as
    this.#firstGroup = firstGroup
    this.#others = others
    this.#nextGroup = firstGroup
  }

  /** What a run gets a copy of. */
  original(name: string): string {
    return path.join(this.folder, name)
  }

  copied(...names: readonly string[]): (place: Place) => void {
    return (place) => {
      for (const name of names)
        cpSync(this.original(name), place.in("work", name), { recursive: true, verbatimSymlinks: true })
    }
  }

  isSame(place: Place, name: string): boolean {
    const [one, other] = [place.in("work", name), this.original(name)].map(digestOf)
    return one === other
  }

  /** What V8 compiles of these commands is there, as after a first run. */
  async compile(commands: readonly string[]): Promise<void> {
    chmodSync(this.folder, 0o755)
    const code = this.original("code")
    mkdirSync(code)
    chownSync(code, idOf(this.#as), idOf(this.#as))
    for (const words of commands)
      await sifcrypt([...words.split(" "), "--help"], { as: this.#as, env: { XDG_CACHE_HOME: code } })
  }

  end(): void {
    for (let group = this.#firstGroup; group < this.#nextGroup; group++) signalGroup(group, "SIGKILL")
  }

  async #run(work: Work, fault?: Fault): Promise<readonly [Place, string]> {
    const group = this.#nextGroup++
    const place = new Place(path.join(this.folder, String(group)), group, this.#as, this.env)
    cpSync(path.join(this.original("code"), "sifcrypt"), place.in("cache", "sifcrypt"), { recursive: true })
    mkdirSync(place.in("home", "empty"))
    work.prepare?.(place)
    place.own()
    const before = place.files()
    const others = this.#others()
    const report = path.join(this.folder, `${group}.report`)
    const wrapper = failing(report, place.folder, fault ?? "none")
    try {
      const options = { ...place.options, wrapper, timeoutMs: commandMs }
      const result = await (work.start?.(place, wrapper, work.args(place)) ??
        sifcrypt(work.args(place), options))
      const { status, signal, stderr } = result
      const said = `status ${String(status)}${signal ?? ""}: ${stderr}`
      assert.ok(status !== null && (work.statuses ?? statuses).has(status), said)
      assert.doesNotMatch(stderr, /^\s+at .*:\d+:\d+\)?$/m)
      if (status !== 0 && fault?.call.object.startsWith("pipe:") !== true) assert.notEqual(stderr, "", said)
      const state = await work.state(place, result)
      if (fault === undefined || status === 0) assert.equal(state, "new", said)
      await work.after?.(place)
      await this.#settles(place, others)
      const left = place.files().filter((name) => !before.includes(name))
      assert.deepEqual(
        left.filter((name) => work.outputs?.test(name) !== true),
        [],
        said,
      )
      const lost = before.filter((name) => !existsSync(place.in(name)) && work.outputs?.test(name) !== true)
      assert.deepEqual(lost, [], said)
    } finally {
      await work.after?.(place)
      signalGroup(group, "SIGKILL")
    }
    return [place, report]
  }

  async #settles({ folder: place, group }: Place, before: readonly string[]): Promise<void> {
    const end = performance.now() + settleMs
    for (;;) {
      const left = [
        ...processesOfGroup(group).map(({ pid, command }) => `process ${pid} ${command}`),
        ...mountsIn(place).map((target) => `mount ${target}`),
        ...this.#others().filter((one) => !before.includes(one)),
      ]
      if (left.length === 0) return
      if (performance.now() > end) assert.deepEqual(left, [])
      await sleep(10)
    }
  }

  /** A test for each. @param width - So many at once. */
  tests(works: Readonly<Record<string, Work>>, width: number = isSoak ? 3 : 2): void {
    for (const [name, work] of Object.entries(works))
      if (only === undefined || only === name)
        it(`is survived by ${name}`, async () => {
          await this.#survives(name, work, width)
        })
  }

  async #survives(name: string, work: Work, width: number): Promise<void> {
    const [place, report] = await this.#run(work)
    const made = callsOf(report)
    const calls = made.filter((call) => chosen.test(wordsOf(call)))
    assert.ok(calls.length > 0)
    rmSync(place.folder, { recursive: true })
    const all = (isSoak ? allFaults : lastFaults)(calls)
    const faults = [
      ...someOf(all, most),
      ...(work.known ?? []).flatMap((known) => {
        assert.ok(
          made.some((call) => known.test(wordsOf(call))),
          `no call is ${String(known)}`,
        )
        return lastFaults(calls.filter((call) => known.test(wordsOf(call)))).slice(0, 1)
      }),
    ]
    // Threads and processes do not always make the same calls in the same order: one that is not made again has another in its place.
    const others = lastFaults(calls).filter(
      ({ call }) => !faults.some((fault) => fault.call.number === call.number),
    )
    assert.ok(faults.length > 0)
    const failures: string[] = []
    let reached = 0
    await repeat(faults.length, width, async (round) => {
      let fault = faults[round] ?? assert.fail()
      try {
        for (let tries = 1, isReached = false; tries <= mostTries && !isReached; tries++) {
          if (tries > mostTries / 2) fault = others.pop() ?? fault
          const [{ folder: used }, own] = await this.#run(work, fault)
          isReached = readFileSync(own, "latin1").includes(" FAILS\n")
          if (isReached) reached++
          rmSync(used, { recursive: true })
          rmSync(own)
        }
      } catch (error) {
        const { number, program, kind, name: call, object } = fault.call
        const what = `${fault.errno} of ${program}'s ${kind} ${number}, ${call} ${object}`
        failures.push(`${what}\n${error instanceof Error ? error.message : String(error)}`)
      }
    })
    if (isSoak)
      console.log(
        `      ${name}: ${calls.length} calls, ${faults.length} of ${all.length} faults, ${reached} reached, ${failures.length} not survived`,
      )
    assert.equal(failures.length, 0, failures.join("\n\n"))
    assert.ok(reached >= faults.length / 2, `${reached} of ${faults.length} calls have failed`)
  }
}
