// The walks through docs/oci.md, command by command as they stand there. What is printed has to be what the documentation shows.
import assert from "node:assert/strict"
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { cli, packageRoot, runProgram, userId } from "../support/cli.ts"
import { makeLayout } from "../support/layout.ts"
import { htpasswd, Registry } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

interface Step {
  readonly command: string
  /** Line by line, with `…` for whatever it is. */
  readonly shown: readonly string[]
}

/** A file that is shown, by the name that the text before it gives. */
interface ShownFile {
  readonly name: string
  readonly content: string
}

function walk(heading: string): readonly (Step | ShownFile)[] {
  const text = readFileSync(path.join(packageRoot, "docs", "oci.md"), "utf8")
  const section = text.split(/^## /m).find((one) => one.startsWith(heading)) ?? ""
  return [...section.matchAll(/(?:`([\w.-]+)`:\n\n)?^```\n([^]*?)^```$/gm)].flatMap(
    ([, name = "", block = ""]): (Step | ShownFile)[] =>
      block.startsWith("$ ")
        ? block
            .split(/^\$ /m)
            .slice(1)
            .map((step) => {
              const [command = "", ...shown] = step.trimEnd().split("\n")
              return { command, shown }
            })
        : [{ name, content: block }],
  )
}

/** Columns are as wide as what is in them. */
function matches(line: string, shown: string): boolean {
  const words = shown
    .split("…")
    .map((part) => part.replaceAll(/[.*+?^${}()|[\]\\]/g, String.raw`\$&`).replaceAll(/ +/g, " +"))
  return new RegExp(`^ *${words.join(".*")}$`).test(line)
}

describe("docs/oci.md", () => {
  const folder = newFolder("walk", userId)
  const bin = path.join(folder, "bin")
  const layout = path.join(folder, "layout")
  let open: Registry
  let closed: Registry

  before(async () => {
    mkdirSync(bin)
    symlinkSync(cli, path.join(bin, "sifcrypt"))
    mkdirSync(layout)
    makeLayout(layout, makeRootTree(), { Env: ["PATH=/bin"], Cmd: ["/bin/sh"] })
    writeFileSync(path.join(folder, "registry.password"), "secret\n")
    ;[open, closed] = await Promise.all([Registry.start(), Registry.start({ htpasswd })])
  })
  after(() => Promise.all([open, closed].map((one) => one[Symbol.asyncDispose]())))

  /** What is somewhere else in the documentation. */
  const here = (text: string): string =>
    text
      .replaceAll("localhost:5000", open.host)
      .replaceAll("registry.example", closed.host)
      .replaceAll("docker://alpine:3.20", `oci:${layout}`)

  async function follow({ command, shown }: Step): Promise<void> {
    const home = path.join(folder, "home")
    const env = { HOME: home, PATH: `${bin}:${process.env["PATH"] ?? ""}` }
    const { status, text, stderr } = await runProgram(["bash", "-ec", here(command)], { cwd: folder, env })
    const [first = ""] = shown
    const isRefused = first.startsWith("sifcrypt: ")
    assert.equal(status === 0, !isRefused, `${command}\n${stderr}`)
    const lines = (isRefused ? stderr : text).trimEnd().split("\n")
    // What else is said is nobody's promise.
    const told = isRefused ? lines.filter((line) => matches(line, here(first))).slice(0, 1) : lines
    if (shown.length === 0) assert.equal(text, "", command)
    else if (shown.length === 1 && first === "…") assert.notEqual(text, "", command)
    else {
      assert.equal(told.length, shown.length, `${command}\n${lines.join("\n")}`)
      // Where a list is sorted by names, a registry's place in it depends on its address.
      for (const line of shown) {
        const found = told.findIndex((one) => matches(one, here(line)))
        assert.ok(found >= 0, `${command}\n${lines.join("\n")}\nhas no\n${line}`)
        told.splice(found, 1)
      }
    }
  }

  for (const heading of ["Layers encrypted for a key", "A signed, encrypted SIF for jobs"])
    it(`walks through: ${heading}`, async function () {
      this.timeout(300_000)
      const steps = walk(heading)
      assert.ok(steps.length >= 10)
      for (const step of steps)
        if ("command" in step) await follow(step)
        else writeFileSync(path.join(folder, step.name), here(step.content))
    })
})
