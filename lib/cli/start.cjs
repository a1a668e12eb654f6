#!/bin/sh
":" /*
# The sifcrypt command: what a shell reads of it, and below what Node reads, for which this is a comment.
#
# Node obeys much that is meant for others before any line of ours runs: variables that VS Code sets in every terminal, switches that some
# releases look for behind the script's name and even behind `--`, and SIGUSR1, for which it opens a debugger to every user of the machine. So
# the shell sets such variables aside (lib/caller-environment.ts gives them to payloads and helpers), quotes the words that look like
# switches with a plus sign, and names an address for the debugger that no kernel lets a stream listen on.
#
# Only special built-ins, which no function of the environment replaces, and ulimit without one; names that no payload knows, as one may be exported; no program but
# Node, unless there are variables that this shell does not pass on. Where bash is the shell, SHELLOPTS of the environment may have it print each variable, a passphrase too.
set +xv -f
IFS='
'
# As an OCI runtime this is crun, except where a container is made: so all of crun's caller is there, and Node takes no time.
case $0 in
  sifcrypt-oci | *[/]sifcrypt-oci)
    SIFCRYPT_START_FILES=
    for SIFCRYPT_START_NAME do
      case $SIFCRYPT_START_FILES$SIFCRYPT_START_NAME in
        +*) SIFCRYPT_START_FILES= ;;
        --cgroup-manager | --log | --log-format | --root | --rootless) SIFCRYPT_START_FILES=+ ;;
        create | run | features | -*) ;;
        *)
          # From where lib/runtime/program.ts takes it, too, and from nowhere else: PATH is the caller's. A pattern stays one where nothing is.
          set +f
          for SIFCRYPT_START_FILES in /usr/bin/cru[n] /usr/local/bin/cru[n] /bin/cru[n] /usr/sbin/cru[n] /usr/local/sbin/cru[n] /sbin/cru[n]; do
            case $SIFCRYPT_START_FILES in
              *[/]crun) exec "$SIFCRYPT_START_FILES" "$@" ;;
            esac
          done
          break
          ;;
      esac
      case $SIFCRYPT_START_NAME in
        create | run | features) break ;;
      esac
    done
    set -f
    ;;
esac
SIFCRYPT_START_SIZE=0
SIFCRYPT_START_FILES=
for SIFCRYPT_START_NAME in $(unset -f ulimit; ulimit -Sn; export -p); do
  # The first line is how many files may be open, which Node raises for itself; lib/caller-environment.ts has it for payloads.
  case $SIFCRYPT_START_FILES in
    '') SIFCRYPT_START_FILES=$SIFCRYPT_START_NAME ;;
  esac
  # As export NAME, declare -x NAME or typeset -x NAME: each shell has its own.
  SIFCRYPT_START_NAME=${SIFCRYPT_START_NAME%%=*}
  SIFCRYPT_START_NAME=${SIFCRYPT_START_NAME##* }
  case $SIFCRYPT_START_NAME in
    '' | [0-9]* | *[!A-Za-z0-9_]* | PWD) continue ;;
  esac
  eval "SIFCRYPT_START_SIZE=\$((SIFCRYPT_START_SIZE \${$SIFCRYPT_START_NAME++ \${#SIFCRYPT_START_NAME} + \${#$SIFCRYPT_START_NAME} + 2}))"
  case $SIFCRYPT_START_NAME in
    NODE_* | UV_* | OPENSSL_* | ICU_DATA)
      # A line of a value may look like a variable that is not set.
      eval "case \${$SIFCRYPT_START_NAME+set} in
        set) export SIFCRYPT_SET_ASIDE_$SIFCRYPT_START_NAME=\"\$$SIFCRYPT_START_NAME\" ;;
      esac"
      unset -v "$SIFCRYPT_START_NAME"
      ;;
  esac
done
# Other shells than bash drop what they have no name for, a.b or BASH_FUNC_f%%. The kernel's last three numbers about a process are where its
# environment starts and ends, and one more: is that as long as what has been seen? PWD such a shell gives itself, if it was given none.
case ${BASH_VERSION+bash} in
  '')
    read -r SIFCRYPT_START_NAME </proc/$$/stat
    SIFCRYPT_START_NAME=${SIFCRYPT_START_NAME% *}
    SIFCRYPT_START_COUNT=${SIFCRYPT_START_NAME##* }
    SIFCRYPT_START_NAME=${SIFCRYPT_START_NAME% *}
    case $((SIFCRYPT_START_COUNT - ${SIFCRYPT_START_NAME##* } - SIFCRYPT_START_SIZE)) in
      0 | $((${#PWD} + 5))) ;;
      *)
        SIFCRYPT_START_OTHERS=$(tr '\0\n' '\n\001' </proc/$$/environ | LC_ALL=C grep -v '^[A-Za-z_][A-Za-z0-9_]*=')
        export SIFCRYPT_START_OTHERS
        ;;
    esac
    ;;
esac
SIFCRYPT_START_COUNT=0
SIFCRYPT_START_WORDS=
SIFCRYPT_START_ALL=
for SIFCRYPT_START_NAME do
  SIFCRYPT_START_COUNT=$((SIFCRYPT_START_COUNT + 1))
  case $SIFCRYPT_START_NAME in
    [-+]*) SIFCRYPT_START_WORDS="$SIFCRYPT_START_WORDS \"+\${$SIFCRYPT_START_COUNT}\"" ;;
    *) SIFCRYPT_START_WORDS="$SIFCRYPT_START_WORDS \"\${$SIFCRYPT_START_COUNT}\"" ;;
  esac
  # A text of thousands of words takes long to be made longer.
  case $SIFCRYPT_START_COUNT in
    *00)
      SIFCRYPT_START_ALL=$SIFCRYPT_START_ALL$SIFCRYPT_START_WORDS
      SIFCRYPT_START_WORDS=
      ;;
  esac
done
export SIFCRYPT_START_FILES
set +f # where SHELLOPTS is exported, helper programs would have it, too
eval "unset -v SIFCRYPT_START_NAME SIFCRYPT_START_SIZE SIFCRYPT_START_COUNT SIFCRYPT_START_WORDS SIFCRYPT_START_ALL
exec node --inspect-port='[ff00::]:1024' -- \"\$0\" + $SIFCRYPT_START_ALL$SIFCRYPT_START_WORDS"
*/
// The kernel's default from here on: a listener that goes takes Node's own with it.
const none = () => {}
process.on("SIGUSR1", none).off("SIGUSR1", none)
// For whoever starts this as `node main.js`; what Node has done by now is done, but what is started with the same switches is safe.
if (process.argv[2] !== "+") process.execArgv.unshift("--inspect-port=[ff00::]:1024")
if (process.env.NODE_OPTIONS !== undefined) require("node:inspector").close()
for (const line of process.env.SIFCRYPT_START_OTHERS?.split("\n") ?? []) {
  const end = line.indexOf("=")
  if (end > 0) process.env[line.slice(0, end)] = line.slice(end + 1).replaceAll("\u0001", "\n")
}
delete process.env.SIFCRYPT_START_OTHERS
for (const [name, value] of Object.entries(process.env))
  if (/^(?:NODE_|UV_|OPENSSL_|ICU_DATA$)/.test(name)) {
    process.env[`SIFCRYPT_SET_ASIDE_${name}`] = value
    delete process.env[name]
  }
