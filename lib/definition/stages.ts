// Builds the root file systems of a definition, stage by stage. Runs in the workspace, as root of its namespaces.
import { spawn } from "node:child_process"
import { once } from "node:events"
import { chmod, lstat, mkdir, readdir, rename, rm, writeFile } from "node:fs/promises"
import path from "node:path"
import { thenUndone } from "../disposal.ts"
import { BuildError } from "../errors.ts"
import { shellPath } from "../native/load.ts"
import type { Bind } from "../runtime/binds.ts"
import { ENTRY_FOLDER, SHELL_PATH, entryScript } from "../runtime/entry.ts"
import {
  composeEnvironment,
  DEFAULT_PATH,
  hostScript,
  overrideScript,
  type PayloadEnvironment,
} from "../runtime/environment.ts"
import { appEnvironment, appFiles, appInstall } from "./apps.ts"
import type { Script, ScriptName, Stage } from "./definition-file.ts"
import { labelsOf } from "./definition-file.ts"
import { copyFromHost, copyFromStage, type TransferContext } from "./file-sets.ts"
import { ENVIRONMENT_START, metadataFiles, type ImageDescription } from "../source/metadata-files.ts"
import { TextReader } from "../source/tree-texts.ts"
import { BUILD_UMASK, Rootfs } from "./rootfs.ts"
import { canHaveOwnProcesses, runInContainer, type ContainerFile, type Pretence } from "./script-container.ts"

/** The sections that `--section` can choose. */
export const sectionNames = [
  "setup",
  "post",
  "files",
  "environment",
  "test",
  "labels",
  "runscript",
  "startscript",
  "help",
] as const
/** A section of a definition file that `sections` may name. */
export type SectionName = (typeof sectionNames)[number]

/** What is to be built, and how. */
export interface StagesPlan {
  /** The definition file, for messages. */
  readonly path: string
  /** Templates replaced. */
  readonly text: string
  readonly stages: readonly Stage[]
  /** undefined: all of them. */
  readonly sections: readonly SectionName[] | undefined
  readonly runTests: boolean
  /** Scripts have processes of their own, or nothing is built. */
  readonly confined: boolean
  /** Labels and help of a base image give way. */
  readonly force: boolean
  readonly fixPermissions: boolean
  /** The last stage is a root file system that exists already. */
  readonly update: string | undefined
  /** Of the caller: its folder, and its environment without secrets. */
  readonly cwd: string
  readonly environment: Readonly<Record<string, string>>
  readonly resolvConf: string | undefined
  readonly hosts: string | undefined
  /** What messages from inside begin with. */
  readonly messageName: string
  /** In memory, or what stands in for it. */
  readonly session: string
  readonly crun: string
  /** Of this machine, seen by scripts in the image. */
  readonly binds: readonly Bind[]
  readonly cp: string
  readonly pretence: Pretence
  /** That every build sets. */
  readonly labels: Readonly<Record<string, string>>
}

/** Where what is built comes from. */
export interface StageTools {
  /** Fills a stage's root with its base. */
  bootstrap(index: number, root: string): Promise<void>
  onStep(text: string): void
  onNotice(text: string): void
}

/** Where what was sent for `%files` lies, in a scratch. */
export function sentFolder(session: string): string {
  return path.join(session, "files")
}

const LABELS_FILE = "/.build.labels"
const FOLDER = "/.singularity.d"

const families = ["APPTAINER", "SINGULARITY"] as const

function forFamilies(name: string, value: string): string[] {
  return families.map((family) => `${family}_${name}=${value}`)
}

/**
 * The command that runs a script: what stands behind the section's name goes to the shell; behind `-c` it is a command
 * of its own, to which the script's name is added.
 */
export function scriptCommand(args: string, script: string): string[] {
  const words = args.split(/\s+/).filter((word) => word !== "")
  const at = words.indexOf("-c")
  if (at < 0) return ["/bin/sh", "-ex", ...words, script]
  return ["/bin/sh", "-ex", ...words.slice(0, at + 1), [...words.slice(at + 1), script].join(" ")]
}

