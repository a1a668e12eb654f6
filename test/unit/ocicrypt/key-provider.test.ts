// Key providers, as programs and as services: what they are told, and what becomes of those that fail.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import {
  chmodSync,
  chownSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import http2, { type ServerHttp2Stream } from "node:http2"
import type { AddressInfo } from "node:net"
import path from "node:path"
import { KeyProvider } from "../../../lib/ocicrypt/key-provider.ts"
import { LayerKeys } from "../../../lib/ocicrypt/layer-keys.ts"
import { fieldHead, readFields } from "../../../lib/ocicrypt/protobuf.ts"
import { findProvider, type ProviderEntry } from "../../../lib/ocicrypt/provider-config.ts"
import { certificate } from "../../support/http-server.ts"
import { allProcesses, waitFor } from "../../support/processes.ts"
import { newFolder } from "../../support/scratch.ts"
import { vectorPath } from "../../vectors/load.ts"

const toy = path.join(import.meta.dirname, "../../support/toy-key-provider.mjs")
const folder = newFolder("key-provider")
const secret = Buffer.from('{"symkey":"CgadDI98hgAXpb3nu32YcPpESaiZgVh4qipibb0ao="}')

function provider(
  entry: ProviderEntry,
  parameters: readonly string[] = [],
  options: object = {},
): KeyProvider {
  return new KeyProvider({ name: "toy", parameters }, entry, { timeoutMs: 10_000, ...options })
}
const node = (...args: readonly string[]): ProviderEntry => ({ path: process.execPath, args })
const shell = (script: string): ProviderEntry => ({ path: "/bin/sh", args: ["-c", script] })
const failing = (message: RegExp): object => ({ code: "ERR_KEY_PROVIDER", message })

