// A terminal for commands that ask: answers each prompt with the next line, and prints all that was shown.
import { writeFileSync } from "node:fs"
import path from "node:path"
import type { CommandOptions } from "./cli.ts"
import { newFolder } from "./scratch.ts"

const script = `
import os, pty, sys
answers = (sys.stdin.readline().rstrip("\\n") if sys.argv[1] == "-" else sys.argv[1]).encode().split(b",")
early = answers.pop(0)[1:] if answers[0].startswith(b"^") else b""
started, start = os.pipe()
pid, fd = pty.fork()
if pid == 0:
    os.read(started, 1)
    os.execvp(sys.argv[2], sys.argv[2:])
if early:
    os.write(fd, early + b"\\n")
os.write(start, b"x")
shown = b""
asked = 0
while True:
    try:
        chunk = os.read(fd, 4096)
    except OSError:
        break
    if not chunk:
        break
    # Behind its prompt a shell may ask the terminal where the cursor is.
    shown += chunk.replace(b"\\x1b[6n", b"")
    if shown.count(b": ", 0) > asked and shown.endswith(b": ") and answers:
        asked = shown.count(b": ", 0)
        os.write(fd, answers.pop(0) + b"\\n")
_, status = os.waitpid(pid, 0)
sys.stdout.write(shown.decode())
sys.exit(os.waitstatus_to_exitcode(status))
`

let file: string | undefined

/** Runs the command on a terminal where somebody types these lines, which have commas between them; one with ^ before it starts. */
export function typing(answers: string): CommandOptions {
  if (file === undefined) {
    file = path.join(newFolder("terminal"), "terminal.py")
    writeFileSync(file, script)
  }
  return { wrapper: ["python3", file, answers] }
}

/** The same with lines that no argument of the terminal's own process may show. */
export function typingUnseen(answers: string): CommandOptions {
  return { ...typing("-"), input: `${answers}\n` }
}
