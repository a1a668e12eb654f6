// What the starter refuses on its command line, before it reads a key or an image.
import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import path from "node:path"
import { packageRoot } from "../support/cli.ts"

const starter = path.join(packageRoot, "build", "Release", "sifcrypt-starter")
const USAGE_FAILURE = 2

describe("the starter's words for a folder", () => {
  const run = [
    "run",
    "--engine=userspace",
    "--image-fd=3",
    "--session=/mnt",
    "--bundle-fd=3",
    "--crun=/c",
    "--id=i",
  ]
  const refusals: readonly (readonly [title: string, flags: readonly string[], message: string])[] = [
    ["a relative one", ["--folder=a"], "--folder: not an absolute path"],
    ["one with a place in a file", ["--folder=/a", "--size=1"], "--folder: has no place in a file"],
    ["neither a folder nor a place", [], "--offset: missing"],
    [
      "a file that is written to",
      ["--offset=0", "--size=1", "--writable=1"],
      "--writable: goes with --folder, and nothing lies over it",
    ],
    [
      "something over a folder that is written to",
      ["--folder=/a", "--writable=1", "--layer=kind=directory,path=/b"],
      "--writable: goes with --folder, and nothing lies over it",
    ],
  ]
  for (const [title, flags, message] of refusals)
    it(`refuses ${title}`, () => {
      const { status, stderr } = spawnSync(starter, [...run, "--status-fd=3", ...flags], {
        stdio: ["ignore", "pipe", "pipe", "pipe"],
        encoding: "utf8",
      })
      assert.equal(stderr, `sifcrypt-starter: ${message}\n`)
      assert.equal(status, USAGE_FAILURE)
    })
})

describe("the starter's words for networks and services", () => {
  const run = ["run", "--engine=userspace", "--image-fd=3", "--folder=/a", "--session=/mnt", "--bundle-fd=3"]
  const always = [...run, "--crun=/c", "--id=i", "--status-fd=3"]
  const folder = ["--pasta=/p", "--resolver=1.2.3.4", "--networks=/n", "--netavark=/k", "--aardvark=/d"]
  const networks = [...folder, "--container-name=web"]
  const join = (words: string): string[] => [...networks, `--join=${words}`]
  const none = "--join: not a network"
  const refusals: readonly (readonly [title: string, flags: readonly string[], message: string])[] = [
    ["a network without a subnet", join("n,b,10.0.0.0,10.0.0.1,,"), "--join: not a number"],
    ["a subnet of one address", join("n,b,10.0.0.0/32,10.0.0.1,,"), none],
    ["a name that is none", join('n",b,10.0.0.0/24,10.0.0.1,,'), none],
    ["a bridge with a long name", join("n,bbbbbbbbbbbbbbbb,10.0.0.0/24,10.0.0.1,,"), none],
    ["an alias that is none", join("n,b,10.0.0.0/24,10.0.0.1,,,a b"), none],
    ["a word for internal that is none", join("n,b,10.0.0.0/24,10.0.0.1,secret,"), none],
    [
      "networks to join without what makes them",
      ["--join=n,b,10.0.0.0/24,10.0.0.1,,"],
      "--join: goes with --networks",
    ],
    ["what makes networks without one", networks, "--join: goes with --networks"],
    [
      "a container without a name",
      [...folder, "--join=n,b,10.0.0.0/24,10.0.0.1,,"],
      "--join: goes with --container-name",
    ],
    ["a policy that is none", ["--restart=sometimes"], "--restart: no, always or on-failure"],
    ["a question in no time", ["--health=0,1,1,1"], "--health: nothing is at once"],
    ["a limit without files", ["--log-size=1"], "--log-size: goes with --log-out"],
  ]
  for (const [title, flags, message] of refusals)
    it(`refuses ${title}`, () => {
      const { status, stderr } = spawnSync(starter, [...always, ...flags], {
        stdio: ["ignore", "pipe", "pipe", "pipe"],
        encoding: "utf8",
      })
      assert.equal(stderr, `sifcrypt-starter: ${message}\n`)
      assert.equal(status, USAGE_FAILURE)
    })
})

describe("the starter's words for a cipher", () => {
  const image = ["--image-fd=3", "--offset=0", "--size=4096", "--target=/", "--status-fd=3"]
  const userspace = "--engine=userspace"
  const encrypted = ["--cipher=gocryptfs", "--key-fd=4"]
  const alone = "--cipher: goes with --key-fd"
  const refusals: readonly (readonly [title: string, flags: readonly string[], message: string])[] = [
    ["an empty name", [userspace, ...encrypted, "--file="], "--file: not a file's name"],
    ["a path", [userspace, ...encrypted, "--file=a/b"], "--file: not a file's name"],
    [
      "a name that no file has",
      [userspace, ...encrypted, `--file=${"n".repeat(256)}`],
      "--file: not a file's name",
    ],
    ["no key", [userspace, "--cipher=gocryptfs"], alone],
    ["a key for nothing", [userspace, "--key-fd=4"], alone],
    ["a cipher that is none", [userspace, "--cipher=rot13", "--key-fd=4"], "--cipher: unknown"],
    [
      "a kernel engine without LUKS2 metadata",
      ["--engine=kernel", ...encrypted],
      "--engine=kernel: needs --metadata-fd and --area-size",
    ],
    ["a second name", [userspace, "--file=name", "--file=name"], "--file: given twice"],
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
