// A map as lines and as a picture. Sizes go from 128 bytes to many GiB: to scale, all but one of the parts would be too thin to
// be seen, so widths grow with the cube root of sizes, and nothing is narrower than can be seen.
import path from "node:path"
import { humanBytes, printable } from "../printable.ts"
import type { Bytes } from "../units.ts"
import type { ImageMap, MapKind, MapPart, MapTextOptions } from "./map.ts"

interface Look {
  readonly letter: string
  /** Of the terminal: the parameter of SGR. */
  readonly sgr: number
  readonly fill: string
  readonly meaning: string
}

const looks: Readonly<Record<MapKind, Look>> = {
  structure: { letter: "=", sgr: 34, fill: "#8fb0e0", meaning: "structure" },
  readable: { letter: "r", sgr: 32, fill: "#7fbf7b", meaning: "readable to anyone" },
  encrypted: { letter: "E", sgr: 35, fill: "#b493c9", meaning: "encrypted" },
  key: { letter: "k", sgr: 33, fill: "#e8b04a", meaning: "leads to the key" },
  signature: { letter: "s", sgr: 36, fill: "#3fb0ac", meaning: "signature" },
  unused: { letter: ".", sgr: 90, fill: "#d8d8d8", meaning: "unused" },
}
const kinds = Object.keys(looks) as MapKind[]

/** How wide parts of these sizes are in `room`: none narrower than `least`, all together exactly `room`. */
export function widths(sizes: readonly Bytes[], room: number, least: number): readonly number[] {
  const weights = sizes.map((size) => Math.cbrt(size))
  const all = weights.reduce((sum, weight) => sum + weight, 0)
  const spare = Math.max(0, room - least * sizes.length)
  return weights.map((weight) => least + (all === 0 ? 0 : (spare * weight) / all))
}

/** Where parts of these widths end, in whole steps. */
function ends(wide: readonly number[]): readonly number[] {
  let sum = 0
  return wide.map((width) => Math.round((sum += width)))
}

/** At most `most` parts: those that are small go together with their neighbours that are. */
export function gathered(parts: readonly MapPart[], most: number): readonly MapPart[] {
  if (parts.length <= most) return parts
  const large = new Set(
    parts.toSorted((one, other) => other.size - one.size).slice(0, Math.floor((most - 1) / 2)),
  )
  const found: MapPart[][] = []
  let run: MapPart[] | undefined
  for (const part of parts) {
    if (large.has(part)) {
      found.push([part])
      run = undefined
    } else if (run === undefined) found.push((run = [part]))
    else run.push(part)
  }
  return found.flatMap((run) => {
    const [first] = run
    if (first === undefined || run.length === 1) return run
    const largest = run.reduce((one, other) => (other.size > one.size ? other : one))
    const size = run.reduce((sum, part) => sum + part.size, 0)
    return [
      { kind: largest.kind, name: `${run.length} parts`, detail: "", offset: first.offset, size, parts: [] },
    ]
  })
}

/** What there is to say of a part. */
function caption({ id, name, detail, problem }: MapPart): string {
  const what = id === undefined ? name : `${id} ${name}`
  const says = [what, detail, problem === undefined ? "" : `not readable: ${problem}`]
  return printable(says.filter((word) => word !== "").join(", "))
}

function title({ path: image, size }: ImageMap): string {
  return `${printable(path.basename(image))}: ${humanBytes(size)}`
}

function usedKinds(parts: readonly MapPart[]): readonly MapKind[] {
  const used = new Set<MapKind>()
  for (const { kind, parts: below } of parts) {
    used.add(kind)
    for (const part of below) used.add(part.kind)
  }
  return kinds.filter((kind) => used.has(kind))
}

/** Of a part in a line. */
const BAR = 12
/** Columns that a table and its bars need. */
const LEAST_WITH_BARS = 64

