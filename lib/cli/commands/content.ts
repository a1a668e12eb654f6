import { inspect, type ImageFacts, type TreeEntry } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { withCredentials } from "../credentials.ts"
import { interruption } from "../interrupt.ts"
import { imageRows, openImage } from "../opening.ts"
import { jsonRow, output, print, printJson, printLines, writeAll } from "../output.ts"
import { informDone, progressRow, withProgress } from "../progress.ts"
import { humanBytes } from "../terminal.ts"
import { flag } from "../values.ts"
import { printableLines, printableName } from "../../printable.ts"

const typeLetters: Record<TreeEntry["type"], string> = {
  file: "-",
  directory: "d",
  symlink: "l",
  "block-device": "b",
  "character-device": "c",
  fifo: "p",
  socket: "s",
}

/** `-rwsr-xr-x`, as ls(1) writes it. */
function modeText(entry: TreeEntry): string {
  const bits = Array.from("rwxrwxrwx", (letter, i) => ((entry.mode >> (8 - i)) & 1 ? letter : "-"))
  const special = (place: number, bit: number, letter: string): void => {
    if ((entry.mode & bit) !== 0) bits[place] = bits[place] === "x" ? letter : letter.toUpperCase()
  }
  special(2, 0o4000, "s")
  special(5, 0o2000, "s")
  special(8, 0o1000, "t")
  return typeLetters[entry.type] + bits.join("")
}

function longLine(entry: TreeEntry, name: string): string {
  const when = new Date(entry.mtime * 1000).toISOString().slice(0, 16).replace("T", " ")
  const size =
    entry.type === "block-device" || entry.type === "character-device"
      ? `${String(entry.rdev >> 8)},${String(entry.rdev & 0xff)}`
      : String(entry.size)
  const target = entry.target === undefined ? "" : ` -> ${printableName(entry.target)}`
  return `${modeText(entry)} ${String(entry.nlink).padStart(3)} ${String(entry.uid).padStart(5)} ${String(entry.gid).padStart(5)} ${size.padStart(10)} ${when} ${printableName(name)}${target}`
}

async function* listLines(
  entries: AsyncIterable<TreeEntry>,
  { long, recursive }: { readonly long?: true; readonly recursive?: true },
): AsyncGenerator<string, void, undefined> {
  for await (const entry of entries) {
    const name = recursive === true ? entry.path : entry.name
    yield `${long === true ? longLine(entry, name) : printableName(name)}\n`
  }
}

/** As `JSON.stringify` writes an array with an indent of 2, which for a large image is more than one string can hold. */
async function* jsonArray(values: AsyncIterable<unknown>): AsyncGenerator<string, void, undefined> {
  let separator = "[\n"
  for await (const value of values) {
    yield `${separator}  ${JSON.stringify(value, null, 2).replaceAll("\n", "\n  ")}`
    separator = ",\n"
  }
  yield separator === "[\n" ? "[]\n" : "\n]\n"
}

const PIECE = 1 << 16

/** What is written at once: a piece for each line would take longer than to find it. */
async function* inPieces(texts: AsyncIterable<string>): AsyncGenerator<Buffer, void, undefined> {
  let piece = ""
  for await (const text of texts) {
    piece += text
    if (piece.length < PIECE) continue
    yield Buffer.from(printableLines(piece))
    piece = ""
  }
  if (piece !== "") yield Buffer.from(printableLines(piece))
}

/** Never more than that there are signatures: nothing here says that one is valid. */
function signatureText({ signatures, unsigned }: ImageFacts): string {
  if (!unsigned) return signatures === 0 ? "none" : `${signatures}, not verified here`
  const none = signatures === 0 ? "none" : `${signatures}, none for the root in a form that is accepted today`
  return `${none}; encrypted but unsigned: encryption does not show who made an image`
}

export const ls: CommandRow = command({
  name: "ls",
  examples: [["everything in it", "sifcrypt ls -lR --pem-path key.pem image.sif"]],
  heading: "Look into images",
  summary: "list files inside an image, without mounting",
  description: "Lists PATH inside IMAGE (its root by default). No mount, no privilege, no /dev/fuse.",
  arguments: [
    ["<image>", "the image to look into"],
    ["[path]", "path inside the image", "/"],
  ],
  options: {
    long: ["-l, --long", "mode, links, owner, size, time, target", flag],
    recursive: ["-R, --recursive", "all below it", flag],
    json: ["--json", "one JSON array of entries", flag],
    ...imageRows,
  },
  run: async (flags, [image, path]) => {
    await withCredentials(flags, false, async (credentials) => {
      await using opened = await openImage(image, flags, credentials, { purpose: "read" })
      const recursive = flags.recursive === true
      const entries = opened.walk(path, { recursive, signal: interruption })
      await writeAll(output(), inPieces(flags.json === true ? jsonArray(entries) : listLines(entries, flags)))
    })
  },
})

