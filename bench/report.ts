// The table of results: what was measured, and whether it is where it should be.

interface Row {
  readonly what: string
  readonly value: string
  readonly goal: string
  readonly met: boolean | undefined
}

const rows: Row[] = []

/** A measurement without a goal of its own. */
export function note(what: string, value: string): void {
  rows.push({ what, value, goal: "", met: undefined })
  console.log(`  ${what}: ${value}`)
}

/** A measurement that has to reach something. */
export function goal(what: string, value: string, wanted: string, met: boolean): void {
  rows.push({ what, value, goal: wanted, met })
  console.log(`  ${what}: ${value} (goal: ${wanted}) ${met ? "ok" : "MISSED"}`)
}

export function seconds(milliseconds: number): string {
  return milliseconds < 1000 ? `${milliseconds.toFixed(1)} ms` : `${(milliseconds / 1000).toFixed(2)} s`
}

export function mebibytes(bytes: number): string {
  return `${(bytes / (1 << 20)).toFixed(1)} MiB`
}

/** Prints everything once more; false when a goal was missed. */
export function summary(): boolean {
  const width = Math.max(...rows.map(({ what }) => what.length))
  const valueWidth = Math.max(...rows.map(({ value }) => value.length))
  console.log("\nSummary")
  for (const { what, value, goal: wanted, met } of rows) {
    const verdict = met === undefined ? "" : `${wanted}  ${met ? "ok" : "MISSED"}`
    console.log(`${what.padEnd(width)}  ${value.padStart(valueWidth)}  ${verdict}`.trimEnd())
  }
  return rows.every(({ met }) => met !== false)
}
