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
