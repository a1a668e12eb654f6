// What --nv and --rocm make visible of the host: devices, libraries, programs and files, by the peers' lists.
import { execFileSync } from "node:child_process"
import { closeSync, existsSync, openSync, readdirSync, readFileSync, readSync } from "node:fs"
import path from "node:path"
import type { Bind } from "./binds.ts"
import { findProgram } from "./program.ts"
import { scrubbedEnvironment } from "./starter-protocol.ts"

/** Where the image's environment scripts look for libraries of the host. */
const LIBRARY_FOLDER = "/.singularity.d/libs"

/** Where those of 32 bits are, which have the same names. */
export const LIBRARY32_FOLDER = "/.singularity.d/libs32"

interface MakerList {
  /** Where installations of the peers have a list of their own. */
  readonly file: string
  /** Names of device nodes in these folders. */
  readonly devices: RegExp
  readonly folders: readonly string[]
  readonly extra: readonly string[]
  /** What is looked for where there is no such file. */
  readonly names: readonly string[]
}

const lists: Readonly<Record<"nv" | "rocm", MakerList>> = {
  nv: {
    file: "nvliblist.conf",
    devices: /^nvidia/,
    folders: ["/dev"],
    extra: ["/var/run/nvidia-persistenced/socket"],
    names: (
      "nvidia-smi nvidia-debugdump nvidia-persistenced nvidia-cuda-mps-control nvidia-cuda-mps-server " +
      "libcuda.so libcudadebugger.so libEGL_nvidia.so libEGL.so libGLdispatch.so libGLESv1_CM_nvidia.so " +
      "libGLESv1_CM.so libGLESv2_nvidia.so libGLESv2.so libGL.so libGLX_nvidia.so libglx.so libGLX.so libnvcuvid.so " +
      "libnvidia-cbl.so libnvidia-cfg.so libnvidia-compiler.so libnvidia-eglcore.so libnvidia-egl-wayland.so " +
      "libnvidia-encode.so libnvidia-fatbinaryloader.so libnvidia-fbc.so libnvidia-glcore.so libnvidia-glsi.so " +
      "libnvidia-glvkspirv.so libnvidia-gpucomp.so libnvidia-gtk2.so libnvidia-gtk3.so libnvidia-ifr.so " +
      "libnvidia-ml.so libnvidia-nvvm.so libnvidia-opencl.so libnvidia-opticalflow.so libnvidia-ptxjitcompiler.so " +
      "libnvidia-rtcore.so libnvidia-tls.so libnvidia-wfb.so libnvoptix.so libOpenCL.so libOpenGL.so " +
      "libvdpau_nvidia.so nvidia_drv.so tls_test_.so /usr/share/glvnd/egl_vendor.d/10_nvidia.json " +
      "/usr/share/vulkan/icd.d/nvidia_icd.json /usr/share/vulkan/implicit_layer.d/nvidia_layers.json " +
      "/usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json /usr/share/nvidia/nvoptix.bin"
    ).split(" "),
  },
  rocm: {
    file: "rocmliblist.conf",
    devices: /^(?:kfd$|card|render)/,
    folders: ["/dev", "/dev/dri"],
    extra: [],
    names: (
      "rocm-smi rocminfo libCXLActivityLogger.so libhc_am.so libmcwamp.so libmcwamp_cpu.so libmcwamp_hsa.so libdrm.so " +
      "libdrm_amdgpu.so libnuma.so libpci.so librocr_debug_agent64.so libamdcomgr64.so libamdocl64.so libcltrace.so " +
      "libOpenCL.so"
    ).split(" "),
  },
}

/** Where installations of the peers keep their lists. */
const listFolders = ["/etc/sifcrypt", "/etc/apptainer", "/etc/singularity", "/usr/local/etc/apptainer"]
const programFolders = ["/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin", "/sbin", "/opt/rocm/bin"]

/** The names in a list: one a line, `#` before comments. */
export function parseList(text: string): string[] {
  return text
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "" && !line.startsWith("#"))
}

