// Many commands of one image at once, in containers of their own and in one that they share.
import { spawn } from "node:child_process"
import { once } from "node:events"
import { readFileSync, readdirSync, readlinkSync } from "node:fs"
import { measure, median, medianOfPairs } from "./measure.ts"
import { goal, mebibytes, note, seconds } from "./report.ts"

/** What this needs: images in `work`, `zstd.sif` of ours and `peer.sif` of the peer's, and their keys. */
export interface Machine {
  readonly work: string
  readonly user: number
  readonly command: string
  readonly peerRun: string
  readonly asUser: (args: readonly string[]) => readonly [string, string[]]
}

const ROUNDS = 7
const MANY = 64

// All are measured after a second in which the machine has had nothing to do: one that comes right behind another is a few milliseconds
// faster, whatever it does.
const measured = `sleep 1; start=$(date +%s%N); "$@" true </dev/null >/dev/null || exit; end=$(date +%s%N)
wait; echo $(( (end - start) / 1000 ))`
/** Prints the microseconds that a command takes: the words behind it, and its own. */
const alone: readonly string[] = ["bash", "-c", measured, "alone"]
/** The same while another of the same kind runs. */
const beside: readonly string[] = ["bash", "-c", `"$@" sleep 2 </dev/null >/dev/null & ${measured}`, "beside"]

/** Bytes of memory, what is shared counted in parts, and those of processes that serve an image. */
function memoryOf(user: number): { readonly all: number; readonly servers: number; readonly count: number } {
  let [all, servers, count] = [0, 0, 0]
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name)))
    try {
      if (Number(/^Uid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) !== user) continue
      const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, "utf8")
      const pss = Number(/^Pss:\s+(\d+) kB/m.exec(rollup)?.[1] ?? 0) * 1024
      all += pss
      const isServer = readdirSync(`/proc/${pid}/fd`).some(
        (fd) => readlinkSync(`/proc/${pid}/fd/${fd}`) === "/dev/fuse",
      )
      if (isServer) [servers, count] = [servers + pss, count + 1]
    } catch {
      // It has ended.
    }
  return { all, servers, count }
}

/** The same while so many run, each of which has read all that the image has. */
async function memoryWith(
  [program, args]: readonly [string, readonly string[]],
  many: number,
  user: number,
): Promise<ReturnType<typeof memoryOf>> {
  const script = "find / -xdev -type f -print0 | xargs -0 cat >/dev/null; echo here; exec cat"
  const start = async (): Promise<() => Promise<unknown>> => {
    const child = spawn(program, [...args, "sh", "-c", script], { stdio: ["pipe", "pipe", "inherit"] })
    const ended: Promise<unknown> = once(child, "close")
    await Promise.race([once(child.stdout, "data"), ended])
    return async () => {
      child.stdin.end()
      return await ended
    }
  }
  const running = [await start()]
  // A few at a time: they are to be there together, not to come together.
  while (running.length < many)
    running.push(...(await Promise.all(Array.from({ length: Math.min(8, many - running.length) }, start))))
  const memory = memoryOf(user)
  await Promise.all(running.map(async (end) => await end()))
  return memory
}

export async function manyOfOneImage({ work, user, command, peerRun, asUser }: Machine): Promise<void> {
  console.log("\nMany commands of one image, as an ordinary user")
  const timeOf = async (program: string, args: readonly string[]): Promise<number> =>
    Number((await measure(program, args, "/")).stdout) / 1000
  const exec = (...flags: readonly string[]): readonly string[] => [
    ...[command, "exec", "--engine", "userspace", "--pem-path", `${work}/private.pem`],
    ...[...flags, `${work}/zstd.sif`],
  ]
  const peer = (...flags: readonly string[]): readonly [string, string[]] => [
    peerRun,
    [
      ...["--bind", work, String(user), ...beside],
      ...["apptainer", "-s", "exec", "--userns", "--pem-path", `${work}/private-pkcs1.pem`],
      ...[...flags, `${work}/peer.sif`],
    ],
  ]
  const times: Record<"alone" | "first" | "second" | "peer" | "peerShared", number[]> = {
    ...{ alone: [], first: [], second: [], peer: [], peerShared: [] },
  }
  for (let i = 0; i < ROUNDS; i++) {
    times.alone.push(await timeOf(...asUser([...alone, ...exec()])))
    times.first.push(await timeOf(...asUser([...alone, ...exec("--sharens")])))
    times.second.push(await timeOf(...asUser([...beside, ...exec("--sharens")])))
    times.peer.push(await timeOf(...peer()))
    times.peerShared.push(await timeOf(...peer("--sharens")))
  }
  note("sifcrypt exec", seconds(median(times.alone)))
  note("sifcrypt exec --sharens, the first", seconds(median(times.first)))
  note("the second", seconds(median(times.second)))
  note("apptainer exec, the second", seconds(median(times.peer)))
  note("apptainer exec --sharens, the second", seconds(median(times.peerShared)))
  const ratio = medianOfPairs(times.second, times.first)
  goal("the second with --sharens, of the first's time", ratio.toFixed(2), "at most 0.60", ratio <= 0.6)
  const shared = asUser(exec("--sharens"))
  const one = await memoryWith(shared, 1, user)
  const many = await memoryWith(shared, MANY, user)
  note("processes that serve it, of one", String(one.count))
  goal(`processes that serve it, of ${MANY}`, String(many.count), "1", many.count === 1)
  const growth = many.servers / one.servers
  goal("their memory", mebibytes(many.servers), `at most 1.2 times ${mebibytes(one.servers)}`, growth <= 1.2)
  note("of all processes, one", mebibytes(one.all))
  note(`of all processes, ${MANY}`, mebibytes(many.all))
}
