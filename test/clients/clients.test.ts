// Programs that call apptainer or singularity, with this command under those names, as an ordinary user; each with a plain and an
// encrypted image, whose key is in the environment.
import assert from "node:assert/strict"
import { mkdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { Registry } from "../support/registry.ts"
import { lines, programs } from "./cases.ts"
import { bring, client, home, kinds, makeImages, work } from "./surroundings.ts"
import type { Result } from "../support/cli.ts"

const at = (...names: string[]): string => path.join(work, ...names)

function succeeded(result: Result): Result {
  assert.equal(result.status, 0, `${result.text}\n${result.stderr}`)
  return result
}

/** A CWL tool in each image, and a workflow of both. */
function writeWorkflow(): void {
  for (const kind of kinds)
    writeFileSync(
      at(`${kind}.cwl`),
      JSON.stringify({
        cwlVersion: "v1.2",
        class: "CommandLineTool",
        requirements: { DockerRequirement: { dockerImageId: `${kind}.sif` } },
        baseCommand: ["sh", "-c"],
        arguments: ["echo from $SINGULARITY_NAME; cat $0", "$(inputs.file)"],
        inputs: { file: { type: "File" } },
        outputs: { out: { type: "stdout" } },
        stdout: `${kind}.txt`,
      }),
    )
  writeFileSync(
    at("workflow.cwl"),
    JSON.stringify({
      cwlVersion: "v1.2",
      class: "Workflow",
      inputs: { file: { type: "File" } },
      outputs: Object.fromEntries(kinds.map((kind) => [kind, { type: "File", outputSource: `${kind}/out` }])),
      steps: Object.fromEntries(
        kinds.map((kind) => [kind, { run: `${kind}.cwl`, in: { file: "file" }, out: ["out"] }]),
      ),
    }),
  )
}

function assertWorkflow(folder: string): void {
  for (const kind of kinds)
    assert.equal(readFileSync(path.join(folder, `${kind}.txt`), "utf8"), `from ${kind}.sif\nwhat goes in\n`)
}

async function runSnakemake(): Promise<void> {
  await using registry = await Registry.start()
  await registry.push(`oci:${await makeImages()}`, "group/tool:1")
  const images = {
    plain: "plain.sif",
    encrypted: "encrypted.sif",
    fetched: `docker://${registry.host}/group/tool:1`,
  }
  const rules = Object.entries(images).map(
    ([name, image]) => `rule ${name}:
    output: "snakemake-${name}.txt"
    container: "${image}"
    shell: "cat input > {output}; echo $SINGULARITY_NAME >> {output}"
`,
  )
  writeFileSync(at("Snakefile"), rules.join("\n"))
  const names = Object.keys(images)
  const targets = names.map((name) => `snakemake-${name}.txt`)
  const options = ["--use-singularity", "--singularity-prefix", "images", "--cores", "1"]
  succeeded(await client(["snakemake", ...options, ...targets]))
  const written = names.map((name) => readFileSync(at(`snakemake-${name}.txt`), "utf8"))
  const [plain, encrypted, fetched = ""] = written
  assert.deepEqual([plain, encrypted], ["what goes in\nplain.sif\n", "what goes in\nencrypted.sif\n"])
  assert.match(fetched, /^what goes in\n[0-9a-f]{32}\.simg\n$/)
}

async function runCwltool(): Promise<void> {
  writeWorkflow()
  const args = ["--quiet", "--singularity", "--outdir", at("cwltool"), "workflow.cwl", "--file", "input"]
  succeeded(await client(["cwltool", ...args]))
  assertWorkflow(at("cwltool"))
}

async function runToil(): Promise<void> {
  writeWorkflow()
  const places = ["--jobStore", at("jobs"), "--outdir", at("toil"), "--workDir", home]
  const args = [
    "--singularity",
    "--disableProgress",
    "--logError",
    ...places,
    "workflow.cwl",
    "--file",
    "input",
  ]
  succeeded(await client(["toil-cwl-runner", ...args], { env: { CWL_SINGULARITY_CACHE: work } }))
  assertWorkflow(at("toil"))
}

async function runDatalad(): Promise<void> {
  const person = { GIT_AUTHOR_NAME: "somebody", GIT_AUTHOR_EMAIL: "somebody@localhost" }
  const env = { ...person, GIT_COMMITTER_NAME: "somebody", GIT_COMMITTER_EMAIL: "somebody@localhost" }
  writeFileSync(
    at("datalad.sh"),
    `set -e
git config --global user.name somebody
git config --global user.email somebody@localhost
datalad create --no-annex dataset
cd dataset
for kind in ${kinds.join(" ")}; do
  cp ../$kind.sif .
  datalad save -m $kind
  datalad containers-add $kind --image $kind.sif --call-fmt 'singularity exec {img} {cmd}'
  datalad containers-run -n $kind --output $kind.txt "sh -c 'echo from \\$SINGULARITY_NAME > $kind.txt'"
done
`,
  )
  succeeded(await client(["bash", "datalad.sh"], { env }))
  for (const kind of kinds)
    assert.equal(readFileSync(at("dataset", `${kind}.txt`), "utf8"), `from ${kind}.sif\n`)
}

/**
 * The host's own libraries and Python stand for an image that was made for the machine.
 *
 * @returns What was said beside the results.
 */
async function runMpi(
  mpirun: readonly string[],
  library: string,
  env: Readonly<Record<string, string>> = {},
): Promise<string> {
  bring("mpi-sum.py")
  const binds = ["-B", "/usr,/lib64,/etc/alternatives", "-B", "/usr/lib:/lib"]
  let said = ""
  for (const kind of kinds) {
    const command = ["apptainer", "exec", ...binds, `${kind}.sif`, "/usr/bin/python3", "mpi-sum.py", library]
    const { text, stderr } = succeeded(await client([...mpirun, "-n", "2", ...command], { env }))
    assert.deepEqual(text.trim().split("\n").sort(), ["0 of 2: 3", "1 of 2: 3"])
    said += stderr
  }
  return said
}

/** Copies from process to process through the kernel, which have to be in one user namespace. */
async function runOpenMpi(): Promise<void> {
  const copies = ["--mca", "pml", "ob1", "--mca", "btl", "vader,self"]
  const mpirun = [
    ...["mpirun.openmpi", "--oversubscribe", ...copies],
    ...["--mca", "btl_vader_single_copy_mechanism", "cma"],
  ]
  assert.doesNotMatch(await runMpi(mpirun, "libmpi.so.40"), /CMA/)
  const alone = runMpi(mpirun, "libmpi.so.40", { APPTAINER_NO_SHARENS: "1" })
  // mpirun does not always get to print the reason before it ends.
  const refused =
    /CMA support is\s+not available due to different user namespaces|vader BTL is aborting the MPI job/
  await assert.rejects(alone, refused)
}

/** UCX looks into others' shared memory through /proc, which user namespaces forbid. */
async function runMpich(): Promise<void> {
  await runMpi(["mpirun.mpich"], "libmpich.so.12")
  const env = { APPTAINER_NO_SHARENS: "1", UCX_POSIX_USE_PROC_LINK: "n" }
  await runMpi(["mpirun.mpich"], "libmpich.so.12", env)
}

const runs: Readonly<Record<string, () => Promise<void>>> = {
  "snakemake 7.21": runSnakemake,
  "cwltool 3.1": runCwltool,
  "toil-cwl-runner 5.9": runToil,
  "datalad containers-run 1.1": runDatalad,
  "Open MPI 4.1": runOpenMpi,
  "MPICH 4.0": runMpich,
}

describe("programs that call the peers", function () {
  this.timeout(300_000)
  before(async () => {
    await makeImages()
    writeFileSync(at("command.sh"), 'echo "from $SINGULARITY_NAME in $PWD: $(cat ${0%/*}/input)"\n')
    mkdirSync(at("home"), { recursive: true })
  })

  it("are all run that the table lists", () => {
    assert.deepEqual(
      Object.keys(runs),
      programs.map(([program]) => program),
    )
  })
  for (const [program, run] of Object.entries(runs))
    it(`${program}, with a plain and an encrypted image`, run)

  for (const { program, what, line, output, status = 0 } of lines)
    for (const kind of line.includes("KIND") ? kinds : (["plain"] as const))
      it(`${program}: ${what}, ${kind}`, async () => {
        const filled = (text: string): string => text.replaceAll("KIND", kind).replaceAll("WORK", work)
        const result = await client(["bash", "-c", filled(line)])
        assert.equal(result.status, status, result.stderr)
        assert.match(result.text, new RegExp(filled(output.source)))
      })
})