/** Libraries by their paths, from what `ldconfig -p` prints. */
export function parseLinkerCache(text: string): ReadonlyMap<string, string> {
  const found = new Map<string, string>()
  for (const [, name = "", file = ""] of text.matchAll(/^\s*(\S+) \(.*\) => (.+)$/gm)) found.set(file, name)
  return found
}

const ELF_HEADER_SIZE = 20

/** Class and machine of an ELF file: libraries of another architecture are of no use. */
function elfKind(file: string): string | undefined {
  let fd: number
  try {
    fd = openSync(file, "r")
  } catch {
    return undefined
  }
  try {
    const header = Buffer.alloc(ELF_HEADER_SIZE)
    if (readSync(fd, header, 0, ELF_HEADER_SIZE, 0) < ELF_HEADER_SIZE) return undefined
    if (header.toString("latin1", 0, 4) !== "\x7fELF") return undefined
    // e_ident[EI_CLASS] and e_machine, elf(5)
    return `${header[4] ?? 0}:${header.readUInt16LE(18)}`
  } finally {
    closeSync(fd)
  }
}

/** Class and machine, elf(5), of what 32-bit programs need on such a machine: makers have them for x86 only. */
const kinds32: Readonly<Record<string, string>> = { "2:62": "1:3" }

/** What is looked for, and where: a test has a tree of its own. */
export interface GpuSearch {
  /** A folder that stands for the root of the host; default "". */
  readonly root?: string
  /** What `ldconfig -p` prints; default: it is asked. */
  readonly linkerCache?: string
  /** Devices as well: --contain hides the host's /dev. */
  readonly devices: boolean
  /** The libraries of 32 bits as well. */
  readonly compat32?: boolean
}

function linkerCache(): string {
  return execFileSync(findProgram("ldconfig", "it knows where libraries are"), ["-p"], {
    env: scrubbedEnvironment,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
    maxBuffer: 64 << 20,
  })
}

/** The binds for one maker's processors; empty where this machine has none of it. */
export function gpuBinds(maker: "nv" | "rocm", search: GpuSearch): Bind[] {
  const { root = "", devices, compat32 = false } = search
  const { file, names, folders, devices: pattern, extra } = lists[maker]
  const binds = new Map<string, Bind>()
  const add = (source: string, destination: string, readOnly: boolean): void => {
    if (!binds.has(destination)) binds.set(destination, { source, destination, readOnly, nested: false })
  }
  const list = listFolders.map((folder) => path.join(root, folder, file)).find((one) => existsSync(one))
  const wanted = list === undefined ? names : parseList(readFileSync(list, "utf8"))
  const own = elfKind("/proc/self/exe") ?? ""
  const places = new Map([[own, LIBRARY_FOLDER]])
  const other = compat32 ? kinds32[own] : undefined
  if (other !== undefined) places.set(other, LIBRARY32_FOLDER)
  const addLibrary = (source: string, library: string): void => {
    const folder = places.get(elfKind(source) ?? "none")
    if (folder !== undefined) add(source, path.join(folder, library), false)
  }
  const cache = parseLinkerCache(search.linkerCache ?? linkerCache())
  for (const name of wanted) {
    if (path.isAbsolute(name)) {
      const source = path.join(root, name)
      if (!existsSync(source)) continue
      if (!name.includes(".so")) add(source, name, false)
      else addLibrary(source, path.basename(name))
    } else if (name.includes(".so")) {
      for (const [place, library] of cache)
        if (library.startsWith(name)) addLibrary(path.join(root, place), library)
    } else {
      const found = programFolders
        .map((folder) => path.join(root, folder, name))
        .find((one) => existsSync(one))
      if (found !== undefined) add(found, `/usr/bin/${name}`, false)
    }
  }
  for (const place of extra) if (existsSync(path.join(root, place))) add(path.join(root, place), place, false)
  if (devices)
    for (const folder of folders) {
      const host = path.join(root, folder)
      if (!existsSync(host)) continue
      for (const name of readdirSync(host))
        if (pattern.test(name)) add(path.join(host, name), path.join(folder, name), false)
    }
  return [...binds.values()]
}