export const cat: CommandRow = command({
  name: "cat",
  examples: [["one file", "sifcrypt cat --pem-path key.pem image.sif /etc/os-release"]],
  heading: "Look into images",
  summary: "write files of an image to standard output",
  description: "Writes each PATH inside IMAGE to standard output. No mount, no privilege, no /dev/fuse.",
  arguments: [
    ["<image>", "the image to read from"],
    ["<path...>", "files inside the image"],
  ],
  options: imageRows,
  run: async (flags, [image, paths]) => {
    await withCredentials(flags, false, async (credentials) => {
      await using opened = await openImage(image, flags, credentials, { purpose: "read" })
      for (const path of paths)
        await writeAll(
          output(),
          opened.createReadStream(path, { signal: interruption }) as AsyncIterable<Buffer>,
        )
    })
  },
})

export const extract: CommandRow = command({
  name: "extract",
  examples: [["one folder", "sifcrypt extract --pem-path key.pem image.sif out /etc"]],
  heading: "Look into images",
  summary: "copy files out of an image",
  description:
    "Copies PATHs (everything by default) of IMAGE into the folder DIR, which is made if it is missing. What is " +
    "extracted is plain: choose a place that may hold it.",
  arguments: [
    ["<image>", "the image to copy from"],
    ["<dir>", "folder to copy into"],
    ["[path...]", "paths inside the image"],
  ],
  options: { json: jsonRow, progress: progressRow, ...imageRows },
  run: async (flags, [image, dir, paths]) => {
    const start = performance.now()
    const result = await withProgress(`extracting ${image}`, (onProgress) =>
      withCredentials(flags, false, async (credentials) => {
        await using opened = await openImage(image, flags, credentials, { purpose: "read" })
        return await opened.extract(dir, {
          paths: paths.length === 0 ? ["/"] : paths,
          signal: interruption,
          onProgress,
        })
      }),
    )
    if (flags.json === true) await printJson(result)
    else informDone(`${dir}: ${result.entries} entries`, result.bytes, performance.now() - start)
  },
})

export const info: CommandRow = command({
  name: "info",
  examples: [["what anybody can read", "sifcrypt info image.sif"]],
  heading: "Look into images",
  summary: "what an image is, and what anyone can read of it; no key needed",
  description: "Shows kind, architecture, size, cipher and recipients of IMAGE. No key is needed.",
  arguments: [["<image>", "the image to describe"]],
  options: { json: jsonRow },
  run: async (flags, [image]) => {
    const facts = await inspect(image)
    if (flags.json === true) {
      await print(`${JSON.stringify(facts, null, 2)}\n`)
      return
    }
    const lines = [
      `Image:        ${facts.path}`,
      `Root:         ${facts.kind}, ${facts.architecture}${facts.kind === "sandbox" ? "" : `, ${humanBytes(facts.partition.size)}`}`,
      ...(facts.luks === undefined
        ? []
        : [
            `Cipher:       ${facts.luks.cipher}, ${String(facts.luks.keySize * 8)} bit, ${String(facts.luks.sectorSize)}-byte sectors`,
            ...facts.luks.keyslots.map((slot) => `Keyslot ${String(slot.id)}:    ${slot.kdf}, ${slot.cost}`),
          ]),
      ...(facts.gocryptfs === undefined
        ? []
        : [
            `Cipher:       ${facts.gocryptfs.cipher}, every 4096 bytes authenticated`,
            `Password:     ${facts.gocryptfs.kdf}, ${facts.gocryptfs.cost}`,
          ]),
      `RSA messages: ${String(facts.cryptoMessages)}`,
      `Signatures:   ${signatureText(facts)}`,
      `Readable without a key: ${facts.readable.length === 0 ? "nothing but sizes" : facts.readable.join(", ")}`,
    ]
    await printLines(lines)
  },
})
