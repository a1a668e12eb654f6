// sifcrypt-shell with the entry script in a false root: its absolute paths are replaced by those of a folder.
import assert from "node:assert/strict"
import { spawnSync, type SpawnSyncOptions } from "node:child_process"
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { shellPath } from "../../lib/native/load.ts"
import { DEFAULT_PATH } from "../../lib/runtime/environment.ts"
import { ENTRY_FOLDER, entryScript, ociRunScript } from "../../lib/runtime/entry.ts"
import { ociRunscript } from "../../lib/source/oci-source.ts"

describe("sifcrypt-shell", () => {
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

  interface Ended {
    readonly status: number | null
    readonly output: string
    readonly errors: string
  }

  function start(args: readonly string[], options: Omit<SpawnSyncOptions, "encoding"> = {}): Ended {
    const script = entryScript
      .replaceAll(`${ENTRY_FOLDER}/`, `${root}${ENTRY_FOLDER}/`)
      .replaceAll("/.singularity.d/", `${root}/.singularity.d/`)
      .replaceAll("/singularity ", `${root}/singularity `)
    put("entry", script)
    const { status, stdout, stderr } = spawnSync(shellPath(), [path.join(root, "entry"), ...args], {
      env: { PATH: "/usr/bin:/bin", GOTRACEBACK: "none" },
      ...options,
      encoding: "utf8",
    })
    return { status, output: stdout, errors: stderr }
  }
  const run = (...args: string[]): Ended => start(args)

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

  it("has a search path where a script of the image unsets it", () => {
    put("/.singularity.d/env/90-environment.sh", "unset PATH; export A=1")
    assert.equal(run("exec", "sh", "-c", 'echo "$A $PATH"').output, `1 ${DEFAULT_PATH}\n`)
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
    assert.doesNotMatch(run("exec", "env").output, /^(?:_|script|action|folder)\w*=/m)
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

  it("runs an image that was made here of an OCI image as its run script does, without its shell", () => {
    const runs = (entrypoint: string[], cmd: string[], ...args: string[]): string => {
      const script = ociRunscript({ entrypoint, cmd })
      put(`${ENTRY_FOLDER}/runscript`, ociRunScript(script) ?? "")
      put("runscript", script, 0o755)
      const { output } = run("run", ...args)
      assert.equal(output, spawnSync(path.join(root, "runscript"), args, { encoding: "utf8" }).stdout)
      return output
    }
    assert.equal(runs(["/bin/echo", "it's", "$HOME"], ['"default" a']), `it's $HOME "default" a\n`)
    assert.equal(runs(["/bin/echo", "it's"], ["default"], "$(id)", "*"), "it's $(id) *\n")
    assert.equal(runs([], ["/bin/echo", "a\nb"]), "a\nb\n")
    assert.equal(runs([], [], "/bin/echo", "x y"), "x y\n")
    assert.equal(runs([], []), "")
  })

  it("takes no other run script for that of an OCI image", () => {
    assert.equal(ociRunScript('#!/bin/sh\nexec /bin/tool "$@"\n'), undefined)
    assert.equal(ociRunScript("OCI_ENTRYPOINT='\"x\"'\nOCI_CMD=''\nexec x\n"), undefined)
    assert.equal(ociRunScript("OCI_ENTRYPOINT=$(id)\nOCI_CMD=''\nSINGULARITY_OCI_RUN=\n"), undefined)
  })

  it("refuses an action that it does not know", () => {
    assert.deepEqual(run("destroy"), {
      status: 1,
      output: "",
      errors: "sifcrypt: unknown action destroy\n",
    })
  })

  describe("environment scripts", () => {
    const environment = (text: string): void => {
      put("/.singularity.d/env/90-environment.sh", text)
    }
    /** What the payload shows of its environment by these names. */
    const shows = (text: string, ...names: readonly string[]): string => {
      environment(text)
      const { status, output, errors } = run("exec", "printenv", ...names)
      assert.equal(status, 0, errors)
      return output
    }

    for (const [what, text, output] of [
      ["arrays", 'a=(one "two three"); a+=(four); export X="${a[1]} ${#a[@]}"', "two three 3\n"],
      ["associative arrays", 'declare -A m=([a]=1 [b]=2); export X="${m[b]}"', "2\n"],
      ["here-strings", 'read -r X <<<"a  b"; export X', "a  b\n"],
      ["tests with patterns", "if [[ abc == a* && abc =~ ^a.c$ ]]; then export X=yes; fi", "yes\n"],
      ["parts of values", "x=abcdef; export X=${x:1:3}${x^^}${x/b/-}", "bcdABCDEFa-cdef\n"],
      ["functions by keyword", "function f { local y=$1; export X=$y; }; f called", "called\n"],
      ["arithmetic", "((n = 6 * 7)); export X=$n", "42\n"],
      ["braces and process substitution", "export X=$(cat <(echo {1..3}))", "1 2 3\n"],
      ["quoted declarations", String.raw`\export X="a  \"b\" \$c"; f() { \local Y=1; }; f`, 'a  "b" $c\n'],
      [
        "lines that end as those of DOS do",
        'export A=1\r\nif [ "$A" = 1 ]; then\r\n  export X=dos\r\nfi\r\n',
        "dos\n",
      ],
      ["a return", "export X=1; return 3; export X=2", "1\n"],
      ["hash", "hash -r && export X=$?", "0\n"],
      ["what runs beside it", "sleep 0 & wait $!; export X=$?", "0\n"],
      ["set -u, which is for the script", "set -u; export X=${X:-none}", "none\n"],
    ] as const)
      it(`has ${what}, whatever shell the image has`, () => {
        assert.equal(shows(text, "X"), output)
      })

    it("sources what conda and its like write: functions that declare, eval and unset", () => {
      put(
        "/opt/conda.sh",
        String.raw`export CONDA_EXE='/opt/bin/conda'
__conda_hashr() { if [ -n "${"$"}{ZSH_VERSION:+x}" ]; then \rehash; else \hash -r; fi; }
__conda_activate() {
  if [ -n "${"$"}{CONDA_PS1_BACKUP:+x}" ]; then \unset CONDA_PS1_BACKUP; fi
  \local ask_conda
  ask_conda="$(PS1="${"$"}{PS1:-}" echo "PS1='(base) '
export CONDA_PREFIX='/opt/conda env'
. \"/missing/activate.d/x.sh\"")" || \return
  \eval "$ask_conda"
  __conda_hashr
}
conda() { \local cmd="${"$"}{1-__missing__}"; case "$cmd" in activate) __conda_activate "$@" ;; esac; }
`,
      )
      assert.equal(
        shows(`source ${root}/opt/conda.sh; conda activate base`, "CONDA_PREFIX", "CONDA_EXE"),
        "/opt/conda env\n/opt/bin/conda\n",
      )
    })

    it("goes on after a missing file, and runs nothing of one that is no script", () => {
      put("/broken.sh", "export BEFORE=1\nif then\n")
      environment(`. /no/such/file.sh\n. ${root}/broken.sh\nexport X=\${BEFORE-nothing}`)
      const { status, output, errors } = run("exec", "printenv", "X")
      assert.deepEqual([status, output], [0, "nothing\n"])
      assert.match(
        errors,
        /^source: open \/no\/such\/file\.sh: no such file or directory\nsource: .*broken\.sh:2:1: .*\n$/,
      )
    })

    it("leaves out a script of the image that is none, and takes the next", () => {
      put("/.singularity.d/env/80-broken.sh", "export X=broken\nfor")
      const { status, output, errors } = (environment('export X="${X-}next"'), run("exec", "printenv", "X"))
      assert.deepEqual([status, output], [0, "next\n"])
      assert.match(errors, /80-broken\.sh/)
    })

    it("starts the payload where it was to start, wherever a script goes", () => {
      environment("cd /usr; pushd /usr/bin >/dev/null")
      const { output } = start(["exec", "sh", "-c", "pwd; printenv PWD; printenv OLDPWD"], {
        cwd: root,
        env: { PATH: "/usr/bin:/bin", PWD: root },
      })
      assert.equal(output, `${root}\n${root}\n`)
      put("here", "#!/bin/sh\necho found\n", 0o755)
      assert.equal(start(["exec", "./here"], { cwd: root }).output, "found\n")
    })

    for (const [what, text, status] of [
      ["an exit", "exit 3", 3],
      ["an exit without a fault, which starts nothing", "exit 0", 255],
      ["a failure under set -e", "set -e; false; true", 1],
      ["a variable that is not set under set -u", 'set -u; export X="$NO_SUCH"', 1],
      ["a program that it becomes", "exec sh -c 'exit 9'", 9],
      ["a program that it cannot become", "exec /no/such", 255],
    ] as const)
      it(`ends with the status of ${what}`, () => {
        environment(text)
        const { status: ended, output } = run("exec", "echo", "payload")
        assert.deepEqual([ended, output], [status, ""])
      })

    for (const [text, status, message] of [
      ["coproc cat", 2, /^sifcrypt: the environment's scripts: coproc is not known here\n$/],
      ["(coproc cat) | cat", 2, /^sifcrypt: the environment's scripts: coproc is not known here\n$/],
      ["eval 'coproc cat' | cat", 2, /^sifcrypt: the environment's scripts: coproc is not known here\n$/],
      ["[[ -O /etc ]] | cat", 2, /^sifcrypt: the environment's scripts: -O is not known here\n$/],
      ["test -G /etc | cat", 2, /^sifcrypt: the environment's scripts: test -G is not known here\n$/],
      ["shopt -q extglob | cat", 2, /^sifcrypt: the environment's scripts: shopt -q is not known here\n$/],
      ["x=a; echo ${x@A} | cat", 2, /^sifcrypt: the environment's scripts: @A is not known here\n$/],
      [
        "exec {fd}>file",
        2,
        /^sifcrypt: the environment's scripts: a redirection of {fd} is not known here\n$/,
      ],
      // Not foreseen, and in a subshell, where nothing of ours catches it.
      ['[[ -v "" ]] | cat; sleep 5', 2, /^panic: variable name must not be empty\n$/],
      ["kill -QUIT $$; sleep 5", null, /^$/],
      ["f() { f; }; f", 255, /^sifcrypt: the environment's scripts: f: too many calls within each other\n$/],
      [
        "f() { : | f; }; f",
        255,
        /^sifcrypt: the environment's scripts: f: too many calls within each other\n$/,
      ],
    ] as const)
      it(`ends in a line and not in a trace: ${text}`, () => {
        environment(text)
        const { status: ended, output, errors } = run("exec", "echo", "payload")
        assert.deepEqual([ended, output], [status, ""], errors)
        assert.match(errors, message)
      })

    it("hands the mask of new files on, and says what it does not do", () => {
      environment(
        'umask 027; umask >&2; umask u=rwx || export X=refused; trap "echo bye" EXIT; ulimit -n 5; export Y=$?',
      )
      const { output, errors } = run("exec", "sh", "-c", 'umask; echo "$X $Y"')
      assert.equal(output, "0027\nrefused 127\n")
      assert.equal(
        errors,
        '0027\nsifcrypt: umask: u=rwx is no mode in digits\nsifcrypt: trap does nothing in the environment\'s scripts\nsifcrypt: "ulimit": executable file not found in $PATH\n',
      )
    })

    it("redirects the program that a script becomes, and not the payload", () => {
      environment(`exec sh -c "cat; echo error >&2" >${root}/out 2>&1 <<< "a text"`)
      assert.equal(run("exec", "true").output, "")
      assert.equal(readFileSync(path.join(root, "out"), "utf8"), "a text\nerror\n")
      environment(
        `exec 2>${root}/own; echo script >&2; sh -c 'echo program >&2'; exec cat >${root}/out 2>&1 <<X\nlines\nX`,
      )
      assert.equal(run("exec", "true").output, "")
      assert.equal(readFileSync(path.join(root, "own"), "utf8"), "script\nprogram\n")
      assert.equal(readFileSync(path.join(root, "out"), "utf8"), "lines\n")
      environment(`exec >${root}/own 2>&1 </dev/null; echo script`)
      const { output, errors } = start(["exec", "sh", "-c", "cat; echo error >&2"], { input: "input\n" })
      assert.deepEqual([output, errors], ["input\n", "error\n"])
      environment("exec sh -c 'echo out; echo error >&2' 2>&1 >/dev/null")
      assert.equal(run("exec", "true").output, "error\n")
    })

    it("redirects what follows an exec without a program, and what a subshell redirects only there", () => {
      const own = path.join(root, "own")
      environment(`(exec >/dev/null 2>&1; echo gone; echo gone >&2)
exec >${own} 2>&1
echo one; sh -c 'echo two >&2'; echo three >/dev/null; echo four
f() { exec sh -c 'echo payload; echo error >&2'; }; f`)
      const { status, output, errors } = run("exec", "true")
      assert.deepEqual([status, output, errors], [0, "payload\n", "error\n"])
      assert.equal(readFileSync(own, "utf8"), "one\ntwo\nfour\n")
    })

    for (const [what, text, output, errors = ""] of [
      [
        "for good, until they are closed",
        'exec 3>f; echo a >&3; exec 3>&-; cat f; echo b >&3; echo "$?"',
        "a\n1\n",
        "redirect 3: bad file descriptor\n",
      ],
      [
        "for a command, and for what it starts",
        'sh -c "echo a >&3" 3>f; cat f; while read l <&4; do echo "$l"; done 4<f',
        "a\na\n",
      ],
      [
        "for a function, and no longer",
        "f() { echo a >&5; }; f 5>f; cat f; f",
        "a\n",
        "redirect 5: bad file descriptor\n",
      ],
      [
        "to exchange others",
        '{ sh -c "echo out; echo error >&2" 2>&1 1>&3 | sed s/^/E:/ >&2; } 3>&1',
        "out\n",
        "E:error\n",
      ],
      ["out of what is captured", 'exec 4>&1; x=$(echo a; echo b >&4); echo "x=$x"', "b\nx=a\n"],
      ["to keep one that is redirected for good", "exec 3>&1; exec >f; echo a; exec >&3 3>&-; cat f", "a\n"],
      [
        "in a subshell, and only there",
        "(exec 3>f; echo a >&3); cat f; echo b >&3",
        "a\n",
        "redirect 3: bad file descriptor\n",
      ],
      ["in what is evaluated, by names that are", 'n=f; eval "exec 8>$n"; echo a >&8; cat "$n"', "a\n"],
      [
        "to read and to write, over what is there",
        'echo a >| f; exec 7<>f; read l <&7; echo "$l"; echo b >&g; cat g',
        "a\nb\n",
      ],
      ["that are closed", "echo a >&-; cat <&-; echo b 2>&-", "b\n"],
      [
        "from texts, beside standard input",
        "n=one\necho in | { cat - /dev/fd/4 <&0; read l <&3; echo $l; } 3<<X 4<<<two\n$n\nX\n",
        "in\ntwo\none\n",
      ],
      [
        "from a text for good, in a function, and in a program",
        "exec 5<<-X\n\ta\n\tb\n\tX\nread l <&5; f() { sh -c 'cat <&5'; }; f; echo $l; exec 5<&-; cat <&5",
        "b\na\n",
        "redirect 5: bad file descriptor\n",
      ],
      [
        "beside it and in pipes, in a line each",
        "cat <&9 & wait; echo a | cat <&9; echo b",
        "b\n",
        "redirect 9: bad file descriptor\n".repeat(2),
      ],
    ] as const)
      it(`redirects descriptors from 3 on: ${what}`, () => {
        environment(`cd ${root}\n${text}`)
        const { status, ...said } = run("exec", "true")
        assert.deepEqual(said, { output, errors })
        assert.equal(status, 0)
      })

    it("passes on what it has inherited, and nothing that a script has opened", () => {
      environment(
        `echo script >&3; exec 3>>${root}/own 4>>${root}/own; echo own >&3; sh -c 'echo program >&4'`,
      )
      const file = path.join(root, "three")
      const three = openSync(file, "w")
      try {
        const script = "echo payload >&3; { echo lost >&4; } 2>/dev/null"
        start(["exec", "sh", "-c", script], { stdio: ["ignore", "pipe", "pipe", three] })
      } finally {
        closeSync(three)
      }
      assert.equal(readFileSync(file, "utf8"), "script\npayload\n")
      assert.equal(readFileSync(path.join(root, "own"), "utf8"), "own\nprogram\n")
    })

    it("becomes a program within a subshell or beside itself only there", () => {
      environment("(exec true); x=$(exec echo inner); (sleep 0; exec false) & export X=$x")
      assert.equal(run("exec", "printenv", "X").output, "inner\n")
    })

    it("lets a script change the command", () => {
      environment('set -- echo "$1" changed')
      assert.equal(run("exec", "printenv", "X").output, "printenv changed\n")
    })

    it("keeps what says which image this is, and unsets what a script unsets", () => {
      environment(
        "APPTAINER_NAME=other; unset HOME FOO; export BAR=; set -a; e=exported; set +a; plain=1; export -n e2=1 || :",
      )
      const { output } = start(["exec", "env"], {
        env: { PATH: "/usr/bin:/bin", HOME: "/h", FOO: "1", APPTAINER_NAME: "this.sif" },
      })
      assert.match(output, /^APPTAINER_NAME=this\.sif$/m)
      assert.match(output, /^BAR=$/m)
      assert.match(output, /^e=exported$/m)
      assert.doesNotMatch(output, /^(?:HOME|FOO|plain)=/m)
    })

    it("gives names that are no identifiers to the payload, and to what scripts start", () => {
      environment("export X=$(printenv a.b)")
      const { output } = start(["exec", "env"], {
        env: { PATH: "/usr/bin:/bin", "a.b": "1", "c-d": "2", "BASH_FUNC_f%%": "() {  echo called\n}" },
      })
      assert.match(output, /^X=1$/m)
      assert.match(output, /^a\.b=1$/m)
      assert.match(output, /^c-d=2$/m)
      assert.match(output, /^BASH_FUNC_f%%=\(\) \{ {2}echo called\n\}$/m)
    })

    it("has no descriptor and no variable that the payload does not have", () => {
      environment(`ls -l /proc/self/fd >${root}/fds; env >${root}/variables`)
      const seen = (text: string): string[] =>
        text
          .split("\n")
          .map((line) => line.replace(/^.*:\d\d /, ""))
          .filter((line) => !line.includes("/proc/") && line !== "total 0")
          .sort()
      const { output } = run("exec", "sh", "-c", "ls -l /proc/self/fd; env")
      const fds = seen(readFileSync(path.join(root, "fds"), "utf8")).map((line) => line.split(" ")[0])
      const own = seen(output)
      for (const fd of fds)
        assert.ok(
          own.some((line) => line.startsWith(`${fd ?? ""} -> `) || line === ""),
          `descriptor ${fd ?? ""}`,
        )
      for (const line of readFileSync(path.join(root, "variables"), "utf8").trim().split("\n"))
        assert.ok(
          own.some((other) => other.startsWith(`${line.split("=")[0] ?? ""}=`)),
          line,
        )
    })
  })

  it("starts a script without a first line with the image's /bin/sh, and tells what is no program", () => {
    put("script", 'echo "$1 without a first line"', 0o755)
    put("/.singularity.d/env/90-environment.sh", `export X=$(${root}/script inner)`)
    assert.equal(run("exec", path.join(root, "script"), "a").output, "a without a first line\n")
    assert.equal(run("exec", "printenv", "X").output, "inner without a first line\n")
    put("elf", "\x7fELF and nothing more", 0o755)
    assert.deepEqual(run("exec", path.join(root, "elf")), {
      status: 255,
      output: "",
      errors: `sifcrypt: ${root}/elf: a program of another machine, or none\n`,
    })
    put("orphan", "#!/no/such/interpreter\n", 0o755)
    assert.deepEqual(run("exec", path.join(root, "orphan")), {
      status: 255,
      output: "",
      errors: `sifcrypt: ${root}/orphan: what runs it is not in the image: its interpreter, or its loader\n`,
    })
  })
})
