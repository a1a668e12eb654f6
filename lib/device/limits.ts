// What a limit of this process, or of the machine, keeps from being done: the errno, wherever it was met, in this package's words.
import { EnvironmentError, type ContainerErrorOptions } from "../errors.ts"

const limits: Readonly<Record<string, readonly [limit: ContainerErrorOptions["limit"], message: string]>> = {
  EMFILE: ["files", "this process may not have more files open (ulimit -n)"],
  ENFILE: ["files", "this machine may not have more files open (sysctl fs.file-max)"],
  EFBIG: ["size", "this process may not make files that large (ulimit -f)"],
}

/** What writes files. Where images and layers are read, EFBIG is said of what they ask for. */
const writing = /^(?:p?write(?:v|64)?|f?truncate(?:64)?|fallocate|copy_file_range|fill|memfd_create)$/

/** The error for the limit that a system error tells of, or one that is a cause of this error; undefined if it is about anything else. */
export function limitError(
  what: string,
  error: unknown,
  options?: Omit<ContainerErrorOptions, "limit">,
): EnvironmentError | undefined {
  const { code = "", syscall = "", cause } = (error ?? {}) as Partial<NodeJS.ErrnoException>
  const found = code === "EFBIG" && !writing.test(syscall) ? undefined : limits[code]
  if (found === undefined) return cause === undefined ? undefined : limitError(what, cause, options)
  const [limit, message] = found
  return new EnvironmentError("ERR_ENV_LIMIT", `${what}: ${message}`, { ...options, limit })
}