describe("a key provider that is a program", () => {
  it("is told what ocicrypt tells it, the parameters that are its own, and no secret of the environment", async () => {
    const transcript = path.join(folder, "transcript")
    process.env["SIFCRYPT_ENCRYPTION_PASSPHRASE"] = "a passphrase"
    try {
      const entry = node(toy, transcript)
      const wrapped = await provider(entry, ["p1:p2", "é"]).wrap(Buffer.from(secret))
      assert.equal(wrapped.toString("latin1").startsWith('{"k":"'), true)
      assert.deepEqual(await provider(entry).unwrap(wrapped), secret)
      const [wrap, names, unwrap] = readFileSync(transcript, "utf8").split("\n")
      assert.equal(
        wrap,
        '{"op":"keywrap","keywrapparams":{"ec":{"Parameters":{"toy":["cDE6cDI=","w6k="]},"DecryptConfig":{"Parameters":{}}},' +
          `"optsdata":"${secret.toString("base64")}"},"keyunwrapparams":{"dc":null,"annotation":null}}`,
      )
      assert.equal(
        unwrap,
        '{"op":"keyunwrap","keywrapparams":{"ec":null,"optsdata":null},"keyunwrapparams":{"dc":{"Parameters":{"toy":["RW5hYmxlZA=="]}},' +
          `"annotation":"${wrapped.toString("base64")}"}}`,
      )
      assert.ok(names?.includes('"PATH"'))
      assert.ok(names?.includes("SIFCRYPT_") === false)
    } finally {
      delete process.env["SIFCRYPT_ENCRYPTION_PASSPHRASE"]
    }
  })

  it("A32: opens the layers of another program, where it was named, and where not it is not started", async () => {
    const vectors = JSON.parse(readFileSync(vectorPath("ocicrypt/layers.json"), "utf8")) as {
      name: string
      annotations: Record<string, string>
    }[]
    const { annotations } = vectors.find(({ name }) => name === "keyprovider-toy") ?? { annotations: {} }
    const transcript = path.join(folder, "opened")
    const providers = [provider(node(toy, transcript))]
    using key = await new LayerKeys({ providers }).unwrap(annotations, "it")
    assert.equal(key.key.length, 32)
    const other = new KeyProvider({ name: "other", parameters: [] }, shell(`touch ${folder}/started`))
    await assert.rejects(new LayerKeys({ providers: [other] }).unwrap(annotations, "it"), {
      code: "ERR_KEY_MISMATCH",
    })
    assert.throws(() => readFileSync(path.join(folder, "started")), { code: "ENOENT" })
    // One that fails keeps nobody out whom another one lets in.
    const broken = { ...annotations, "org.opencontainers.image.enc.keys.provider.broken": "AAAA" }
    const failed = new KeyProvider({ name: "broken", parameters: [] }, shell("exit 3"))
    using again = await new LayerKeys({ providers: [failed, ...providers] }).unwrap(broken, "it")
    assert.deepEqual(again.key, key.key)
    await assert.rejects(
      new LayerKeys({ providers: [failed] }).unwrap(broken, "it"),
      failing(/^the key provider broken: it ended with status 3$/),
    )
  })

  it("is told of in one sentence when it fails", async () => {
    const cases: readonly [ProviderEntry, RegExp][] = [
      [shell("echo one >&2; echo two words >&2; exit 7"), /it ended with status 7: two words$/],
      [shell("kill -9 $$"), /it ended with SIGKILL$/],
      [{ path: "/nowhere/at-all", args: [] }, /it is not installed$/],
      [{ path: folder, args: [] }, /it cannot be started: /],
      [shell("echo no JSON"), /its answer is no JSON$/],
      [shell("echo '{}'"), /nothing that was wrapped$/],
      [shell(`echo '{"keywrapresults":{"annotation":7}}'`), /nothing that was wrapped$/],
      [shell("exec head -c 3000000 /dev/zero"), /it wrote more than 2097152 bytes$/],
    ]
    for (const [entry, message] of cases)
      await assert.rejects(provider(entry).wrap(Buffer.from(secret)), failing(message), String(message))
    // Somebody who has left its group goes on writing.
    const pipe = path.join(folder, "pipe")
    const endless = shell(
      `mkfifo ${pipe}; setsid sh -c 'echo >${pipe}; exec cat /dev/zero' & read _ <${pipe}`,
    )
    await assert.rejects(
      provider(endless, [], { timeoutMs: 600_000 }).wrap(Buffer.from(secret)),
      failing(/it wrote more than 2097152 bytes$/),
    )
    for (const text of [
      "no JSON",
      "{}",
      '{"keyunwrapresults":{"optsdata":"!"}}',
      '{"keyunwrapresults":{"optsdata":null}}',
    ])
      await assert.rejects(
        provider(shell(`echo '${text}'`)).unwrap(secret),
        failing(/its answer has no layer key$/),
        text,
      )
    // As some writers of JSON write base64.
    const escaped = `{"keyunwrapresults":{"optsdata":"\\/\\/8\\u003d"}}`
    assert.deepEqual(
      await provider({ path: "/bin/echo", args: [escaped] }).unwrap(secret),
      Buffer.from("ffff", "hex"),
    )
  })

  it("is ended with all that it started: late, interrupted, or gone before them", async () => {
    const mark = `86${process.pid}`
    const running = (): boolean => allProcesses().some(({ command }) => command.includes(`sleep ${mark}`))
    const both = shell(`trap '' TERM INT; sleep ${mark} & wait`)
    const ended = async (): Promise<void> => {
      await waitFor("its end", () => !running())
    }
    const late = provider(both, [], { timeoutMs: 1000 }).wrap(Buffer.from(secret))
    await waitFor("the program", running)
    await assert.rejects(late, failing(/it gave no answer within 1 s$/))
    await ended()
    const controller = new AbortController()
    const interrupted = provider(both, [], { signal: controller.signal }).wrap(Buffer.from(secret))
    await waitFor("the program", running)
    const reason = new Error("somebody said stop")
    controller.abort(reason)
    await assert.rejects(interrupted, (error) => error === reason)
    await ended()
    // Somebody has left its group, and holds the pipe.
    const away = shell(`setsid sleep ${mark} & wait`)
    const abandoned = new AbortController()
    const held = provider(away, [], { signal: abandoned.signal }).wrap(Buffer.from(secret))
    // The shell has these words in its own, and setsid(1) before it has left.
    await waitFor("who leaves", () => allProcesses().some(({ command }) => command === `sleep ${mark}`))
    abandoned.abort(reason)
    await assert.rejects(held, (error) => error === reason)
    for (const { pid, command } of allProcesses())
      if (command === `sleep ${mark}`) process.kill(pid, "SIGKILL")
    await ended()
    // It leaves somebody behind who would keep its pipe open.
    const left = provider(shell(`sleep ${mark} & echo '{"keyunwrapresults":{"optsdata":"AAAA"}}'`))
    assert.deepEqual(await left.unwrap(secret), Buffer.alloc(3))
    await ended()
  })
})

