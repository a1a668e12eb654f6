import { checkExecution, type ExecutionVerdict } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { exitCodeFor } from "../exit-codes.ts"
import { interruption } from "../interrupt.ts"
import { printResult } from "../output.ts"
import { flag } from "../values.ts"

function lines({ path, allowed, reason, file, active, folder, group, signers }: ExecutionVerdict): string[] {
  return [
    `Image:    ${path}`,
    `Verdict:  ${allowed ? "may run" : "may not run"}: ${reason}`,
    `List:     ${file === undefined ? "none" : `${file}${active ? "" : " (not activated)"}`}`,
    ...(folder === undefined ? [] : [`Folder:   ${folder}`]),
    ...(group === undefined
      ? []
      : [
          `Group:    ${group.tag} (${group.mode}, ${group.folder === "" ? "any other folder" : group.folder})`,
        ]),
    ...(active && allowed ? [`Signers:  ${signers.join(", ")}`] : []),
  ]
}

const check = command({
  name: "check",
  examples: [["may it run here?", "sifcrypt ecl check image.sif"]],
  summary: "may this image run here?",
  description:
    "Tells what the execution control list says of IMAGE, and why. Ends with 0 if it may run, and with 26 if not.",
  arguments: [["<image>", "the image"]],
  options: { json: ["--json", "print the verdict as JSON", flag] },
  run: async (flags, [image]) => {
    const verdict = await checkExecution(image, { signal: interruption })
    if (!verdict.allowed) process.exitCode = exitCodeFor("ERR_ECL_REFUSED")
    await printResult(flags, verdict, lines)
  },
})

export const ecl: CommandRow = {
  name: "ecl",
  heading: "Signatures",
  summary: "who may run: the system's execution control list",
  description:
    "The execution control list says which images may be run and mounted here, by folder and by signer: " +
    "/etc/sifcrypt/ecl.toml, or where there is none /etc/apptainer/ecl.toml.",
  commands: [check],
}
