// The same command lines as root, where the peer mounts through the kernel: in guests, one with the peer's tree as its root,
// one with this machine's.
import assert from "node:assert/strict"
import path from "node:path"
import { inOwnGuest, SharedFolder, type Command, type Step } from "../interop/peer.ts"
import { cli, isRoot } from "../support/cli.ts"
import { skip } from "../support/skip.ts"
import { rootCases } from "./cases.ts"
import { folder, makeImages } from "./images.ts"
import { differences, parseEnvironment, parseMountTable } from "./normal.ts"

const image = path.join(folder, "scripts.sif")

interface RootCase {
  readonly options: readonly string[]
  readonly argv: readonly string[]
  readonly compared: (output: string) => unknown
}

const mountinfo = ["cat", "/proc/self/mountinfo"]
/** Each side has a working directory of its own. */
const common = ["--no-mount", "cwd", "--cwd", "/"]

function withoutPlace(environment: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  const own = /^(?:APPTAINER|SINGULARITY)_CONTAINER$|^USER_PATH$|^TERM$/
  return Object.fromEntries(Object.entries(environment).filter(([name]) => !own.test(name)))
}

type Name = (typeof rootCases)[number]

const cases = {
  mounts: { options: common, argv: mountinfo, compared: parseMountTable },
  "--contain, mounts": { options: [...common, "--contain"], argv: mountinfo, compared: parseMountTable },
  environment: {
    options: [...common, "--cleanenv", "--env", "A=1"],
    argv: ["env"],
    compared: (output) => withoutPlace(parseEnvironment(output)),
  },
  "user, home, umask, capabilities": {
    options: common,
    argv: [
      "sh",
      "-c",
      "id -u; id -g; pwd; cd; pwd; umask; grep ^root: /etc/passwd; grep CapEff /proc/self/status",
    ],
    compared: (output) => output,
  },
} satisfies Readonly<Record<Name, RootCase>>

describe("beside a live Apptainer, as root", function () {
  this.timeout(600_000)
  let peer: Record<Name, Step>
  let own: Record<Name, Step>

  before(async function () {
    if (!isRoot) skip(this, "the folder that the guest shares is root's")
    await makeImages()
    using shared = new SharedFolder()
    const inside = shared.take(image)
    const steps = (program: readonly string[], file: string): Record<Name, Command> =>
      Object.fromEntries(
        rootCases.map((name) => [
          name,
          [...program, "exec", ...cases[name].options, file, ...cases[name].argv],
        ]),
      ) as unknown as Record<Name, Command>
    ;[peer, own] = await Promise.all([
      shared.inPeerGuest(steps(["apptainer", "--silent"], inside)),
      inOwnGuest([image], steps([process.execPath, cli], path.basename(image))),
    ])
  })

  for (const name of rootCases)
    it(name, () => {
      const { compared }: RootCase = cases[name]
      const of = (step: Step): unknown => ({ status: step.status, value: compared(step.stdout) })
      const found = differences(of(peer[name]), of(own[name]))
      assert.ok(
        found.length === 0,
        [...found, `peer: ${peer[name].stderr}`, `own: ${own[name].stderr}`].join("\n"),
      )
    })
})
