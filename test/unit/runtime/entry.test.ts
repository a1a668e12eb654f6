// The entry script in a false root: its absolute paths are replaced by those of a folder.
import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { ENTRY_FOLDER, entryScript, ociRunScript } from "../../../lib/runtime/entry.ts"

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

  for (const [name, why] of [
    ["no-such-program", "not found in the image, or not executable"],
    ["/no/such/program", "not found in the image, or not executable"],
    ["", "not found in the image, or not executable"],
    ["/etc", "a folder, not a program"],
    ["/etc/passwd", "not executable in the image"],
  ] as const)
    it(`says that ${JSON.stringify(name)} cannot be run, with the status 255`, () => {
      const { status, errors } = run("exec", name)
      assert.equal(status, 255)
      assert.equal(errors, `sifcrypt: ${name}: ${why}\n`)
    })

  it("sources the image's environment in order, then the caller's, then the host's", () => {
    put("/.singularity.d/env/10-first.sh", "A=image1; B=image; C=image; export A B C")
    put("/.singularity.d/env/90-last.sh", "export A=image2")
    put("/.singularity.d/env/99-runtimevars.sh", "export B=runtime")
    put("/.singularity.d/env/note.txt", "exit 99")
    put(`${ENTRY_FOLDER}/overrides.sh`, "export C=override")
    put(`${ENTRY_FOLDER}/host.sh`, '[ -n "${A+set}" ] || export A=host\n[ -n "${D+set}" ] || export D=host')
    assert.equal(run("exec", "sh", "-c", 'echo "$A $B $C $D"').output, "image2 runtime override host\n")
  })

  it("lets the caller's variables follow 99-base.sh, so that later scripts see them", () => {
    put("/.singularity.d/env/90-environment.sh", "export A=image")
    put("/.singularity.d/env/99-base.sh", 'export BEFORE="$A"')
    put("/.singularity.d/env/99-later.sh", 'export AFTER="$A"')
    put(`${ENTRY_FOLDER}/overrides.sh`, "export A=override")
    assert.equal(run("exec", "sh", "-c", 'echo "$BEFORE $AFTER $A"').output, "image override override\n")
  })

  it("hands the search path over, whether the image knows how or not", () => {
    put(
      `${ENTRY_FOLDER}/overrides.sh`,
      "export SING_USER_DEFINED_PREPEND_PATH=/pre SING_USER_DEFINED_APPEND_PATH=/post",
    )
    assert.equal(run("exec", "sh", "-c", "echo $PATH").output, "/pre:/usr/bin:/bin:/post\n")
    put("/.singularity.d/env/99-base.sh", "")
    put(
      "/.singularity.d/env/99-runtimevars.sh",
      "PATH=$SING_USER_DEFINED_PREPEND_PATH:$PATH; unset SING_USER_DEFINED_PREPEND_PATH SING_USER_DEFINED_APPEND_PATH",
    )
    assert.equal(run("exec", "sh", "-c", "echo $PATH").output, "/pre:/usr/bin:/bin\n")
    put(`${ENTRY_FOLDER}/overrides.sh`, "export SING_USER_DEFINED_PATH=/usr/bin:/only")
    assert.equal(run("exec", "sh", "-c", "echo $PATH").output, "/usr/bin:/only\n")
    assert.doesNotMatch(run("exec", "env").output, /SING_USER/)
  })

  it("fills the search path of an OCI image up", () => {
    put("/.singularity.d/env/10-docker2singularity.sh", "export PATH=/app:/usr/bin")
    assert.equal(
      run("exec", "sh", "-c", "echo $PATH").output,
      "/app:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin\n",
    )
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

  it("runs the image's test script, and has nothing to do without one", () => {
    assert.deepEqual(run("test"), {
      status: 0,
      output: "",
      errors: "sifcrypt: there is no test script in the image\n",
    })
    put("/.singularity.d/test", '#!/bin/sh\necho "test $*"; exit 3\n', 0o755)
    assert.deepEqual(run("test", "a b"), { status: 3, output: "test a b\n", errors: "" })
  })

  it("evaluates the words of an OCI image, and no argument", () => {
    const words = `#!/bin/sh
OCI_ENTRYPOINT='"/bin/echo" "it'"'"'s" "\\$HOME" "two
lines"'
OCI_CMD='"default" "a\\"b"'
SINGULARITY_OCI_RUN="\${OCI_ENTRYPOINT} \${OCI_CMD}"
eval "set \${SINGULARITY_OCI_RUN}"
exec "$@"
`
    put(`${ENTRY_FOLDER}/runscript`, ociRunScript(words) ?? "")
    assert.equal(run("run").output, `it's $HOME two\nlines default a"b\n`)
    assert.equal(run("run", "$(id)", '"', "a  b").output, `it's $HOME two\nlines $(id) " a  b\n`)
    put(
      `${ENTRY_FOLDER}/runscript`,
      ociRunScript(words.replace(/^OCI_ENTRYPOINT=[^]*?lines"'/m, "OCI_ENTRYPOINT=''")) ?? "",
    )
    assert.equal(run("run", "printf", "%s|", "$(id)", "*").output, "$(id)|*|")
    assert.equal(run("run", "no-such-program").status, 255)
  })

  it("takes no other run script for that of an OCI image", () => {
    assert.equal(ociRunScript('#!/bin/sh\nexec /bin/tool "$@"\n'), undefined)
    assert.equal(ociRunScript("OCI_ENTRYPOINT='\"x\"'\nOCI_CMD=''\nexec x\n"), undefined)
    assert.equal(ociRunScript("OCI_ENTRYPOINT=$(id)\nOCI_CMD=''\nSINGULARITY_OCI_RUN=\n"), undefined)
  })

  it("refuses an action that it does not know", () => {
    assert.deepEqual(run("destroy"), {
      status: 255,
      output: "",
      errors: "sifcrypt: unknown action destroy\n",
    })
  })
})
