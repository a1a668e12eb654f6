// Names in an archive of files that are sent. It is read as the layer of an image, where some names mean something.

/** A layer's names for what it takes away begin so. */
const WHITEOUT = ".wh."
/** Before a name that would mean something, or that begins with this itself. */
const ESCAPE = "_"

function isEscaped(name: string): boolean {
  return name.startsWith(WHITEOUT) || name.startsWith(ESCAPE)
}

/** Of one part of a path. */
export function sentName(name: string): string {
  return isEscaped(name) ? ESCAPE + name : name
}

/**
 * The name that {@link sentName} was given.
 *
 * @throws Error: it was given none.
 */
export function nameOfSent(sent: string): string {
  if (!sent.startsWith(ESCAPE)) return sent
  const name = sent.slice(ESCAPE.length)
  if (!isEscaped(name)) throw new Error(`${JSON.stringify(sent)} is no name of a file that was sent`)
  return name
}
