// Who the caller is, and who a payload's user is.
import { readFileSync, statSync } from "node:fs"
import { userInfo } from "node:os"
import path from "node:path"
import type { PayloadIds } from "./confinement.ts"
import type { ExecOptions } from "./options.ts"
import { gecosOf, type Identity } from "./passwd.ts"

/**
 * The caller's working folder; undefined where it was deleted, or cannot be reached any more.
 *
 * @param onNotice - Hears of that.
 */
export function workingFolder(onNotice?: (text: string) => void): string | undefined {
  try {
    const folder = process.cwd()
    statSync(folder)
    return folder
  } catch (error) {
    const gone = (error as NodeJS.ErrnoException).code === "ENOENT"
    onNotice?.(
      `the working folder ${gone ? "is not there any more" : "cannot be reached"}, and is not seen inside`,
    )
    return undefined
  }
}

/** Who calls, by passwd where that knows. */
export function callerIdentity(): Identity {
  const uid = process.geteuid?.() ?? 0
  const gid = process.getegid?.() ?? 0
  try {
    const { username, homedir, shell } = userInfo()
    const gecos = gecosOf(readFileSync("/etc/passwd", "utf8"), uid)
    return {
      ...{ uid, gid, name: username, group: username, home: homedir, shell: shell ?? "/bin/sh" },
      gecos,
    }
  } catch {
    // A uid without a passwd entry, as batch systems and containers have them.
    const home = process.env["HOME"]
    return {
      uid,
      gid,
      name: `user${uid}`,
      group: `group${gid}`,
      home: home !== undefined && path.isAbsolute(home) ? home : "/",
      shell: "/bin/sh",
    }
  }
}

/** Who the caller is with `fakeroot`. */
export const rootIdentity: Identity = {
  uid: 0,
  gid: 0,
  name: "root",
  group: "root",
  home: "/root",
  shell: "/bin/sh",
}

export function supplementaryGroups(gid: number): number[] {
  return (process.getgroups?.() ?? []).filter((group) => group !== gid)
}

/** Whoever becomes somebody else has that one's ids, and no name of his own. */
export function identityOf(identity: Identity, { uid, gid }: PayloadIds): Identity {
  if (uid === identity.uid && gid === identity.gid) return identity
  return { ...identity, uid, gid, name: `user${uid}`, group: `group${gid}` }
}

/** The payload's. Read from /proc: process.umask() changes it for a moment, for all threads. */
export function umaskOf({ noUmask = false }: Pick<ExecOptions, "noUmask">): number {
  if (noUmask) return 0o022
  const octal = /^Umask:\s*([0-7]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1]
  return octal === undefined ? 0o022 : parseInt(octal, 8)
}
