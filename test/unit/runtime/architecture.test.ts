// Whose programs a machine runs, by itself and by what binfmt_misc knows.
import assert from "node:assert/strict"
import { writeFileSync } from "node:fs"
import path from "node:path"
import { checkArchitecture } from "../../../lib/runtime/architecture.ts"
import { newFolder } from "../../support/scratch.ts"

// As qemu-user-static registers them.
const aarch64 = `enabled
interpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P
flags: POCF
offset 0
magic 7f454c460201010000000000000000000200b700
mask ffffffffffffff00fffffffffffffffffeffffff
`
const s390x = `enabled
interpreter /usr/libexec/qemu-binfmt/s390x-binfmt-P
flags: POCF
offset 0
magic 7f454c4602020100000000000000000000020016
mask ffffffffffffff00fffffffffffffffffffeffff
`
const python = `enabled
interpreter /usr/bin/python3
flags: 
offset 0
magic 6f0d0d0a
`
const byName = "enabled\ninterpreter /usr/bin/x\nflags: \nextension .x\n"

describe("checkArchitecture", () => {
  const foreign = process.arch === "arm64" ? "amd64" : "arm64"
  const folderOf = (entries: Readonly<Record<string, string>>): string => {
    const folder = newFolder("binfmt")
    for (const [name, text] of Object.entries(entries)) writeFileSync(path.join(folder, name), text)
    return folder
  }
  const refused = { code: "ERR_ENV_ARCHITECTURE" }

  it("takes its own architecture, the smaller one beside it, and what nobody named", () => {
    const own = { x64: ["amd64", "386"], arm64: ["arm64", "arm"] }[process.arch as string] ?? []
    for (const name of [...own, "unknown"]) checkArchitecture("x.sif", name, "/nonexistent")
  })

  it("names both architectures", () => {
    assert.throws(() => {
      checkArchitecture("x.sif", "s390x", "/nonexistent")
    }, /^EnvironmentError.*: x\.sif is for s390x, and this machine is (?!s390x)\w+$/)
  })

  it("takes what an emulator is registered for, and nothing else", function () {
    const folder = folderOf({ status: "enabled\n", register: "", aarch64, s390x, python, byName })
    if (foreign === "arm64") checkArchitecture("x.sif", "arm64", folder)
    checkArchitecture("x.sif", "s390x", folder)
    for (const name of ["riscv64", "ppc64le", "mips"])
      assert.throws(() => {
        checkArchitecture("x.sif", name, folder)
      }, refused)
  })

  it("counts on no emulator that is switched off", () => {
    const off = { s390x: s390x.replace("enabled", "disabled") }
    for (const folder of [
      folderOf({ status: "disabled\n", s390x }),
      folderOf({ status: "enabled\n", ...off }),
    ])
      assert.throws(() => {
        checkArchitecture("x.sif", "s390x", folder)
      }, refused)
  })
})
