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
import { BYTES, collect, eachOf, size } from "./values.ts"

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

function parseSection(text: string): SectionName {
  const known = sectionNames.find((section) => section === text)
  if (known === undefined)
    throw new InvalidArgumentError(`It is all, none, or some of ${sectionNames.join(",")}.`)
  return known
}

function parseSections(text: string): readonly SectionName[] {
  if (text === "all") return sectionNames
  return text === "none" ? [] : eachOf(parseSection)(text, [])
}

const scratchSize = size(BYTES, 1, Number.MAX_SAFE_INTEGER)

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
    .option("--section <list>", "only these sections of a definition file; none or all", parseSections)
    .option("--build-arg <name=value>", "value for the templates of a definition file", collect)
    .option("--build-arg-file <file>", "file with a NAME=VALUE on each line")
    .option("--warn-unused-build-args", "tell of build arguments that nothing asks for, instead of failing")
    .option("-B, --bind <src[:dst[:opts]]>", "seen in %post and %test", collect)
    .option("--fix-perms", "the owner may read, write and enter everything")
    .option(
      "--scratch-memory <size>",
      "memory that a definition's files may take while they are built",
      scratchSize,
    )
    .option(
      "--scratch-disk <size>",
      "room on the disk for those of them that do not fit, encrypted",
      scratchSize,
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
    sandbox: flags.sandbox,
    update: flags.update,
    noTest: flags.notest,
    sections: whole,
    buildArguments: flags.buildArg,
    buildArgumentFile: flags.buildArgFile,
    warnUnusedBuildArguments: flags.warnUnusedBuildArgs,
    fixPermissions: flags.fixPerms,
    scratch: flags.scratch,
    scratchMemory: flags.scratchMemory,
    scratchDisk: flags.scratchDisk,
    tmpFolder,
    plainScratch: flags.plainTmp,
    binds: flags.bind,
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
