import assert from "node:assert/strict"
import { parseMountInfo, readMounts } from "../../../lib/runtime/mountinfo.ts"

describe("parseMountInfo", () => {
  it("reads lines with and without optional fields", () => {
    const text =
      "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n" +
      "40 36 0:52 / /home/ada/m ro,nosuid,nodev - fuse.sifcrypt image.sif ro,user_id=1000\n" +
      "41 36 0:53 / /x rw shared:1 master:2 propagate_from:3 unbindable - tmpfs none rw\n"
    assert.deepEqual(parseMountInfo(text), [
      { device: "98:0", target: "/mnt2", type: "ext3", source: "/dev/root" },
      { device: "0:52", target: "/home/ada/m", type: "fuse.sifcrypt", source: "image.sif" },
      { device: "0:53", target: "/x", type: "tmpfs", source: "none" },
    ])
  })

  for (const [written, meant] of [
    ["/a\\040b", "/a b"],
    ["/a\\011b\\012c", "/a\tb\nc"],
    ["/a\\134b", "/a\\b"],
    ["/a\\134040b", "/a\\040b"],
    ["/\\303\\244", "/ä"],
    ["/ä", "/ä"],
    ["/a\\", "/a\\"],
    ["/a\\9", "/a\\9"],
    ["/a\\04", "/a\\04"],
    ["/a\\043b", "/a#b"],
  ] as const)
    it(`reads ${written} as ${JSON.stringify(meant)}`, () => {
      const [entry] = parseMountInfo(`1 1 0:1 / ${written} rw - tmpfs ${written} rw`)
      assert.equal(entry?.target, meant)
      assert.equal(entry.source, meant)
    })

  it("leaves out lines that are none", () => {
    assert.deepEqual(
      parseMountInfo("\nhello\n1 2 - x\n1 1 0:1 / /x rw tmpfs none rw\n1 1 0:1 / /x rw - tmpfs\n"),
      [],
    )
  })

  it("reads this machine's", () => {
    assert.ok(readMounts().some(({ target }) => target === "/"))
  })
})
