// The first thing that somebody tries, on a machine where nothing is installed.
import assert from "node:assert/strict"
import { chmodSync, cpSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { idOf, packageRoot, runProgram } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"

describe("npm run demo, as an ordinary user, where no package is installed", () => {
  const clone = newFolder("demo", idOf("nobody"))
  const programs = path.join(clone, "programs")
  before(() => {
    for (const name of ["scripts", "package.json", "package-lock.json"])
      cpSync(path.join(packageRoot, name), path.join(clone, name), { recursive: true })
    mkdirSync(programs)
    for (const name of ["bash", "dirname", "flock", "grep", "sed", "sort", "tr"])
      symlinkSync(path.join("/usr/bin", name), path.join(programs, name))
    symlinkSync(process.execPath, path.join(programs, "node"))
  })

  const demo = async (): Promise<{ status: number | null; lines: string[]; text: string }> => {
    const run = [
      "/usr/bin/env",
      "-i",
      `PATH=${programs}`,
      `HOME=${clone}`,
      "/usr/bin/bash",
      "scripts/demo.sh",
    ]
    const { status, text, stderr } = await runProgram(run, { as: "nobody", cwd: clone })
    return { status, text, lines: stderr.trimEnd().split("\n") }
  }

  it("ends with what to install, where nobody knows how", async () => {
    const { status, text, lines } = await demo()
    assert.equal(status, 1, lines.join("\n"))
    assert.equal(text, "")
    assert.equal(
      lines[0],
      "system-packages: neither apt-get nor dnf here; these are needed, by their Debian names:",
    )
    assert.ok(lines.includes("  crun") && lines.includes("  busybox-static"), lines.join("\n"))
    assert.ok(!lines.includes("  clang-tidy"), "only tests need that")
    assert.ok(
      lines.slice(1).every((line) => /^ {2}[\w.+-]+$/.test(line)),
      lines.join("\n"),
    )
  })

  it("ends with the command that installs it, on Debian", async () => {
    for (const [name, script] of [
      ["apt-get", "exit 1"],
      ["dpkg", "echo amd64"],
      ["dpkg-query", "exit 1"],
    ] as const) {
      writeFileSync(path.join(programs, name), `#!/usr/bin/bash\n${script}\n`)
      chmodSync(path.join(programs, name), 0o755)
    }
    const { status, text, lines } = await demo()
    assert.equal(status, 1, lines.join("\n"))
    assert.equal(text, "")
    assert.equal(lines.length, 2)
    assert.match(
      lines[1] ?? "",
      /^system-packages: as root: apt-get install -y --no-install-recommends crun /,
    )
  })
})