/** The map as lines. */
export function textOf(map: ImageMap, { columns, colors = false }: MapTextOptions): string {
  const paint = (kind: MapKind, text: string): string =>
    colors ? `\u001b[${looks[kind].sgr}m${text}\u001b[0m` : text
  const mark = (kind: MapKind, count: number): string =>
    paint(kind, (colors ? "█" : looks[kind].letter).repeat(count))

  const rows = map.parts.flatMap((part) => [
    { part, indent: "" },
    ...part.parts.map((below) => ({ part: below, indent: "  " })),
  ])
  const widest = (of: (part: MapPart) => string, head: string): number =>
    rows.reduce((most, { part }) => Math.max(most, of(part).length), head.length)
  const offsetOf = ({ offset }: MapPart): string => String(offset)
  const sizeOf = ({ size }: MapPart): string => humanBytes(size)
  const [offsetWidth, sizeWidth] = [widest(offsetOf, "OFFSET"), widest(sizeOf, "SIZE")]
  const largest = Math.cbrt(rows.reduce((most, { part }) => Math.max(most, part.size), 1))
  const withBars = columns !== undefined && columns >= LEAST_WITH_BARS
  const bar = ({ kind, size }: MapPart): string => {
    if (!withBars) return mark(kind, 1)
    const length = size === 0 ? 0 : Math.max(1, Math.round((BAR * Math.cbrt(size)) / largest))
    return mark(kind, length) + " ".repeat(BAR - length)
  }
  const room =
    columns === undefined
      ? Infinity
      : Math.max(8, columns - 1 - offsetWidth - sizeWidth - (withBars ? BAR : 1) - 6)
  const cut = (text: string): string => (text.length > room ? `${text.slice(0, room - 1)}…` : text)

  // Of the file where it lies now, and nothing that a picture of it should say.
  const disk = map.stored < map.size ? `, ${humanBytes(map.stored)} of it on the disk` : ""
  const lines = [title(map) + disk, ""]
  if (columns !== undefined) {
    const strip = gathered(map.parts, Math.floor(columns / 2))
    const stops = ends(
      widths(
        strip.map(({ size }) => size),
        columns - 3,
        1,
      ),
    )
    const cells = strip.map(({ kind }, i) => mark(kind, (stops[i] ?? 0) - (stops[i - 1] ?? 0)))
    lines.push(`[${cells.join("")}]`, "")
  }
  lines.push(`${"OFFSET".padStart(offsetWidth)}  ${"SIZE".padStart(sizeWidth)}`)
  for (const { part, indent } of rows)
    lines.push(
      `${offsetOf(part).padStart(offsetWidth)}  ${sizeOf(part).padStart(sizeWidth)}  ${bar(part)}  ${cut(indent + caption(part))}`,
    )
  lines.push(
    "",
    usedKinds(map.parts)
      .map((kind) => `${mark(kind, 1)} ${looks[kind].meaning}`)
      .join("   "),
  )
  return `${lines.join("\n")}\n`
}

// ---- The picture -------------------------------------------------------------------------------------------------------

const WIDTH = 960
const MARGIN = 24
const ROOM = WIDTH - 2 * MARGIN
const STRIP = 40
const BETWEEN = 34
const LINE = 19
/** Of a part; a number of two digits fits. */
const LEAST = 18
/** That are drawn: what is more goes together. */
const MOST_PARTS = 40
const MOST_INSIDES = 6

