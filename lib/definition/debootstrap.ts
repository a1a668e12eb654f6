// A Debian system as a base, by the distribution's own program.
import { spawn } from "node:child_process"
import { once } from "node:events"
import { readFileSync } from "node:fs"
import { mkdir, rm, rmdir, writeFile } from "node:fs/promises"
import path from "node:path"
import { BuildError } from "../errors.ts"
import { shellQuote } from "../runtime/environment.ts"
import { scrubbedEnvironment } from "../runtime/starter-protocol.ts"
import type { Debootstrap, Ids } from "./workspace-protocol.ts"
import { runInContainer } from "./script-container.ts"

/** Go's and Node's names of architectures, and Debian's. */
const architectures: Readonly<Record<string, string>> = {
  x64: "amd64",
  amd64: "amd64",
  ia32: "i386",
  "386": "i386",
  arm: "armhf",
  arm64: "arm64",
  ppc64: "ppc64el",
  ppc64le: "ppc64el",
  s390x: "s390x",
  riscv64: "riscv64",
}

/** Debian's name of an architecture. */
export function debianArchitecture(name: string): string | undefined {
  return architectures[name]
}

/** Of a release; it becomes the name of a file, and must not be one elsewhere, nor an option. */
export function isSuite(name: string): boolean {
  return /^[A-Za-z0-9][\w.+-]{0,63}$/.test(name)
}

/** Of a package, as Debian's policy has it. */
export function isPackage(name: string): boolean {
  return /^[a-z0-9][a-z0-9.+-]{0,99}$/.test(name)
}

/** Where it has a script for each release that it knows. */
const SCRIPTS = "/usr/share/debootstrap/scripts"

/** Does it look for keys of this release? Of those that never had any it verifies nothing, whatever it is told. */
export function hasKeyring(suite: string): boolean {
  try {
    return /^\s*keyring\s+\//m.test(readFileSync(path.join(SCRIPTS, suite), "utf8"))
  } catch {
    return false // It has no such script, or is not there.
  }
}

function commandOf(options: Debootstrap, root: string): string[] {
  const { program, suite, mirror, include, architecture, verified } = options
  const packages = ["apt", ...include]
  return [
    program,
    ...(verified ? ["--force-check-gpg"] : []),
    "--variant=minbase",
    "--exclude=openssl,udev,debconf-i18n,e2fsprogs",
    `--include=${packages.join(",")}`,
    `--arch=${architecture}`,
    suite,
    root,
    mirror,
  ]
}

const placeholders = ["null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"]

/** Where no device node can be made, those of this machine are bound in, and the program is told that it made them. */
function prepared(command: readonly string[], root: string): string {
  const dev = shellQuote(path.join(root, "dev"))
  return `set -e
mkdir -p ${dev}
for device in ${placeholders.join(" ")}; do
  : > ${dev}/$device
  mount --bind /dev/$device ${dev}/$device 2>/dev/null || :
done
mount --bind "$(readlink -f /bin/true)" "$(readlink -f "$(command -v mount)")"
exec ${command.map(shellQuote).join(" ")}
`
}

/**
 * Installs a Debian system into a root.
 *
 * @throws BuildError `ERR_BUILD_SOURCE` when the program fails; it has said why.
 */
export async function debootstrap(
  options: Debootstrap,
  root: string,
  session: string,
  crun: string,
  ids: Ids,
): Promise<void> {
  const command = commandOf(options, root)
  const proxies = Object.entries(process.env).filter(([name]) => /^(https?|ftp|no|all)_proxy$/i.test(name))
  let status: number
  if (ids.real) {
    const [program = "", ...args] = command
    const child = spawn(program, args, {
      stdio: ["ignore", "inherit", "inherit"],
      cwd: "/",
      env: { ...scrubbedEnvironment, ...Object.fromEntries(proxies), LANG: "C" },
    })
    const [code] = (await once(child, "exit")) as [number | null]
    status = code ?? 255
  } else {
    // The whole machine is the root of a container, in which what only root can do seems to work.
    const host = path.join(session, "host")
    await mkdir(host)
    const script = path.join(session, "debootstrap.sh")
    await writeFile(script, prepared(command, root), { mode: 0o755 })
    const bind = spawn("/bin/mount", ["--rbind", "/", host], { stdio: ["ignore", "inherit", "inherit"] })
    await once(bind, "exit")
    status = await runInContainer({
      session,
      crun,
      root: host,
      writable: true,
      args: ["/bin/sh", script],
      env: ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C", "container=lxc"],
      umask: 0o022,
      mounts: false,
      pretence: ids.many ? "devices" : "owners",
    })
    const unbind = spawn("/bin/umount", ["-l", host], { stdio: ["ignore", "inherit", "inherit"] })
    await once(unbind, "exit")
    // Not what may still be mounted there.
    await rmdir(host)
    await rm(script)
    for (const device of placeholders) await rm(path.join(root, "dev", device), { force: true })
  }
  if (status !== 0)
    throw new BuildError(
      "ERR_BUILD_SOURCE",
      `debootstrap of ${options.suite} from ${options.mirror} failed: exit status ${status}`,
    )
}
