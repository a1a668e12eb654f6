// System errors in words: what Node says of them begins with a code and ends with a call.
const calls: Readonly<Record<string, string>> = {
  access: "reach",
  chmod: "change the mode of",
  chown: "change the owner of",
  copyfile: "copy",
  link: "link",
  lstat: "look at",
  mkdir: "make",
  open: "open",
  opendir: "read",
  read: "read",
  readlink: "read",
  realpath: "look at",
  rename: "rename",
  rmdir: "remove",
  scandir: "read",
  stat: "look at",
  symlink: "link",
  unlink: "remove",
  write: "write to",
}

/** `ENOENT: no such file or directory, open '/file'`, of whole messages and at the end of ours. */
const pattern = /(^|: )E[A-Z0-9]+: ([a-z][^,:]*), (\w+)(?: '([^]*?)'(?: -> '([^]*?)')?)?$/

/** The message as a sentence; one that is no system error's is as it was. */
export function sentence(message: string): string {
  const told = message.replace(
    pattern,
    (_, before: string, what: string, call: string, file: string | undefined, other: string | undefined) => {
      // Ours says already what could not be done.
      if (before !== "") return `${before}${what}`
      const doing = calls[call] ?? call
      const to = other === undefined ? "" : ` to ${other}`
      return file === undefined ? `cannot ${doing}: ${what}` : `cannot ${doing} ${file}${to}: ${what}`
    },
  )
  return told.replace(/: illegal operation on a directory$/, ": it is a folder")
}