/** A script to keep, with its first line. */
export function keptScript({ text, args }: Script): string {
  let shebang = "#!/bin/sh"
  let body = text
  if (text.trimStart().startsWith("#!")) {
    const start = text.trimStart()
    const end = start.indexOf("\n")
    shebang = (end < 0 ? start : start.slice(0, end)).trim()
    body = end < 0 ? "" : start.slice(end + 1)
  }
  return `${args === "" ? shebang : `${shebang} ${args}`}\n\n${body}\n`
}

/** One stage at work. */
class StageBuilder {
  readonly #plan: StagesPlan
  readonly #tools: StageTools
  readonly #stage: Stage
  readonly #index: number
  readonly #rootfs: Rootfs

  constructor(plan: StagesPlan, tools: StageTools, index: number, rootfs: Rootfs) {
    this.#plan = plan
    this.#tools = tools
    this.#stage = plan.stages[index] as Stage
    this.#index = index
    this.#rootfs = rootfs
  }

  get #isUpdate(): boolean {
    return this.#plan.update !== undefined && this.#index === this.#plan.stages.length - 1
  }

  #chosen(name: SectionName): boolean {
    return this.#plan.sections?.includes(name) !== false
  }

  /** A section's script, if it is there and chosen. */
  #script(name: ScriptName & SectionName): Script | undefined {
    const script = this.#stage.scripts[name]
    return script === undefined || script.text.trim() === "" || !this.#chosen(name) ? undefined : script
  }

  /** @param release - Frees what no later stage needs. */
  async build(earlier: ReadonlyMap<string, Rootfs>, release: () => Promise<void>): Promise<ImageDescription> {
    const { scripts, apps } = this.#stage
    if (scripts.pre !== undefined && this.#plan.sections === undefined) await this.#onHost("pre", scripts.pre)
    if (!this.#isUpdate) {
      await this.#tools.bootstrap(this.#index, this.#rootfs.folder)
      await chmod(this.#rootfs.folder, 0o755)
    }
    await this.#addBase()
    for (const app of apps) for (const entry of appFiles(app)) await this.#rootfs.add(entry)
    if (apps.length > 0) await this.#rootfs.write(`${FOLDER}/env/94-appsbase.sh`, appEnvironment(apps), 0o755)
    const context = this.#transferContext()
    for (const app of apps)
      await copyFromHost(
        app.files.map((transfer) => ({
          ...transfer,
          destination: path.posix.join(
            "/scif/apps",
            app.name,
            "/",
            transfer.destination === "" ? path.basename(transfer.source) : transfer.destination,
          ),
        })),
        this.#rootfs,
        context,
      )
    if (this.#chosen("files"))
      for (const { from, transfers } of this.#stage.files)
        if (from !== undefined)
          await copyFromStage(transfers, earlier.get(from) as Rootfs, this.#rootfs, context)
    await release()
    const setup = this.#script("setup")
    if (setup !== undefined) await this.#onHost("setup", setup)
    if (this.#chosen("files"))
      for (const { from, transfers } of this.#stage.files)
        if (from === undefined) await copyFromHost(transfers, this.#rootfs, context)
    await this.#post()
    const description = await this.#describe()
    await this.#test()
    if (this.#plan.fixPermissions) await fixPermissions(this.#rootfs.folder)
    return description
  }

  #transferContext(): TransferContext {
    const { path: file, cwd, cp, session } = this.#plan
    return {
      path: file,
      cwd,
      cp,
      sentFolder: sentFolder(session),
      onStep: (text) => {
        this.#tools.onStep(text)
      },
    }
  }

  /** What every image has; the base's own stays where it is the image's. */
  async #addBase(): Promise<void> {
    const late = [`.singularity.d/Singularity`, `.singularity.d/labels.json`]
    for (const entry of metadataFiles({ definition: "", labels: {} }))
      if (!late.includes(entry.path))
        await this.#rootfs.add(entry.path.includes("/env/94-") ? { ...entry, keep: true } : entry)
  }

  /** %pre and %setup: on this machine, in the caller's folder. */
  async #onHost(name: "pre" | "setup", script: Script): Promise<void> {
    const { session, cwd, environment } = this.#plan
    this.#tools.onStep(`running %${name} on this machine`)
    const file = path.join(session, `${name}.sh`)
    await writeFile(file, script.text, { mode: 0o755 })
    const [program = "", ...args] = scriptCommand(script.args, file)
    const assignments = [
      ...forFamilies("ENVIRONMENT", `${FOLDER}/env/91-environment.sh`),
      ...forFamilies("ROOTFS", this.#rootfs.folder),
    ]
    const env = Object.fromEntries(
      assignments.map((text) => text.split(/=(.*)/s).slice(0, 2) as [string, string]),
    )
    const child = spawn(program, args, {
      cwd,
      env: { ...environment, ...env },
      stdio: ["ignore", "inherit", "inherit"],
    })
    const [code, signal] = (await once(child, "exit")) as [number | null, NodeJS.Signals | null]
    await rm(file)
    if (code !== 0) throw this.#failure(name, script, signal ?? `exit status ${code ?? 0}`)
  }

  #failure(name: string, script: Script, how: string): BuildError {
    const { path: file } = this.#plan
    const { pretence } = this.#plan
    const alone =
      pretence === "owners"
        ? "; without subordinate ids only one user exists here: what changes owners or users does nothing"
        : ""
    return new BuildError("ERR_BUILD_SCRIPT", `${file}:${script.line}: %${name} failed: ${how}${alone}`, {
      path: file,
    })
  }

  /** Runs a command in the root file system, in the image's environment. */
  async #inside(
    args: readonly string[],
    script: string | undefined,
    environment: PayloadEnvironment,
    writable: boolean,
  ): Promise<number> {
    const { session, crun, pretence, resolvConf, hosts } = this.#plan
    const root = this.#rootfs
    const covers: Record<string, string> = {}
    for (const [name, content] of [
      ["/etc/resolv.conf", resolvConf],
      ["/etc/hosts", hosts],
    ] as const)
      if (content !== undefined && (await root.find(name))?.isFile() === true)
        // Otherwise the same as the packaged file it would be replaced by, and a bound file cannot be.
        covers[name] = `${content}\n`
    const mountPoints: string[] = []
    for (const { destination } of this.#plan.binds)
      if ((await root.find(destination)) === undefined) mountPoints.push(destination)
    const isNew = (await root.find(ENTRY_FOLDER)) === undefined
    if (isNew) await root.makeFolder(ENTRY_FOLDER)
    const file = (content: string, mode = 0o644): { content: string; mode: number } => ({ content, mode })
    const aptConfiguration: Record<string, ContainerFile> =
      pretence === "owners" ? { "apt.conf": file('APT::Sandbox::User "root";\n') } : {}
    if (this.#plan.confined && !canHaveOwnProcesses())
      throw new BuildError(
        "ERR_BUILD_REMOTE_REFUSED",
        `${this.#plan.path}: scripts cannot have a /proc of their own there, and would see all that the account runs; --allow-unconfined lets them`,
      )
    const run = (): Promise<number> =>
      runInContainer({
        session,
        crun,
        root: root.folder,
        writable,
        args: [SHELL_PATH, `${ENTRY_FOLDER}/entry`, "exec", ...args],
        env: [
          `PATH=${DEFAULT_PATH}`,
          "HOME=/root",
          "PWD=/",
          `_sifcrypt_name=${this.#plan.messageName}`,
          "GOTRACEBACK=none",
          ...[...environment.others].map(([name, value]) => `${name}=${value}`),
          ...(pretence === "owners" ? [`APT_CONFIG=${ENTRY_FOLDER}/apt.conf`] : []),
        ],
        umask: BUILD_UMASK,
        files: {
          entry: file(entryScript),
          // It is bound over this.
          shell: file("", 0o755),
          "overrides.sh": file(overrideScript(environment)),
          "host.sh": file(hostScript(environment)),
          ...(script === undefined ? {} : { script: file(script, 0o755) }),
          ...aptConfiguration,
        },
        covers,
        binds: [{ source: shellPath(), destination: SHELL_PATH, readOnly: true }, ...this.#plan.binds],
        mounts: true,
        pretence,
      })
    return await thenUndone(run, async () => {
      if (isNew) await root.remove(ENTRY_FOLDER)
      // crun makes what is missing; it is empty.
      for (const name of mountPoints.reverse()) await root.removeEmpty(name)
    })
  }

  async #post(): Promise<void> {
    if (!this.#chosen("post")) return
    const { post } = this.#stage.scripts
    const apps = this.#stage.apps.map(appInstall).join("")
    if ((post === undefined || post.text.trim() === "") && apps === "") return
    const script: Script = {
      text: (post?.text ?? "") + apps,
      args: post?.args ?? "",
      line: post?.line ?? this.#stage.line,
    }
    if ((await this.#rootfs.find("/bin/sh"))?.isFile() !== true)
      throw this.#failure("post", script, "there is no /bin/sh in the image")
    this.#tools.onStep("running %post")
    const assignments = [
      ...forFamilies("ENVIRONMENT", `${FOLDER}/env/91-environment.sh`),
      ...forFamilies("LABELS", LABELS_FILE),
    ]
    const environment = composeEnvironment({ host: this.#plan.environment, assignments, clean: true })
    const status = await this.#inside(
      scriptCommand(script.args, `${ENTRY_FOLDER}/script`),
      script.text,
      environment,
      true,
    )
    if (status !== 0) throw this.#failure("post", script, `exit status ${status}`)
  }

  async #test(): Promise<void> {
    const test = this.#script("test")
    if (test === undefined || !this.#plan.runTests) return
    this.#tools.onStep("running %test")
    const environment = composeEnvironment({ host: this.#plan.environment })
    const status = await this.#inside([`${FOLDER}/test`], undefined, environment, false)
    if (status !== 0) throw this.#failure("test", test, `exit status ${status}`)
  }

  async #labels(): Promise<Record<string, string>> {
    const labels: Record<string, string> = {}
    const before = await this.#rootfs.read(`${FOLDER}/labels.json`)
    if (before !== undefined) Object.assign(labels, parsedLabels(before, this.#plan.path))
    const dynamic = await this.#rootfs.read(LABELS_FILE)
    if (dynamic !== undefined) {
      await this.#rootfs.remove(LABELS_FILE)
      Object.assign(labels, labelsOf(dynamic.split("\n")))
    }
    Object.assign(labels, this.#plan.labels)
    if (this.#script("help") !== undefined)
      for (const name of ["", ".apptainer.runscript.help"])
        labels[`org.label-schema.usage${name}`] = `${FOLDER}/runscript.help`
    if (!this.#isUpdate)
      for (const [key, value] of this.#stage.headers)
        labels[`org.label-schema.usage.singularity.deffile.${key}`] = value
    for (const [key, value] of Object.entries(this.#chosen("labels") ? this.#stage.labels : {}))
      if (labels[key] === undefined || this.#plan.force) labels[key] = value
      else this.#tools.onNotice(`label ${key} exists already and is kept`)
    return labels
  }

  async #keepHistory(): Promise<void> {
    const before = `${FOLDER}/Singularity`
    if ((await this.#rootfs.find(before)) === undefined) return
    const folder = await this.#rootfs.makeFolder(`${FOLDER}/bootstrap_history`)
    const count = (await readdir(folder)).length
    await rename(await this.#rootfs.resolve(before, false), path.join(folder, `Apptainer${count}`))
  }

  /** Writes what the image says of itself. */
  async #describe(): Promise<ImageDescription> {
    const root = this.#rootfs
    const help = this.#script("help")
    if (help !== undefined) {
      if ((await root.find(`${FOLDER}/runscript.help`)) === undefined || this.#plan.force)
        await root.write(`${FOLDER}/runscript.help`, `${help.text}\n`, 0o644)
      else this.#tools.onNotice("the base image has a help text, which is kept")
    }
    const labels = await this.#labels()
    const sorted = Object.fromEntries(Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1)))
    await root.write(`${FOLDER}/labels.json`, JSON.stringify(sorted, undefined, "\t"), 0o644)
    await this.#keepHistory()
    await root.write(`${FOLDER}/Singularity`, this.#plan.text, 0o644)
    const environment = this.#script("environment")
    if (environment !== undefined) {
      const before = (await root.read(`${FOLDER}/env/90-environment.sh`)) ?? ENVIRONMENT_START
      await root.write(`${FOLDER}/env/90-environment.sh`, `${before}\n${environment.text}\n`, 0o755)
    }
    for (const name of ["startscript", "runscript", "test"] as const) {
      const script = this.#script(name)
      if (script !== undefined) await root.write(`${FOLDER}/${name}`, keptScript(script), 0o755)
    }
    return {
      definition: this.#plan.text,
      labels: sorted,
      ...(await new TextReader(root).scripts()),
    }
  }
}

function parsedLabels(text: string, file: string): Record<string, string> {
  try {
    const value = JSON.parse(text) as unknown
    if (typeof value !== "object" || value === null) return {}
    return Object.fromEntries(
      Object.entries(value).filter((entry): entry is [string, string] => typeof entry[1] === "string"),
    )
  } catch (cause) {
    throw BuildError.at(file, "ERR_BUILD_SOURCE", "the base image's labels.json is no JSON", { cause })
  }
}

/** The owner can read, write and remove everything. */
async function fixPermissions(folder: string): Promise<void> {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const place = path.join(folder, entry.name)
    if (!entry.isDirectory() && !entry.isFile()) continue
    const { mode } = await lstat(place)
    await chmod(place, (mode & 0o7777) | (entry.isDirectory() ? 0o700 : 0o600))
    if (entry.isDirectory()) await fixPermissions(place)
  }
}

/**
 * Builds every stage.
 *
 * @returns The last one's folder, and what it says of itself.
 */
export async function buildStages(
  plan: StagesPlan,
  tools: StageTools,
): Promise<{ readonly root: string; readonly description: ImageDescription }> {
  const before = process.umask(BUILD_UMASK)
  try {
    const built = new Map<string, Rootfs>()
    let finished: Rootfs[] = []
    /** Of the stages that are finished, those that no stage behind this one copies from. */
    const release = async (index: number): Promise<void> => {
      const names = plan.stages.slice(index + 1).flatMap(({ files }) => files.map(({ from }) => from))
      const needed = new Set(names.map((name) => (name === undefined ? undefined : built.get(name))))
      for (const { folder } of finished.filter((rootfs) => !needed.has(rootfs)))
        await rm(folder, { recursive: true, force: true })
      finished = finished.filter((rootfs) => needed.has(rootfs))
    }
    let last: { root: string; description: ImageDescription } | undefined
    for (const [index, stage] of plan.stages.entries()) {
      const existing = index === plan.stages.length - 1 ? plan.update : undefined
      const root = existing ?? path.join(plan.session, `stage-${index}`)
      if (existing === undefined) await mkdir(root)
      const rootfs = new Rootfs(root)
      tools.onStep(
        `stage ${index + 1} of ${plan.stages.length}${stage.name === undefined ? "" : `: ${stage.name}`}`,
      )
      const builder = new StageBuilder(plan, tools, index, rootfs)
      last = { root, description: await builder.build(built, () => release(index)) }
      if (index === plan.stages.length - 1) break
      if (stage.name !== undefined) built.set(stage.name, rootfs)
      finished.push(rootfs)
      await release(index)
    }
    if (last === undefined) throw new TypeError("a definition has at least one stage")
    return last
  } finally {
    process.umask(before)
  }
}
