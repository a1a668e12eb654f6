// What the starter refuses on its command line, before it reads a key or an image.
import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import path from "node:path"
import { packageRoot } from "../support/cli.ts"

const starter = path.join(packageRoot, "build", "Release", "sifcrypt-starter")
const USAGE_FAILURE = 2

describe("the starter's --gocryptfs-file", () => {
  const image = ["--image-fd=3", "--offset=0", "--size=4096", "--target=/", "--status-fd=3"]
  const userspace = "--engine=userspace"
  const needs = "--gocryptfs-file: needs --key-fd and --engine=userspace, and no segment"
  const refusals: readonly (readonly [title: string, flags: readonly string[], message: string])[] = [
    ["an empty name", [userspace, "--key-fd=4", "--gocryptfs-file="], "--gocryptfs-file: not a file's name"],
    ["a path", [userspace, "--key-fd=4", "--gocryptfs-file=a/b"], "--gocryptfs-file: not a file's name"],
    [
      "a name that no file has",
      [userspace, "--key-fd=4", `--gocryptfs-file=${"n".repeat(256)}`],
      "--gocryptfs-file: not a file's name",
    ],
    ["no key", [userspace, "--gocryptfs-file=name"], needs],
    ["the kernel engine", ["--engine=kernel", "--key-fd=4", "--gocryptfs-file=name"], needs],
    ["a LUKS2 segment", [userspace, "--key-fd=4", "--gocryptfs-file=name", "--segment-size=4096"], needs],
    [
      "a second name",
      [userspace, "--key-fd=4", "--gocryptfs-file=name", "--gocryptfs-file=name"],
      "--gocryptfs-file: given twice",
    ],
  ]
  for (const [title, flags, message] of refusals)
    it(`refuses ${title}`, () => {
      const { status, stderr } = spawnSync(starter, ["mount", ...image, ...flags], {
        stdio: ["ignore", "pipe", "pipe", "pipe", "pipe"],
        encoding: "utf8",
      })
      assert.equal(stderr, `sifcrypt-starter: ${message}\n`)
      assert.equal(status, USAGE_FAILURE)
    })
})
