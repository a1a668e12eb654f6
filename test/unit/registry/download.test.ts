import assert from "node:assert/strict"
import { Readable } from "node:stream"
import { download } from "../../../lib/registry/download.ts"
import type { Reply } from "../../../lib/registry/http.ts"

const MIB = 1 << 20

/** Answers that break after so many bytes. */
function breaking(
  size: number,
  each: number,
): { asked: string[]; request: Parameters<typeof download>[0]["request"] } {
  const asked: string[] = []
  return {
    asked,
    request: (headers) => {
      const from = Number(/^bytes=(\d+)-$/.exec(headers["range"] ?? "bytes=0-")?.[1])
      asked.push(headers["range"] ?? "")
      const body = Readable.from(
        (async function* () {
          await Promise.resolve()
          for (let at = from; at < Math.min(size, from + each); at += 4096)
            yield Buffer.alloc(Math.min(4096, size - at, from + each - at), at >> 20)
          if (from + each < size) throw Object.assign(new Error("cut"), { code: "ECONNRESET" })
        })(),
      )
      const statusCode = from === 0 ? 200 : 206
      return Promise.resolve(
        Object.assign(body, {
          statusCode,
          headers: { "content-range": `bytes ${from}-` },
        }) as unknown as Reply,
      )
    },
  }
}

async function sizeOf(size: number, each: number): Promise<{ size: number; asked: readonly string[] }> {
  const { asked, request } = breaking(size, each)
  let have = 0
  for await (const piece of download({ what: "it", size, request, pause: () => Promise.resolve() }, 0))
    have += piece.length
  return { size: have, asked }
}

describe("download", () => {
  it("goes on as long as it gets further", async () => {
    const { size, asked } = await sizeOf(12 * MIB, MIB)
    assert.equal(size, 12 * MIB)
    assert.deepEqual(asked.slice(0, 3), ["", `bytes=${MIB}-`, `bytes=${2 * MIB}-`])
    assert.equal(asked.length, 12)
  })

  it("takes what does not know ranges from its place, and nothing from another one or beyond its end", async () => {
    const bytes = Buffer.from("0123456789")
    const answer = (statusCode: number, body: Buffer, range = ""): Reply =>
      Object.assign(Readable.from([body]), {
        statusCode,
        headers: { "content-range": range },
      }) as unknown as Reply
    const fetched = async (replies: readonly Reply[], start: number): Promise<string> => {
      const queue = [...replies]
      const request = (): Promise<Reply> => {
        const next = queue.shift()
        return next === undefined ? Promise.reject(new Error("asked once more")) : Promise.resolve(next)
      }
      const pieces: Buffer[] = []
      const from = { what: "it", size: 10, request, pause: () => Promise.resolve() }
      for await (const piece of download(from, start)) pieces.push(piece)
      return Buffer.concat(pieces).toString()
    }
    assert.equal(await fetched([answer(206, bytes.subarray(4), "bytes 4-9/10")], 4), "456789")
    assert.equal(await fetched([answer(200, bytes)], 4), "456789")
    assert.equal(await fetched([answer(416, Buffer.alloc(0)), answer(200, bytes)], 4), "456789")
    // An answer that ends early, and the rest.
    const early = [answer(200, bytes.subarray(0, 3)), answer(206, bytes.subarray(3), "bytes 3-9/10")]
    assert.equal(await fetched(early, 0), "0123456789")
    await assert.rejects(fetched([answer(206, bytes, "bytes 0-9/10")], 4), {
      code: "ERR_OCI_REGISTRY",
      message: /asked from byte 4 on, it sends from 0/,
    })
    await assert.rejects(fetched([answer(206, bytes)], 4), { code: "ERR_OCI_REGISTRY" })
    for (const more of [answer(200, Buffer.alloc(11)), answer(206, Buffer.alloc(7), "bytes 4-10/11")])
      await assert.rejects(fetched([more], more.statusCode === 200 ? 0 : 4), { code: "ERR_OCI_DIGEST" })
  })

  it("ends where it does not: what breaks after each few bytes, or after less than a hundredth", async () => {
    for (const each of [0, 1, 150_000]) {
      const { asked, request } = breaking(MIB, each)
      const read = async (): Promise<void> => {
        for await (const piece of download(
          { what: "it", size: MIB, request, pause: () => Promise.resolve() },
          0,
        ))
          assert.ok(piece.length > 0)
      }
      await assert.rejects(read(), { code: "ERR_OCI_REGISTRY", message: /broke 5 times/ })
      assert.equal(asked.length, 5)
    }
  })
})
