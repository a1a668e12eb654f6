import { readFileSync } from "node:fs"
import path from "node:path"
import { listInstances } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { completions } from "../completion.ts"
import { commandName } from "../name.ts"
import { print } from "../output.ts"
import { printable } from "../terminal.ts"

const shells = ["bash", "zsh", "fish"] as const
type Shell = (typeof shells)[number]

/** The script for the name that this command was called by. */
function script(shell: Shell): string {
  const file = path.join(import.meta.dirname, "completion", shell)
  return readFileSync(file, "utf8").replaceAll("sifcrypt", commandName)
}

/** The instances that run, each with its image. */
async function instanceWords(before: string, begin: string): Promise<[string, string][]> {
  const all = await listInstances()
  return all
    .map(({ name, image }): [string, string] => [`${before}${name}`, printable(image)])
    .filter(([word]) => word.startsWith(begin))
}

export const completion: CommandRow = command({
  name: "completion",
  examples: [["in this shell", "sifcrypt completion bash"]],
  heading: "This command",
  summary: "complete commands and options in bash, zsh or fish",
  description: `Prints what lets SHELL complete commands, options and their values. To have it:

bash: source <(sifcrypt completion bash)         in ~/.bashrc
zsh:  source <(sifcrypt completion zsh)          in ~/.zshrc, behind compinit
fish: sifcrypt completion fish > ~/.config/fish/completions/sifcrypt.fish

Under another name of this command (apptainer, singularity) it completes that one.`,
  arguments: [
    ["<shell>", "whose script it is", shells],
    ["[words...]", "a command line instead, without its first word: prints what completes the last word"],
  ],
  passesOn: true,
  run: async (_, [shell, words]) => {
    if (words.length === 0) {
      await print(script(shell))
      return
    }
    // The tables have this command in them.
    const { commands } = await import("../commands.ts")
    const line = words.slice(words[0] === "--" ? 1 : 0)
    const { words: known, places, instances } = completions(commands, line)
    const found = instances === undefined ? known : await instanceWords(instances, line.at(-1) ?? "")
    const lines = found.map(([word, help]) => (help === "" || shell === "bash" ? word : `${word}\t${help}`))
    await print(
      [...lines, ...(places === undefined ? [] : [`:${places}`])].map((line) => `${line}\n`).join(""),
    )
  },
})
