// crun for those who start containers, with images for roots: what podman, conmon and Slurm call under the name sifcrypt-oci.
import { becomeOciRuntime, ContainerError, logForOciEngine } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { withCredentials } from "../credentials.ts"
import { hintFor } from "../hints.ts"
import { waitForHelpers } from "../interrupt.ts"
import { cipherRows, openOptions, openRows, plainRows } from "../opening.ts"
import { print } from "../output.ts"
import { sentence } from "../sentence.ts"

const NAME = "oci-runtime"

/** As one line. */
function told(error: unknown): string {
  if (!(error instanceof ContainerError))
    return `sifcrypt: ${error instanceof Error ? error.message : String(error)}`
  const at = { command: NAME, options: new Set<string>(), words: [], cause: error.cause }
  const hint = hintFor(error.code, at, error.kdfLimits)
  return `sifcrypt: ${sentence(error.message)}${hint === undefined ? "" : ` (${hint})`}`
}

export const ociRuntime: CommandRow = command({
  name: NAME,
  heading: "Run images",
  summary: "be an OCI runtime for podman and Slurm",
  description:
    "Does what crun does with these words, and becomes crun. The root of a container may be an image: root.path of config.json, or its " +
    "annotation org.sifcrypt.image, names the file. link makes a link called sifcrypt-oci, which does this.",
  passesOn: true,
  examples: [["a bundle whose root is an image", "sifcrypt oci-runtime -- run --bundle bundle web"]],
  arguments: [
    ["[words...]", "crun's: create, start, state, kill, delete, run, exec and others; -- before options"],
  ],
  options: { ...cipherRows, ...openRows, ...plainRows },
  run: async (flags, [words]) => {
    try {
      await withCredentials(flags, false, async (credentials) => {
        waitForHelpers()
        await print(await becomeOciRuntime(words, openOptions(flags, credentials)))
      })
    } catch (error) {
      logForOciEngine(words, told(error))
      throw error
    }
  },
})
