// A command that is written as one text, in words as a shell splits them: quotes and backslashes, and nothing else of a shell.

/** undefined: a quote is not closed. */
export function splitWords(text: string): string[] | undefined {
  const words: string[] = []
  let word: string | undefined
  for (let at = 0; at < text.length; at++) {
    const letter = text[at] ?? ""
    if (/\s/.test(letter)) {
      if (word !== undefined) words.push(word)
      word = undefined
    } else if (letter === "'") {
      const end = text.indexOf("'", at + 1)
      if (end < 0) return undefined
      word = (word ?? "") + text.slice(at + 1, end)
      at = end
    } else if (letter === '"') {
      word ??= ""
      for (at++; text[at] !== '"'; at++) {
        if (at >= text.length) return undefined
        // As in POSIX: between double quotes a backslash is one, unless it stands before one of these.
        if (text[at] === "\\" && '$`"\\\n'.includes(text[at + 1] ?? "?")) at++
        word += text[at] ?? ""
      }
    } else if (letter === "\\") {
      if (++at >= text.length) return undefined
      word = (word ?? "") + (text[at] ?? "")
    } else word = (word ?? "") + letter
  }
  if (word !== undefined) words.push(word)
  return words
}
