#!/bin/sh
":" /*
# The sifcrypt command: what a shell reads of it, and below what Node reads, for which this is a comment.
#
# Node obeys much that is meant for others before any line of ours runs: variables that VS Code sets in every terminal, switches that some
# releases look for behind the script's name and even behind `--`, and SIGUSR1, for which it opens a debugger to every user of the machine. So
# the shell sets such variables aside (lib/caller-environment.ts gives them to payloads and helpers), quotes the words that look like
# switches with a plus sign, and names an address for the debugger that no kernel lets a stream listen on.
#
# Only special built-ins, which no function of the environment replaces; names that no payload knows, as one may be exported; no program but
# Node, unless there are variables that this shell does not pass on. Where bash is the shell, SHELLOPTS of the environment may have it print each variable, a passphrase too.
set +xv -f
IFS='
'
SIFCRYPT_START_SIZE=0
for SIFCRYPT_START_NAME in $(export -p); do
  # As export NAME, declare -x NAME or typeset -x NAME: each shell has its own.
  SIFCRYPT_START_NAME=${SIFCRYPT_START_NAME%%=*}
  SIFCRYPT_START_NAME=${SIFCRYPT_START_NAME##* }
  case $SIFCRYPT_START_NAME in
    '' | [0-9]* | *[!A-Za-z0-9_]*) continue ;;
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
# environment starts and ends, and one more: is that as long as what has been seen?
case ${BASH_VERSION+bash} in
  '')
    read -r SIFCRYPT_START_NAME </proc/$$/stat
    SIFCRYPT_START_NAME=${SIFCRYPT_START_NAME% *}
    SIFCRYPT_START_COUNT=${SIFCRYPT_START_NAME##* }
    SIFCRYPT_START_NAME=${SIFCRYPT_START_NAME% *}
    case $((SIFCRYPT_START_COUNT - ${SIFCRYPT_START_NAME##* })) in
      "$SIFCRYPT_START_SIZE") ;;
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

// command.js or run.js from V8's code cache, if this is the Node that wrote it; else it is compiled as ever. V8 itself takes what another
// release with the same version of V8 wrote, which has other built-ins in other places.
const { readFileSync, writeFileSync } = require("node:fs")
const { basename, join } = require("node:path")
const { Script } = require("node:vm")
// The command behind the options that stand before it; an image's launch line has none.
const words = process.argv.slice(2)
let at = 0
while (words[at]?.startsWith("-")) at += words[at] === "-c" || words[at] === "--config" ? 2 : 1
const isRun =
  ["exec", "run", "shell", "test"].includes(words[at]) ||
  (basename(process.argv[1]) === "run-singularity" && words[0] !== "--start-failure")
const name = isRun ? "run" : "command"
const filename = join(__dirname, name + ".js")
const cache = join(__dirname, `${name}-${process.version}-${process.arch}.cache`)
let cachedData
try {
  cachedData = readFileSync(cache)
} catch {
  // Packed without one.
}
const script = new Script(readFileSync(filename, "latin1"), { filename, cachedData })
if (process.env.SIFCRYPT_WRITE_CODE_CACHE === "1")
  process.on("exit", () => writeFileSync(cache, script.createCachedData()))
script.runInThisContext().call(exports, exports, require, module, filename, __dirname)
