// What a plain image's root file system holds, entry by entry.
import { createHash } from "node:crypto"
import { openSync, closeSync } from "node:fs"
import { loadAddon } from "../../lib/native/load.ts"
import { openSif } from "../../lib/sif/open.ts"

export interface Entry {
  readonly path: string
  readonly type: string
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly nlink: number
  readonly mtime: number
  readonly rdev: number
  readonly target?: string
  /** SHA-256 of a file's content. */
  readonly sha256?: string
  readonly xattrs: Readonly<Record<string, string>>
}

/** By path, without a leading slash; the root is "". */
export async function imageTree(image: string): Promise<Map<string, Entry>> {
  await using sif = await openSif(image)
  const { offset, size } = sif.primary()
  const fd = openSync(image, "r")
  try {
    const tree = await loadAddon().openTree({ fd, offset, size, cipher: undefined })
    const entries = new Map<string, Entry>()
    const pending = [""]
    for (let path; (path = pending.pop()) !== undefined;) {
      const {
        type,
        mode,
        uid,
        gid,
        nlink,
        mtime,
        rdev,
        target,
        size: bytes,
      } = await tree.stat(`/${path}`, false)
      const xattrs = await tree.xattrs(`/${path}`)
      const hash = createHash("sha256")
      for (let at = 0; type === "file" && at < bytes; at += 1 << 20)
        hash.update(await tree.read(`/${path}`, at, 1 << 20))
      entries.set(path, {
        ...{ path, type, mode, uid, gid, nlink, mtime, rdev },
        ...(target === undefined ? {} : { target: target.toString("utf8") }),
        ...(type === "file" ? { sha256: hash.digest("hex") } : {}),
        xattrs: Object.fromEntries(xattrs.map(({ name, value }) => [name, value.toString("latin1")])),
      })
      if (type === "directory")
        for (const { name } of await tree.list(`/${path}`))
          pending.push(path === "" ? name.toString() : `${path}/${name.toString()}`)
    }
    tree.close()
    return entries
  } finally {
    closeSync(fd)
  }
}
