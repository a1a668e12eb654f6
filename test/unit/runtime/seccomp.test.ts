import assert from "node:assert/strict"
import { convertProfile, readProfile } from "../../../lib/runtime/seccomp.ts"
import { writeFileSync } from "node:fs"
import path from "node:path"
import { newFolder } from "../../support/scratch.ts"

/** The names of the system calls in what comes of a profile, and its architectures. */
function namesOf(profile: object, capabilities: readonly string[] = [], arch = "x64"): unknown {
  const { syscalls, architectures } = convertProfile(profile, capabilities, arch) as {
    readonly syscalls: readonly { readonly names: readonly string[] }[]
    readonly architectures?: readonly string[]
  }
  return [syscalls.flatMap(({ names }) => names), architectures]
}

const allow = "SCMP_ACT_ALLOW"

describe("convertProfile", () => {
  it("S18: keeps the rules that hold for these capabilities, architecture and kernel", () => {
    const profile = {
      defaultAction: "SCMP_ACT_ERRNO",
      archMap: [{ architecture: "SCMP_ARCH_X86_64", subArchitectures: ["SCMP_ARCH_X86"] }],
      syscalls: [
        { names: ["read"], action: allow },
        { names: ["mount"], action: allow, includes: { caps: ["CAP_SYS_ADMIN"] } },
        { names: ["clone"], action: allow, excludes: { caps: ["CAP_SYS_ADMIN"] } },
        { names: ["arch_prctl"], action: allow, includes: { arches: ["amd64"] } },
        { names: ["breakpoint"], action: allow, includes: { arches: ["arm"] } },
        { names: ["ptrace"], action: allow, includes: { minKernel: "4.8" } },
        { names: ["from_the_future"], action: allow, includes: { minKernel: "999.0" } },
        { name: "old_form", action: allow },
      ],
    }
    const sub = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert.deepEqual(namesOf(profile), [["read", "clone", "arch_prctl", "ptrace", "old_form"], sub])
    assert.deepEqual(namesOf(profile, ["CAP_SYS_ADMIN"], "arm64"), [
      ["read", "mount", "ptrace", "old_form"],
      undefined,
    ])
  })

  it("takes what a system call is to give back by number or by name, as Podman's profiles have it", () => {
    const rule = { names: ["bdflush"], action: "SCMP_ACT_ERRNO" }
    const convert = (errno: object, all: object = {}): unknown => {
      const profile = { defaultAction: "SCMP_ACT_ERRNO", ...all, syscalls: [{ ...rule, ...errno }] }
      const { syscalls, defaultErrnoRet } = convertProfile(profile, []) as {
        readonly syscalls: readonly { readonly errnoRet?: number }[]
        readonly defaultErrnoRet?: number
      }
      return [syscalls[0]?.errnoRet, defaultErrnoRet]
    }
    assert.deepEqual(convert({}), [undefined, undefined])
    assert.deepEqual(convert({ errno: "EPERM" }, { defaultErrno: "ENOSYS" }), [1, 38])
    assert.deepEqual(convert({ errnoRet: 1, errno: "EPERM" }), [1, undefined])
    assert.throws(() => convert({ errno: "ENOTHING" }), { code: "ERR_RUN_OPTION" })
    assert.throws(() => convert({ errno: "constructor" }), { code: "ERR_RUN_OPTION" })
  })

  it("S18: refuses what is no profile: nothing would be confined", () => {
    for (const profile of [null, [], "x", {}, { defaultAction: 1 }, { defaultAction: allow, syscalls: [{}] }])
      assert.throws(() => convertProfile(profile, []), { code: "ERR_RUN_OPTION" }, JSON.stringify(profile))
  })
})

describe("readProfile", () => {
  it("names the file that it cannot use", async () => {
    const file = path.join(newFolder("seccomp"), "profile.json")
    for (const text of ["", "{", "[".repeat(200_000)]) {
      writeFileSync(file, text)
      await assert.rejects(readProfile(file, []), { code: "ERR_RUN_OPTION", path: file })
    }
    await assert.rejects(readProfile("/dev/zero", []), { code: "ERR_RUN_OPTION" })
  })
})
