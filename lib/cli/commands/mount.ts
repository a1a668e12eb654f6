import type { Command } from "commander"
import { listMounts, open, unmount, type Engine } from "../../index.ts"
import { withCredentials } from "../credentials.ts"
import { parseEngine } from "../engine.ts"
import { errors, print } from "../output.ts"
import { interruption, waitForHelpers } from "../interrupt.ts"
import { addOpenOptions, openOptions, type OpenFlags } from "../opening.ts"
import { notice, printable } from "../terminal.ts"

export function addMountCommands(program: Command): void {
  const mount = program
    .command("mount")
    .summary("mount an image on a folder")
    .description(
      "Mounts IMAGE read-only on DIR and returns; `sifcrypt unmount DIR` takes it away. Root gets the kernel's dm-crypt " +
        "where there is one, everybody else one FUSE process.",
    )
    .argument("<image>", "the image to mount")
    .argument("<dir>", "an existing folder")
    .option("--engine <engine>", "auto, kernel or userspace", parseEngine, "auto")
    .option("--allow-cipher <name>", "let the kernel engine use this cipher, e.g. serpent-xts-plain64")
    .option("--json", "print the mount as JSON")
  addOpenOptions(mount).action(
    async (
      image: string,
      dir: string,
      flags: OpenFlags & { engine: Engine; allowCipher?: string; json?: true },
    ) => {
      await withCredentials(flags, false, async (credentials) => {
        await using opened = await open(image, openOptions(flags, credentials))
        waitForHelpers()
        const mounted = await opened.mount(dir, {
          engine: flags.engine,
          detached: true,
          signal: interruption,
        })
        if (flags.json === true) await print(`${JSON.stringify(mounted.info)}\n`)
        else if (errors().isTTY) notice(`${mounted.info.target}: ${mounted.info.engine} engine`)
      })
    },
  )

  program
    .command("unmount")
    .alias("umount")
    .summary("take a mount of ours away")
    .description(
      "Unmounts DIR, on which sifcrypt mounted an image. Anything else mounted there is left alone.",
    )
    .argument("<dir>", "the folder it is mounted on")
    .action(async (dir: string) => {
      await unmount(dir)
    })

  program
    .command("mounts")
    .summary("list the mounts sifcrypt made")
    .description(
      "Lists the mounts of images that this process can see: target, engine, serving process, image.",
    )
    .option("--json", "print JSON")
    .action(async (flags: { json?: true }) => {
      const all = await listMounts()
      if (flags.json === true) {
        await print(`${JSON.stringify(all, null, 2)}\n`)
        return
      }
      if (all.length === 0) return
      const rows = all.map((m) => [m.target, m.engine, m.pid === undefined ? "-" : String(m.pid), m.image])
      const table = [["TARGET", "ENGINE", "PID", "IMAGE"], ...rows].map((row) => row.map(printable))
      const widths = [0, 1, 2].map((i) => Math.max(...table.map((row) => (row[i] ?? "").length)))
      for (const row of table)
        await print(`${row.map((cell, i) => cell.padEnd(widths[i] ?? 0)).join("  ")}\n`)
    })
}
