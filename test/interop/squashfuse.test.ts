// Our squashfuse_ll below a live Apptainer, which nothing tells of it but the PATH.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { chmodSync, chownSync, copyFileSync, mkdirSync, writeFileSync } from "node:fs"
import path from "node:path"
import { squashfuseProgram } from "../../lib/index.ts"
import { isRoot, sifcryptOk } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"
import { inPeer, inPeerAsUser, peerUser } from "./peer.ts"

describe("squashfuse_ll below Apptainer", () => {
  const folder = newFolder("squashfuse", peerUser)
  const tree = makeRootTree()

  before(async function () {
    if (!isRoot) skip(this, "needs root, as the peer does")
    writeFileSync(path.join(tree, "data", "large"), "a line of text\n".repeat(100_000))
    // A link of `sifcrypt link` leads to where the peer does not look, so a copy.
    mkdirSync(path.join(folder, "bin"))
    copyFileSync(squashfuseProgram(), path.join(folder, "bin", "squashfuse_ll"))
    await sifcryptOk(["build", path.join(folder, "image.sif"), tree], { as: "self" })
    execFileSync("mksquashfs", [tree, path.join(folder, "image.sqfs"), "-quiet", "-no-progress", "-all-root"])
    for (const name of ["image.sif", "image.sqfs"]) {
      chmodSync(path.join(folder, name), 0o644)
      chownSync(path.join(folder, name), peerUser, peerUser)
    }
  })

  for (const image of ["image.sif", "image.sqfs"])
    it(`shows ${image} as Debian's does, to the last byte`, async () => {
      const look = async (bin: string): Promise<string> => {
        const path_ = `${bin}/usr/local/bin:/usr/bin:/usr/sbin:/bin`
        const list =
          "cd /; for f in bin/* data/* etc/passwd; do stat -c '%n %s %a %F' $f; done; cat data/large | wc -c"
        const who =
          "for p in /proc/[0-9]*; do case $(cat $p/comm) in squashfuse_ll) cat $p/cmdline;; esac; done; true"
        const sums = "for f in bin/busybox data/* ; do busybox sha256sum $f; done"
        const script = `${list}; ${sums}; echo; ${who}`
        const { text, stderr, status } = await inPeerAsUser(folder, [
          ...["env", `PATH=${path_}`, "apptainer", "-s", "exec", "--userns", "--no-mount", "home,cwd,tmp"],
          ...[path.join(folder, image), "/bin/sh", "-c", script],
        ])
        assert.deepEqual([status, stderr], [0, ""])
        return text
      }
      assert.ok(inPeer("apptainer", "--version").startsWith("apptainer version"))
      const [theirs = "", theirProgram = ""] = (await look("")).split("\n\n")
      const [ours = "", ourProgram = ""] = (await look(`${folder}/bin:`)).split("\n\n")
      assert.equal(ours, theirs)
      assert.match(theirProgram, /^\/usr\/bin\/squashfuse_ll\0-f\0/)
      assert.ok(ourProgram.startsWith(`${folder}/bin/squashfuse_ll\0-f\0`), ourProgram)
    })
})
