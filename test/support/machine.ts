// A machine of the tests' own, as far as its network goes: no port there is anybody else's.
import assert from "node:assert/strict"
import { once } from "node:events"
import { startProgram } from "./cli.ts"

export interface Machine {
  /** What is put before a command that is to run there. */
  readonly wrapper: readonly string[]
  stop(): void
}

// A cable with both ends in it: pasta wants to know of a way out.
const cable = `ip link set lo up && ip link add up0 type veth peer name up1 &&
  ip addr add 192.0.2.2/24 dev up0 && ip link set up0 up && ip link set up1 up &&
  ip route add default via 192.0.2.1`

/**
 * Makes one; root can.
 *
 * @param mounts - Shell commands that change what it has mounted; none: its files are this machine's.
 */
export async function startMachine(mounts?: string): Promise<Machine> {
  const kinds = mounts === undefined ? ["net"] : ["net", "mount"]
  const script = `${mounts === undefined ? "" : `${mounts} &&`} ${cable} && echo ready && exec sleep infinity`
  const holder = startProgram(["unshare", ...kinds.map((kind) => `--${kind}`), "sh", "-c", script], {
    as: "self",
  })
  const { stdout, stderr } = holder
  assert.ok(stdout !== null && stderr !== null)
  const complaint: Buffer[] = []
  stderr.on("data", (piece: Buffer) => complaint.push(piece))
  const said = await Promise.race([
    once(stdout, "data").then(([piece]: Buffer[]) => String(piece)),
    once(holder, "close").then(() => `no machine: ${Buffer.concat(complaint).toString()}`),
  ])
  assert.equal(said, "ready\n")
  const place = (kind: string): string => `/proc/${String(holder.pid)}/ns/${kind === "mount" ? "mnt" : kind}`
  return {
    wrapper: ["nsenter", ...kinds.map((kind) => `--${kind}=${place(kind)}`)],
    stop: () => holder.kill("SIGKILL"),
  }
}
