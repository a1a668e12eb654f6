import { compose as services } from "../../index.ts"
import { command, type CommandRow, type OptionRows } from "../command.ts"
import { jsonRow, print, printJson, printLines } from "../output.ts"
import { notice, printable } from "../terminal.ts"
import { each, flag, text } from "../values.ts"

interface ProjectFlags {
  readonly files?: string[]
  readonly projectName?: string
  readonly profiles?: string[]
  readonly envFiles?: string[]
  readonly projectDirectory?: string
}

const projectRows: OptionRows<ProjectFlags> = {
  files: ["-f, --file <file>", "a compose file; what comes later is stronger (repeatable)", each(text)],
  projectName: ["-p, --project-name <name>", "what instances, networks and volumes are named for", text],
  profiles: ["--profile <name>", "services of this profile are there, too (repeatable)", each(text)],
  envFiles: ["--env-file <file>", "variables for the files, instead of .env (repeatable)", each(text)],
  projectDirectory: ["--project-directory <dir>", "what paths in the files are relative to", text],
}

function projectOf(flags: ProjectFlags, named: readonly string[] = []): services.Project {
  return services.load({
    files: flags.files,
    name: flags.projectName,
    profiles: flags.profiles,
    envFiles: flags.envFiles,
    folder: flags.projectDirectory,
    services: named,
    onNotice: (text) => {
      notice(printable(text))
    },
  })
}

const config = command({
  name: "config",
  summary: "what is understood of the files",
  description:
    "Prints what is understood of the compose files: merged, with variables filled in, in the long forms.",
  options: {
    ...projectRows,
    services: ["--services", "the names of services alone", flag],
    quiet: ["-q, --quiet", "print nothing: is it right?", flag],
    json: jsonRow,
  },
  run: async (flags) => {
    const project = projectOf(flags)
    if (flags.quiet === true) return
    if (flags.services === true) await printLines([...project.services])
    else if (flags.json === true) await printJson(project.config())
    else await print(project.yaml())
  },
})

export const compose: CommandRow = {
  name: "compose",
  heading: "Run images",
  summary: "services beside each other, of a compose file",
  description:
    "Starts, shows and ends services that a compose file describes, from encrypted images or plain ones.",
  commands: [config],
}
