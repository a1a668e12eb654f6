// What is said of a payload that did not start, by a process that has become its attendant meanwhile and then this command
// again: `sifcrypt --start-failure …`. The arguments are another process's words for the API.
import { startFailure, type FailureReporter } from "../index.ts"
import { verbosityVariable } from "./verbosity.ts"

const flag = "--start-failure"

/** This command, to be told of a failure. */
export function failureReporter(): FailureReporter {
  const { PATH, TERM } = process.env
  return {
    file: process.execPath,
    args: [...process.execArgv, "--", process.argv[1] ?? "", flag],
    env: {
      ...(PATH === undefined ? {} : { PATH }),
      ...(TERM === undefined ? {} : { TERM }),
      ...verbosityVariable(),
    },
  }
}

/** The failure this process was started to tell of. */
export function failureToReport(argv: readonly string[]): Error | undefined {
  return argv[2] === flag ? startFailure(argv.slice(3)) : undefined
}
