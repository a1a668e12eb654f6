// The system's folder of policy, for one command: in a mount namespace of its own, where /etc has /etc/sifcrypt in it.
// The product has no way to name another folder, so nobody else has either.
import { chmodSync, mkdirSync, writeFileSync } from "node:fs"
import path from "node:path"
import { newFolder } from "./scratch.ts"

/** A file of the folder. */
export interface SystemFile {
  readonly text: string | Uint8Array
  /** Default 0644. */
  readonly mode?: number
}

const script = `set -e
place=$1 source=$2 mode=$3 owner=$4
shift 4
mount -t tmpfs -o mode=755 policy "$place"
mkdir "$place/etc" "$place/work"
if mount -t overlay -o "lowerdir=/etc,upperdir=$place/etc,workdir=$place/work" policy /etc 2>/dev/null; then :; else
  cp -a /etc/. "$place/etc"
  mount --bind "$place/etc" /etc
fi
rm -rf /etc/sifcrypt /etc/apptainer
cp -a "$source/." /etc
if [ -d /etc/sifcrypt ]; then
  chmod "$mode" /etc/sifcrypt
  chown -R "$owner" /etc/sifcrypt
fi
exec "$@"`

/** How {@link withSystemFiles} places them. */
export interface SystemOptions {
  /** Of /etc/sifcrypt; default 0755. */
  readonly folderMode?: string
  /** Of it and what is in it; default 0. */
  readonly owner?: number
}

/** What to put before a command so that it finds these files, by their paths below /etc. Needs root. */
export function withSystemFiles(
  files: Readonly<Record<string, SystemFile>>,
  options: SystemOptions = {},
): readonly string[] {
  const source = newFolder("policy")
  for (const [name, { text, mode = 0o644 }] of Object.entries(files)) {
    const file = path.join(source, name)
    mkdirSync(path.dirname(file), { recursive: true })
    writeFileSync(file, text)
    chmodSync(file, mode)
  }
  const { folderMode = "755", owner = 0 } = options
  const inside = ["sh", "-c", script, "policy", newFolder("etc"), source, folderMode, String(owner)]
  return ["unshare", "--mount", "--propagation", "private", ...inside]
}

/** The list as text: one group for each entry. */
export function eclText(
  groups: readonly { readonly mode: string; readonly folder: string; readonly signers: readonly string[] }[],
  activated = true,
): string {
  return [
    `activated = ${activated}`,
    ...groups.map(({ mode, folder, signers }, index) =>
      [
        "",
        "[[execgroup]]",
        `tagname = "group${index + 1}"`,
        `mode = "${mode}"`,
        `dirpath = "${folder}"`,
        `keyfp = [${signers.map((signer) => `"${signer}"`).join(", ")}]`,
      ].join("\n"),
    ),
    "",
  ].join("\n")
}
