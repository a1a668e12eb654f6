// What is run under the live peer and under us, and how the two are compared. The table in docs/compatibility.md is made of it.

/** The images, made by the peer: images.ts. */
export type ImageName =
  "scripts" | "bare" | "oci" | "oci-cmd" | "oci-entry" | "no-shell" | "encrypted" | keyof typeof otherImages

/** What is no SIF; SIDE is who writes to it. */
export const otherImages = {
  sandbox: "box-SIDE",
  squashfs: "tree.sqfs",
  simg: "tree.simg",
  "oci:": "oci:layout-oci",
  "oci-archive:": "oci-archive:oci.tar",
  "docker-archive:": "docker-archive:docker.tar",
} as const

/** One command line, run on both sides. */
export interface Case {
  /** Groups the table. */
  readonly topic: string
  /** What is looked at, for people: unique in its topic. */
  readonly name: string
  readonly image: ImageName
  readonly action: "exec" | "run" | "shell" | "test" | "inspect" | "run-help"
  /** Before the image. */
  readonly options?: readonly string[]
  /** Behind the image. */
  readonly argv?: readonly string[]
  /** Of the caller. */
  readonly env?: Readonly<Record<string, string>>
  readonly input?: string
  /** Default: the exit status and what is written to standard output. */
  readonly compare?: "output" | "environment" | "mounts" | "json"
  /** Why we differ on purpose; the two must then differ indeed. */
  readonly differs?: string
  /** What is written here, where we differ. */
  readonly ours?: { readonly status?: number; readonly output?: RegExp }
}

const sh = (script: string, ...args: readonly string[]): readonly string[] => [
  "sh",
  "-c",
  script,
  "sh",
  ...args,
]
const literal = "values are literal unless `--eval` is given"

const actions: readonly Omit<Case, "topic">[] = [
  { name: "exec, exit status", image: "scripts", action: "exec", argv: sh("exit 7") },
  {
    name: "exec, arguments",
    image: "scripts",
    action: "exec",
    argv: sh('printf "<%s>" "$@"', "a b", "", "$HOME", '"'),
  },
  { name: "exec, killed by a signal", image: "scripts", action: "exec", argv: sh("kill -TERM $$") },
  { name: "exec, no such command", image: "scripts", action: "exec", argv: ["no-such-command"] },
  { name: "exec, no such file", image: "scripts", action: "exec", argv: ["/no/such/file"] },
  { name: "exec, not executable", image: "scripts", action: "exec", argv: ["/data/hello"] },
  {
    name: "exec, a script without a first line",
    image: "scripts",
    action: "exec",
    argv: ["./no-first-line"],
  },
  {
    name: "exec, no such interpreter",
    image: "scripts",
    action: "exec",
    argv: ["./no-interpreter"],
  },
  { name: "exec, a folder", image: "scripts", action: "exec", argv: ["/data"] },
  { name: "exec, image without scripts", image: "bare", action: "exec", argv: sh("echo $PATH; exit 3") },
  {
    name: "exec, encrypted image",
    image: "encrypted",
    action: "exec",
    options: ["--pem-path", "key.pem"],
    argv: sh("cat /data/hello; exit 4"),
  },
  {
    name: "exec, encrypted image, no key",
    image: "encrypted",
    action: "exec",
    argv: ["true"],
    differs: "statuses tell failures apart",
    ours: { status: 22 },
  },
  {
    name: "exec, unknown option",
    image: "scripts",
    action: "exec",
    options: ["--no-such-option"],
    argv: ["true"],
    differs: "statuses tell failures apart",
    ours: { status: 20 },
  },
  {
    name: "exec, no command",
    image: "scripts",
    action: "exec",
    differs: "statuses tell failures apart",
    ours: { status: 20 },
  },
  { name: "run, arguments and status", image: "scripts", action: "run", argv: ["a b", "$HOME", '"q'] },
  { name: "run, no run script", image: "bare", action: "run", argv: ["-c", "echo from sh; exit 2"] },
  { name: "test, arguments and status", image: "scripts", action: "test", argv: ["x", "y z"] },
  {
    name: "test, no test script",
    image: "bare",
    action: "test",
    differs: "that there is none is said on standard error",
    ours: { status: 0, output: /^$/ },
  },
  {
    name: "shell, reads standard input",
    image: "scripts",
    action: "shell",
    input: 'echo "$0 $SHELL $PS1"\nexit 5\n',
  },
  {
    name: "shell, --shell",
    image: "scripts",
    action: "shell",
    options: ["--shell", "/bin/ash"],
    input: "echo $0\n",
  },
  {
    name: "shell, arguments are ignored",
    image: "scripts",
    action: "shell",
    argv: ["-c", "echo no"],
    input: "",
  },
  { name: "umask", image: "scripts", action: "exec", argv: sh("umask") },
  { name: "--no-umask", image: "scripts", action: "exec", options: ["--no-umask"], argv: sh("umask") },
  {
    name: "user, group, home in passwd",
    image: "scripts",
    action: "exec",
    argv: sh("id -u; id -g; grep :1000: /etc/passwd /etc/group"),
  },
  {
    name: "no capabilities, no_new_privs",
    image: "scripts",
    action: "exec",
    argv: sh("grep -E '^(Cap|NoNewPrivs)' /proc/self/status"),
  },
]

