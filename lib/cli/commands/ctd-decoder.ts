// imgcrypt's program of this name, which containerd starts for each layer that is encrypted: what it says of the layer comes through
// descriptor 3, the ciphertext through standard input, the plaintext goes to standard output.
import { forbidDumps, KeyError, oci } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { interruption } from "../interrupt.ts"
import { output } from "../output.ts"
import { isTerminal } from "../terminal.ts"
import { text } from "../values.ts"

/** As containerd has it. */
const PAYLOAD = 3

export const ctdDecoder: CommandRow = command({
  name: "ctd-decoder",
  examples: [
    [
      "one layer, as containerd calls it",
      "sifcrypt ctd-decoder --decryption-keys-path /etc/containerd/keys <layer >layer.tar.gz",
    ],
  ],
  heading: "Registries",
  summary: "decrypt a layer for containerd",
  description:
    "Decrypts one layer as a stream processor of containerd's, in place of imgcrypt's program of that name: link makes a link of this name, " +
    "which containerd's configuration names. Not a byte is written before all of the layer was verified.",
  options: {
    keysFolder: ["--decryption-keys-path <dir>", "folder with private keys, in folders of any depth", text],
    tmpFolder: ["--tmpdir <dir>", "for the ciphertext meanwhile (default TMPDIR)", text],
  },
  run: async ({ keysFolder, tmpFolder }, _, made) => {
    if (isTerminal(0) || isTerminal(1))
      made.error("error: containerd starts it: a layer does not come from a terminal")
    forbidDumps()
    await oci
      .decodeLayer({
        payload: { fd: PAYLOAD },
        ...{ keysFolder, tmpFolder, input: process.stdin, output: output(), signal: interruption },
      })
      .catch((error: unknown) => {
        if (error instanceof KeyError && error.message.startsWith(`cannot read descriptor ${PAYLOAD}:`))
          made.error(
            `error: containerd says through descriptor ${PAYLOAD} which layer it is, and that is not open`,
          )
        throw error
      })
  },
})
