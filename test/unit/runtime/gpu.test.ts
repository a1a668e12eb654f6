// What --nv and --rocm find, in a tree that stands for a host with such processors.
import assert from "node:assert/strict"
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { gpuBinds, parseLinkerCache, parseList } from "../../../lib/runtime/gpu.ts"

describe("gpuBinds", () => {
  let root: string
  beforeEach(() => {
    root = mkdtempSync(path.join(tmpdir(), "sifcrypt-unit-"))
  })
  afterEach(() => {
    rmSync(root, { recursive: true })
  })

  function put(name: string, content = ""): void {
    const file = path.join(root, name)
    mkdirSync(path.dirname(file), { recursive: true })
    writeFileSync(file, content)
  }

  /** A library for this machine: any ELF file of its own kind. */
  function putLibrary(name: string): void {
    put(name)
    copyFileSync(process.execPath, path.join(root, name))
  }

  const cache = `3 libs found in cache \`/etc/ld.so.cache'
\tlibcuda.so.1 (libc6,x86-64) => /usr/lib/nvidia/libcuda.so.1
\tlibcuda.so.1 (libc6) => /usr/lib32/libcuda.so.1
\tlibcudnn.so.8 (libc6,x86-64) => /usr/lib/libcudnn.so.8
\tlibdrm.so.2 (libc6,x86-64) => /usr/lib/libdrm.so.2
`

  function find(maker: "nv" | "rocm", devices = false): [source: string, destination: string][] {
    return gpuBinds(maker, { root, linkerCache: cache, devices }).map(({ source, destination }) => [
      source.slice(root.length),
      destination,
    ])
  }

  it("finds nothing where there is nothing", () => {
    assert.deepEqual(find("nv", true), [])
    assert.deepEqual(find("rocm", true), [])
  })

  it("finds NVIDIA's libraries of this architecture, programs, files and socket", () => {
    putLibrary("/usr/lib/nvidia/libcuda.so.1")
    put("/usr/lib32/libcuda.so.1", "\x7fELF\x01 of another architecture")
    putLibrary("/usr/lib/libcudnn.so.8")
    put("/usr/bin/nvidia-smi")
    put("/usr/share/nvidia/nvoptix.bin")
    put("/var/run/nvidia-persistenced/socket")
    put("/dev/nvidia0")
    assert.deepEqual(find("nv"), [
      ["/usr/bin/nvidia-smi", "/usr/bin/nvidia-smi"],
      ["/usr/lib/nvidia/libcuda.so.1", "/.singularity.d/libs/libcuda.so.1"],
      ["/usr/share/nvidia/nvoptix.bin", "/usr/share/nvidia/nvoptix.bin"],
      ["/var/run/nvidia-persistenced/socket", "/var/run/nvidia-persistenced/socket"],
    ])
  })

  it("finds libraries of 32 bits where they are asked for, in a folder of their own", () => {
    putLibrary("/usr/lib/nvidia/libcuda.so.1")
    // elf(5): 32 bits, and EM_386 in e_machine; the other is for ARM.
    for (const [name, machine] of [
      ["/usr/lib32/libcuda.so.1", "03"],
      ["/usr/lib/libcudnn.so.8", "28"],
    ] as const) {
      put(name)
      writeFileSync(
        path.join(root, name),
        Buffer.from(`7f454c46010101${"00".repeat(9)}0300${machine}00`, "hex"),
      )
    }
    const found = gpuBinds("nv", { root, linkerCache: cache, devices: false, compat32: true })
    assert.deepEqual(
      found.map(({ source, destination }) => [source.slice(root.length), destination]),
      [
        ["/usr/lib/nvidia/libcuda.so.1", "/.singularity.d/libs/libcuda.so.1"],
        ...(process.arch === "x64"
          ? [["/usr/lib32/libcuda.so.1", "/.singularity.d/libs32/libcuda.so.1"]]
          : []),
      ],
    )
  })

  it("finds the devices where /dev is not the host's", () => {
    for (const name of ["nvidia0", "nvidiactl", "nvidia-caps/nvidia-cap1", "sda", "kfd"]) put(`/dev/${name}`)
    for (const name of ["card0", "renderD128", "by-path/x"]) put(`/dev/dri/${name}`)
    assert.deepEqual(
      find("nv", true)
        .map(([source]) => source)
        .sort(),
      ["/dev/nvidia-caps", "/dev/nvidia0", "/dev/nvidiactl"],
    )
    assert.deepEqual(
      find("rocm", true)
        .map(([source]) => source)
        .sort(),
      ["/dev/dri/card0", "/dev/dri/renderD128", "/dev/kfd"],
    )
  })

  it("goes by the administrator's list where there is one, of whichever peer", () => {
    putLibrary("/usr/lib/nvidia/libcuda.so.1")
    putLibrary("/usr/lib/libcudnn.so.8")
    putLibrary("/opt/lib/libown.so.1")
    put("/etc/singularity/nvliblist.conf", "# comment\n\n libcudnn.so \n/opt/lib/libown.so.1\n/missing\n")
    assert.deepEqual(find("nv"), [
      ["/usr/lib/libcudnn.so.8", "/.singularity.d/libs/libcudnn.so.8"],
      ["/opt/lib/libown.so.1", "/.singularity.d/libs/libown.so.1"],
    ])
    putLibrary("/usr/lib/libdrm.so.2")
    put("/etc/apptainer/rocmliblist.conf", "libdrm.so\n")
    assert.deepEqual(find("rocm"), [["/usr/lib/libdrm.so.2", "/.singularity.d/libs/libdrm.so.2"]])
  })

  it("does not tell a container that is started inside to bind them", () => {
    put("/usr/bin/nvidia-smi")
    assert.ok(
      gpuBinds("nv", { root, linkerCache: "", devices: false }).every(({ nested }) => nested === false),
    )
  })

  it("reads lists and the linker's cache", () => {
    assert.deepEqual(parseList("a\n# b\n\n  c  \n"), ["a", "c"])
    assert.deepEqual(
      [...parseLinkerCache(cache).keys()],
      [
        "/usr/lib/nvidia/libcuda.so.1",
        "/usr/lib32/libcuda.so.1",
        "/usr/lib/libcudnn.so.8",
        "/usr/lib/libdrm.so.2",
      ],
    )
  })
})