const environment: readonly Omit<Case, "topic">[] = [
  {
    name: "default",
    image: "scripts",
    action: "exec",
    argv: ["env"],
    env: { FOO: "bar", FROM_IMAGE: "host", MULTI_HOST: "a\nb" },
    compare: "environment",
  },
  {
    name: "image without scripts",
    image: "bare",
    action: "exec",
    argv: ["env"],
    env: { FOO: "bar" },
    compare: "environment",
  },
  {
    name: "OCI image",
    image: "oci",
    action: "exec",
    argv: ["env"],
    env: { A: "host" },
    compare: "environment",
  },
  {
    name: "encrypted image",
    image: "encrypted",
    action: "exec",
    options: ["--pem-path", "key.pem"],
    argv: ["env"],
    env: { FOO: "bar" },
    compare: "environment",
  },
  { name: "run", image: "oci-entry", action: "run", argv: [], compare: "environment" },
  {
    name: "--cleanenv",
    image: "scripts",
    action: "exec",
    options: ["--cleanenv"],
    argv: ["env"],
    env: { FOO: "bar", http_proxy: "p", NO_PROXY: "n", LANG: "de_DE" },
    compare: "environment",
  },
  {
    name: "a script empties a host variable",
    image: "scripts",
    action: "exec",
    argv: ["env"],
    env: { EMPTY_IN_IMAGE: "host" },
    compare: "environment",
  },
  {
    name: "APPTAINERENV before SINGULARITYENV",
    image: "scripts",
    action: "exec",
    argv: ["env"],
    env: { SINGULARITYENV_X: "s", APPTAINERENV_X: "a", SINGULARITYENV_Y: "s", APPTAINERENV_FROM_IMAGE: "a" },
    compare: "environment",
  },
  {
    name: "--env before variables",
    image: "scripts",
    action: "exec",
    options: ["--env", "X=option,FROM_IMAGE=,Z=1"],
    argv: ["env"],
    env: { APPTAINERENV_X: "a", FROM_IMAGE: "host" },
    compare: "environment",
  },
  {
    name: "--env, a comma in the value",
    image: "scripts",
    action: "exec",
    options: ["--env", "X=a,b"],
    argv: sh('echo "$X"'),
  },
  {
    name: "--env, quotes as in CSV",
    image: "scripts",
    action: "exec",
    options: ["--env", 'A=1,"B=2,3"'],
    argv: sh('echo "$A $B"'),
  },
  {
    name: "--env, shell characters",
    image: "scripts",
    action: "exec",
    options: ["--env", "X=$(echo hi) $HOME"],
    argv: sh('echo "$X"'),
    differs: literal,
    ours: { output: /^\$\(echo hi\) \$HOME\n$/ },
  },
  {
    name: "--env, shell characters with --no-eval",
    image: "scripts",
    action: "exec",
    options: ["--no-eval", "--env", "X=$(echo hi) $HOME"],
    argv: ["env"],
    compare: "environment",
  },
  {
    name: "--env may not set HOME",
    image: "scripts",
    action: "exec",
    options: ["--env", "HOME=/x"],
    argv: sh('echo "$HOME"'),
  },
  {
    name: "--env PATH",
    image: "scripts",
    action: "exec",
    options: ["--env", "PATH=/only:/bin"],
    argv: sh('echo "$PATH"'),
  },
  {
    name: "PREPEND_PATH and APPEND_PATH",
    image: "scripts",
    action: "exec",
    argv: sh('echo "$PATH"'),
    env: { APPTAINERENV_PREPEND_PATH: "/pre", SINGULARITYENV_APPEND_PATH: "/post" },
  },
  { name: "PATH of an OCI image", image: "oci", action: "exec", argv: sh('echo "$PATH"') },
  {
    name: "--env-file",
    image: "scripts",
    action: "exec",
    options: ["--env-file", "variables"],
    argv: ["env"],
    env: { APPTAINERENV_X: "a", FOO: "host" },
    compare: "environment",
  },
  {
    name: "--env-file below --env",
    image: "scripts",
    action: "exec",
    options: ["--env-file", "variables", "--env", "X=option"],
    argv: sh('echo "$X"'),
  },
  {
    name: "APPTAINER_CLEANENV",
    image: "scripts",
    action: "exec",
    argv: ["env"],
    env: { FOO: "bar", APPTAINER_CLEANENV: "1" },
    compare: "environment",
  },
  {
    name: "no setting of a peer gets in",
    image: "scripts",
    action: "exec",
    argv: ["env"],
    env: { APPTAINER_FOO: "1", SINGULARITY_ENCRYPTION_PASSPHRASE: "secret" },
    compare: "environment",
  },
  {
    name: "LD_LIBRARY_PATH of --env keeps the host's libraries behind it",
    image: "scripts",
    action: "exec",
    options: ["--env", "LD_LIBRARY_PATH=/x"],
    argv: sh("echo $LD_LIBRARY_PATH"),
  },
  {
    name: "LD_LIBRARY_PATH of --env, empty",
    image: "scripts",
    action: "exec",
    options: ["--env", "LD_LIBRARY_PATH="],
    argv: sh("echo $LD_LIBRARY_PATH"),
  },
  {
    name: "APPTAINERENV_LD_LIBRARY_PATH, in an image without a shell",
    image: "no-shell",
    action: "exec",
    env: { APPTAINERENV_LD_LIBRARY_PATH: "/x" },
    compare: "environment",
    argv: ["env"],
  },
  {
    name: "names that are none for a shell",
    image: "scripts",
    action: "exec",
    env: { "a.b": "1", "c-d": "2", "BASH_FUNC_f%%": "() {  echo called\n}" },
    argv: ["printenv", "a.b", "c-d", "BASH_FUNC_f%%"],
  },
  {
    name: "names that are none for a shell, --cleanenv",
    image: "scripts",
    action: "exec",
    env: { "a.b": "1" },
    options: ["-e"],
    argv: ["printenv", "a.b"],
  },
  {
    name: "--env, a name that is none for a shell",
    image: "scripts",
    action: "exec",
    options: ["--env", "a.b=1"],
    argv: ["printenv", "a.b"],
  },
  {
    name: "binds are told to the inside",
    image: "scripts",
    action: "exec",
    options: ["-B", "shared:/in,/usr/share", "--mount", "type=bind,src=shared,dst=/in2"],
    argv: sh('echo "$APPTAINER_BIND $SINGULARITY_BIND"'),
  },
]

