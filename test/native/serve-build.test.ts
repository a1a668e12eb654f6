// The machine that builds for others, and what it does for those who do not play by the rules.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { once } from "node:events"
import { existsSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from "node:fs"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import path from "node:path"
import { PassThrough } from "node:stream"
import { serveBuild } from "../../lib/index.ts"
import { Channel } from "../../lib/remote/channel.ts"
import { FrameKind } from "../../lib/remote/frames.ts"
import { newFolder } from "../support/scratch.ts"

interface Said {
  readonly kind: string
  readonly error?: { readonly name: string; readonly code: string; readonly message: string }
  readonly size?: number
}

const hello = { protocol: 1, version: "0", architectures: ["amd64"] }
const tmpFolder = newFolder("serve-tmp")

/** Asks for a build as the frames go, and gives the last that was said. */
async function ask(
  request: object | undefined,
  streams: readonly (string | Buffer)[],
  greeting: object = hello,
  allowUnconfined = true,
): Promise<Said> {
  const [input, output] = [new PassThrough(), new PassThrough()]
  const serving = serveBuild({ input, output, tmpFolder, allowUnconfined })
  using channel = new Channel(output, input, { name: "serve-build" })
  try {
    await channel.message()
    await channel.greet(greeting)
    if (request !== undefined) await channel.send(request)
    // What is refused on the way is not taken any more.
    const sending = (async () => {
      for (const stream of streams) await channel.sendStream([Buffer.from(stream)])
    })()
    sending.catch(() => undefined)
    for (;;) {
      const frame = await channel.next()
      if (frame === undefined) break
      if (frame.kind !== FrameKind.message) continue
      const said = channel.parse(frame) as Said
      if (said.kind === "failed" || said.kind === "built") {
        // All of a tree is taken.
        while ((await channel.next()) !== undefined);
        return said
      }
    }
  } finally {
    input.end()
    await serving
  }
  throw new Error("nothing was answered")
}

const scratch = "Bootstrap: scratch\n"
const transfers = (...names: readonly string[]): string => JSON.stringify([{ source: "x", names }])

function request(options: object = {}, others: object = {}): object {
  return {
    kind: "build",
    path: "image.def",
    options: { architecture: "amd64", force: false, ...options },
    bases: [""],
    hasFiles: false,
    ...others,
  }
}

/** What `make` puts into a folder, as an archive. */
function archive(name: string, make: (folder: string) => void): Buffer {
  const folder = newFolder(name)
  make(folder)
  return execFileSync("tar", ["-C", folder, "-cPf", "-", "."])
}

describe("serveBuild", () => {
  after(() => {
    assert.deepEqual(readdirSync(tmpFolder), [])
  })

  it("builds what is sent", async () => {
    const files = archive("good", (folder) => {
      writeFileSync(path.join(folder, "0"), "hello\n")
    })
    const definition = `${scratch}%files\nx /x\n`
    const built = await ask(request({}, { hasFiles: true }), [definition, transfers("x"), files])
    assert.equal(built.kind, "built", JSON.stringify(built))
    assert.ok((built.size ?? 0) > 0 && (built.size ?? 1) % 4096 === 0)
  })

  it("follows no link that was sent, and takes no name that would mean something", async () => {
    const definition = `${scratch}%files\nx /x\n`
    for (const make of [
      (folder: string) => {
        mkdirSync(path.join(folder, "0"))
        symlinkSync("/etc", path.join(folder, "0", "etc"))
      },
      // A name that would become one of those with a meaning.
      (folder: string) => {
        mkdirSync(path.join(folder, "0"))
        writeFileSync(path.join(folder, "0", "_.."), "x")
      },
    ]) {
      const files = archive("links", make)
      const said = await ask(request({}, { hasFiles: true }), [definition, transfers("x"), files])
      assert.equal(said.error?.code, "ERR_BUILD_SOURCE", JSON.stringify(said))
      assert.match(said.error.message, /neither a file nor a folder|no name of a file/)
    }
  })

  it("finds nothing outside of what was sent, whatever names say", async () => {
    const outside = newFolder("outside")
    writeFileSync(path.join(outside, "0"), "secret\n")
    const definition = `${scratch}%files\n${outside}/0 /x\n`
    const files = archive("none", () => undefined)
    const said = await ask(request({}, { hasFiles: true }), [
      definition,
      JSON.stringify([{ source: `${outside}/0`, names: [`${outside}/0`] }]),
      files,
    ])
    assert.equal(said.error?.code, "ERR_BUILD_SOURCE")
    assert.match(said.error.message, /there is no such file/)
  })

  it("refuses what is of its machine", async () => {
    for (const [definition, message] of [
      [`${scratch}%setup\ntouch /tmp/x\n`, /%setup is not run/],
      [`${scratch}%pre\ntouch /tmp/x\n`, /%pre is not run/],
      ["Bootstrap: localimage\nFrom: /\n", /was not sent/],
      ["Bootstrap: oci\nFrom: /tmp\n", /was not sent/],
      ["Bootstrap: docker-archive\nFrom: /x.tar\n", /was not sent/],
      ["Bootstrap: docker\nFrom: localhost:5000/x\n", /was not sent/],
      ["Bootstrap: oras\nFrom: 127.0.0.1:5000/x\n", /was not sent/],
      ["Bootstrap: docker\nRegistry: [::1]:5000\nFrom: x\n", /was not sent/],
      ["Bootstrap: debootstrap\nOSVersion: x\nMirrorURL: file:///etc\n", /file:\/\/\/etc is not asked/],
      [
        "Bootstrap: debootstrap\nOSVersion: sid\nMirrorURL: http://x ssh://-oProxyCommand=true/x\n",
        /ssh:.* is not asked/,
      ],
      ["Bootstrap: debootstrap\nOSVersion: warty\nMirrorURL: http://x\n", /knows no keys of warty/],
      [`${scratch}%files\n/etc/passwd /x\n`, /is not what the definition asks for/],
    ] as const) {
      const said = await ask(request(), [definition, "[]"])
      assert.equal(said.error?.code, "ERR_BUILD_REMOTE_REFUSED", JSON.stringify(said))
      assert.match(said.error.message, message)
    }
    const stages = await ask(request({}, { bases: ["", ""] }), [scratch, "[]"])
    assert.equal(stages.error?.code, "ERR_BUILD_REMOTE_REFUSED")
  })

  it("does not build as root, unless it was told to", async () => {
    const said = await ask(request(), [scratch, "[]"], hello, false)
    if (process.getuid?.() !== 0) {
      assert.equal(said.kind, "built")
      return
    }
    assert.equal(said.error?.code, "ERR_BUILD_REMOTE_REFUSED")
    assert.match(said.error.message, /root would build there/)
  })

  it("has debootstrap run nothing that was sent, and install nothing unverified", async () => {
    // debootstrap's release is the name of a shell script of its own.
    const marker = path.join(newFolder("marker"), "made")
    const files = archive("script", (folder) => {
      writeFileSync(path.join(folder, "0"), `touch '${marker}'; exit 3\n`)
    })
    const from = (suite: string, include = ""): string =>
      `Bootstrap: debootstrap\nOSVersion: ${suite}\nMirrorURL: http://127.0.0.1:9/\nInclude: ${include}\n%files\nx /x\n`
    for (const [definition, message] of [
      [from("../../../../mnt/files/0"), /\.def:2: .*\/0 is no name of a release/],
      [from("--no-check-gpg"), /is no name of a release/],
      [from("sid", "apt,$(id)"), /\.def:4: \$\(id\) is no name of a package/],
    ] as const) {
      const said = await ask(request({}, { hasFiles: true }), [definition, transfers("x"), files])
      assert.equal(said.error?.code, "ERR_DEFINITION_SYNTAX", JSON.stringify(said))
      assert.match(said.error.message, message)
    }
    assert.ok(!existsSync(marker))
    // Of these keys are known by name, and are not there.
    let asked = 0
    const mirror = createServer((_, response) => {
      asked++
      response.end()
    }).listen(0, "127.0.0.1")
    await once(mirror, "listening")
    const { port } = mirror.address() as AddressInfo
    const kali = `Bootstrap: debootstrap\nOSVersion: kali\nMirrorURL: http://127.0.0.1:${port}/\n`
    const said = await ask(request(), [kali, "[]"])
    mirror.close()
    assert.equal(said.error?.code, "ERR_BUILD_SOURCE", JSON.stringify(said))
    assert.equal(asked, 0)
  })

  it("has no way to options that no other machine has", async () => {
    for (const options of [
      { plainScratch: true },
      { binds: ["/etc:/x"] },
      { tmpFolder: "/" },
      { oci: { authFile: "/etc/passwd" } },
      { scratch: "plain" },
      { owner: { uid: -1, gid: 0 } },
      { architecture: "../x" },
      { compression: { name: "zstd", level: 99 } },
    ]) {
      const said = await ask(request(options), [])
      assert.equal(said.error?.code, "ERR_BUILD_REMOTE", JSON.stringify(options))
    }
    for (const others of [{ bases: Array(129).fill("") }, { path: 1 }, { more: 1 }, { kind: "x" }])
      assert.equal((await ask(request({}, others), [])).error?.code, "ERR_BUILD_REMOTE")
  })

  it("takes no more than it may have, and no base that is none", async () => {
    const long = await ask(request(), [Buffer.alloc((16 << 20) + 1, "#")])
    assert.equal(long.error?.code, "ERR_BUILD_REMOTE")
    const local = "Bootstrap: localimage\nFrom: x\n"
    const odd = await ask(request({}, { bases: ["x"] }), [local, "[]", Buffer.alloc(4095)])
    assert.equal(odd.error?.code, "ERR_BUILD_REMOTE")
    const none = await ask(request({}, { bases: ["x"] }), [local, "[]", Buffer.alloc(8192)])
    assert.equal(none.error?.code, "ERR_TREE_FORMAT")
  })

  it("ends with the other side, at any time, and with another version", async () => {
    for (const sent of [0, 1, 2, 3]) {
      const [input, output] = [new PassThrough(), new PassThrough()]
      const serving = serveBuild({ input, output, tmpFolder, allowUnconfined: true })
      using channel = new Channel(output, input, { name: "serve-build" })
      await channel.message()
      if (sent > 0) await channel.greet(hello)
      if (sent > 1) await channel.send(request({}, { hasFiles: true }))
      if (sent > 2) await channel.sendStream([Buffer.from(scratch)])
      input.end()
      // Who has been greeted may have wanted to know no more.
      if (sent === 1) await serving
      else await assert.rejects(serving, { code: "ERR_BUILD_REMOTE" }, String(sent))
    }
    const [input, output] = [new PassThrough(), new PassThrough()]
    const serving = serveBuild({ input, output, tmpFolder, allowUnconfined: true })
    using channel = new Channel(output, input, { name: "serve-build" })
    await channel.message()
    await channel.greet({ protocol: 9, version: "9.9.9", news: true })
    await assert.rejects(serving, { code: "ERR_BUILD_REMOTE_VERSION", message: /9\.9\.9 is there.*9 and 1/ })
  })

  it("ends when nothing is heard, for whoever may have gone without a word", async () => {
    const [input, output] = [new PassThrough(), new PassThrough()]
    const serving = serveBuild({ input, output, tmpFolder, allowUnconfined: true, silenceMs: 100 })
    const keepsRunning = setInterval(() => undefined, 1000)
    await assert.rejects(serving, { code: "ERR_BUILD_REMOTE", message: /nothing was heard for/ })
    clearInterval(keepsRunning)
  })

  it("is stopped by its own side, too", async () => {
    const [input, output] = [new PassThrough(), new PassThrough()]
    const stop = new AbortController()
    const serving = serveBuild({ input, output, tmpFolder, allowUnconfined: true, signal: stop.signal })
    stop.abort(new Error("enough"))
    await assert.rejects(serving, { message: "enough" })
  })
})
