// Reading plain images: ours in the place of squashfuse_ll beside Debian's and the kernel, by themselves and below Apptainer.
import { spawn, type ChildProcess } from "node:child_process"
import { once } from "node:events"
import { closeSync, mkdirSync, openSync, readSync, rmSync, statSync, writeFileSync } from "node:fs"
import path from "node:path"
import { squashfuseProgram } from "../lib/index.ts"
import { processorMs } from "../test/support/processes.ts"
import { dropCaches, measure, median, medianOfPairs } from "./measure.ts"
import { goal, note, seconds } from "./report.ts"

export interface ReadsBench {
  /** Has the keys. */
  readonly work: string
  /** A Debian tree. */
  readonly tree: string
  readonly user: number
  readonly peerRoot: string
  readonly peerRun: string
  readonly command: string
  /** The command of an ordinary user. */
  readonly asUser: (args: readonly string[]) => readonly [string, string[]]
}

const ROUNDS = 5
const FOLDERS = 2000
const FILES_OF_A_FOLDER = 100
const MODULES = 3000
const RANDOM_READS = 4000
const READERS = 8
const GIB = 2 ** 30

/** A squashfs that is mounted, and what its server has taken of processors. */
interface Mounted {
  /** Milliseconds since it was started. */
  readonly processor: () => number
  readonly unmount: () => Promise<void>
}

/** Who can mount a squashfs. */
interface Contender {
  readonly name: string
  readonly mount: (image: string, folder: string) => Promise<Mounted>
}

