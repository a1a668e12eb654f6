// A terminal for commands that ask: answers each prompt with the next line, and prints all that was shown.
import { writeFileSync } from "node:fs"
import path from "node:path"
import type { CommandOptions } from "./cli.ts"
import { newFolder } from "./scratch.ts"

const script = `
import os, pty, sys
answers = sys.argv[1].encode().split(b",")
pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[2], sys.argv[2:])
shown = b""
asked = 0
while True:
    try:
        chunk = os.read(fd, 4096)
    except OSError:
        break
    if not chunk:
        break
    shown += chunk
    if shown.count(b": ", 0) > asked and shown.endswith(b": ") and answers:
        asked = shown.count(b": ", 0)
        os.write(fd, answers.pop(0) + b"\\n")
_, status = os.waitpid(pid, 0)
sys.stdout.write(shown.decode())
sys.exit(os.waitstatus_to_exitcode(status))
`

let file: string | undefined

/** Runs the command on a terminal where somebody types these lines, which have commas between them. */
export function typing(answers: string): CommandOptions {
  if (file === undefined) {
    file = path.join(newFolder("terminal"), "terminal.py")
    writeFileSync(file, script)
  }
  return { wrapper: ["python3", file, answers] }
}
