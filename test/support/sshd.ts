// Debian's sshd on loopback, with its own configuration and keys, serving another user where root runs the tests.
import { execFileSync, spawn, type ChildProcess } from "node:child_process"
import { once } from "node:events"
import { chmodSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs"
import { userInfo } from "node:os"
import path from "node:path"
import { cli, homeOf, idOf, isRoot, userId } from "./cli.ts"
import { allProcesses, waitFor, type ProcessInfo } from "./processes.ts"
import { certificate } from "./http-server.ts"
import { freePort } from "./registry.ts"
import { newFolder } from "./scratch.ts"

const BUILDER_ID = 2346

/** A machine that builds. */
export interface BuilderMachine extends AsyncDisposable {
  /** `ssh://builder@127.0.0.1:PORT`. */
  readonly remote: string
  /** The same by a name of ssh's configuration, and with a key that is for builds alone. */
  readonly limited: string
  /** Before a command: one in which ssh finds the machine's key, and ours; and registry.example.test is a host. */
  readonly wrapper: readonly string[]
  /** What stays of builds would lie in one of these. */
  readonly folders: readonly string[]
  /** Files and folders there, but for what the command keeps of itself. */
  left(): string[]
  /** What of a build runs there. */
  processes(): ProcessInfo[]
  /** A file with a program that can be named in an address. */
  program(name: string, text: string): string
}

function isGone(pid: number): boolean {
  try {
    return /^State:\s*[ZX]/m.test(readFileSync(`/proc/${pid}/status`, "utf8"))
  } catch {
    return true
  }
}

function uidOf(pid: number): number {
  try {
    return Number(/^Uid:\s*(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? -1)
  } catch {
    return -1
  }
}

/** Starts sshd. Its user finds `sifcrypt` on his PATH. */
export async function startBuilder(): Promise<BuilderMachine> {
  const folder = newFolder("sshd")
  const at = (name: string): string => path.join(folder, name)
  const builder = isRoot ? BUILDER_ID : userId
  const home = newFolder("builder-home", builder)
  const temporary = newFolder("builder-tmp", builder)
  const user = isRoot ? "builder" : userInfo().username
  const keygen = (name: string): void => {
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", at(name)])
  }
  keygen("host")
  // Each has a key that nobody else may read.
  const ids = [...new Set([idOf("self"), idOf("user")])].map(String)
  for (const id of ids) {
    keygen(id)
    if (isRoot) execFileSync("chown", [id, at(id)])
  }
  const port = await freePort()
  mkdirSync(at("bin"))
  symlinkSync(cli, at("bin/sifcrypt"))
  // With this one nobody does anything else.
  keygen("limited")
  if (isRoot) execFileSync("chown", [String(idOf("user")), at("limited")])
  const publicKey = (name: string): string => readFileSync(at(`${name}.pub`), "utf8")
  writeFileSync(
    at("authorized"),
    `${ids.map(publicKey).join("")}restrict,command="sifcrypt serve-build" ${publicKey("limited")}`,
  )
  writeFileSync(at("known"), `[127.0.0.1]:${port} ${readFileSync(at("host.pub"), "utf8")}`)
  writeFileSync(
    at("sshd_config"),
    `Port ${port}
ListenAddress 127.0.0.1
HostKey ${at("host")}
PidFile none
AuthorizedKeysFile ${at("authorized")}
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
AcceptEnv *
SetEnv "PATH=${at("bin")}:${process.env["PATH"] ?? ""}" TMPDIR=${temporary} SSL_CERT_FILE=${certificate().certificate}
`,
  )
  // Who passwd does not know is nobody to ssh; the system's configuration is read by everybody.
  writeFileSync(
    at("ssh_config"),
    `Host limited-builder
  HostName 127.0.0.1
  Port ${port}
  User ${user}
  IdentityFile ${at("limited")}
Host *
  UserKnownHostsFile ${at("known")}
  StrictHostKeyChecking yes
  IdentityFile ${at("%i")}
  IdentitiesOnly yes
  BatchMode yes
  SendEnv *
`,
  )
  const others = `tester:x:${userId}:${userId}::${homeOf("user")}:/bin/sh\nbuilder:*:${BUILDER_ID}:${BUILDER_ID}::${home}:/bin/sh\n`
  writeFileSync(at("passwd"), `${readFileSync("/etc/passwd", "utf8")}${isRoot ? others : ""}`)
  writeFileSync(at("hosts"), "127.0.0.1 localhost registry.example.test\n")
  // An ordinary user mounts as root of a namespace, and is himself again in one below.
  const again = isRoot ? "" : `unshare -U --map-user=${userId} --map-group=${process.getgid?.() ?? userId}`
  const mounts = ["passwd", "ssh_config", "hosts"].map((name) => {
    const target = name === "ssh_config" ? "/etc/ssh/ssh_config" : `/etc/${name}`
    return `mount --bind "$0/${name}" ${target}`
  })
  const wrapper = [
    ...["unshare", ...(isRoot ? [] : ["-r"]), "-m", "sh", "-ec"],
    `${mounts.join("; ")}; exec ${again} "$@"`,
    folder,
  ]
  if (isRoot) mkdirSync("/run/sshd", { recursive: true, mode: 0o755 })
  const [command, ...words] = [...wrapper, "/usr/sbin/sshd", "-D", "-e", "-f", at("sshd_config")]
  const server: ChildProcess = spawn(command, words, { stdio: ["ignore", "ignore", "pipe"] })
  let log = ""
  server.stderr?.setEncoding("utf8").on("data", (text: string) => (log += text))
  await waitFor("sshd", () => {
    if (server.exitCode !== null) throw new Error(`sshd: ${log}`)
    return log.includes(`listening on 127.0.0.1 port ${port}`)
  })
  const before = new Set(allProcesses().map(({ pid }) => pid))
  return {
    remote: `ssh://${user}@127.0.0.1:${port}`,
    limited: "ssh://limited-builder",
    wrapper,
    folders: [home, temporary],
    left: () =>
      [home, temporary].flatMap((place) =>
        readdirSync(place, { recursive: true, encoding: "utf8" }).filter(
          (name) => !/^\.cache(?:\/sifcrypt(?:\/code(?:\/.*)?)?)?$/.test(name),
        ),
      ),
    processes: () =>
      allProcesses().filter(
        ({ pid, command: line }) =>
          !before.has(pid) &&
          uidOf(pid) === builder &&
          !isGone(pid) &&
          (isRoot || /^sshd(?:-session)?: |serve-build|sifcrypt-starter|workspace-start|crun/.test(line)),
      ),
    program(name, text) {
      writeFileSync(at(name), text)
      chmodSync(at(name), 0o755)
      return at(name)
    },
    async [Symbol.asyncDispose](): Promise<void> {
      server.kill()
      if (server.exitCode === null) await once(server, "exit")
    },
  }
}