describe("a key provider that is a service", () => {
  type Service = (stream: ServerHttp2Stream, question: string, call: string) => void
  const framed = (json: string): Buffer => {
    const message = Buffer.concat([fieldHead(1, Buffer.byteLength(json)), Buffer.from(json)])
    const head = Buffer.alloc(5)
    head.writeUInt32BE(message.length, 1)
    return Buffer.concat([head, message])
  }
  const reply = (
    stream: ServerHttp2Stream,
    bytes: Buffer,
    trailers: Record<string, string> = { "grpc-status": "0" },
  ): void => {
    stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true })
    stream.on("wantTrailers", () => {
      stream.sendTrailers(trailers)
    })
    stream.end(bytes)
  }
  const honest: Service = (stream, question) => {
    reply(stream, framed(execFileSync(process.execPath, [toy, "/dev/null"], { input: question }).toString()))
  }
  interface Running extends AsyncDisposable {
    readonly port: number
    readonly calls: string[]
  }

  async function serve(service: Service, where: object | string = {}, tls?: object): Promise<Running> {
    const server = tls === undefined ? http2.createServer() : http2.createSecureServer(tls)
    const calls: string[] = []
    server.on("session", (session) => session.on("error", () => undefined))
    server.on("stream", (stream, headers) => {
      const chunks: Buffer[] = []
      stream.on("error", () => undefined)
      stream.on("data", (chunk: Buffer) => chunks.push(chunk))
      stream.on("end", () => {
        const bytes = Buffer.concat(chunks)
        const call = String(headers[":path"])
        calls.push(`${call} ${String(headers["content-type"])} ${String(headers["te"])}`)
        assert.equal(bytes.readUInt32BE(1), bytes.length - 5)
        service(stream, readFields(bytes.subarray(5)).get(1)?.toString() ?? "", call)
      })
    })
    await new Promise<void>((resolve) => {
      if (typeof where === "string") server.listen(where, resolve)
      else server.listen({ host: "127.0.0.1", port: 0, ...where }, resolve)
    })
    const address = server.address()
    return {
      port: typeof address === "string" ? 0 : (address as AddressInfo).port,
      calls,
      [Symbol.asyncDispose]: () =>
        new Promise<void>((resolve) => {
          server.close(() => {
            resolve()
          })
        }),
    }
  }
  const at = (port: number): ProviderEntry => ({ host: "127.0.0.1", port, tls: undefined })

  it("wraps and unwraps, on a port, on a socket, and over TLS with a certificate that is trusted", async () => {
    await using running = await serve(honest)
    const wrapped = await provider(at(running.port), ["p"]).wrap(Buffer.from(secret))
    assert.deepEqual(await provider(at(running.port)).unwrap(wrapped), secret)
    assert.deepEqual(
      running.calls,
      ["WrapKey", "UnWrapKey"].map(
        (call) => `/keyprovider.KeyProviderService/${call} application/grpc trailers`,
      ),
    )
    const socket = path.join(folder, "socket")
    await using local = await serve(honest, socket)
    assert.deepEqual(await provider({ socket }).unwrap(wrapped), secret)
    assert.equal(local.calls.length, 1)
    const pair = certificate()
    const rootCaFile = pair.certificate
    const [key, cert] = [readFileSync(pair.key), readFileSync(rootCaFile)]
    await using secure = await serve(honest, {}, { key, cert })
    const tls = { rootCaFile, certFile: undefined, keyFile: undefined, serverName: "registry.example.test" }
    const entry = { host: "127.0.0.1", port: secure.port, tls }
    assert.deepEqual(await provider(entry).unwrap(wrapped), secret)
    const untrusted = { ...entry, tls: { ...tls, rootCaFile: undefined } }
    await assert.rejects(provider(untrusted).unwrap(wrapped), failing(/it cannot be reached: .*certificate/))
    const missing = { ...entry, tls: { ...tls, rootCaFile: path.join(folder, "none.pem") } }
    await assert.rejects(provider(missing).unwrap(wrapped), failing(/it needs .*none\.pem: /))
  })

  it("is told of in one sentence when it refuses, breaks off, goes on for ever or says nothing", async () => {
    const cases: readonly [Service, RegExp][] = [
      [
        (stream) => {
          reply(stream, Buffer.alloc(0), { "grpc-status": "7", "grpc-message": "not%20for%20you" })
        },
        /it refuses, with gRPC status 7: not for you$/,
      ],
      [
        (stream) => {
          stream.respond({ ":status": 200, "grpc-status": "12", "grpc-message": "%zz" }, { endStream: true })
        },
        /it refuses, with gRPC status 12: %zz$/,
      ],
      [
        (stream) => {
          stream.respond({ ":status": 404 }, { endStream: true })
        },
        /it answers with HTTP status 404$/,
      ],
      [
        (stream) => {
          reply(stream, framed("{}"), {})
        },
        /it refuses, with gRPC status none$/,
      ],
      [
        (stream) => {
          reply(stream, Buffer.from("0000000001", "hex"))
        },
        /it gave an answer that is no message of gRPC$/,
      ],
      [
        (stream) => {
          reply(stream, Buffer.from("00000000020a05", "hex"))
        },
        /it gave an answer that is no Protocol Buffers: it ends in the middle of a field$/,
      ],
      [
        (stream) => {
          stream.respond({ ":status": 200 })
          const more = (): void => {
            while (!stream.destroyed && stream.write(Buffer.alloc(1 << 16)));
          }
          stream.on("drain", more)
          more()
        },
        /it gave more than 2097152 bytes$/,
      ],
      [
        (stream) => {
          stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR)
        },
        /it cannot be reached: /,
      ],
      [() => undefined, /it gave no answer within 0\.5 s$/],
    ]
    for (const [service, message] of cases) {
      await using running = await serve(service)
      const slow = message.source.includes("within") ? { timeoutMs: 500 } : {}
      await assert.rejects(
        provider(at(running.port), [], slow).unwrap(secret),
        failing(message),
        String(message),
      )
    }
    await assert.rejects(provider(at(1)).unwrap(secret), failing(/it cannot be reached: .*ECONNREFUSED/))
    const controller = new AbortController()
    await using silent = await serve(() => {
      controller.abort(new Error("somebody said stop"))
    })
    // Somebody who says so while the connection is being made is heard, too.
    const early = new AbortController()
    const unheard = provider(at(silent.port), [], { signal: early.signal }).unwrap(secret)
    early.abort(new Error("at once"))
    await assert.rejects(unheard, { message: "at once" })
    const { signal } = controller
    await assert.rejects(provider(at(silent.port), [], { signal }).unwrap(secret), {
      message: "somebody said stop",
    })
  })
})

