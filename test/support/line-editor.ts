// A shell on a terminal, as somebody sees it who types a line and asks for all that completes it.
import { spawn, type ChildProcess } from "node:child_process"
import { once } from "node:events"
import { existsSync, readFileSync, renameSync } from "node:fs"
import path from "node:path"
import { setTimeout as wait } from "node:timers/promises"
import { newFolder } from "./scratch.ts"

interface Editor {
  readonly argv: string
  /** Makes keys: one that inserts all completions, one that writes the line to $OUT. */
  readonly setup: readonly string[]
  readonly keys: string
}

type Shell = "bash" | "zsh"

const editors: Readonly<Record<Shell, Editor>> = {
  bash: {
    argv: "bash --norc --noprofile -i",
    setup: [
      `shown() { printf %s "$READLINE_LINE" >"$OUT.new" && mv "$OUT.new" "$OUT"; }`,
      String.raw`bind -x '"\C-xd": shown'`,
      String.raw`bind '"\C-xa": insert-completions'`,
    ],
    keys: "\u0018a\u0018d",
  },
  zsh: {
    argv: "zsh -f -i",
    setup: [
      "autoload -Uz compinit && compinit -u -D",
      "zle -C all-matches complete-word _generic",
      "zstyle ':completion:all-matches:*' completer _all_matches _complete",
      "zstyle ':completion:all-matches:*' insert yes",
      `shown() { print -rn -- "$BUFFER" >"$OUT.new" && mv "$OUT.new" "$OUT"; }`,
      "zle -N shown",
      "bindkey '^Xa' all-matches",
      "bindkey '^Xd' shown",
    ],
    keys: "\u0018a\u0018d",
  },
}

/** A shell that completes lines. */
export class LineEditor implements AsyncDisposable {
  readonly #process: ChildProcess
  readonly #out: string
  readonly #keys: string

  /**
   * @param setup - More commands for its start.
   * @param env - Beside what is needed to show a terminal.
   */
  constructor(shell: Shell, setup: readonly string[], cwd: string, env: Readonly<Record<string, string>>) {
    const editor = editors[shell]
    this.#keys = editor.keys
    this.#out = path.join(newFolder("line-editor"), "line")
    this.#process = spawn("script", ["-qec", editor.argv, "/dev/null"], {
      cwd,
      env: { PATH: process.env["PATH"] ?? "", TERM: "xterm", OUT: this.#out, HOME: cwd, ...env },
      stdio: ["pipe", "ignore", "ignore"],
    })
    for (const line of [...editor.setup, ...setup]) this.#process.stdin?.write(`${line}\n`)
  }

  /** The line with everything that completes the word at its end, or where `left` moves the cursor to. */
  async complete(line: string, left = 0): Promise<string> {
    this.#process.stdin?.write(`\u0015${line}${"\u0002".repeat(left)}${this.#keys}`)
    while (!existsSync(this.#out)) {
      if (this.#process.exitCode !== null) throw new Error(`the shell ended with ${this.#process.exitCode}`)
      await wait(20)
    }
    renameSync(this.#out, `${this.#out}.read`)
    return readFileSync(`${this.#out}.read`, "utf8")
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = once(this.#process, "exit")
    this.#process.stdin?.end("\u0015exit\n")
    await ended
  }
}
