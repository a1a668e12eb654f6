import assert from "node:assert/strict"
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import {
  checkMemory,
  FIPS_PASSPHRASE_KDF,
  PASSPHRASE_KDF,
  RANDOM_SECRET_KDF,
} from "../../../lib/device/luks.ts"
import type { LuksKeyslot } from "../../../lib/device/luks-header.ts"
import { freeMemory } from "../../../lib/device/memory.ts"

const MiB = 1024 * 1024

describe("freeMemory", () => {
  let root: string
  beforeEach(() => {
    root = mkdtempSync(path.join(tmpdir(), "sifcrypt-unit-"))
  })
  afterEach(() => {
    rmSync(root, { recursive: true })
  })

  /** Files below a false root, as /proc and /sys have them. */
  function tree(files: Readonly<Record<string, string>>): string {
    for (const [name, content] of Object.entries(files)) {
      const file = path.join(root, name)
      mkdirSync(path.dirname(file), { recursive: true })
      writeFileSync(file, content)
    }
    return root
  }
  const meminfo = "MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable:    2097152 kB\n"

  it("A12: tells what the machine has where no cgroup limits it", () => {
    assert.deepEqual(freeMemory(tree({ "proc/meminfo": meminfo })), {
      bytes: 2048 * MiB,
      limit: "this machine",
    })
  })

  it("A12: tells what the cgroup leaves of its limit, the file cache counted as free", () => {
    const free = freeMemory(
      tree({
        "proc/meminfo": meminfo,
        "proc/self/cgroup": "0::/jobs/17\n",
        "sys/fs/cgroup/jobs/17/memory.max": `${512 * MiB}\n`,
        "sys/fs/cgroup/jobs/17/memory.current": `${300 * MiB}\n`,
        "sys/fs/cgroup/jobs/17/memory.stat": `anon 1\nfile 2\ninactive_file ${100 * MiB}\nactive_file 3\n`,
      }),
    )
    assert.deepEqual(free, { bytes: 312 * MiB, limit: "the cgroup /jobs/17" })
  })

  it("A12: finds the tightest of all cgroups above the process", () => {
    const free = freeMemory(
      tree({
        "proc/meminfo": meminfo,
        "proc/self/cgroup": "0::/a/b/c\n",
        "sys/fs/cgroup/a/b/c/memory.max": "max\n",
        "sys/fs/cgroup/a/b/c/memory.current": "1\n",
        "sys/fs/cgroup/a/b/memory.max": `${100 * MiB}\n`,
        "sys/fs/cgroup/a/b/memory.current": `${90 * MiB}\n`,
        "sys/fs/cgroup/a/memory.max": `${200 * MiB}\n`,
        "sys/fs/cgroup/a/memory.current": `${100 * MiB}\n`,
      }),
    )
    assert.deepEqual(free, { bytes: 10 * MiB, limit: "the cgroup /a/b" })
  })

  it("A12: reads cgroups of version 1, whose largest number is no limit", () => {
    const files = {
      "proc/meminfo": meminfo,
      "proc/self/cgroup": "12:pids:/x\n5:cpu,cpuacct:/y\n4:memory:/job\n0::/unified\n",
      "sys/fs/cgroup/memory/job/memory.limit_in_bytes": `${256 * MiB}\n`,
      "sys/fs/cgroup/memory/job/memory.usage_in_bytes": `${200 * MiB}\n`,
      "sys/fs/cgroup/memory/job/memory.stat": `inactive_file 1\ntotal_inactive_file ${50 * MiB}\n`,
      "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
      "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
    }
    const free = freeMemory(tree(files))
    assert.equal(free?.limit, "the cgroup /job")
    assert.ok(free.bytes >= 56 * MiB && free.bytes <= 106 * MiB)
  })

  it("A12: has nothing left, and not less, in a cgroup above its limit", () => {
    const free = freeMemory(
      tree({
        "proc/meminfo": meminfo,
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "1000\n",
        "sys/fs/cgroup/memory.current": "2000\n",
      }),
    )
    assert.deepEqual(free, { bytes: 0, limit: "the cgroup /" })
  })

  it("does not know where the system does not tell, or tells nonsense", () => {
    assert.equal(freeMemory(root), undefined)
    assert.equal(
      freeMemory(tree({ "proc/meminfo": "hello", "proc/self/cgroup": "no\n::\n0::x\n" })),
      undefined,
    )
  })

  it("stays within /sys/fs/cgroup whatever the cgroup's name", () => {
    assert.equal(
      freeMemory(
        tree({
          "proc/self/cgroup": "0::/../../../outside\n",
          "outside/memory.max": "1\n",
          "outside/memory.current": "1\n",
        }),
      ),
      undefined,
    )
  })

  it("knows this machine's", () => {
    assert.ok((freeMemory()?.bytes ?? 0) > 0)
  })
})

describe("checkMemory", () => {
  const keyslot = (memory: number): LuksKeyslot => ({
    id: 3,
    cost: "",
    mark: "",
    kdf: { type: "argon2id", iterations: 4, memory, parallel: 1 },
  })
  const cgroup = { bytes: 100 * MiB, limit: "the cgroup /job" }

  it("A12: says how much a keyslot needs and what is left", () => {
    assert.throws(
      () => {
        checkMemory([keyslot(256 * 1024)], cgroup)
      },
      {
        name: "EnvironmentError",
        code: "ERR_ENV_NO_MEMORY",
        message: "keyslot 3 needs 256 MiB of memory for its key derivation; the cgroup /job has 100 MiB left",
      },
    )
  })

  it("A12: lets pass what fits, and what cannot be known", () => {
    checkMemory([keyslot(100 * 1024)], cgroup)
    checkMemory([keyslot(0)], { bytes: 0, limit: "x" })
    checkMemory([keyslot(2 ** 32)], undefined)
  })

  it("A12: finds the keyslot that does not fit among those that do", () => {
    assert.throws(
      () => {
        checkMemory([keyslot(1024), keyslot(101 * 1024)], cgroup)
      },
      { code: "ERR_ENV_NO_MEMORY" },
    )
  })
})

describe("key derivation of new images", () => {
  it("A12: costs next to nothing for a random secret: PBKDF2, no memory", () => {
    assert.deepEqual(RANDOM_SECRET_KDF, { type: "pbkdf2", iterations: 1000, memory: 0, parallel: 0 })
  })

  it("A12: costs 256 MiB for a passphrase, wherever the image is built", () => {
    assert.equal(PASSPHRASE_KDF.type, "argon2id")
    assert.equal(PASSPHRASE_KDF.memory, 256 * 1024)
    assert.equal(PASSPHRASE_KDF.parallel, 4)
  })

  it("A12: can do without Argon2", () => {
    assert.equal(FIPS_PASSPHRASE_KDF.type, "pbkdf2")
    assert.equal(FIPS_PASSPHRASE_KDF.memory, 0)
    assert.ok(FIPS_PASSPHRASE_KDF.iterations >= 1_000_000)
  })
})
