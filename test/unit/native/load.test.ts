// Which of the prebuilt files are taken: by the libc that this process runs on.
import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { libcOf } from "../../../lib/native/load.ts"

describe("the libc of a process", () => {
  const mapped = (file: string): string =>
    `55d0c0a00000-55d0c0b00000 r--p 00000000 fe:00 1234                       /usr/bin/node
7f1c8a000000-7f1c8a028000 r--p 00000000 fe:00 1235                       ${file}
7ffd5b1c0000-7ffd5b1e1000 rw-p 00000000 00:00 0                          [stack]
`

  it("is told by the files that are mapped", () => {
    for (const [file, libc] of [
      ["/usr/lib/x86_64-linux-gnu/libc.so.6", "glibc"],
      ["/lib/aarch64-linux-gnu/libc-2.31.so", "glibc"],
      // An upgrade replaced it while the process ran.
      ["/usr/lib64/libc.so.6 (deleted)", "glibc"],
      // Alpine; and where the dynamic linker's name is a link: Debian, Void.
      ["/lib/ld-musl-x86_64.so.1", "musl"],
      ["/usr/lib/x86_64-linux-musl/libc.so", "musl"],
      ["/usr/lib/libc.so", "musl"],
    ] as const)
      assert.equal(libcOf(mapped(file)), libc, file)
  })

  it("is what Node says of this one", () => {
    const { header } = process.report.getReport() as { header: { glibcVersionRuntime?: string } }
    const expected = header.glibcVersionRuntime === undefined ? "musl" : "glibc"
    assert.equal(libcOf(readFileSync("/proc/self/maps", "latin1")), expected)
  })
})