if (process.argv[2] === "+")
  process.argv = [
    ...process.argv.slice(0, 2),
    ...process.argv.slice(3).map((word) => word.replace(/^\+/, "")),
  ]

const {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  unlinkSync,
  writeSync,
} = require("node:fs")
const { basename, dirname, isAbsolute, join } = require("node:path")
const { Script } = require("node:vm")
// The command behind the options that stand before it; an image's launch line has none.
const words = process.argv.slice(2)
let at = 0
while (words[at]?.startsWith("-")) at += words[at] === "-c" || words[at] === "--config" ? 2 : 1
const called = basename(process.argv[1])
const isRun =
  (["exec", "run", "shell", "test"].includes(words[at]) && called !== "sifcrypt-oci") ||
  (called === "run-singularity" && words[0] !== "--start-failure")
const name = isRun ? "run" : "command"
const filename = join(__dirname, name + ".js")
const { O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK, O_RDONLY } = constants

/** What a function of an open file gives. */
function opened(path, flags, use) {
  const file = openSync(path, flags)
  try {
    return use(file, fstatSync(file))
  } finally {
    closeSync(file)
  }
}

const { source, about } = opened(filename, O_RDONLY, (file, { size, mtimeMs }) => ({
  source: readFileSync(file, "latin1"),
  about: [size, mtimeMs],
}))

// What V8 has compiled of it in earlier runs. That is code, and V8 believes all of it: so it is taken from a folder and a file that are this
// user's alone, as they were written, and for this very Node. V8 itself takes what another build of the same version wrote, which has other
// built-ins in other places, or another architecture. Where there is none, or none can be kept, a start takes longer, and that is all.
//
// A hash function takes longer to load than all else that is done here. The bundled file begins with its own hash, and the cache has everything
// twice, to be compared.
const HEADER_LENGTH = 256 // the commands whose functions are there, zeros
const MOST_BYTES = 1 << 26
const MOST_CACHES = 8
const MOST_COMMANDS = 16
const DAY_MS = 86_400_000

/** Is it this user's, and has nobody else these permissions? */
function isOwn(stats, permissions) {
  return stats?.uid === process.geteuid() && (stats.mode & permissions) === 0
}

function isOwnFolder(folder) {
  const stats = statSync(folder, { throwIfNoEntry: false })
  return stats?.isDirectory() === true && isOwn(stats, 0o022)
}

/** Is it root's or this user's, or somebody's whom this user namespace does not know? */
function isTrusted(uid) {
  if (uid === 0 || uid === process.geteuid()) return true
  return uid === 65534 && !/^\s*0\s+0\s+4294967295\s*$/.test(readFileSync("/proc/self/uid_map", "latin1"))
}

