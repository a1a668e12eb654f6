// For work that has to stay small however busy the machine is.

/** Milliseconds of processor time that this process has taken. */
export function processorMs(): number {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1000
}
