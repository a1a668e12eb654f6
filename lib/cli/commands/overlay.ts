import { InvalidArgumentError } from "commander"
import { createOverlay, MIN_OVERLAY_SIZE } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { credentialRows, gaveCredentials, withCredentials } from "../credentials.ts"
import { interruption } from "../interrupt.ts"
import { jsonRow, printJson } from "../output.ts"
import { each, flag, MEBIBYTES, size } from "../values.ts"

// MiB.
const LEAST = MIN_OVERLAY_SIZE / MEBIBYTES.worth
const MAX = 1 << 24

function parseFolder(text: string): string {
  if (!text.startsWith("/")) throw new InvalidArgumentError("It is an absolute path.")
  return text
}

const create = command({
  name: "create",
  examples: [["room for 1 GiB", "sifcrypt overlay create --size 1024 changes.img"]],
  summary: "make an empty overlay",
  description:
    "Makes an empty overlay in FILE, or inside of a plain image FILE for exec --writable: an ext3 file system or, with --encrypt, the same inside LUKS2, for root. What a payload " +
    "writes over an encrypted image is kept in an encrypted overlay only.",
  arguments: [["<file>", "the file to write, or a plain image that gets one of its own"]],
  options: {
    size: [
      "-s, --size <size>",
      "size of the file system, in MiB or with a unit",
      size(MEBIBYTES, LEAST, MAX, MEBIBYTES.worth),
      { default: [MIN_OVERLAY_SIZE, `${LEAST}`] },
    ],
    sparse: ["-S, --sparse", "take room on the disk only when it is written", flag],
    folders: ["--create-dir <dir>", "a folder that it has from the start (repeatable)", each(parseFolder)],
    encrypt: ["-e, --encrypt", "encrypt it, for everybody whose public key or passphrase is given", flag],
    json: jsonRow,
    ...credentialRows,
  },
  run: async (flags, [output], command) => {
    const { size, sparse, folders, encrypt } = flags
    const options = { output, size, sparse, folders, signal: interruption }
    // A key that would protect nothing is a mistake.
    if (encrypt === undefined && !gaveCredentials(flags)) await createOverlay(options)
    else if (sparse === true)
      command.error("error: an encrypted overlay is not sparse: holes would show what is in use")
    else
      await withCredentials(flags, true, (credentials) =>
        createOverlay({ ...options, encrypt: true, recipients: credentials }),
      )
    if (flags.json === true)
      await printJson({ output, encrypted: encrypt === true || gaveCredentials(flags), size })
  },
})

export const overlay: CommandRow = {
  name: "overlay",
  heading: "Make and change images",
  summary: "make file systems that keep changes",
  description: "Overlays keep what payloads write: `sifcrypt exec --overlay FILE IMAGE ...`.",
  commands: [create],
}
