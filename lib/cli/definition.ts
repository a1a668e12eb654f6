// The options of `build` that are about definition files.
import { InvalidArgumentError } from "commander"
import * as api from "../index.ts"
import { given, under, type OptionRows } from "./command.ts"
import { waitForHelpers } from "./interrupt.ts"
import { errors, output } from "./output.ts"
import { inform } from "./terminal.ts"
import { truthVariable, variable } from "./variables.ts"
import { BYTES, each, eachOf, flag, size, text } from "./values.ts"

export type DefinitionFlags = Omit<api.DefinitionOptions, "fingerprintKeys" | "onStep" | "onOutput"> &
  Pick<api.BuildOptions, "sandbox" | "update">

function parseSection(text: string): api.SectionName {
  const known = api.sectionNames.find((section) => section === text)
  if (known === undefined)
    throw new InvalidArgumentError(`It is all, none, or some of ${api.sectionNames.join(",")}.`)
  return known
}

function parseSections(text: string): readonly api.SectionName[] {
  if (text === "all") return api.sectionNames
  return text === "none" ? [] : eachOf(parseSection)(text, [])
}

const scratchSize = size(BYTES, 1, Number.MAX_SAFE_INTEGER)

export const definitionRows: OptionRows<DefinitionFlags> = under("Definition files", {
  sandbox: ["-s, --sandbox", "write an ordinary folder instead of an image", flag],
  update: ["-u, --update", "change the sandbox OUTPUT instead of starting from its base", flag],
  noTest: ["-T, --notest", "do not run %test", flag],
  sections: [
    "--section <list>",
    "only these sections of a definition file; none or all",
    parseSections,
    { suggested: ["all", "none", ...api.sectionNames] },
  ],
  buildArguments: ["--build-arg <name=value>", "value for the templates of a definition file", each(text)],
  buildArgumentFile: ["--build-arg-file <file>", "file with a NAME=VALUE on each line", text],
  warnUnusedBuildArguments: [
    "--warn-unused-build-args",
    "tell of build arguments that nothing asks for, instead of failing",
    flag,
  ],
  binds: ["-B, --bind <src[:dst[:opts]]>", "seen in %post and %test", each<string | api.BindSpec>(text)],
  nv: ["--nv", "with NVIDIA's libraries and programs in %post and %test", flag],
  rocm: ["--rocm", "with AMD's", flag],
  fixPermissions: ["--fix-perms", "the owner may read, write and enter everything", flag],
  scratchMemory: [
    "--scratch-memory <size>",
    "memory that a definition's files may take while they are built",
    scratchSize,
  ],
  scratchDisk: [
    "--scratch-disk <size>",
    "room on the disk for those of them that do not fit, encrypted",
    scratchSize,
  ],
  scratch: [
    "--scratch <kind>",
    "where they lie: auto (default), kernel, userspace or memory",
    ["auto", "kernel", "userspace", "memory"],
  ],
  tmpFolder: ["--tmpdir <dir>", "for temporary files (default TMPDIR)", text],
  plainScratch: ["--plain-tmp", "build in an ordinary folder there, unencrypted", flag],
})

/** The API's options for {@link DefinitionFlags}. */
export function definitionOptions(
  flags: DefinitionFlags & { readonly json?: true },
): DefinitionFlags & api.DefinitionOptions {
  const { sections } = flags
  return {
    tmpFolder: variable("TMPDIR"),
    nv: truthVariable("NV"),
    rocm: truthVariable("ROCM"),
    ...given(definitionRows, flags),
    sections: sections === api.sectionNames ? undefined : sections,
    fingerprintKeys: { keyringPaths: api.userKeyrings(process.env) },
    onStep: (text) => {
      waitForHelpers()
      inform(text)
    },
    onOutput: (bytes, stream) => {
      // What a program reads from standard output is the result.
      const to = stream === "stdout" && flags.json !== true ? output() : errors()
      to.write(bytes)
    },
  }
}