const oci: readonly Omit<Case, "topic">[] = [
  { name: "entry point and command", image: "oci", action: "run" },
  { name: "arguments replace the command", image: "oci", action: "run", argv: ["x", "y z"] },
  {
    name: "arguments with shell characters",
    image: "oci",
    action: "run",
    argv: ["$HOME", "$(echo hi)"],
    differs: "arguments are never evaluated",
    ours: { output: /\$HOME \$\(echo hi\)\n$/ },
  },
  {
    name: "arguments with a quote",
    image: "oci",
    action: "run",
    argv: ['a"b'],
    differs: "arguments are never evaluated",
    ours: { status: 0, output: /a"b\n$/ },
  },
  { name: "--no-eval", image: "oci", action: "run", options: ["--no-eval"], argv: ["$HOME", "y z"] },
  { name: "command only", image: "oci-cmd", action: "run" },
  { name: "command only, arguments", image: "oci-cmd", action: "run", argv: ["echo", "y z"] },
  { name: "entry point only, arguments", image: "oci-entry", action: "run", argv: ["-u"], compare: "output" },
  {
    name: "static program, no shell in the image",
    image: "no-shell",
    action: "exec",
    argv: ["/bin/busybox", "echo", "a b"],
  },
  {
    name: "environment, no shell in the image",
    image: "no-shell",
    action: "exec",
    argv: ["/bin/busybox", "env"],
    env: { FOO: "bar", A: "host" },
    options: ["--env", "B=option"],
    compare: "environment",
  },
  { name: "run, no shell in the image", image: "no-shell", action: "run", argv: ["true"] },
]

/** What `%environment` may hold, by what is looked at; the payload shows X, then says where it is. */
const scripts: Readonly<Record<string, string>> = {
  arrays: 'a=(one "two three"); a+=(four); export X="${a[1]} ${#a[@]} ${a[@]:1}"',
  "here-strings and here-documents": 'read -r a <<<"a  b"; b=$(cat <<E\nc $a\nE\n); export X="$a|$b"',
  "tests of bash": "if [[ abc == a* && abc =~ ^a.c$ ]]; then export X=yes; fi",
  "parts of values": "x=abcdef; export X=${x:1:3}${x^^}${x/b/-}${x%%d*}",
  functions: "function f { local y=$1; export X=$y; return 3; }; f called; X+=$?",
  "quoted declarations": "\\export X=a; f() { \\local Z=1; X=$X$Z; }; f; \\unset Y; \\hash -r",
  "a backslash without quotes": "export X=a\\ b\\'c",
  "a tilde": "export X=~:~/b",
  aliases: "alias f='export X=alias'\nf",
  "lines that end as those of DOS": 'if [ a = a ]; then\r\n  export X="dos"\r\nfi\r\n',
  "a missing file to source": ". /no/such/file; export X=$?",
  "no script at all": "export X=before\nif then\n",
  "another folder": 'cd /data; export X="$PWD"',
  "its own name and the command": 'export X="$0 $# $2"',
  "another command": 'set -- sh -c "echo changed"',
  "a mask of new files": "umask 027; export X=$(umask)",
  "a program that it becomes": 'export X=1; exec sh -c "echo become; exit 9"',
  "a redirection": "echo script >/dev/null; exec 2>/dev/null; export X=$(echo out; echo error >&2)",
  "a descriptor that a variable gets": "exec {X}>/dev/null; export X",
  return: "export X=1; return 5; export X=2",
  "exit 3": "exit 3",
  "exit 0": "exit 0",
  "set -e": "set -e; false; export X=1",
  "set -u": "set -u; export X=$NO_SUCH_VARIABLE",
  "set -u, nothing unset": "set -u; export X=${NO_SUCH_VARIABLE:-none}",
  "what is only for reading": "APPTAINER_NAME=x; export X=$?; UID=5; X=$X$?",
  "what is not passed on": "a=(1); declare -A m=([k]=v); x=plain; export -f f; export X=$?$a",
  trap: "trap 'echo bye' EXIT; export X=$?",
  ulimit: "ulimit -n 64; export X=$?",
  "a coprocess": "coproc cat; export X=1",
}

/** In an image whose shell is busybox, and in one that has none. */
const scriptCases: readonly (Omit<Case, "topic"> & { readonly script: string })[] = [
  ...Object.entries(scripts).map(([name, script]) => ({
    name,
    script,
    image: "scripts" as const,
    action: "exec" as const,
    argv: ["sh", "-c", 'echo "$X"; pwd; umask', "sh"],
    ...(name === "exit 0" && {
      differs: "that nothing was started is a failure",
      ours: { status: 255, output: /^$/ },
    }),
  })),
  ...["arrays", "tests of bash", "a missing file to source", "exit 3"].map((name) => ({
    name: `${name}, no shell in the image`,
    script: scripts[name] ?? "",
    image: "no-shell" as const,
    action: "exec" as const,
    argv: ["/bin/busybox", "printenv", "X"],
  })),
]

/** The environment scripts of the cases, by the names of their files. */
export const environmentScripts: ReadonlyMap<string, string> = new Map(
  scriptCases.map(({ script }, index) => [`environment-${index}.sh`, script]),
)

const environmentScript: readonly Omit<Case, "topic">[] = scriptCases.map((one, index) => ({
  ...one,
  options: ["-B", `environment-${index}.sh:/.singularity.d/env/90-environment.sh`],
}))

const apps: readonly Omit<Case, "topic">[] = [
  { name: "run --app", image: "scripts", action: "run", options: ["--app", "foo"], argv: ["a b"] },
  {
    name: "environment of an app",
    image: "scripts",
    action: "exec",
    options: ["--app", "foo"],
    argv: ["env"],
    compare: "environment",
  },
  { name: "test --app", image: "scripts", action: "test", options: ["--app", "foo"] },
  { name: "APPTAINER_APP", image: "scripts", action: "run", env: { APPTAINER_APP: "foo" }, argv: ["x"] },
  { name: "unknown app", image: "scripts", action: "run", options: ["--app", "none"] },
]

const lookAtMounts = ["cat", "/proc/self/mountinfo"]
const files: readonly Omit<Case, "topic">[] = [
  { name: "default mounts", image: "scripts", action: "exec", argv: lookAtMounts, compare: "mounts" },
  {
    name: "--contain",
    image: "scripts",
    action: "exec",
    options: ["--contain"],
    argv: lookAtMounts,
    compare: "mounts",
  },
  {
    name: "--contain, /dev",
    image: "scripts",
    action: "exec",
    options: ["--contain"],
    argv: sh("ls /dev"),
    differs: "`/dev/full` and `/dev/core` are there as well",
    ours: {
      status: 0,
      output: /^core\nfd\nfull\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n$/,
    },
  },
  {
    name: "--contain, home is empty and can be written to",
    image: "scripts",
    action: "exec",
    options: ["--contain"],
    argv: sh("cd; pwd; ls -A; touch x && ls; touch /tmp/y /var/tmp/z && echo ok"),
  },
  {
    name: "--contain --workdir",
    image: "scripts",
    action: "exec",
    options: ["-c", "-W", "WORK", "-S", "/scratch"],
    argv: lookAtMounts,
    compare: "mounts",
  },
  {
    name: "--workdir keeps what is written",
    image: "scripts",
    action: "exec",
    options: ["-c", "-W", "WORK"],
    argv: sh("touch /tmp/a /var/tmp/b; stat -c %a /tmp /var/tmp; ls /tmp /var/tmp"),
  },
  {
    name: "--no-home",
    image: "scripts",
    action: "exec",
    options: ["--no-home"],
    argv: lookAtMounts,
    compare: "mounts",
  },
  {
    name: "--home SRC:DST",
    image: "scripts",
    action: "exec",
    options: ["--home", "shared:/homes/me"],
    argv: sh("echo $HOME; ls $HOME; grep :1000: /etc/passwd"),
  },
  {
    name: "--home SRC:DST, mounts",
    image: "scripts",
    action: "exec",
    options: ["--home", "shared:/homes/me"],
    argv: lookAtMounts,
    compare: "mounts",
  },
  {
    name: "--no-mount",
    image: "scripts",
    action: "exec",
    options: ["--no-mount", "tmp,home,cwd,sys"],
    argv: lookAtMounts,
    compare: "mounts",
  },
  {
    name: "--no-mount bind-paths",
    image: "scripts",
    action: "exec",
    options: ["--no-mount", "bind-paths"],
    argv: lookAtMounts,
    compare: "mounts",
  },
  {
    name: "--no-mount /etc/hosts",
    image: "scripts",
    action: "exec",
    options: ["--no-mount", "/etc/hosts"],
    argv: lookAtMounts,
    compare: "mounts",
  },
  {
    name: "--scratch",
    image: "scripts",
    action: "exec",
    options: ["--scratch", "/scratch,/data/more"],
    argv: sh("for i in /scratch /data/more; do touch $i/x && ls $i; done"),
  },
  {
    name: "--bind, every form",
    image: "scripts",
    action: "exec",
    options: ["-B", "shared:/a:ro,shared:/b", "-B", "shared/file:/data/hello"],
    argv: lookAtMounts,
    compare: "mounts",
  },
  {
    name: "--bind, escaped colon and comma",
    image: "scripts",
    action: "exec",
    options: ["-B", "odd\\:name:/a", "-B", "odd\\,name:/b"],
    argv: sh("ls /a /b"),
  },
  {
    name: "--bind, the first of two wins",
    image: "scripts",
    action: "exec",
    options: ["-B", "shared:/in,/usr:/in"],
    argv: sh("ls /in"),
  },
  {
    name: "--bind below /tmp",
    image: "scripts",
    action: "exec",
    options: ["-B", "shared:/tmp/in"],
    argv: sh("ls /tmp/in"),
  },
  {
    name: "--bind to a new place in a folder that is bound",
    image: "scripts",
    action: "exec",
    options: ["-B", "below:/in,shared:/in/new/place"],
    argv: ["ls", "-R", "/in"],
  },
  {
    name: "--bind over a default",
    image: "scripts",
    action: "exec",
    options: ["-B", "shared:/tmp"],
    argv: sh("ls /tmp"),
  },
  {
    name: "--bind, read-only",
    image: "scripts",
    action: "exec",
    options: ["-B", "shared:/in:ro"],
    argv: sh("touch /in/x 2>/dev/null; echo $?"),
  },
  {
    name: "--bind, no such source",
    image: "scripts",
    action: "exec",
    options: ["-B", "/no/such/source"],
    argv: ["true"],
  },
  { name: "--bind, nothing", image: "scripts", action: "exec", options: ["-B", ""], argv: ["echo", "there"] },
  {
    name: "--bind, blanks and nothing between commas",
    image: "scripts",
    action: "exec",
    options: ["-B", " shared:/in ,, shared:/in2,"],
    argv: sh("ls /in /in2"),
  },
  {
    name: "--bind over the root",
    image: "scripts",
    action: "exec",
    options: ["-B", "/", "-B", "shared:/"],
    argv: sh("ls -d /data; ls /etc | wc -l"),
  },
  {
    name: "--bind of the root elsewhere",
    image: "scripts",
    action: "exec",
    options: ["-B", "/:/mnt"],
    argv: sh("ls -d /mnt/usr"),
  },
  {
    name: "--home without a source",
    image: "scripts",
    action: "exec",
    options: ["--home", ":/in"],
    argv: sh("echo $HOME; pwd; ls -d /in/scripts.sif"),
  },
  {
    name: "--home that is nowhere on the machine",
    image: "scripts",
    action: "exec",
    options: ["--home", "/nowhere/at/all"],
    argv: sh("echo $HOME; pwd; touch $HOME/x; ls $HOME"),
  },
  {
    name: "--home that a bind makes",
    image: "scripts",
    action: "exec",
    options: ["-B", "shared:/newhome", "--home", "/newhome"],
    argv: sh("echo $HOME; pwd; ls /newhome"),
  },
  {
    name: "--bind, no such option",
    image: "scripts",
    action: "exec",
    options: ["-B", "shared:/in:zz"],
    argv: ["true"],
  },
  ...(
    [
      ["a folder of a squashfs", "data.sqfs:/in:image-src=/sub"],
      ["a link in a squashfs", "data.sqfs:/in:image-src=/link"],
      ["a SIF's data partition", "with-data.sif:/in:image-src=/sub"],
      ["a partition by its number", "with-data.sif:/in:id=4,image-src=/sub"],
      ["nothing of that name in an image", "data.sqfs:/in:image-src=/none"],
      ["no such partition", "with-data.sif:/in:id=99"],
      ["a folder is no image", "shared:/in:image-src=/"],
    ] as const
  ).map(([what, bind]): Omit<Case, "topic"> => ({
    name: `--bind out of an image, ${what}`,
    image: "scripts",
    action: "exec",
    options: ["-B", bind],
    argv: sh("ls /in; touch /in/x 2>/dev/null || echo read-only"),
  })),
  {
    name: "--bind out of an image, mounts",
    image: "scripts",
    action: "exec",
    options: ["--mount", "type=bind,src=data.sqfs,dst=/in,image-src=/sub"],
    argv: lookAtMounts,
    compare: "mounts",
  },
  { name: "--writable, nothing to write", image: "scripts", action: "exec", options: ["-w"], argv: ["true"] },
  {
    name: "--mount",
    image: "scripts",
    action: "exec",
    options: ["--mount", "type=bind,source=shared,destination=/in,ro"],
    argv: lookAtMounts,
    compare: "mounts",
  },
  {
    name: "--mount, other types",
    image: "scripts",
    action: "exec",
    options: ["--mount", "type=tmpfs,destination=/in"],
    argv: ["true"],
  },
  {
    name: "APPTAINER_BIND adds to --bind",
    image: "scripts",
    action: "exec",
    options: ["-B", "shared:/a"],
    env: { APPTAINER_BIND: "shared:/b", SINGULARITY_BINDPATH: "shared:/c" },
    argv: sh("ls /a /b /c"),
  },
  {
    name: "APPTAINER_MOUNT",
    image: "scripts",
    action: "exec",
    env: { APPTAINER_MOUNT: "type=bind,src=shared,dst=/a" },
    argv: sh("ls /a"),
  },
  {
    name: "--pwd",
    image: "scripts",
    action: "exec",
    options: ["--pwd", "/data"],
    argv: sh("pwd; echo $PWD"),
  },
  {
    name: "--cwd, no such folder",
    image: "scripts",
    action: "exec",
    options: ["--cwd", "/nowhere"],
    argv: ["true"],
  },
  {
    name: "APPTAINER_PWD",
    image: "scripts",
    action: "exec",
    env: { APPTAINER_PWD: "/data" },
    argv: sh("pwd"),
  },
  { name: "--contain, working directory", image: "scripts", action: "exec", options: ["-c"], argv: ["pwd"] },
  {
    name: "--dns",
    image: "scripts",
    action: "exec",
    options: ["--dns", "1.1.1.1,8.8.8.8"],
    argv: sh("cat /etc/resolv.conf"),
  },
  { name: "--dns, no address", image: "scripts", action: "exec", options: ["--dns", "name"], argv: ["true"] },
  { name: "host files", image: "scripts", action: "exec", argv: sh("cat /etc/hosts /etc/resolv.conf") },
  {
    name: "the root is read-only",
    image: "scripts",
    action: "exec",
    argv: sh("touch /x /etc/x /data/x 2>/dev/null; echo $?"),
  },
]

const namespaces: readonly Omit<Case, "topic">[] = [
  {
    name: "--hostname",
    image: "scripts",
    action: "exec",
    options: ["--hostname", "inside.example"],
    argv: sh("hostname; cat /etc/hostname"),
  },
  {
    name: "APPTAINER_HOSTNAME",
    image: "scripts",
    action: "exec",
    env: { APPTAINER_HOSTNAME: "inside" },
    argv: sh("hostname"),
  },
  {
    name: "--containall, mounts",
    image: "scripts",
    action: "exec",
    options: ["--containall"],
    argv: lookAtMounts,
    compare: "mounts",
  },
  {
    name: "--containall, environment",
    image: "scripts",
    action: "exec",
    options: ["-C"],
    argv: ["env"],
    env: { FOO: "bar" },
    compare: "environment",
  },
  {
    name: "--compat, environment",
    image: "scripts",
    action: "exec",
    options: ["--compat"],
    argv: ["env"],
    env: { FOO: "bar" },
    compare: "environment",
  },
  {
    name: "--compat, umask and a root that can be written to",
    image: "scripts",
    action: "exec",
    options: ["--compat"],
    argv: sh("umask; touch /x && echo written"),
  },
  {
    name: "--pid, the payload's own number",
    image: "scripts",
    action: "exec",
    options: ["--pid", "--no-init"],
    argv: sh("echo $$"),
  },
  {
    name: "--pid, /proc",
    image: "scripts",
    action: "exec",
    options: ["--pid"],
    argv: sh("ls -d /proc/[0-9]* | wc -l | grep -cE '^[2-6]$'"),
  },
  {
    name: "--net --network none",
    image: "scripts",
    action: "exec",
    options: ["--net", "--network", "none"],
    argv: sh("cat /proc/net/dev | tail -n +3 | cut -d: -f1"),
  },
  {
    name: "--writable-tmpfs",
    image: "scripts",
    action: "exec",
    options: ["--writable-tmpfs"],
    argv: sh("touch /x /data/y && ls /x /data/y"),
  },
  {
    name: "--fakeroot",
    image: "scripts",
    action: "exec",
    options: ["--fakeroot"],
    argv: sh("id -u; id -g; echo $HOME"),
  },
  {
    name: "--security uid and gid",
    image: "scripts",
    action: "exec",
    options: ["--security", "uid:1234,gid:1235"],
    argv: sh("id -u; id -g"),
  },
]

const sources: readonly Omit<Case, "topic">[] = [
  ...(["sandbox", "squashfs", "simg"] as const).flatMap((image): Omit<Case, "topic">[] => [
    { name: `exec, ${image}`, image, action: "exec", argv: sh("cat /data/hello; id -u; exit 7") },
    {
      name: `shell, ${image}`,
      image,
      action: "shell",
      input: "echo $APPTAINER_COMMAND; cat /data/hello\n",
    },
    { name: `exec, ${image}, nothing is written`, image, action: "exec", argv: ["touch", "/data/made"] },
    {
      name: `--bind to where nothing is, ${image}`,
      image,
      action: "exec",
      options: ["--bind", "shared:/new/place"],
      argv: ["cat", "/new/place/file"],
    },
    {
      name: `--writable-tmpfs, ${image}`,
      image,
      action: "exec",
      options: ["--writable-tmpfs"],
      argv: sh("echo new >/made; cat /made"),
    },
  ]),
  { name: "run, sandbox", image: "sandbox", action: "run", argv: ["a b", "c"] },
  { name: "test, sandbox", image: "sandbox", action: "test", argv: ["x"] },
  { name: "inspect, sandbox", image: "sandbox", action: "inspect" },
  { name: "inspect, run script of a sandbox", image: "sandbox", action: "inspect", options: ["-r"] },
  { name: "run-help, sandbox", image: "sandbox", action: "run-help" },
  {
    name: "--writable, sandbox",
    image: "sandbox",
    action: "exec",
    options: ["--writable", "--no-mount", "cwd", "--no-home"],
    argv: sh("echo kept >/data/kept; cat /data/kept"),
  },
  { name: "what was written stays, sandbox", image: "sandbox", action: "exec", argv: ["cat", "/data/kept"] },
  {
    name: "--writable, a bind that has no place, sandbox",
    image: "sandbox",
    action: "exec",
    options: ["--writable", "--no-mount", "cwd", "--no-home", "--bind", "shared:/no/place"],
    argv: ["true"],
  },
  {
    name: "--writable --overlay, sandbox",
    image: "sandbox",
    action: "exec",
    options: ["--writable", "--overlay", "shared"],
    argv: ["true"],
  },
  {
    name: "--writable, squashfs",
    image: "squashfs",
    action: "exec",
    options: ["--writable"],
    argv: ["true"],
  },
  ...(["oci:", "oci-archive:", "docker-archive:"] as const).flatMap((image): Omit<Case, "topic">[] => [
    { name: `exec, ${image}`, image, action: "exec", argv: sh("cat /data/hello; echo $A $B $PATH") },
    { name: `run, ${image}`, image, action: "run", argv: ["x", "y z"] },
  ]),
]

const inspection: readonly Omit<Case, "topic">[] = [
  { name: "labels", image: "scripts", action: "inspect" },
  { name: "definition", image: "scripts", action: "inspect", options: ["-d"] },
  { name: "run script", image: "scripts", action: "inspect", options: ["-r"] },
  { name: "start script", image: "scripts", action: "inspect", options: ["-s"] },
  { name: "test script", image: "scripts", action: "inspect", options: ["-t"] },
  { name: "environment", image: "scripts", action: "inspect", options: ["-e"] },
  { name: "help", image: "scripts", action: "inspect", options: ["-H"] },
  { name: "labels and run script", image: "scripts", action: "inspect", options: ["-l", "-r"] },
  { name: "labels, JSON", image: "scripts", action: "inspect", options: ["-j"], compare: "json" },
  { name: "everything", image: "scripts", action: "inspect", options: ["--all"], compare: "json" },
  { name: "list of apps", image: "scripts", action: "inspect", options: ["--list-apps"] },
  { name: "an app", image: "scripts", action: "inspect", options: ["--app", "foo"] },
  { name: "run script of an app", image: "scripts", action: "inspect", options: ["--app", "foo", "-r"] },
  { name: "help of an app", image: "scripts", action: "inspect", options: ["--app", "foo", "-H"] },
  { name: "run-help", image: "scripts", action: "run-help" },
  { name: "run-help --app", image: "scripts", action: "run-help", options: ["--app", "foo"] },
  { name: "run-help, no help", image: "bare", action: "run-help" },
]

const topics: readonly (readonly [string, readonly Omit<Case, "topic">[]])[] = [
  ["Commands and exit status", actions],
  ["Environment", environment],
  ["OCI images, images without a shell", oci],
  ["What %environment may hold", environmentScript],
  ["Folders, squashfs files and names", sources],
  ["SCIF apps", apps],
  ["Files and folders", files],
  ["Namespaces and identity", namespaces],
  ["inspect and run-help", inspection],
]

/** What root.test.ts compares where both are root. */
export const rootCases = [
  "mounts",
  "--contain, mounts",
  "environment",
  "user, home, umask, capabilities",
] as const

export const cases: readonly Case[] = topics.flatMap(([topic, list]) =>
  list.map((one) => ({ topic, ...one })),
)

/** The table of docs/compatibility.md: a line for each case, by topic, laid out as Prettier does. */
export function compatibilityTable(): string {
  const asRoot = rootCases.map((name) => ({ topic: "As root", name, differs: undefined }))
  const listed = [...cases, ...asRoot]
  const rows = listed.map(({ topic, name, differs }, index) => [
    listed[index - 1]?.topic === topic ? "" : topic,
    name.replaceAll("|", "\\|"),
    differs === undefined ? "the same" : `differs: ${differs}`,
  ])
  const all = [["Topic", "Case", "Here"], ...rows]
  const widths = [0, 1, 2].map((column) => Math.max(...all.map((row) => row[column]?.length ?? 0)))
  const line = (row: readonly string[]): string =>
    `| ${row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(" | ")} |\n`
  const rule = line(widths.map((width) => "-".repeat(width)))
  return [line(all[0] ?? []), rule, ...rows.map(line)].join("")
}
