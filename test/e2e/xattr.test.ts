// Extended attributes through a mount by the userspace engine.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { randomBytes } from "node:crypto"
import { chmodSync, mkdirSync, writeFileSync } from "node:fs"
import path from "node:path"
import { idOf, isRoot, runProgram, sifcryptOk, type As } from "../support/cli.ts"
import { mountsIn } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"

const set = "import os, sys; os.setxattr(sys.argv[1], 'user.hello', b'wor\\x00ld')"
const show = "import os, sys; print({n: os.getxattr(sys.argv[1], n) for n in os.listxattr(sys.argv[1])})"

describe("extended attributes", () => {
  // fusermount3 serves only users whom passwd knows.
  for (const as of ["nobody", "self"] as const satisfies readonly As[])
    // With a part of a block left over there is a fragment table, without one there is none.
    for (const [size, fragments] of [
      [300_000, "with fragments"],
      [256 << 10, "without fragments"],
    ] as const)
      it(`are seen through ${as === "nobody" ? "an ordinary user's" : "root's"} mount, ${fragments}`, async function () {
        if (as === "self" && !isRoot) skip(this, "needs root")
        const tree = newFolder("xattr-tree")
        const file = path.join(tree, "file")
        writeFileSync(file, randomBytes(size))
        chmodSync(file, 0o644)
        execFileSync("python3", ["-c", set, file])
        const folder = newFolder("xattr", idOf(as))
        const image = path.join(folder, "image.sif")
        const target = path.join(folder, "mount")
        mkdirSync(target)
        if (isRoot) execFileSync("chown", [String(idOf(as)), target])
        await sifcryptOk(["build", image, tree], { as })
        await sifcryptOk(["mount", "--engine", "userspace", image, target], { as })
        try {
          // The system's own one: a user's installation may be out of another's reach.
          const env = { PATH: `/usr/bin:/bin:${process.env["PATH"] ?? ""}` }
          const seen = await runProgram(["python3", "-c", show, path.join(target, "file")], { as, env })
          assert.equal(seen.text.trim(), "{'user.hello': b'wor\\x00ld'}", seen.stderr)
        } finally {
          await sifcryptOk(["unmount", target], { as })
        }
        assert.deepEqual(mountsIn(folder), [])
      })
})