async function untilMounted(folder: string, server: ChildProcess): Promise<void> {
  const outside = statSync(path.dirname(folder)).dev
  while (statSync(folder).dev === outside) {
    if (server.exitCode !== null) throw new Error(`${server.spawnfile} does not mount`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

function server(name: string, program: string, args: readonly string[], argv0?: string): Contender {
  const mount = async (image: string, folder: string): Promise<Mounted> => {
    const child = spawn(program, [...args, "-f", image, folder], {
      stdio: ["ignore", "ignore", "inherit"],
      ...(argv0 === undefined ? {} : { argv0 }),
    })
    await untilMounted(folder, child)
    return {
      processor: () => processorMs(child.pid ?? 0),
      unmount: async () => {
        const ended = once(child, "close")
        await measure("umount", [folder])
        // Of Debian's a thread may go on waiting when there is nothing any more to wait for.
        child.kill("SIGKILL")
        await ended
      },
    }
  }
  return { name, mount }
}

function contenders(peerRoot: string): readonly Contender[] {
  const kernel = async (image: string, folder: string): Promise<Mounted> => {
    await measure("mount", ["-o", "loop,ro", image, folder])
    return {
      processor: () => Number.NaN,
      unmount: async () => {
        await measure("umount", [folder])
      },
    }
  }
  // With the libraries that it was made for.
  const linker = path.join(peerRoot, "lib64/ld-linux-x86-64.so.2")
  const libraries = path.join(peerRoot, "usr/lib/x86_64-linux-gnu")
  const theirs = path.join(peerRoot, "usr/bin/squashfuse_ll")
  return [
    { name: "kernel", mount: kernel },
    server("Debian's squashfuse_ll", linker, ["--library-path", libraries, theirs]),
    server("sifcrypt's squashfuse_ll", squashfuseProgram(), [], "squashfuse_ll"),
  ]
}

interface Taken {
  /** Milliseconds on the clock, and of the server's processor time, in each round. */
  readonly times: readonly number[]
  readonly processor: readonly number[]
}

/** By turns, cold each time: in the order of the contenders. */
async function compare(
  bench: ReadsBench,
  image: string,
  read: (folder: string) => Promise<void> | void,
): Promise<readonly Taken[]> {
  const folder = path.join(bench.work, "mount")
  mkdirSync(folder, { recursive: true })
  const all = contenders(bench.peerRoot).map((contender) => ({
    contender,
    times: [] as number[],
    processor: [] as number[],
  }))
  for (let round = 0; round < ROUNDS; round++)
    for (const { contender, times, processor } of all) {
      const mounted = await contender.mount(image, folder)
      try {
        await dropCaches()
        const before = mounted.processor()
        const started = performance.now()
        await read(folder)
        times.push(performance.now() - started)
        processor.push(mounted.processor() - before)
      } finally {
        await mounted.unmount()
      }
    }
  return all
}

/** Notes all, and says how ours is beside Debian's. */
function judge(what: string, taken: readonly Taken[], atMost: number): void {
  const [kernel, theirs, ours] = taken
  if (kernel === undefined || theirs === undefined || ours === undefined) throw new Error("who is missing?")
  note(`${what}, kernel`, seconds(median(kernel.times)))
  note(`${what}, Debian's squashfuse_ll`, seconds(median(theirs.times)))
  note(`${what}, ours`, seconds(median(ours.times)))
  const ratio = medianOfPairs(ours.times, theirs.times)
  goal(`${what}, times squashfuse_ll's`, ratio.toFixed(2), `at most ${atMost}`, ratio <= atMost)
}

async function squashfs(tree: string, image: string, ...options: readonly string[]): Promise<void> {
  await measure("mksquashfs", [tree, image, ...options, "-quiet", "-no-progress", "-noappend"])
}

const shell = async (script: string, ...words: readonly string[]): Promise<void> => {
  await measure("bash", ["-c", script, "bash", ...words])
}

const readEverything = (folder: string): Promise<void> =>
  shell('find "$1" -xdev -type f -print0 | xargs -0 cat >/dev/null', folder)

async function wholeTree(bench: ReadsBench, image: string): Promise<void> {
  const { stdout } = await measure("du", ["-sb", "--apparent-size", bench.tree])
  const gib = Number(stdout.split("\t")[0]) / GIB
  const taken = await compare(bench, image, readEverything)
  judge("every file of a Debian tree, cold", taken, 0.5)
  const [theirs = [], ours = []] = taken.slice(1).map(({ processor }) => processor)
  const perGib = (processor: readonly number[]): string => (median(processor) / 1000 / gib).toFixed(2)
  note("its processor seconds for each GiB, Debian's squashfuse_ll", perGib(theirs))
  note("its processor seconds for each GiB, ours", perGib(ours))
  const ratio = medianOfPairs(ours, theirs)
  goal("processor time, times squashfuse_ll's", ratio.toFixed(2), "at most 0.5", ratio <= 0.5)
  const readers = await compare(bench, image, (folder) =>
    shell(
      'find "$1" -xdev -type f -print0 | xargs -0 -n 100 -P "$2" cat >/dev/null',
      folder,
      String(READERS),
    ),
  )
  // Both processors are busy then, with the readers for the most part: docs/performance.md says why this is hardly to be had.
  judge(`the same by ${READERS} readers at once`, readers, 0.5)
}

async function manyFiles(bench: ReadsBench): Promise<void> {
  const tree = path.join(bench.work, "many")
  for (let i = 0; i < FOLDERS; i++) {
    const folder = path.join(tree, `folder${i >> 6}`, `folder${i}`)
    mkdirSync(folder, { recursive: true })
    for (let j = 0; j < FILES_OF_A_FOLDER; j++) writeFileSync(path.join(folder, `a-file-of-many-${j}`), "")
  }
  const image = path.join(bench.work, "many.sqfs")
  await squashfs(tree, image)
  rmSync(tree, { recursive: true })
  judge(
    "find over 200,000 files, cold",
    await compare(bench, image, (folder) => shell('find "$1" -name none', folder)),
    1,
  )
  judge(
    "the same with the size of each",
    await compare(bench, image, (folder) => shell('find "$1" -size +1k', folder)),
    1,
  )
}

/** Python looks for each module in every folder of its path, lists those that it looks into and reads what it finds. */
async function modules(bench: ReadsBench): Promise<void> {
  const tree = path.join(bench.work, "modules")
  const folders = ["site", "dist", "lib"]
  const names: string[] = []
  for (let i = 0; i < MODULES; i++) {
    const folder = path.join(tree, folders[i % folders.length] ?? "", `package${i >> 5}`)
    mkdirSync(folder, { recursive: true })
    const name = `package${i >> 5}.module${i}`
    names.push(name)
    writeFileSync(
      path.join(folder, `module${i}.py`),
      `def f():\n    return "${name}"\n\nNAME = f()\n`.repeat(8),
    )
  }
  writeFileSync(
    path.join(tree, "all.py"),
    // A package in three folders, as namespace packages are: each is looked for in all of them.
    `import importlib\nfor name in ${JSON.stringify(names)}: importlib.import_module(name)\n`,
  )
  const image = path.join(bench.work, "modules.sqfs")
  await squashfs(tree, image)
  rmSync(tree, { recursive: true })
  judge(
    "a Python import of 3,000 modules, cold",
    await compare(bench, image, (folder) => {
      const paths = folders.map((name) => path.join(folder, name)).join(":")
      return shell('PYTHONPATH="$2" python3 -S -B "$1/all.py"', folder, paths)
    }),
    1,
  )
}

/** Text that a compressor makes a third of, in one file; each read lands in another block. */
async function randomReads(bench: ReadsBench): Promise<void> {
  const tree = path.join(bench.work, "large")
  mkdirSync(tree)
  await shell(
    'find "$1" -xdev -type f -size +64k -print0 | xargs -0 cat >"$2"',
    bench.tree,
    path.join(tree, "file"),
  )
  const { size } = statSync(path.join(tree, "file"))
  const image = path.join(bench.work, "large.sqfs")
  await squashfs(tree, image)
  rmSync(tree, { recursive: true })
  judge(
    "4,000 random reads of 4 KiB, cold",
    await compare(bench, image, (folder) => {
      const fd = openSync(path.join(folder, "file"), "r")
      const buffer = Buffer.alloc(4096)
      // The same places each time: a linear congruential generator (Knuth's MMIX).
      let state = 1n
      for (let i = 0; i < RANDOM_READS; i++) {
        state = BigInt.asUintN(64, state * 6364136223846793005n + 1442695040888963407n)
        readSync(fd, buffer, 0, buffer.length, Number((state >> 20n) % BigInt(size >> 12)) * 4096)
      }
      closeSync(fd)
    }),
    1,
  )
}

/** What an `apptainer exec` printed of its reading: microseconds, and ticks of the process that serves the image. */
interface InApptainer {
  readonly time: number
  readonly processor: number
}

/** Reads everything, and says how long it took and what of processors the server, whose name is given, had. */
const readInside = `start=$(date +%s%N)
find /usr /etc /var /lib /opt -xdev -type f -print0 2>/dev/null | xargs -0 cat >/dev/null 2>&1
end=$(date +%s%N)
ticks=0
for process in /proc/[0-9]*; do
  read -r name <"$process/comm" || continue
  [[ $name == "$1"* ]] || continue
  stat=$(<"$process/stat")
  read -r -a fields <<<"\${stat##*) }"
  ticks=$((ticks + fields[11] + fields[12]))
done
echo "$(((end - start) / 1000)) $ticks"`

async function inApptainer(
  bench: ReadsBench,
  image: string,
  servers: string,
  folders: string,
): Promise<InApptainer> {
  const usual = "/usr/local/bin:/usr/bin:/usr/sbin:/bin"
  const { stdout } = await measure(bench.peerRun, [
    ...["--bind", bench.work, ...(folders === "" ? [] : ["--bind", folders]), String(bench.user)],
    ...["env", `PATH=${folders === "" ? "" : `${bench.work}/bin:`}${usual}`],
    ...["apptainer", "-s", "exec", "--userns", "--no-mount", "home,cwd,tmp", image],
    ...["bash", "-c", readInside, "bash", servers],
  ])
  const [time = Number.NaN, ticks = Number.NaN] = stdout.trim().split(" ").map(Number)
  return { time: time / 1000, processor: ticks * 10 }
}

async function belowApptainer(bench: ReadsBench): Promise<void> {
  const { work, tree, user } = bench
  const program = squashfuseProgram()
  await measure(bench.command, ["link", path.join(work, "bin"), "squashfuse_ll"])
  const image = path.join(work, "apptainer.sif")
  // As the peer makes it.
  await measure(bench.peerRun, [
    ...["--bind", tree, "--bind", work, String(user), "apptainer", "-s", "build", "-F", image, tree],
  ])
  const taken = { theirs: [] as InApptainer[], ours: [] as InApptainer[] }
  for (let round = 0; round < ROUNDS; round++)
    for (const [who, folders] of [
      ["theirs", ""],
      ["ours", path.dirname(program)],
    ] as const) {
      await dropCaches()
      taken[who].push(await inApptainer(bench, image, "squashfuse_ll", folders))
    }
  const ratioOf = (what: keyof InApptainer): number => {
    const [theirs = [], ours = []] = [taken.theirs, taken.ours].map((all) => all.map((one) => one[what]))
    const name = what === "time" ? "cold" : "processor time of squashfuse_ll"
    note(`apptainer exec, every file of a plain image, ${name}, Debian's`, seconds(median(theirs)))
    note(`apptainer exec, every file of a plain image, ${name}, ours`, seconds(median(ours)))
    return medianOfPairs(ours, theirs)
  }
  const faster = 1 / ratioOf("time")
  goal("apptainer exec, times faster with our squashfuse_ll", faster.toFixed(1), "at least 2", faster >= 2)
  const less = ratioOf("processor")
  goal("apptainer exec, processor time, times theirs", less.toFixed(2), "at most 0.5", less <= 0.5)
}

/** The plain file, and the same image from behind a view of an encrypted one. */
async function throughView(bench: ReadsBench): Promise<void> {
  const { work, tree, asUser, command } = bench
  const encrypted = path.join(work, "viewed.sif")
  const plain = path.join(work, "viewed-plain.sif")
  const folder = path.join(work, "view")
  // It is its owner's alone, who is whoever runs Apptainer.
  const ours = async (...words: readonly string[]): Promise<void> => {
    await measure(...asUser([command, ...words]))
  }
  const key = ["--pem-path", path.join(work, "private.pem")]
  await ours("build", "--pem-path", path.join(work, "public.pem"), encrypted, tree)
  await ours("decrypt", ...key, encrypted, plain)
  await measure(...asUser(["mkdir", folder]))
  await ours("view", ...key, encrypted, folder)
  const times = { plain: [] as number[], view: [] as number[] }
  try {
    for (let round = 0; round < ROUNDS; round++)
      for (const [way, file] of [
        ["plain", plain],
        ["view", path.join(folder, "image.sif")],
      ] as const) {
        await dropCaches()
        times[way].push((await inApptainer(bench, file, "squashfuse_ll", "")).time)
      }
  } finally {
    await ours("unmount", folder)
  }
  note("apptainer exec, every file, of the plain file, cold", seconds(median(times.plain)))
  note("apptainer exec, every file, through sifcrypt view, cold", seconds(median(times.view)))
  const speed = median(times.plain) / median(times.view)
  goal("through a view, of the plain file's speed", speed.toFixed(2), "at least 0.8", speed >= 0.8)
}

/** @param bench - `work` has the keys. */
export async function readingPlainImages(bench: ReadsBench): Promise<void> {
  console.log("\nPlain images: in the place of squashfuse_ll")
  const peerVersion = async (...names: readonly string[]): Promise<string> => {
    const admin = path.join(bench.peerRoot, "var/lib/dpkg")
    const { stdout } = await measure("dpkg-query", [`--admindir=${admin}`, "-W", ...names])
    return stdout.trim().replaceAll("\t", " ").replaceAll("\n", ", ")
  }
  note("peers", await peerVersion("apptainer", "squashfuse", "libsquashfuse0", "libfuse3-4"))
  note("kernel", (await measure("uname", ["-r"])).stdout.trim())
  const image = path.join(bench.work, "plain-gzip.sqfs")
  await squashfs(bench.tree, image)
  await wholeTree(bench, image)
  await manyFiles(bench)
  await modules(bench)
  await randomReads(bench)
  await belowApptainer(bench)
  await throughView(bench)
}
