// An archive of docker save, built here and by a live Apptainer: the same tree, entry by entry.
import assert from "node:assert/strict"
import { chmodSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { gunzipSync } from "node:zlib"
import { build } from "../../lib/index.ts"
import { sifcryptOk } from "../support/cli.ts"
import { imageTree, type Entry } from "../support/image-tree.ts"
import { newFolder } from "../support/scratch.ts"
import { vectorPath } from "../vectors/load.ts"
import { inPeerAsUser } from "./peer.ts"

/** Scripts are each one's own words; what both say in them is compared by running them. */
const ownWords =
  /^\.singularity\.d\/(?:actions\/.*|env\/(?:01|90|94|95|99)-.*|runscript|startscript|labels\.json|Singularity)$/

describe("OCI images, beside a live Apptainer", () => {
  const folder = newFolder("oci-interop")
  const ours = path.join(folder, "ours.sif")
  const theirs = path.join(folder, "theirs.sif")
  let [here, there] = [new Map<string, Entry>(), new Map<string, Entry>()]

  before(async function () {
    this.timeout(120_000)
    chmodSync(folder, 0o777)
    const archive = path.join(folder, "image.tar")
    writeFileSync(archive, gunzipSync(readFileSync(vectorPath("oci/docker-archive.tar.gz"))))
    // What an ordinary user's Apptainer does to owners.
    await build({ output: ours, source: `docker-archive:${archive}`, architecture: "amd64", owner: "root" })
    const { status, stderr } = await inPeerAsUser(folder, [
      "apptainer",
      "build",
      "theirs.sif",
      `docker-archive:${archive}`,
    ])
    assert.equal(status, 0, stderr)
    here = await imageTree(ours)
    there = await imageTree(theirs)
  })

  it("have the same entries, of the same type, mode, owner, target and content", () => {
    assert.deepEqual([...here.keys()].sort(), [...there.keys()].sort())
    for (const [name, entry] of here) {
      // The owner that the peer could not give a file, which ours have themselves.
      const xattrsThere = Object.entries(there.get(name)?.xattrs ?? {})
      const rest = Object.fromEntries(xattrsThere.filter(([key]) => key !== "user.rootlesscontainers"))
      const facts = ({ type, mode, uid, gid, nlink, target, sha256, xattrs }: Entry): unknown => ({
        ...{ type, mode, uid, gid, target, xattrs },
        // A folder's count is of its own kind in each.
        ...(type === "directory" ? {} : { nlink }),
        ...(ownWords.test(name) ? {} : { sha256 }),
      })
      const other = there.get(name)
      assert.ok(other !== undefined)
      assert.deepEqual(facts(entry), facts({ ...other, xattrs: rest }), name)
      if (entry.type === "file" && entry.mtime === 1_700_000_000)
        // Folders that the peer adds to get the time of that there.
        assert.equal(other.mtime, entry.mtime, name)
    }
  })

  it("say the same about themselves in the peer's inspect", async () => {
    const inspect = async (image: string, ...flags: readonly string[]): Promise<string> => {
      const { status, text, stderr } = await inPeerAsUser(folder, [
        "apptainer",
        "inspect",
        ...flags,
        path.basename(image),
      ])
      assert.equal(status, 0, stderr)
      return text
    }
    for (const flag of ["--deffile", "--environment"]) {
      const words = (text: string): string[] =>
        text.split("\n").filter((line) => line !== "" && !line.startsWith("#"))
      assert.deepEqual(words(await inspect(ours, flag)), words(await inspect(theirs, flag)), flag)
    }
    const labels = async (image: string): Promise<Record<string, string>> =>
      (
        JSON.parse(await inspect(image, "--labels", "--json")) as {
          data: { attributes: { labels: Record<string, string> } }
        }
      ).data.attributes.labels
    const [one, other] = [await labels(ours), await labels(theirs)]
    for (const [name, value] of Object.entries(other))
      if (!/version|build-date/.test(name)) assert.equal(one[name], value, name)
  })

  it("have the same objects around them", async () => {
    const objects = async (image: string): Promise<string[]> =>
      (await sifcryptOk(["sif", "list", image])).text
        .split("\n")
        .map((line) => /^\d+\s*\|\d+\s*\|\w+\s*\|.*\|(.*)$/.exec(line)?.[1]?.trim())
        .filter((one) => one !== undefined)
    assert.deepEqual(await objects(ours), await objects(theirs))
    const dump = async (image: string): Promise<unknown> =>
      JSON.parse((await sifcryptOk(["sif", "dump", "3", image])).text)
    assert.deepEqual(await dump(ours), await dump(theirs))
  })
})