describe("the configuration of key providers", () => {
  const file = path.join(folder, "keyprovider.conf")
  const find = async (value: unknown, name = "toy"): Promise<ProviderEntry> => {
    writeFileSync(file, typeof value === "string" ? value : JSON.stringify(value), { mode: 0o600 })
    return await findProvider(name, undefined, { OCICRYPT_KEYPROVIDER_CONFIG: file })
  }
  const toyIs = (entry: unknown): unknown => ({ "key-providers": { toy: entry } })

  it("names a program with its arguments, or a service", async () => {
    const program = { path: realpathSync("/bin/true"), argv0: "/bin/true" }
    assert.deepEqual(await find(toyIs({ cmd: { path: "/bin/true", args: ["x", "y"] } })), {
      ...program,
      args: ["x", "y"],
    })
    assert.deepEqual(await find(toyIs({ cmd: { path: "/bin/true" }, grpc: null })), { ...program, args: [] })
    assert.deepEqual(await find(toyIs({ grpc: "localhost:50051" })), {
      host: "localhost",
      port: 50051,
      tls: undefined,
    })
    assert.deepEqual(await find(toyIs({ grpc: "[::1]:9" })), { host: "::1", port: 9, tls: undefined })
    for (const address of ["unix:/run/toy", "unix:///run/toy"])
      assert.deepEqual(await find(toyIs({ grpc: address })), { socket: "/run/toy" })
    const tls = { "root-ca-file": "/ca", "cert-file": "/cert", "key-file": "/key", "server-name": "kms" }
    assert.deepEqual(await find(toyIs({ grpc: "kms.example:443", "grpc-tls": tls })), {
      host: "kms.example",
      port: 443,
      tls: { rootCaFile: "/ca", certFile: "/cert", keyFile: "/key", serverName: "kms" },
    })
  })

  it("is refused with what is wrong in it", async () => {
    const cases: readonly [unknown, RegExp][] = [
      ["{", /it is no JSON/],
      [[], /it has no object "key-providers"$/],
      [{ "key-providers": [] }, /it has no object "key-providers"$/],
      [{ "key-providers": { other: {} } }, /toy: there is no such key provider \(known: other\)$/],
      [toyIs(null), /there is no such key provider/],
      [toyIs({}), /it has neither cmd nor grpc$/],
      [toyIs({ cmd: { path: "toy" } }), /its cmd has no absolute path/],
      [toyIs({ cmd: "toy" }), /its cmd has no absolute path/],
      [toyIs({ cmd: { path: "/bin/true", args: "x" } }), /the args of its cmd are no list of strings$/],
      [toyIs({ cmd: { path: "/bin/true", args: [7] } }), /the args of its cmd are no list of strings$/],
      [toyIs({ cmd: { path: "/nowhere/toy" } }), /its program \/nowhere\/toy is not there$/],
      [toyIs({ grpc: 7 }), /its grpc is no address/],
      [toyIs({ grpc: "http://localhost:1" }), /its grpc is no address/],
      [toyIs({ grpc: "localhost:0" }), /its grpc is no address/],
      [toyIs({ grpc: "localhost:70000" }), /its grpc is no address/],
      [toyIs({ grpc: "kms.example:443" }), /kms\.example is not this machine, .* without TLS/],
      [toyIs({ grpc: "127.0.0.1.example:443" }), /is not this machine/],
      [toyIs({ grpc: "kms.example:443", "grpc-tls": { "insecure-skip-verify": true } }), /whoever answers/],
      [
        toyIs({ grpc: "kms.example:443", "grpc-tls": { "key-file": 7 } }),
        /key-file of its grpc-tls is no string/,
      ],
      [toyIs({ grpc: "kms.example:443", "grpc-tls": "yes" }), /its grpc-tls is no object/],
      [toyIs({ grpc: "unix:/run/toy", "grpc-tls": {} }), /there is no grpc-tls$/],
      [" ".repeat((1 << 20) + 1), /it is no file of 1048576 bytes at most$/],
    ]
    for (const [value, message] of cases) await assert.rejects(find(value), failing(message), String(message))
    await assert.rejects(
      find({ "key-providers": {} }, "__proto__"),
      failing(/there is no such key provider \(known: none\)$/),
    )
    await assert.rejects(
      findProvider("toy", undefined, {}),
      failing(/OCICRYPT_KEYPROVIDER_CONFIG names no file/),
    )
    await assert.rejects(
      findProvider("toy", path.join(folder, "none"), {}),
      failing(/none: there is no such file$/),
    )
  })

  it("is refused where somebody else may have written it, or what it starts", async () => {
    const good = toyIs({ cmd: { path: "/bin/true" } })
    await find(good)
    const refused = async (message: RegExp): Promise<void> => {
      await assert.rejects(findProvider("toy", file, {}), failing(message))
    }
    chmodSync(file, 0o620)
    await refused(/others may write it/)
    chmodSync(file, 0o600)
    if (process.getuid?.() === 0) {
      chownSync(file, 2345, 2345)
      await refused(/it belongs to user 2345/)
      chownSync(file, 0, 0)
    }
    const open = path.join(folder, "open")
    mkdirSync(open)
    chmodSync(open, 0o777)
    const program = path.join(open, "toy")
    writeFileSync(program, "#!/bin/sh\n", { mode: 0o755 })
    symlinkSync(program, path.join(folder, "link"))
    await assert.rejects(
      find(toyIs({ cmd: { path: path.join(folder, "link") } })),
      failing(/open: others may write it/),
    )
    // A link that others may change names what it named when it was looked at.
    const link = path.join(open, "link")
    const own = path.join(folder, "own")
    writeFileSync(own, `#!/bin/sh\necho '{"keyunwrapresults":{"optsdata":"AAAA"}}'\n`, { mode: 0o755 })
    symlinkSync(own, link)
    const found = await find(toyIs({ cmd: { path: link } }))
    rmSync(link)
    symlinkSync(program, link)
    assert.deepEqual(await provider(found).unwrap(secret), Buffer.alloc(3))
    // And it is called what it was named.
    const called = path.join(folder, "called")
    symlinkSync("/bin/sh", called)
    const shown = await find(toyIs({ cmd: { path: called, args: ["-c", "echo $0 >&2; exit 1"] } }))
    await assert.rejects(provider(shown).unwrap(secret), failing(/status 1: \/.*\/called$/))
  })
})
