// An error that crosses the border of a process, or of a machine.
import * as errors from "../errors.ts"
import { ContainerError, type ContainerErrorOptions, type ErrorCode } from "../errors.ts"

export interface WireError {
  readonly name: string
  readonly code: string | undefined
  readonly message: string
  readonly path: string | undefined
  readonly errno: number | undefined
  readonly syscall: string | undefined
  readonly limit?: ContainerError["limit"]
}

export function toWire(error: unknown): WireError {
  const { name, message, code, errno, syscall, path } = error as NodeJS.ErrnoException
  return {
    name: error instanceof ContainerError ? error.constructor.name : name,
    code,
    message,
    path,
    errno,
    syscall,
    limit: error instanceof ContainerError ? error.limit : undefined,
  }
}

/** The error that the other side met. */
export function fromWire(error: WireError): Error {
  const { name, code, message, path, errno, syscall, limit } = error
  const kind: unknown = (errors as Readonly<Record<string, unknown>>)[name]
  if (typeof kind === "function" && (kind.prototype instanceof ContainerError || kind === ContainerError)) {
    const Kind = kind as new (code: ErrorCode, text: string, options: ContainerErrorOptions) => ContainerError
    return new Kind(code as ErrorCode, message, { path, limit })
  }
  return Object.assign(new Error(message), {
    ...(code === undefined ? {} : { code }),
    ...(errno === undefined ? {} : { errno }),
    ...(syscall === undefined ? {} : { syscall }),
  })
}