/**
 * Can nobody else say where this leads? A link of somebody else's may lead to what is this user's and has another's content: an image that
 * root has unpacked.
 */
function isHeld(place) {
  for (let below = place; below !== "/"; below = dirname(below)) {
    const link = lstatSync(below, { throwIfNoEntry: false })
    if (link?.isSymbolicLink() === true && !isTrusted(link.uid)) return false
    const { uid, mode } = statSync(dirname(below))
    if (!isTrusted(uid) || ((mode & 0o022) !== 0 && (mode & 0o1000) === 0)) return false
  }
  return true
}

/**
 * Uses the folder of caches, by a path that leads to the one that was looked at. There is none where it would not be this user's alone: sudo,
 * for one, keeps the home of whoever called it.
 */
function inCacheFolder(make, use) {
  const { HOME: home = "", XDG_CACHE_HOME: given = "" } = process.env
  const place = isAbsolute(given) ? given : join(home, ".cache")
  if (!isAbsolute(place) || !isHeld(place)) return undefined
  const above = [place, join(place, "sifcrypt")]
  const folder = join(place, "sifcrypt", "code")
  if (make)
    for (const each of [...above, folder])
      if (isOwnFolder(dirname(each)) && statSync(each, { throwIfNoEntry: false }) === undefined)
        mkdirSync(each, { mode: 0o700 })
  if (!above.every(isOwnFolder)) return undefined
  return opened(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, (file, stats) =>
    isOwn(stats, 0o077) ? use(`/proc/self/fd/${file}`) : undefined,
  )
}

/** For one file as it was built and is installed, and one Node. */
function cacheName() {
  const { size, mtimeMs } = statSync(process.execPath)
  const { version, versions, arch } = process
  const [, hash] = /^\/\*([0-9a-f]{64})\*\//.exec(source)
  return `${[name, hash, ...about, version, versions.v8, arch, size, mtimeMs].join("-")}.cache`
}

function readCache(folder) {
  return opened(join(folder, cacheName()), O_RDONLY | O_NOFOLLOW | O_NONBLOCK, (file, stats) => {
    const half = stats.size / 2
    if (!stats.isFile() || !isOwn(stats, 0o077) || half <= HEADER_LENGTH || stats.size > MOST_BYTES)
      return undefined
    const bytes = readFileSync(file)
    if (bytes.compare(bytes, half, undefined, 0, half) !== 0) return undefined
    const known = bytes.latin1Slice(0, HEADER_LENGTH).replace(/\0+$/, "").split(" ")
    return { known, isOld: Date.now() - stats.mtimeMs > DAY_MS, data: bytes.subarray(HEADER_LENGTH, half) }
  })
}

function writeCache(folder, known, data) {
  const header = Buffer.alloc(HEADER_LENGTH)
  header.write(known.join(" "), "latin1")
  const file = join(folder, cacheName())
  // In containers the same number comes again and again, and one of them may have been killed here.
  const unfinished = `${file}.${process.pid}-${Date.now()}`
  const descriptor = openSync(unfinished, "wx", 0o600)
  try {
    const bytes = Buffer.concat([header, data, header, data])
    for (let done = 0; done < bytes.length;) done += writeSync(descriptor, bytes, done)
    renameSync(unfinished, file)
  } catch (error) {
    unlinkSync(unfinished)
    throw error
  } finally {
    closeSync(descriptor)
  }
  // Those of other releases, and what was left unfinished.
  const caches = readdirSync(folder)
    .filter((entry) => /^(?:run|command)-.*\.cache/.test(entry))
    .map((entry) => join(folder, entry))
    .map((path) => ({ path, time: statSync(path).mtimeMs }))
    .sort((one, other) => other.time - one.time)
  for (const { path } of caches.slice(MOST_CACHES)) unlinkSync(path)
}

let cache
try {
  cache = inCacheFolder(false, readCache)
} catch {
  // Not there, or not to be read.
}
const script = new Script(source, { filename, cachedData: cache?.data })
const known = cache === undefined || script.cachedDataRejected ? [] : cache.known
// A command compiles what others do not, and so does an option: for that it is written once a day. Of what was typed, only what can be the name
// of a command is written down.
const word = words.includes("--help") ? "help" : (/^[a-z]{1,12}$/.exec(words[at])?.[0] ?? "none")
if (cache?.isOld || (!known.includes(word) && known.length < MOST_COMMANDS)) {
  const { cachedDataVersionTag } = require("node:v8")
  const tag = cachedDataVersionTag()
  process.on("exit", (status) => {
    // What is compiled under other switches (small-heap.ts) would be refused.
    if (status !== 0 || cachedDataVersionTag() !== tag) return
    process.on("SIGXFSZ", none)
    try {
      const nowKnown = [...new Set([...known, word])].slice(0, MOST_COMMANDS)
      inCacheFolder(true, (folder) => writeCache(folder, nowKnown, script.createCachedData()))
    } catch {
      // No room, no right to it.
    }
    process.off("SIGXFSZ", none)
  })
}
script.runInThisContext().call(exports, exports, require, module, filename, __dirname)
