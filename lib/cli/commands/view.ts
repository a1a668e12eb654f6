import { view as show } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { withCredentials } from "../credentials.ts"
import { interruption, waitForHelpers } from "../interrupt.ts"
import { openOptions, openRows, plainRows } from "../opening.ts"
import { signerOptions } from "../signers.ts"
import { errors, jsonRow, printJson } from "../output.ts"
import { inform } from "../terminal.ts"

export const view: CommandRow = command({
  name: "view",
  examples: [
    [
      "run it with the peer",
      "sifcrypt view --pem-path key.pem image.sif mnt; apptainer exec mnt/image.sif true",
    ],
    ["scan its files", "sifcrypt view --pem-path key.pem image.sif mnt; unsquashfs -lls mnt/root.squashfs"],
  ],
  heading: "Look into images",
  summary: "show an encrypted image as a plain one",
  description:
    "Shows IMAGE, a SIF, on the existing folder DIR as `image.sif`, which is what `decrypt` would write, and as " +
    "`root.squashfs`, its root file system, and returns; `sifcrypt unmount DIR` takes them away. One process makes them while " +
    "they are read, for its owner alone: nothing plain is on a disk.",
  arguments: [
    ["<image>", "the image to show"],
    ["<dir>", "an existing folder"],
  ],
  options: { json: jsonRow, ...openRows, ...plainRows },
  run: async (flags, [image, dir]) => {
    await withCredentials(flags, false, async (credentials) => {
      waitForHelpers()
      const { kdfLimits, onDerivation, onNotice, requireEncrypted, unsigned } = openOptions(flags, [])
      const shown = await show({
        ...{ kdfLimits, onDerivation, onNotice, requireEncrypted, unsigned, unlock: credentials },
        ...signerOptions(flags),
        image,
        target: dir,
        detached: true,
        signal: interruption,
      })
      if (flags.json === true) await printJson(shown.info)
      else if (errors().isTTY) inform(`${shown.info.target}: image.sif, root.squashfs`)
    })
  },
})
