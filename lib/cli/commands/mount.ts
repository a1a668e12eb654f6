import { listMounts, unmount as takeAway } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { withCredentials } from "../credentials.ts"
import { engines, parseEngine } from "../engine.ts"
import { columns, errors, jsonRow, print, printJson, printLines } from "../output.ts"
import { interruption, waitForHelpers } from "../interrupt.ts"
import { cipherRows, imageRows, openImage } from "../opening.ts"
import { inform, printable } from "../terminal.ts"
import { flag } from "../values.ts"

export const mount: CommandRow = command({
  name: "mount",
  examples: [["and away again", "sifcrypt mount --pem-path key.pem image.sif mnt; sifcrypt unmount mnt"]],
  heading: "Look into images",
  summary: "mount an image on a folder",
  description:
    "Mounts IMAGE read-only on DIR and returns; `sifcrypt unmount DIR` takes it away. Root gets the kernel's dm-crypt " +
    "where there is one, everybody else one FUSE process.",
  arguments: [
    ["<image>", "the image to mount"],
    ["<dir>", "an existing folder"],
  ],
  options: {
    engine: [
      "--engine <engine>",
      "auto, kernel or userspace",
      parseEngine,
      { default: ["auto"], suggested: engines },
    ],
    ...cipherRows,
    json: ["--json", "print the mount as JSON", flag],
    ...imageRows,
  },
  run: async (flags, [image, dir]) => {
    await withCredentials(flags, false, async (credentials) => {
      await using opened = await openImage(image, flags, credentials)
      waitForHelpers()
      const mounted = await opened.mount(dir, {
        engine: flags.engine,
        detached: true,
        signal: interruption,
      })
      if (flags.json === true) await print(`${JSON.stringify(mounted.info)}\n`)
      else if (errors().isTTY) inform(`${mounted.info.target}: ${mounted.info.engine} engine`)
    })
  },
})

export const unmount: CommandRow = command({
  name: "unmount",
  examples: [["what `mount` mounted", "sifcrypt unmount mnt"]],
  heading: "Look into images",
  alias: "umount",
  summary: "take a mount of ours away",
  description: "Unmounts DIR, on which sifcrypt mounted an image. Anything else mounted there is left alone.",
  arguments: [["<dir>", "the folder it is mounted on"]],
  options: { json: jsonRow },
  run: async ({ json }, [dir]) => {
    await takeAway(dir)
    if (json === true) await printJson({ target: dir })
  },
})

export const mounts: CommandRow = command({
  name: "mounts",
  examples: [["all that this process can see", "sifcrypt mounts"]],
  heading: "Look into images",
  summary: "list the mounts sifcrypt made",
  description:
    "Lists the mounts of images that this process can see: target, engine, serving process, image.",
  options: { json: jsonRow },
  run: async ({ json }) => {
    const all = await listMounts()
    if (json === true) {
      await print(`${JSON.stringify(all, null, 2)}\n`)
      return
    }
    if (all.length === 0) return
    const rows = all.map((m) => [m.target, m.engine, m.pid === undefined ? "-" : String(m.pid), m.image])
    await printLines(
      columns([["TARGET", "ENGINE", "PID", "IMAGE"], ...rows].map((row) => row.map(printable))),
    )
  },
})
