import assert from "node:assert/strict"
import { capabilityMask, parseCapabilities } from "../../../lib/runtime/capabilities.ts"
import {
  confine,
  parseSecurity,
  withProfile,
  type ConfinementOptions,
  type PayloadIds,
} from "../../../lib/runtime/confinement.ts"
import { resourcesOf } from "../../../lib/runtime/resources.ts"
import { convertProfile } from "../../../lib/runtime/seccomp.ts"
import { parseRanges } from "../../../lib/runtime/subordinate-ids.ts"

const option = { code: "ERR_RUN_OPTION" }
const user = { uid: 1000, gid: 2000, groups: [] }
const root = { uid: 0, gid: 0, groups: [5] }

describe("confine", () => {
  it("gives an ordinary user nothing, in a user namespace", () => {
    const { capabilities, noNewPrivileges, namespaces, initArguments } = confine({}, user, false)
    assert.deepEqual(capabilities, [])
    assert.equal(noNewPrivileges, true)
    assert.deepEqual(
      namespaces.map(({ type }) => type),
      ["mount", "user"],
    )
    assert.deepEqual(initArguments, [])
  })
  it("has what is dropped, and whoever the payload becomes, read back", () => {
    const { capabilities, ids, initArguments } = confine({ security: ["uid:77,gid:88:99"] }, root, true)
    assert.deepEqual(capabilities, [])
    assert.deepEqual(ids, { uid: 77, gid: 88, groups: [99] })
    assert.deepEqual(initArguments, [
      "--check-uid=77",
      "--check-gid=88:99",
      "--check-capabilities=0",
      "--check-no-new-privs=1",
    ])
  })
  it("leaves no_new_privs out for full root only, and only if it is asked to", () => {
    assert.equal(confine({}, root, true).noNewPrivileges, true)
    assert.equal(confine({ keepPrivs: true }, root, true).noNewPrivileges, false)
    assert.equal(confine({ keepPrivs: true, security: ["uid:5"] }, root, true).noNewPrivileges, true)
  })
  it("gives nobody packets of his own where pasta passes them on, unless he is given the right to them", () => {
    const packets = (options: ConfinementOptions, who: PayloadIds, isRoot: boolean): string[] =>
      confine(options, who, isRoot).capabilities.filter((name) => /^CAP_NET_(?:RAW|ADMIN)$/.test(name))
    const fake = { fakeroot: true }
    assert.equal(packets(fake, user, false).length, 2)
    assert.deepEqual(packets({ ...fake, network: "pasta" }, user, false), [])
    assert.deepEqual(packets({ publish: ["1:1"] }, root, true), [])
    assert.deepEqual(packets({ ...fake, network: "pasta", addCaps: ["CAP_NET_RAW"] }, user, false), [
      "CAP_NET_RAW",
    ])
  })
  it("refuses what contradicts itself or is not there", async () => {
    for (const options of [
      { keepPrivs: true, noPrivs: true },
      { network: ["none", "host"] },
      { network: "none", netnsPath: "/proc/self/ns/net" },
      { publish: ["80"] },
    ])
      assert.throws(() => confine(options, root, true), option)
    for (const options of [{ keepPrivs: true }, { allowSetuid: true }, { security: ["gid:1:2"] }])
      assert.throws(() => confine(options, user, false), option)
    await assert.rejects(withProfile(confine({ security: ["seccomp:/nonexistent"] }, root, true)), option)
  })
})

describe("parseSecurity", () => {
  it("reads names and values", () => {
    assert.deepEqual(parseSecurity(["uid:1,gid:2:3", "selinux:a:b:c"]), {
      uid: 1,
      gids: [2, 3],
      selinux: "a:b:c",
    })
  })
  it("refuses anything else", () => {
    for (const text of ["", "uid", "uid:", "uid:x", "uid:4294967295", "other:1", "gid:1:"])
      assert.throws(() => parseSecurity([text]), option, text)
  })
})

describe("parseCapabilities", () => {
  it("takes names in any case, with and without CAP_", () => {
    assert.deepEqual(parseCapabilities(["net_admin, CAP_CHOWN"]), ["CAP_NET_ADMIN", "CAP_CHOWN"])
    assert.equal(capabilityMask(["CAP_CHOWN", "CAP_NET_ADMIN"]), "1001")
    assert.throws(() => parseCapabilities(["CAP_NONSENSE"]), option)
  })
})

describe("convertProfile", () => {
  const profile = {
    defaultAction: "SCMP_ACT_ERRNO",
    archMap: [{ architecture: "SCMP_ARCH_X86_64", subArchitectures: ["SCMP_ARCH_X86"] }],
    syscalls: [
      { names: ["read"], action: "SCMP_ACT_ALLOW", args: [], includes: {}, excludes: {} },
      { names: ["mount"], action: "SCMP_ACT_ALLOW", includes: { caps: ["CAP_SYS_ADMIN"] } },
      { names: ["clone"], action: "SCMP_ACT_ALLOW", excludes: { caps: ["CAP_SYS_ADMIN"] } },
      { names: ["sync_file_range2"], action: "SCMP_ACT_ALLOW", includes: { arches: ["ppc64le"] } },
      { name: "newer", action: "SCMP_ACT_ALLOW", includes: { minKernel: "999.0" } },
    ],
  }
  const allowed = (capabilities: readonly string[]): unknown =>
    (convertProfile(profile, capabilities, "x64") as { syscalls: { names: string[] }[] }).syscalls.flatMap(
      ({ names }) => names,
    )
  it("keeps the rules that hold for this machine and these capabilities", () => {
    assert.deepEqual(allowed([]), ["read", "clone"])
    assert.deepEqual(allowed(["CAP_SYS_ADMIN"]), ["read", "mount"])
    assert.deepEqual((convertProfile(profile, [], "x64") as { architectures: string[] }).architectures, [
      "SCMP_ARCH_X86_64",
      "SCMP_ARCH_X86",
    ])
  })
  it("refuses what is no profile", () => {
    for (const value of [null, [], {}, { defaultAction: 1 }, { defaultAction: "x", syscalls: [{}] }])
      assert.throws(() => convertProfile(value, []), option)
  })
})

describe("resourcesOf", () => {
  it("writes limits as the runtime has them", () => {
    assert.deepEqual(
      resourcesOf({ cpus: 1.5, memory: 1 << 20, memorySwap: -1, pidsLimit: 9, blkioWeight: 10 }, 4),
      {
        cpu: { quota: 150_000, period: 100_000 },
        memory: { limit: 1 << 20, swap: -1 },
        blockIO: { weight: 10 },
        pids: { limit: 9 },
      },
    )
    assert.deepEqual(resourcesOf({}), {})
  })
  it("refuses what is out of range", () => {
    for (const limits of [
      { cpus: 5 },
      { cpus: 0 },
      { cpuShares: 1 },
      { cpusetCpus: "a" },
      { memorySwap: 5 },
      { pidsLimit: 7 },
      { memory: 5, memorySwap: 4 },
      { blkioWeight: 9 },
      { blkioWeightDevice: ["x"] },
    ])
      assert.throws(() => resourcesOf(limits, 4), option)
  })
})

describe("parseRanges", () => {
  it("finds a user by name and by number, and nothing else", () => {
    const text = "ada:100000:65536\n1000:300000:10\nbob:1:2\nada:x:1\nada:4294967295:2\n\n"
    assert.deepEqual(parseRanges(text, "ada", 1000), [
      { start: 100_000, count: 65_536 },
      { start: 300_000, count: 10 },
    ])
  })
})
