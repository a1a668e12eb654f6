// A requested SELinux label, in a guest of its own whose kernel has it: in force, or an error.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs"
import path from "node:path"
import { packageRoot, runProgram, sifcryptOk } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

const support = path.join(packageRoot, "test", "support")

describe("SELinux", () => {
  it("S18: a label is in force on both engines, and one that the policy does not know is an error", async function () {
    if (!existsSync("/usr/bin/linux.uml"))
      skip(this, "needs linux.uml (Debian's user-mode-linux, amd64 only)")
    // A guest sees the folder that it is started in, but not this machine's /tmp.
    mkdirSync(path.join(packageRoot, "build"), { recursive: true })
    const folder = mkdtempSync(path.join(packageRoot, "build", "selinux-"))
    try {
      const at = (name: string): string => path.join(folder, name)
      execFileSync("checkpolicy", [
        ...["-U", "allow", "-c", "31", "-o", at("policy")],
        path.join(support, "selinux-policy.conf"),
      ])
      copyFileSync(testKeys().privateKey, at("key.pem"))
      const { publicKey } = testKeys()
      await sifcryptOk(["build", "--pem-path", publicKey, at("image.sif"), makeRootTree()], { as: "self" })
      const { status, text, stderr } = await runProgram(
        [
          path.join(support, "uml-run.sh"),
          ...["--kernel", "lsm=selinux", "--kernel", "selinux=1", "--"],
          process.execPath,
          path.join(support, "selinux-guest.mjs"),
          ...["policy", "key.pem", "image.sif"].map(at),
        ],
        { as: "self", cwd: packageRoot, timeoutMs: 100_000 },
      )
      assert.equal(status, 0, stderr)
      const one = {
        undefined: "u:r:kernel_t 0 0",
        "u:r:payload_t": "u:r:payload_t 1 0",
        "u:r:none_t": "ERR_RUN",
      }
      const expected = ["kernel", "userspace"].flatMap((engine) =>
        Object.entries(one).map(([label, outcome]) => [`${engine} ${label}`, outcome]),
      )
      assert.deepEqual(JSON.parse(text), Object.fromEntries(expected))
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  })
})
