// One record of comma-separated values, quoted as RFC 4180 says: how the peers read options that are lists.

/** @throws RangeError for a quote that is not closed, or that stands in the middle of a field. */
export function parseCsv(record: string): string[] {
  const fields: string[] = []
  for (let at = 0; at <= record.length;) {
    if (record[at] !== '"') {
      const comma = record.indexOf(",", at)
      const end = comma < 0 ? record.length : comma
      const field = record.slice(at, end)
      if (field.includes('"')) throw new RangeError(`a quote in the middle of ${field}`)
      fields.push(field)
      at = end + 1
      continue
    }
    const [quoted, inside = ""] = /^"((?:[^"]|"")*)"(?=,|$)/.exec(record.slice(at)) ?? []
    if (quoted === undefined) throw new RangeError(`a quote that is not closed in ${record.slice(at)}`)
    fields.push(inside.replaceAll('""', '"'))
    at += quoted.length + 1
  }
  return fields
}
