// Completion where it happens: in the shells, with their own ways to complete.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { existsSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { cli, sifcrypt, sifcryptOk } from "../support/cli.ts"
import { LineEditor } from "../support/line-editor.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

/** Lines as somebody types them, and what completes the last word. */
const cases: readonly (readonly [line: string, completed: readonly string[]])[] = [
  ["sifcrypt reci", ["recipient"]],
  ["sifcrypt recipient ", ["add", "help", "list", "remove", "rotate"]],
  ["sifcrypt -q mou", ["mount", "mounts"]],
  ["sifcrypt --no", ["--nocolor"]],
  [
    "sifcrypt sign -",
    [
      ...["--gpg", "--group-id", "--help", "--json", "--key", "--key-passphrase-fd", "--key-passphrase-file"],
      ...[
        "--keyidx",
        "--progress",
        "--secret-keyring",
        "--sif-id",
        "--sign-command",
        "--tree",
        "-g",
        "-h",
        "-i",
        "-k",
      ],
    ],
  ],
  ["sifcrypt ls --unsigned ", ["allow", "error", "warn"]],
  ["sifcrypt ls --unsigned=w", ["--unsigned=warn"]],
  ["sifcrypt ls --pem-path ", ["a-folder", "an-image.sif"]],
  ["sifcrypt ls --pem-path=an", ["--pem-path=an-image.sif"]],
  ["sifcrypt ls an-", ["an-image.sif"]],
  ["sifcrypt unmount ", ["a-folder"]],
  ["sifcrypt umount a", ["a-folder"]],
  ["sifcrypt exec an-image.sif an", ["an-image.sif"]],
  ["sifcrypt exec an-image.sif --bi", []],
  ["sifcrypt no-command ", []],
  ["sifcrypt ls --key-fd ", []],
  ["sifcrypt completion ", ["bash", "fish", "zsh"]],
]

describe("completion", () => {
  const folder = newFolder("completion")
  const bin = path.join(folder, "bin")
  const place = path.join(folder, "place")
  // Where V8's code cache goes is none of the place's files.
  const env = { PATH: `${bin}:${process.env["PATH"] ?? ""}`, XDG_CACHE_HOME: path.join(folder, "cache") }
  before(() => {
    mkdirSync(bin)
    mkdirSync(path.join(place, "a-folder"), { recursive: true })
    writeFileSync(path.join(place, "an-image.sif"), "")
    for (const name of ["sifcrypt", "apptainer"]) symlinkSync(cli, path.join(bin, name))
  })

  /** What stands in place of the last word. */
  const completedIn = (line: string, shown: string): string[] => {
    const words = shown.slice(line.lastIndexOf(" ") + 1).split(" ")
    // Some shells show a folder with a slash.
    return words.flatMap((word) => (word === "" ? [] : word.replace(/\/$/, ""))).toSorted()
  }

  for (const shell of ["bash", "zsh"] as const) {
    it(`offers in ${shell} what may follow, and nothing else`, async () => {
      await using editor = new LineEditor(shell, [`source <(sifcrypt completion ${shell})`], place, env)
      for (const [line, completed] of cases) {
        const found = completedIn(line, await editor.complete(line))
        // What completes nothing stays as it was typed.
        const typed = line.slice(line.lastIndexOf(" ") + 1)
        const expected = completed.length > 0 || typed === "" ? completed : [typed]
        assert.deepEqual(found, expected, `${shell}: ${line}`)
      }
      const within = await editor.complete("sifcrypt reci list", " list".length)
      assert.match(within, /^sifcrypt recipient +list/)
    })

    it(`is for the name that the command was called by, in ${shell}`, async () => {
      await using editor = new LineEditor(shell, [`source <(apptainer completion ${shell})`], place, env)
      assert.match(await editor.complete("apptainer recip"), /^apptainer recipient/)
    })
  }

  it("offers in fish what may follow, and nothing else", () => {
    const lines = cases.map(([line]) => line)
    const script = `sifcrypt completion fish | source
for line in $argv
    complete -C $line | string replace -r '\\t.*' ''
    echo :end
end`
    const shown = execFileSync("fish", ["--no-config", "-c", script, "--", ...lines], {
      cwd: place,
      env: { ...env, HOME: folder },
      encoding: "utf8",
    })
    const found = shown.split(":end\n").map((text) => text.split("\n").filter((word) => word !== ""))
    for (const [index, [line, completed]] of cases.entries())
      assert.deepEqual(found[index]?.map((word) => word.replace(/\/$/, "")).toSorted(), completed, line)
  })

  it("offers instances that run where one may stand", async () => {
    const tree = makeRootTree()
    await sifcryptOk(["instance", "start", tree, "web-1"])
    try {
      const cases = [
        ["exec instance", "instance://web-1"],
        ["shell instance://w", "instance://web-1"],
        ["run instance://x", ""],
        ["exec inst", ":files"],
        ["instance stop w", "web-1"],
        ["instance stats ", "web-1"],
        ["ls instance", ":files"],
      ]
      for (const [line = "", completed] of cases) {
        const { text } = await sifcrypt(["completion", "bash", "--", ...line.split(" ")])
        assert.equal(text.trim(), completed, line)
      }
      const { text } = await sifcrypt(["completion", "zsh", "--", "exec", "instance://"])
      assert.equal(text, `instance://web-1\t${tree}\n`)
    } finally {
      await sifcryptOk(["instance", "stop", "web-1"])
    }
  })

  it("runs no program of the folder that somebody looks around in", async () => {
    const foreign = newFolder("completion-foreign")
    const line = "./sifcrypt recip"
    writeFileSync(path.join(foreign, "sifcrypt"), "#!/bin/sh\ntouch was-run\n", { mode: 0o755 })
    for (const shell of ["bash", "zsh"] as const) {
      await using editor = new LineEditor(shell, [`source <(sifcrypt completion ${shell})`], foreign, env)
      assert.match(await editor.complete(line), /^\.\/sifcrypt recipient/, shell)
    }
    const script = `sifcrypt completion fish | source; complete -C "${line}"`
    const options = { cwd: foreign, env: { ...env, HOME: folder }, encoding: "utf8" } as const
    assert.match(execFileSync("fish", ["--no-config", "-c", script], options), /^recipient/)
    assert.equal(existsSync(path.join(foreign, "was-run")), false)
  })

  it("says of each option in fish and zsh what it is", async () => {
    const { text } = await sifcrypt(["completion", "fish", "--", "ls", "--lo"])
    assert.equal(text, "--long\tmode, links, owner, size, time, target\n")
  })

  it("knows the shells that there are", async () => {
    const refused = await sifcrypt(["completion", "tcsh"])
    assert.equal(refused.status, 20)
    assert.match(refused.stderr, /bash, zsh, fish/)
  })
})
