// The entry script in a false root: its absolute paths are replaced by those of a folder.
import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { ENTRY_FOLDER, entryScript } from "../../../lib/runtime/entry.ts"

describe("entryScript", () => {
  let root: string
  beforeEach(() => {
    root = mkdtempSync(path.join(tmpdir(), "sifcrypt-unit-"))
    put(`${ENTRY_FOLDER}/overrides.sh`, "")
    put(`${ENTRY_FOLDER}/host.sh`, "")
  })
  afterEach(() => {
    rmSync(root, { recursive: true })
  })

  function put(name: string, content: string, mode = 0o644): void {
    const file = path.join(root, name)
    mkdirSync(path.dirname(file), { recursive: true })
    writeFileSync(file, content, { mode })
  }

  function run(...args: string[]): { status: number | null; output: string; errors: string } {
    const script = entryScript
      .replaceAll(`${ENTRY_FOLDER}/`, `${root}${ENTRY_FOLDER}/`)
      .replaceAll("/.singularity.d/", `${root}/.singularity.d/`)
      .replaceAll("/singularity ", `${root}/singularity `)
    put("entry", script)
    const { status, stdout, stderr } = spawnSync("/bin/sh", [path.join(root, "entry"), ...args], {
      env: { PATH: "/usr/bin:/bin" },
      encoding: "utf8",
    })
    return { status, output: stdout, errors: stderr }
  }

  it("becomes the program, with its arguments as they are and its exit status", () => {
    const { output, status } = run("exec", "sh", "-c", 'printf "%s|" "$@"; exit 7', "x", "a b", "", "*", "'")
    assert.equal(output, "a b||*|'|")
    assert.equal(status, 7)
  })

  for (const name of ["no-such-program", "/no/such/program", "/etc", "/etc/passwd", ""])
    it(`says that ${JSON.stringify(name)} cannot be run, with the status 255`, () => {
      const { status, errors } = run("exec", name)
      assert.equal(status, 255)
      assert.equal(errors, `sifcrypt: ${name}: not found in the image, or not executable\n`)
    })

  it("sources the image's environment in order, then the caller's, then the host's", () => {
    put("/.singularity.d/env/10-first.sh", "A=image1; B=image; C=image; export A B C")
    put("/.singularity.d/env/90-last.sh", "export A=image2")
    put("/.singularity.d/env/99-runtimevars.sh", "export B=runtime")
    put("/.singularity.d/env/note.txt", "exit 99")
    put(`${ENTRY_FOLDER}/overrides.sh`, "export C=override")
    put(`${ENTRY_FOLDER}/host.sh`, '[ -n "${A+set}" ] || export A=host\n[ -n "${D+set}" ] || export D=host')
    assert.equal(run("exec", "sh", "-c", 'echo "$A $B $C $D"').output, "image2 image override host\n")
  })

  it("finds a program on the search path that the image sets", () => {
    put("/tools/hello", "#!/bin/sh\necho hello from a tool\n", 0o755)
    put("/.singularity.d/env/90-environment.sh", `export PATH=${root}/tools:$PATH`)
    assert.equal(run("exec", "hello").output, "hello from a tool\n")
  })

  it("leaves none of its own names in the environment", () => {
    put("/.singularity.d/env/10-allexport.sh", "set -a")
    assert.doesNotMatch(run("exec", "env").output, /^(script|action|folder)=/m)
  })

  it("runs the image's runscript with the arguments", () => {
    put("/.singularity.d/runscript", '#!/bin/sh\necho "runscript $*"\n', 0o755)
    assert.equal(run("run", "a", "b").output, "runscript a b\n")
  })

  it("runs the older kind of runscript, and else a shell", () => {
    assert.equal(run("run", "-c", "echo shell").output, "shell\n")
    put("/singularity", '#!/bin/sh\necho "old $*"\n', 0o755)
    assert.equal(run("run", "a").output, "old a\n")
  })

  it("refuses an action that it does not know", () => {
    assert.deepEqual(run("destroy"), {
      status: 255,
      output: "",
      errors: "sifcrypt: unknown action destroy\n",
    })
  })
})
