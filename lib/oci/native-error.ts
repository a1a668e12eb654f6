// What the native side says about layers and archives, in this package's words.
import { OciError } from "../errors.ts"

const codes: Readonly<Record<string, OciError["code"]>> = {
  layer_digest: "ERR_OCI_DIGEST",
  layer_format: "ERR_OCI_FORMAT",
  layer_limit: "ERR_OCI_LIMIT",
  layer_names: "ERR_OCI_LIMIT",
  layer_work: "ERR_OCI_WORK",
  layer_unsupported: "ERR_OCI_UNSUPPORTED",
}

/** undefined: it is about something else. */
export function layerError(where: string, cause: unknown): OciError | undefined {
  if (!(cause instanceof Error) || !("syscall" in cause)) return undefined
  const syscall = String(cause.syscall)
  const code = codes[syscall]
  if (code === undefined) return undefined
  const limit = syscall === "layer_limit" ? "layers" : undefined
  return new OciError(code, `${where}: ${cause.message.replace(`${syscall}: `, "")}`, {
    ...{ path: where, cause, limit },
  })
}

export function asArchiveError(where: string, cause: unknown): unknown {
  return layerError(where, cause) ?? cause
}
