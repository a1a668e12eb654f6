// sifcrypt-init reads back what was asked for before it starts a program.
import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import { promisify } from "node:util"
import { initPath } from "../../lib/native/load.ts"
import { isRoot } from "../support/cli.ts"
import { skip } from "../support/skip.ts"

const run = promisify(execFile)

describe("sifcrypt-init", () => {
  before(function () {
    if (!isRoot) skip(this, "needs root, to have groups taken and given")
  })

  const withGroups = async (groups: string, check: string): Promise<string> => {
    const rights = [
      "--reuid=2345",
      "--regid=5",
      ...(groups === "" ? ["--clear-groups"] : [`--groups=${groups}`]),
    ]
    const { stdout } = await run("setpriv", [
      ...rights,
      initPath(),
      `--check-gid=${check}`,
      "--",
      "echo",
      "started",
    ])
    return stdout
  }

  it("starts a program that has just the groups it is to have", async () => {
    for (const [groups, check] of [
      ["", "5"],
      ["5", "5"],
      ["5,6", "5:6"],
      ["7,6", "5:6:7"],
    ] as const)
      assert.equal(await withGroups(groups, check), "started\n", `${groups} ${check}`)
  })

  it("starts none that lacks a group, or has kept one", async () => {
    for (const [groups, check, why] of [
      ["", "6", "the group id was not applied: 6"],
      ["5", "5:6", "the group id was not applied: 6"],
      ["0", "5", "other groups were not dropped"],
      ["6,7", "5:6", "other groups were not dropped"],
    ] as const)
      await assert.rejects(withGroups(groups, check), new RegExp(why), `${groups} ${check}`)
  })
})
