// Programs that call the peers: those of Debian are run, of others the command lines that they compose. The table in
// docs/compatibility.md is made of it.

/** A command line as a program composes it; KIND is the image's: plain, encrypted. WORK is where it works. */
export interface Line {
  readonly program: string
  readonly what: string
  /** In bash. */
  readonly line: string
  readonly output: RegExp
  readonly status?: number
}

/** What is run as a whole. */
export const programs: readonly (readonly [program: string, what: string])[] = [
  ["snakemake 7.21", "`--use-singularity`, images that are files and `docker://`"],
  ["cwltool 3.1", "`--singularity`, a workflow of two steps"],
  ["toil-cwl-runner 5.9", "`--singularity`, the same workflow"],
  ["datalad containers-run 1.1", "with `singularity exec {img} {cmd}`"],
  ["Open MPI 4.1", "`mpirun apptainer exec`, two processes"],
  ["MPICH 4.0", "`mpirun apptainer exec`, two processes"],
]

export const lines: readonly Line[] = [
  {
    program: "Nextflow",
    what: "a task",
    line:
      'set +u; export NXF_TASK_WORKDIR=$PWD; env - PATH="$PATH" APPTAINER_ENCRYPTION_PEM_PATH=$APPTAINER_ENCRYPTION_PEM_PATH ' +
      '${TMPDIR:+SINGULARITYENV_TMPDIR="$TMPDIR"} SINGULARITYENV_NXF_TASK_WORKDIR="$NXF_TASK_WORKDIR" ' +
      'singularity exec --no-home --pid -B WORK WORK/KIND.sif /bin/bash -c "cd $NXF_TASK_WORKDIR; /bin/bash -ue WORK/command.sh"',
    output: /^from KIND\.sif in WORK: what goes in\n$/,
  },
  {
    program: "Galaxy",
    what: "a tool",
    line:
      "SINGULARITYENV_GALAXY_SLOTS=2 singularity -s exec --cleanenv -B WORK:WORK:ro -B $HOME:$HOME --pwd WORK " +
      "--home $HOME:$HOME WORK/KIND.sif /bin/sh -c 'echo $GALAXY_SLOTS; cat input; touch written 2>/dev/null || echo refused'",
    output: /^2\nwhat goes in\nrefused\n$/,
  },
  {
    program: "HTCondor",
    what: "looks for it",
    line: "apptainer --version",
    output: /^apptainer version \d+\.\d+\.\d+\n$/,
  },
  {
    program: "HTCondor",
    what: "a job",
    line:
      "apptainer -s exec -S /tmp -S /var/tmp --pwd /srv -B WORK:/srv --no-home -C WORK/KIND.sif " +
      "/bin/sh -c 'pwd; cat input; ls /tmp; exit 37'",
    output: /^\/srv\nwhat goes in\n$/,
    status: 37,
  },
  {
    program: "miniwdl",
    what: "a task",
    line:
      "mkdir -p task/work task/tmp; singularity --verbose exec --pwd /mnt/miniwdl/work --containall --no-mount hostfs " +
      "--bind WORK/task/work:/mnt/miniwdl/work --bind WORK/task/tmp:/tmp --bind WORK/task/tmp:/var/tmp " +
      "--bind WORK/input:/mnt/miniwdl/work/_miniwdl_inputs/0/input:ro WORK/KIND.sif " +
      "/bin/bash -c 'pwd; cat _miniwdl_inputs/0/input; touch made /tmp/made'",
    output: /^\/mnt\/miniwdl\/work\nwhat goes in\n$/,
  },
  {
    program: "Cromwell",
    what: "a task",
    line: "singularity exec --containall --bind WORK:/cromwell-executions WORK/KIND.sif /bin/bash /cromwell-executions/command.sh",
    output: /^from KIND\.sif in [^:]*: what goes in\n$/,
  },
  {
    program: "spython",
    what: "looks for it",
    line: "singularity --version && singularity --quiet inspect --json --labels --deffile WORK/plain.sif >/dev/null",
    output: /^apptainer version \d+\.\d+\.\d+\n$/,
  },
  {
    program: "spython",
    what: "runs a command",
    line: "singularity --quiet exec --bind WORK:/data --cleanenv WORK/KIND.sif cat /data/input",
    output: /^what goes in\n$/,
  },
  {
    program: "glideins",
    what: "a pilot",
    line:
      "GLIDEIN=1 apptainer --silent exec --home WORK:/srv --pwd /srv --ipc --pid --contain --bind /etc/hosts WORK/KIND.sif " +
      "/bin/sh -c 'echo $GLIDEIN $HOME; cat input'",
    output: /^1 \/srv\nwhat goes in\n$/,
  },
]

/** The table of docs/compatibility.md, laid out as Prettier does. */
export function clientsTable(): string {
  const composed = [...new Set(lines.map(({ program }) => program))].map((program): readonly string[] => {
    const what = lines.filter((one) => one.program === program).map((one) => one.what)
    return [program, "its command lines", [...new Set(what)].join(", ")]
  })
  const rows = [
    ["Program", "Tried", "What"],
    ...programs.map(([program, what]) => [program, "run, from Debian 12", what]),
    ...composed,
  ]
  const widths = [0, 1, 2].map((column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)))
  const line = (row: readonly string[]): string =>
    `| ${row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(" | ")} |\n`
  const [head = [], ...rest] = rows
  return [line(head), line(widths.map((width) => "-".repeat(width))), ...rest.map(line)].join("")
}
