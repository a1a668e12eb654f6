// How a broker knows who asks. MUNGE's credential tells the uid of its maker to whom it was made for, once; sshd lets in whoever has the
// key of the job set, which lies where nobody but its user can read it, and starts nothing but the relay to the broker.
import { connect, type Socket } from "node:net"
import { gunzipSync } from "node:zlib"
import { readBounded } from "../bounded-file.ts"
import { EnvironmentError } from "../errors.ts"
import { loadAddon } from "../native/load.ts"
import { ProgramFailure, runProgram } from "../outside-program.ts"
import type { Bytes } from "../units.ts"
import type { BrokerPlace, JobSet } from "./job-set.ts"
import { slurmEnvironment } from "./slurm.ts"

/** Longer than any line that is sent either way. */
export const MAX_LINE: Bytes = 16_384
const PATIENCE_MS = 10_000
/** Seconds that a credential can be used: clocks of a cluster may differ by as much. */
const TIME_TO_LIVE = 60

/** Runs one of MUNGE's programs with bytes on its standard input; they are not secret. */
async function munge(
  program: "munge" | "unmunge",
  args: readonly string[],
  input?: Uint8Array,
): Promise<Buffer> {
  try {
    return await runProgram(program, args, {
      ...{ env: slurmEnvironment(), input, limit: 1 << 20, timeoutMs: PATIENCE_MS },
      // What is wrong with a credential is among what it writes about it.
      accepts: (status) => status === 0 || program === "unmunge",
    })
  } catch (cause) {
    if (!(cause instanceof ProgramFailure)) throw cause
    throw new EnvironmentError("ERR_ENV_NO_PROGRAM", `${program} (package munge) ${cause.message}`, { cause })
  }
}

function socketArguments(socket: string | undefined): readonly string[] {
  return socket === undefined ? [] : ["--socket", socket]
}

/** Wraps a request so that this user alone can open it, and learns from it that it is his own. */
async function mungeCredential(request: Buffer, socket: string | undefined): Promise<string> {
  const uid = String(process.geteuid?.())
  const args = ["--restrict-uid", uid, "--ttl", String(TIME_TO_LIVE), ...socketArguments(socket)]
  return (await munge("munge", args, request)).toString("latin1").trim()
}

/** Who has made a credential, and what is in it; or why it is none. */
export type Opened =
  | { readonly uid: number; readonly payload: Buffer }
  | { readonly failure: string; readonly uid: number | undefined }

/** Opens one. A second time, or for somebody else, it does not open. */
export async function openCredential(credential: string, socket: string | undefined): Promise<Opened> {
  const args = ["--keys", "STATUS,UID,LENGTH", ...socketArguments(socket)]
  const stdout = await munge("unmunge", args, Buffer.from(credential, "latin1"))
  // Lines about it, an empty one, and what it holds.
  const end = stdout.indexOf("\n\n")
  const head = stdout.toString("latin1", 0, end < 0 ? stdout.length : end)
  const uid = /^UID:\s+.*\((\d+)\)$/m.exec(head)?.[1]
  const known = uid === undefined ? undefined : Number(uid)
  const status = /^STATUS:\s+(.*)$/m.exec(head)?.[1] ?? "it is no credential"
  if (status !== "Success (0)" || known === undefined || end < 0) return { failure: status, uid: known }
  return { uid: known, payload: stdout.subarray(end + 2) }
}

/** Can credentials be made here? */
export async function hasMunge(socket: string | undefined): Promise<boolean> {
  try {
    await mungeCredential(Buffer.from("x"), socket)
    return true
  } catch {
    return false
  }
}

/** The first that lets nobody forge a credential. */
const SOUND_MUNGE = [0, 5, 18] as const
/** Where Debian says what it has mended in an older one. */
const CHANGES = "/usr/share/doc/munge/changelog.Debian.gz"

/** The version of MUNGE here, if its users can forge credentials; the daemon is of the same package. undefined: they cannot. */
export async function forgeableMunge(changelog: string = CHANGES): Promise<string | undefined> {
  const stdout = await munge("munge", ["--version"])
  const [, version, ...parts] = /\b((\d+)\.(\d+)\.(\d+))/.exec(stdout.toString("latin1")) ?? []
  if (version === undefined) return "of an unknown version"
  const place = SOUND_MUNGE.findIndex((least, i) => Number(parts[i]) !== least)
  if (place < 0 || Number(parts[place]) > (SOUND_MUNGE[place] ?? 0)) return undefined
  try {
    const changes = gunzipSync(await readBounded(changelog, 1 << 20), { maxOutputLength: 8 << 20 })
    return changes.includes("CVE-2026-25506") ? undefined : version
  } catch {
    return version // nobody says that it was mended
  }
}