function xml(text: string): string {
  const entities: Readonly<Record<string, string>> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" }
  // What XML cannot have at all is none of printable()'s: halves of characters, and two that are none.
  const whole = Buffer.from(text)
    .toString("utf8")
    .replace(/[\ufffe\uffff]/g, "\ufffd")
  return whole.replace(/[&<>"]/g, (character) => entities[character] ?? "")
}

function textAt(x: number, y: number, content: string, more = ""): string {
  return `<text x="${x}" y="${y}"${more}>${xml(content)}</text>`
}

interface Drawn {
  readonly number: string
  readonly part: MapPart
  readonly from: number
  readonly to: number
}

function placed(parts: readonly MapPart[], prefix: string): readonly Drawn[] {
  const shown = gathered(parts, MOST_PARTS)
  const stops = ends(
    widths(
      shown.map(({ size }) => size),
      ROOM,
      LEAST,
    ),
  )
  return shown.map((part, i) => ({
    number: `${prefix}${i + 1}`,
    part,
    from: MARGIN + (stops[i - 1] ?? 0),
    to: MARGIN + (stops[i] ?? 0),
  }))
}

/** A strip of parts, each with its number, and its name where that fits. */
function strip(drawn: readonly Drawn[], y: number): string[] {
  return drawn.flatMap(({ number, part, from, to }) => {
    const width = to - from
    const label = [`${number} ${part.name}`, number].find((text) => text.length * 7 + 6 <= width)
    return [
      `<g><title>${xml(`${caption(part)}: ${humanBytes(part.size)} at ${part.offset}`)}</title>`,
      `<rect x="${from}" y="${y}" width="${width}" height="${STRIP}" fill="${looks[part.kind].fill}" stroke="#fff"/>`,
      ...(label === undefined
        ? []
        : [textAt((from + to) / 2, y + STRIP / 2 + 4, printable(label), ' text-anchor="middle"')]),
      "</g>",
    ]
  })
}

/** The map as SVG. */
export function svgOf(map: ImageMap): string {
  const whole = placed(map.parts, "")
  const body = [textAt(MARGIN, 30, title(map), ' font-size="16" font-weight="bold"')]
  let y = 46
  body.push(...strip(whole, y))
  const rows: Drawn[] = []
  const opened = whole.filter(({ part }) => part.parts.length > 0).slice(0, MOST_INSIDES)
  const insides = new Map<Drawn, readonly Drawn[]>()
  for (const one of opened) {
    const { number, part, from, to } = one
    const below = placed(part.parts, `${number}.`)
    insides.set(one, below)
    const top = y + STRIP
    y = top + BETWEEN
    // Only the strip right above is next to it; from further up the lines would cross what lies between.
    if (one === opened[0])
      body.push(
        `<path d="M${from} ${top}L${MARGIN} ${y}M${to} ${top}L${WIDTH - MARGIN} ${y}" stroke="#999" fill="none"/>`,
      )
    body.push(
      textAt(WIDTH / 2, y - 8, `inside ${number}: ${printable(part.name)}`, ' text-anchor="middle"'),
      ...strip(below, y),
    )
  }
  for (const one of whole) rows.push(one, ...(insides.get(one) ?? []))
  y += STRIP + 30
  let x = MARGIN
  for (const kind of usedKinds(map.parts)) {
    const { fill, meaning } = looks[kind]
    body.push(
      `<rect x="${x}" y="${y - 11}" width="12" height="12" fill="${fill}"/>`,
      textAt(x + 17, y, meaning),
    )
    x += 17 + meaning.length * 7 + 22
  }
  y += 12
  for (const { number, part } of rows) {
    y += LINE
    body.push(
      `<rect x="${MARGIN}" y="${y - 11}" width="6" height="13" fill="${looks[part.kind].fill}"/>`,
      textAt(MARGIN + 14, y, number),
      textAt(MARGIN + 180, y, String(part.offset), ' text-anchor="end"'),
      textAt(MARGIN + 270, y, humanBytes(part.size), ' text-anchor="end"'),
      textAt(MARGIN + 290, y, cutCaption(part)),
    )
  }
  const height = y + MARGIN
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" font-family="ui-monospace, monospace" font-size="12" role="img">`,
    `<title>${xml(title(map))}</title>`,
    `<rect width="${WIDTH}" height="${height}" fill="#fff"/>`,
    ...body,
    "</svg>",
    "",
  ].join("\n")
}

/** Columns of a caption beside the numbers. */
const CAPTION = 85

function cutCaption(part: MapPart): string {
  const text = caption(part)
  return text.length > CAPTION ? `${text.slice(0, CAPTION - 1)}…` : text
}
