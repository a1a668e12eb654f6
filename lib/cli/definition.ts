// The options of `build` that are about definition files.
import { InvalidArgumentError, Option, type Command } from "commander"
import {
  sectionNames,
  userKeyrings,
  type DefinitionOptions,
  type ScratchKind,
  type SectionName,
} from "../index.ts"
import { waitForHelpers } from "./interrupt.ts"
import { errors, output } from "./output.ts"
import { notice, printable } from "./terminal.ts"

export interface DefinitionFlags {
  readonly sandbox?: true
  readonly update?: true
  readonly notest?: true
  readonly section?: readonly SectionName[]
  readonly buildArg?: readonly string[]
  readonly buildArgFile?: string
  readonly warnUnusedBuildArgs?: true
  readonly fixPerms?: true
  readonly scratch?: ScratchKind
  readonly scratchMemory?: number
  readonly scratchDisk?: number
  readonly tmpdir?: string
  readonly plainTmp?: true
  readonly bind?: readonly string[]
  readonly json?: true
}

const collect = (value: string, earlier: string[] | undefined): string[] => [...(earlier ?? []), value]

function parseSections(text: string): readonly SectionName[] {
  if (text === "none") return []
  return text.split(",").map((name) => {
    const known = sectionNames.find((section) => section === name.trim())
    if (known === undefined)
      throw new InvalidArgumentError(`It is all, none, or some of ${sectionNames.join(",")}.`)
    return known
  })
}

const units: Readonly<Record<string, number>> = { "": 1, k: 1 << 10, m: 1 << 20, g: 1 << 30 }

function parseSize(text: string): number {
  const [, digits, unit] = /^(\d{1,9})([kmg]?)$/i.exec(text) ?? []
  const size = Number(digits) * (units[unit?.toLowerCase() ?? ""] ?? 1)
  if (!(size > 0)) throw new InvalidArgumentError("It is a number of bytes, or one with k, m or g.")
  return size
}

/** The first of these variables that says something. */
function firstOf(env: NodeJS.ProcessEnv, names: readonly string[]): string | undefined {
  return names.map((name) => env[name]).find((value) => value !== undefined && value !== "")
}

/** Adds the options of {@link DefinitionFlags}. */
export function addDefinitionOptions(command: Command): Command {
  return command
    .option("-s, --sandbox", "write an ordinary folder instead of an image")
    .option("-u, --update", "change the sandbox OUTPUT instead of starting from its base")
    .option("-T, --notest", "do not run %test")
    .option("--section <list>", "only these sections of a definition file; none or all", (text: string) =>
      text === "all" ? sectionNames : parseSections(text),
    )
    .option("--build-arg <name=value>", "value for the templates of a definition file", collect)
    .option("--build-arg-file <file>", "file with a NAME=VALUE on each line")
    .option("--warn-unused-build-args", "tell of build arguments that nothing asks for, instead of failing")
    .option("-B, --bind <src[:dst[:opts]]>", "seen in %post and %test", collect)
    .option("--fix-perms", "the owner may read, write and enter everything")
    .option(
      "--scratch-memory <size>",
      "memory that a definition's files may take while they are built",
      parseSize,
    )
    .option(
      "--scratch-disk <size>",
      "room on the disk for those of them that do not fit, encrypted",
      parseSize,
    )
    .addOption(
      new Option("--scratch <kind>", "where they lie: auto (default), kernel, userspace or memory").choices([
        "auto",
        "kernel",
        "userspace",
        "memory",
      ]),
    )
    .option("--tmpdir <dir>", "for temporary files (default TMPDIR)")
    .option("--plain-tmp", "build in an ordinary folder there, unencrypted")
}

/** The API's options for {@link DefinitionFlags}. */
export function definitionOptions(flags: DefinitionFlags): DefinitionOptions & {
  readonly sandbox?: boolean
  readonly update?: boolean
} {
  const tmpFolder =
    flags.tmpdir ?? firstOf(process.env, ["SIFCRYPT_TMPDIR", "APPTAINER_TMPDIR", "SINGULARITY_TMPDIR"])
  const whole = flags.section === sectionNames ? undefined : flags.section
  return {
    ...(flags.sandbox === undefined ? {} : { sandbox: true }),
    ...(flags.update === undefined ? {} : { update: true }),
    ...(flags.notest === undefined ? {} : { noTest: true }),
    ...(whole === undefined ? {} : { sections: whole }),
    ...(flags.buildArg === undefined ? {} : { buildArguments: flags.buildArg }),
    ...(flags.buildArgFile === undefined ? {} : { buildArgumentFile: flags.buildArgFile }),
    ...(flags.warnUnusedBuildArgs === undefined ? {} : { warnUnusedBuildArguments: true }),
    ...(flags.fixPerms === undefined ? {} : { fixPermissions: true }),
    ...(flags.scratch === undefined ? {} : { scratch: flags.scratch }),
    ...(flags.scratchMemory === undefined ? {} : { scratchMemory: flags.scratchMemory }),
    ...(flags.scratchDisk === undefined ? {} : { scratchDisk: flags.scratchDisk }),
    ...(tmpFolder === undefined ? {} : { tmpFolder }),
    ...(flags.plainTmp === undefined ? {} : { plainScratch: true }),
    ...(flags.bind === undefined ? {} : { binds: flags.bind }),
    fingerprintKeys: { keyringPaths: userKeyrings(process.env) },
    onStep: (text) => {
      waitForHelpers()
      notice(printable(text))
    },
    onOutput: (bytes, stream) => {
      // What a program reads from standard output is the result.
      const to = stream === "stdout" && flags.json !== true ? output() : errors()
      to.write(bytes)
    },
  }
}
