// For typedoc: a page of ours is called by its heading, and the guides stand before what one looks things up in.
import { Comment, CommentTag, Converter } from "typedoc"

export function load(app) {
  app.converter.on(Converter.EVENT_CREATE_DOCUMENT, (_, page) => {
    const [{ text }] = page.content
    const [, heading] = /^# (.*)$/m.exec(text) ?? []
    if (heading === undefined) throw new Error(`${page.name} has no heading`)
    const group = page.name.startsWith("docs/guide/") ? "Guides" : "Reference"
    page.name = heading
    page.comment ??= new Comment()
    page.comment.blockTags.push(new CommentTag("@group", [{ kind: "text", text: group }]))
  })
}