/** Who has connected, or whom this is connected to. */
export function peerOf(socket: Socket): { readonly uid: number; readonly pid: number } {
  // Node has no other name for it.
  const { _handle: handle } = socket as unknown as { readonly _handle?: { readonly fd?: number } | null }
  if (handle?.fd === undefined || handle.fd < 0) throw new Error("it has gone")
  return loadAddon().peerOf({ fd: handle.fd })
}

/** All that a socket sends, up to a line's end or its own. */
export async function readLine(socket: Socket, limit: Bytes = MAX_LINE): Promise<string> {
  return await new Promise((resolve, reject) => {
    const pieces: Buffer[] = []
    let size = 0
    const timer = setTimeout(
      () => socket.destroy(new Error(`nothing came within ${PATIENCE_MS} ms`)),
      PATIENCE_MS,
    )
    const done = (): void => {
      clearTimeout(timer)
      resolve(Buffer.concat(pieces).toString("latin1").split("\n")[0] ?? "")
    }
    socket.on("data", (piece: Buffer) => {
      pieces.push(piece)
      size += piece.length
      if (size > limit) socket.destroy(new Error(`more than ${limit} bytes came`))
      else if (piece.includes("\n")) done()
    })
    socket.once("end", done)
    socket.once("error", (error) => {
      clearTimeout(timer)
      reject(error)
    })
    socket.once("close", () => {
      clearTimeout(timer)
      reject(new Error("the connection was closed"))
    })
  })
}

/**
 * Answers with a line. The connection is over then, whatever the other side does: nobody keeps it for as long as he likes.
 *
 * @param onLost - Is called where the line could not be sent.
 */
export function answerLine(socket: Socket, answer: object, onLost?: () => void): void {
  socket.write(`${JSON.stringify(answer)}\n`, (error) => {
    if (error) onLost?.()
  })
  socket.end(() => socket.destroy())
}

/** Sends a line to where `to` says, and gets the answer. */
export async function exchange(
  to: { readonly host: string; readonly port: number } | { readonly path: string },
  line: string,
): Promise<string> {
  const socket = connect(to)
  try {
    socket.write(`${line}\n`)
    return await readLine(socket)
  } finally {
    socket.destroy()
  }
}

/** How ssh is told of the job set's key, and of nothing that the user has set up for himself. */
export function sshArguments(set: JobSet, { host, ssh }: BrokerPlace): readonly string[] {
  const { port = 22, user = "" } = ssh ?? {}
  return [
    ...["-F", "none", "-T", "-p", String(port), "-l", user, "-i", set.path("ssh", "key")],
    ...["IdentitiesOnly=yes", "IdentityAgent=none", "BatchMode=yes", "StrictHostKeyChecking=yes"].flatMap(
      (option) => ["-o", option],
    ),
    ...["-o", `UserKnownHostsFile=${set.path("ssh", "known_hosts")}`, "-o", "GlobalKnownHostsFile=/dev/null"],
    ...["-o", `ConnectTimeout=${PATIENCE_MS / 1000}`, "-o", "LogLevel=ERROR", "--", host],
  ]
}

/** Sends a request through sshd to the relay, which hands it to the broker. */
async function throughSsh(set: JobSet, place: BrokerPlace, line: string): Promise<string> {
  try {
    const output = await runProgram("ssh", sshArguments(set, place), {
      ...{ env: slurmEnvironment(), input: `${line}\n`, limit: MAX_LINE },
      ...{ timeoutMs: 2 * PATIENCE_MS, killSignal: "SIGKILL" },
    })
    return output.toString("latin1").split("\n")[0] ?? ""
  } catch (cause) {
    if (cause instanceof ProgramFailure && cause.why === "absent")
      throw new EnvironmentError("ERR_ENV_NO_PROGRAM", "ssh is not installed (package openssh-client)", {
        cause,
      })
    throw cause instanceof ProgramFailure ? new Error(`ssh ${cause.message}`, { cause }) : cause
  }
}

/** Asks the broker of a set; the answer is a line. */
export async function askBroker(set: JobSet, place: BrokerPlace, request: Buffer): Promise<string> {
  const { authenticator, mungeSocket } = set.manifest.cluster
  if (authenticator === "ssh") return await throughSsh(set, place, `ssh ${request.toString("base64")}`)
  return await exchange(place, `munge ${await mungeCredential(request, mungeSocket)}`)
}
