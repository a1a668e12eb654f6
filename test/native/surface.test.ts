// What plain JavaScript can pass to each function of the package: a mistake is an error that names it, before anything is done.
import assert from "node:assert/strict"
import { generateKeyPairSync } from "node:crypto"
import { existsSync, mkdirSync, writeFileSync } from "node:fs"
import path from "node:path"
import { PassThrough, Readable, Writable } from "node:stream"
import { pathToFileURL } from "node:url"
import { packageRoot } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"

type Callable = (...args: unknown[]) => unknown
type Api = Record<string, unknown>
interface Failure {
  readonly name: string
  readonly code?: string
  readonly message: string
}

/** What a call fails with; undefined: it does not. */
async function failureOf(call: () => unknown): Promise<Failure | undefined> {
  try {
    await call()
    return undefined
  } catch (error) {
    return error as Failure
  }
}

const invalid = new Set([
  "ERR_INVALID_ARG_TYPE",
  "ERR_INVALID_ARG_VALUE",
  "ERR_OUT_OF_RANGE",
  "ERR_KEY_MISSING",
])

function assertNamed(failure: Failure | undefined, name: string, what: string): void {
  assert.ok(failure !== undefined, `${what}: it is taken`)
  assert.ok(invalid.has(failure.code ?? ""), `${what}: ${String(failure.code)} ${failure.message}`)
  assert.ok(failure.message.includes(name), `${what}: ${failure.message}`)
}

const { privateKey } = generateKeyPairSync("ed25519")
const nowhere = "/nonexistent/surface"
const layout = `oci:${nowhere}`

/** Arguments that are right, with `options` where they go; a name in front of each says what it is called in messages. */
const calls: Readonly<Record<string, readonly (readonly [name: string, value: unknown])[]>> = {
  build: [["options", { output: nowhere, source: nowhere }]],
  remoteBuilders: [["options", { remote: ["ssh://host.invalid"] }]],
  serveBuild: [["options", { input: new PassThrough(), output: new PassThrough() }]],
  encrypt: [["options", { output: nowhere, image: nowhere, recipients: [{ environment: {} }] }]],
  decrypt: [["options", { output: nowhere, image: nowhere, unlock: [{ environment: {} }] }]],
  reencrypt: [["options", { output: nowhere, image: nowhere, unlock: [{ environment: {} }] }]],
  view: [["options", { image: nowhere, target: nowhere }]],
  createOverlay: [["options", { output: nowhere }]],
  pull: [["options", { output: nowhere, reference: "oras://host.invalid/image" }]],
  push: [["options", { image: nowhere, reference: "oras://host.invalid/image" }]],
  registryLogin: [["options", { registry: "host.invalid", username: "name", password: Buffer.alloc(1) }]],
  registryLogins: [["options", {}]],
  registryLogout: [["options", { registry: "host.invalid", environment: {} }]],
  readDefinition: [
    ["file", nowhere],
    ["options", {}],
  ],
  cleanCache: [["options", {}]],
  open: [
    ["image", nowhere],
    ["options", {}],
  ],
  isImageName: [["name", "docker://image"]],
  keyConfigurationFile: [["environment", { HOME: "/home/name" }]],
  readMetadata: [
    ["image", nowhere],
    ["options", {}],
  ],
  inspect: [["image", nowhere]],
  mapImage: [["image", nowhere]],
  listRecipients: [["image", nowhere]],
  addRecipients: [
    ["path", nowhere],
    ["options", { recipients: [{ environment: {} }] }],
  ],
  rotateRecipients: [
    ["path", nowhere],
    ["options", {}],
  ],
  removeRecipient: [
    ["path", nowhere],
    ["options", {}],
  ],
  sign: [
    ["path", nowhere],
    ["by", { key: privateKey }],
    ["options", {}],
  ],
  verify: [
    ["path", nowhere],
    ["options", {}],
  ],
  checkExecution: [
    ["image", nowhere],
    ["options", {}],
  ],
  openInstance: [["name", "x"]],
  parseRestart: [["word", "no"]],
  createNetwork: [
    ["name", "surface"],
    ["options", {}],
  ],
  openNetwork: [["name", "surface"]],
  removeNetwork: [["name", "surface"]],
  unmount: [["target", nowhere]],
  allocateSecret: [["size", 1]],
  exitNow: [["status", 300]],
  endAfterSignals: [
    ["signals", []],
    ["patienceMs", 0],
    ["withChildrenMs", 0],
  ],
  startFailure: [["last", []]],
  becomeOciRuntime: [
    ["words", ["create", "--bundle", nowhere, "name"]],
    ["options", {}],
  ],
  logForOciEngine: [
    ["words", []],
    ["message", ""],
  ],
  userKeyrings: [["env", {}]],
  userSecretKeyrings: [["env", {}]],
  "keyring.exportFile": [
    ["file", nowhere],
    ["fingerprints", []],
    ["options", {}],
  ],
  "keyring.exportKeys": [
    ["fingerprints", []],
    ["options", {}],
  ],
  "keyring.readKeys": [
    ["file", nowhere],
    ["options", {}],
  ],
  "keyring.importKeys": [
    ["file", new Uint8Array()],
    ["origin", "x"],
    ["options", {}],
  ],
  "keyring.inspectKeys": [
    ["file", new Uint8Array()],
    ["origin", "x"],
  ],
  "keyring.list": [["options", {}]],
  "keyring.newPair": [
    ["options", { name: "x", email: "x@example.org", password: { bytes: new Uint8Array(1) } }],
  ],
  "keyring.parseFingerprint": [["fingerprint", "x"]],
  "keyring.pull": [
    ["fingerprint", "x"],
    ["server", {}],
    ["ring", {}],
  ],
  "keyring.push": [
    ["fingerprint", "x"],
    ["server", {}],
    ["ring", {}],
  ],
  "keyring.remove": [
    ["fingerprint", "x"],
    ["options", {}],
  ],
  "keyring.ringPath": [["options", {}]],
  "keyring.search": [
    ["about", "x"],
    ["options", {}],
  ],
  "compose.load": [["options", {}]],
  "compose.open": [["name", "surface"]],
  "batch.submit": [["options", { file: nowhere }]],
  "batch.open": [["folder", nowhere]],
  "batch.importConfiguration": [["folder", nowhere]],
  "batch.prune": [["options", {}]],
  "batch.serve": [
    ["folder", nowhere],
    ["options", { onReady: () => undefined }],
  ],
  "batch.serveNode": [["options", { keys: [nowhere], socket: nowhere }]],
  "batch.runTask": [
    ["place", { manifest: nowhere, digest: "x", job: 0, group: 0, first: 0 }],
    ["listen", () => undefined],
  ],
  "batch.relay": [
    ["folder", nowhere],
    ["line", "x"],
  ],
  "batch.fetch": [
    ["manifest", nowhere],
    ["digest", "x"],
  ],
  "certificate.add": [["options", { file: nowhere, password: { bytes: new Uint8Array(1) } }]],
  "certificate.listStored": [["options", {}]],
  "certificate.remove": [
    ["wanted", []],
    ["options", {}],
  ],
  "certificate.checkCommonName": [["name", "x"]],
  "certificate.convert": [["options", { input: nowhere, output: nowhere, to: "pem" }]],
  "certificate.create": [["options", { filePrefix: nowhere, password: { bytes: new Uint8Array(1) } }]],
  "certificate.info": [
    ["file", nowhere],
    ["options", {}],
  ],
  "certificate.parseThumbprint": [["thumbprint", "x"]],
  "sif.openSif": [
    ["image", nowhere],
    ["options", {}],
  ],
  "sif.addObject": [
    ["path", nowhere],
    ["object", { type: 1 }],
    ["data", new Uint8Array()],
    ["options", {}],
  ],
  "sif.createSif": [["path", nowhere]],
  "sif.addFile": [
    ["path", nowhere],
    ["object", { type: 1 }],
    ["source", nowhere],
    ["options", {}],
  ],
  "sif.setPrimary": [
    ["path", nowhere],
    ["id", 1],
    ["options", {}],
  ],
  "sif.deleteObject": [
    ["path", nowhere],
    ["id", 1],
    ["options", {}],
  ],
  "sif.dump": [["image", undefined]],
  "sif.headerJson": [["image", undefined]],
  "sif.headerText": [["image", undefined]],
  "sif.infoJson": [["image", undefined]],
  "sif.infoText": [["image", undefined]],
  "sif.listJson": [["image", undefined]],
  "sif.listText": [["image", undefined]],
  "oci.changeRecipients": [
    [
      "options",
      {
        ...{ source: layout, target: layout, change: "add" },
        ...{ recipients: [{ jwe: { file: nowhere } }], unlock: [{ environment: {} }] },
      },
    ],
  ],
  "oci.copy": [["options", { source: layout, target: layout }]],
  "oci.decodeLayer": [
    ["options", { payload: { file: nowhere }, input: Readable.from([]), output: new Writable() }],
  ],
  "oci.decrypt": [["options", { source: layout, target: layout, unlock: [{ environment: {} }] }]],
  "oci.encrypt": [["options", { source: layout, target: layout, recipients: [{ jwe: { file: nowhere } }] }]],
  "oci.inspect": [["options", { source: layout }]],
  "oci.layerInfo": [["options", { source: layout }]],
  "oci.list": [["options", {}]],
  "oci.load": [["options", { input: nowhere }]],
  "oci.remove": [["options", { names: ["surface"] }]],
  "oci.save": [["options", { names: ["surface"], output: nowhere }]],
}
/** They take nothing, or what may be left out. */
const without = new Set([
  "listCache",
  "listInstances",
  "listMounts",
  "listNetworks",
  "forbidDumps",
  "squashfuseProgram",
])

const wrong: readonly (readonly [string, unknown])[] = [
  ["null", null],
  ["a symbol", Symbol("x")],
  ["a date", new Date(0)],
]

/** By how a property describes itself: what looks like it and is not. */
const lookalikes: readonly (readonly [RegExp, readonly unknown[]])[] = [
  [/ is a plain object/, ["text", 1, true, [], Object.create({ key: 1 })]],
  [/ is an array/, ["text", 1, {}, new Uint8Array(1), { length: 1, 0: "x" }]],
  [/ is bytes/, ["text", [1, 2], {}, 16]],
  [/ is true or false/, ["false", 0, 1, []]],
  [/ is a string/, [1, true, ["x"], Buffer.from("x")]],
  [/ is a number/, ["1", NaN, 1n, true]],
  [/ is a function/, ["text", {}]],
  [/ is one of /, ["something", 3.5, true]],
]

for (const [where, file] of [
  ["the sources", path.join(packageRoot, "lib/index.ts")],
  ["the package", path.join(packageRoot, "dist/index.js")],
] as const)
  describe(`the surface of ${where}`, () => {
    let api: Api
    const named = (name: string): Callable => {
      const [space, inside] = name.split(".")
      const found = inside === undefined ? api[name] : (api[space ?? ""] as Api)[inside]
      return found as Callable
    }
    before(async () => {
      api = (await import(pathToFileURL(file).href)) as Api
    })

    it("is all in this table", () => {
      const isClass = (value: unknown): boolean => /^class\b/.test(String(value))
      const functions = Object.entries(api).flatMap(([name, value]) =>
        typeof value === "function"
          ? isClass(value)
            ? []
            : [name]
          : typeof value === "object" &&
              value !== null &&
              Object.prototype.toString.call(value) === "[object Module]"
            ? Object.entries(value).flatMap(([inside, one]) =>
                typeof one === "function" && !isClass(one) ? [`${name}.${inside}`] : [],
              )
            : [],
      )
      assert.deepEqual(functions.toSorted(), [...Object.keys(calls), ...without].toSorted())
    })

    for (const [name, args] of Object.entries(calls)) {
      it(`${name} names each argument that is missing or of another kind`, async () => {
        const values = args.map(([, value]) => value)
        for (const [index, [called]] of args.entries())
          for (const [what, value] of wrong) {
            const failure = await failureOf(async () => {
              const result = named(name)(...values.with(index, value))
              if (name === "sif.dump") await (result as AsyncGenerator).next()
              return await result
            })
            assertNamed(failure, called, `${called}: ${what}`)
          }
        if (typeof args[0]?.[1] !== "object" || Object.keys(args[0][1] ?? {}).length > 0)
          assertNamed(
            await failureOf(async () => {
              const result = named(name)()
              return name === "sif.dump" ? await (result as AsyncGenerator).next() : await result
            }),
            args[0]?.[0] ?? "",
            "nothing at all",
          )
      })

      for (const [index, [called, options]] of args.entries()) {
        if (
          Object.prototype.toString.call(options) !== "[object Object]" ||
          called === "by" ||
          called === "env" ||
          called === "environment"
        )
          continue
        it(`${name} names each property of ${called} that is unknown or of another kind`, async () => {
          const values = args.map(([, value]) => value)
          const failureWith = async (more: object): Promise<Failure | undefined> =>
            await failureOf(() => named(name)(...values.with(index, { ...(options as object), ...more })))
          const unknown = await failureWith({ surprise: undefined })
          assertNamed(unknown, '"surprise"', "an unknown property")
          assert.ok(unknown?.name === "TypeError")
          assertNamed(
            await failureWith(JSON.parse('{ "__proto__": {} }') as object),
            "__proto__",
            "__proto__",
          )
          const known = /\(known: (.*)\)$/.exec(unknown.message)?.[1]?.split(", ") ?? []
          assert.ok(known.length > 0)
          for (const key of known) {
            for (const [what, value] of wrong) {
              const failure = await failureWith({ [key]: value })
              assertNamed(failure, `.${key}`, `${key}: ${what}`)
              for (const [says, others] of lookalikes)
                if (says.test(failure?.message ?? ""))
                  for (const other of others)
                    assertNamed(await failureWith({ [key]: other }), `.${key}`, `${key}: ${String(other)}`)
            }
          }
        })
      }
    }

    it("what is undefined is what was left out, or a mistake that is named", async () => {
      // The others would do something, and one makes a key before it finds that there is no place for it.
      const harmless = Object.entries(calls).filter(
        ([name, args]) => JSON.stringify(args).includes(nowhere) && name !== "certificate.create",
      )
      for (const [name, args] of harmless)
        for (const [index, [called, options]] of args.entries()) {
          if (Object.prototype.toString.call(options) !== "[object Object]") continue
          if (called === "by" || called === "env") continue
          const values = args.map(([, value]) => value)
          const failureWith = async (more: object): Promise<Failure | undefined> =>
            await failureOf(() => named(name)(...values.with(index, { ...(options as object), ...more })))
          const usual = await failureWith({})
          const known = /\(known: (.*)\)$/.exec((await failureWith({ surprise: 1 }))?.message ?? "")
          for (const key of known?.[1]?.split(", ") ?? assert.fail(name)) {
            if (Object.hasOwn(options as object, key)) continue
            const failure = await failureWith({ [key]: undefined })
            const isMistake = invalid.has(failure?.code ?? "") && failure?.message.includes(`.${key}`)
            assert.ok(
              isMistake === true || failure?.message === usual?.message,
              `${name}, ${called}.${key}: ${String(failure?.message)}, and without it: ${String(usual?.message)}`,
            )
          }
        }
    })

    it("suggests what was meant", async () => {
      assert.match(
        (await failureOf(() => named("build")({ recipient: [] })))?.message ?? "",
        /did you mean "recipients"/,
      )
    })

    describe("secrets and lists of them", () => {
      const folder = newFolder("surface")
      const source = path.join(folder, "tree")
      const output = path.join(folder, "image.sif")
      const build = async (options: object): Promise<Failure | undefined> =>
        await failureOf(() => named("build")({ output, source, ...options }))
      before(() => {
        mkdirSync(source, { recursive: true })
        writeFileSync(path.join(source, "file"), "x")
      })
      afterEach(() => {
        assert.ok(!existsSync(output), "nothing is built")
      })

      for (const [what, options] of [
        ["an empty list", { recipients: [] }],
        ["undefined", { recipients: undefined }],
        ["a passphrase of no bytes", { recipients: [{ passphrase: { bytes: new Uint8Array() } }] }],
        ["an environment that names none", { recipients: [{ environment: {} }] }],
        ["encrypt without recipients", { encrypt: true }],
        ["a format without recipients", { format: "luks" }],
        ["an empty list to unlock", { unlock: [] }],
      ] as const)
        it(`recipients that are ${what} build no plain image`, async () => {
          assert.equal((await build(options))?.code, "ERR_KEY_MISSING")
        })

      const text = "correct horse"
      for (const [what, options] of [
        ["as a passphrase", { recipients: [{ passphrase: { bytes: text } }] }],
        ["as a key", { recipients: [{ key: { bytes: text } }] }],
        ["for a source", { recipients: [{ passphrase: text }] }],
        ["for a list", { recipients: text }],
        ["where bytes are asked for", { recipients: [{ passphrase: { ask: async () => text } }] }],
        ["of before", { credentials: { passphrase: text } }],
        ["misspelt", { recipients: [{ pasphrase: { bytes: text } }] }],
        ["for a key ring", { verify: { keyrings: [text] } }],
        ["in place of a signer's verification", { verify: undefined }],
      ] as const)
        it(`a string ${what} is refused, and not shown`, async () => {
          const failure = await build(options)
          assert.equal(failure?.name, "TypeError", failure?.message)
          assert.ok(!failure.message.includes(text), failure.message)
        })

      const early = (give: (bytes: Uint8Array) => unknown): Promise<Failure | undefined> => {
        const secret = Buffer.from(text)
        // `return build(…)` before a `finally` that wipes.
        const call = failureOf(() => give(secret))
        secret.fill(0)
        return call
      }
      const certificates = (): Record<string, Callable> => api["certificate"] as Record<string, Callable>
      for (const [what, give] of [
        ["a passphrase", (bytes) => build({ recipients: [{ passphrase: { bytes } }] })],
        ["a key", (bytes) => build({ recipients: [{ key: { bytes } }] })],
        [
          "a new password",
          (bytes) => certificates()["create"]?.({ filePrefix: output, password: { bytes }, bits: 2048 }),
        ],
      ] as readonly (readonly [string, (bytes: Uint8Array) => unknown])[])
        it(`the bytes of ${what} that are wiped too early encrypt for no NUL bytes`, async () => {
          const failure = await early(async (bytes) => {
            const refused = await give(bytes)
            if (refused !== undefined) throw refused as Error
          })
          assertNamed(failure, "its bytes were wiped or changed", what)
          assert.equal(failure?.name, "TypeError")
          assert.ok(!existsSync(`${output}.pfx`))
        })

      it("a private key whose password got lost is not written without one", async () => {
        const newPair = (api["keyring"] as Record<string, Callable>)["newPair"]
        const ring = path.join(folder, "ring")
        for (const lost of [{}, { password: undefined }]) {
          const failure = await failureOf(() =>
            newPair?.({ folder: ring, name: "x", email: "x@example.org", type: "ed25519", ...lost }),
          )
          assert.equal(failure?.code, "ERR_KEY_MISSING", failure?.message)
        }
        assert.ok(!existsSync(ring))
      })

      it("no keys at all are no file of keys", async () => {
        const file = path.join(folder, "keys")
        for (const call of [
          () => named("keyring.exportFile")(file, []),
          () => named("keyring.exportKeys")([]),
        ])
          assert.equal((await failureOf(call))?.code, "ERR_INVALID_ARG_VALUE")
        assert.ok(!existsSync(file))
      })

      it("variables count as they were when they were given", async () => {
        const environment: Record<string, string> = {}
        const call = build({ recipients: [{ environment }] })
        environment["SIFCRYPT_ENCRYPTION_PASSPHRASE"] = text
        assert.equal((await call)?.code, "ERR_KEY_MISSING")
      })

      it("a getter is read once, and nothing comes from a prototype", async () => {
        let reads = 0
        const failure = await build({
          get recipients() {
            return ++reads === 1 ? [] : undefined
          },
        })
        assert.equal(failure?.code, "ERR_KEY_MISSING")
        assert.equal(reads, 1)
        const inherited = Object.assign(Object.create({ recipients: [] }), { output, source }) as object
        assert.equal((await failureOf(() => named("build")(inherited)))?.name, "TypeError")
      })

      it("what somebody added to Object.prototype is no option", async () => {
        const existing = path.join(folder, "existing")
        writeFileSync(existing, "kept")
        Object.defineProperty(Object.prototype, "force", { value: true, configurable: true })
        try {
          assert.equal((await build({ output: existing }))?.code, "ERR_BUILD_EXISTS")
        } finally {
          Reflect.deleteProperty(Object.prototype, "force")
        }
      })
    })

    describe("handles that are closed", () => {
      const folder = newFolder("surface-closed")
      const image = path.join(folder, "image.sif")
      before(async () => {
        const source = path.join(folder, "tree")
        mkdirSync(source)
        writeFileSync(path.join(source, "file"), "x")
        await named("build")(Object.freeze({ output: image, source }))
      })
      const argumentsOf: Readonly<Record<string, readonly unknown[]>> = {
        ...{ exec: [["true"]], run: [], shell: [], test: [] },
        ...{ startInstance: ["x"], runInstance: ["x"], execInstance: ["x", ["true"]] },
      }

      it("each method of an image says so, and closing twice is fine", async () => {
        const opened = (await named("open")(image)) as Record<string, Callable>
        await opened["close"]?.()
        await opened["close"]?.()
        for (const method of Object.getOwnPropertyNames(Object.getPrototypeOf(opened))) {
          if (method === "constructor" || method === "close") continue
          const failure = await failureOf(async () => {
            const result = await opened[method]?.(...(argumentsOf[method] ?? ["/tmp"]))
            if (method === "createReadStream") await (result as Readable).toArray()
            if (method === "walk") await (result as AsyncGenerator).next()
          })
          assert.equal(failure?.code, "ERR_SIF_CLOSED", `${method}: ${String(failure?.message)}`)
        }
      })

      it("each method of an image names what is wrong with its options", async () => {
        const opened = (await named("open")(image)) as Record<string, Callable>
        const args: Readonly<Record<string, readonly unknown[]>> = {
          ...{
            list: ["/"],
            walk: ["/"],
            readFile: ["/file"],
            createReadStream: ["/file"],
            extract: [nowhere],
          },
          ...{ mount: [nowhere], exec: [["true"]], run: [[]], shell: [], test: [[]] },
          ...{ startInstance: ["x", []], runInstance: ["x", []], execInstance: ["x", ["true"]] },
        }
        const methods = Object.getOwnPropertyNames(Object.getPrototypeOf(opened))
        assert.deepEqual(
          methods.toSorted(),
          [...Object.keys(args), "stat", "close", "constructor"].toSorted(),
        )
        for (const [method, first] of Object.entries(args))
          for (const [options, name] of [
            [null, "options"],
            ["text", "options"],
            [{ surprise: 1 }, '"surprise"'],
            [{ signal: null }, ".signal"],
            [Object.create({ signal: 1 }), "options"],
          ] as const) {
            const failure = await failureOf(async () => {
              const result = await opened[method]?.(...first, options)
              if (method === "walk") await (result as AsyncGenerator).next()
            })
            assertNamed(failure, name, `${method}: ${JSON.stringify(options)}`)
          }
        await opened["close"]?.()
      })

      it("a table that is closed is not read", async () => {
        const opened = (await (api["sif"] as Record<string, Callable>)["openSif"]?.(image)) as {
          objects: readonly object[]
          fd: number
          data(object: object | undefined, limit: number): Promise<Buffer>
          [Symbol.asyncDispose](): Promise<void>
        }
        await opened[Symbol.asyncDispose]()
        await opened[Symbol.asyncDispose]()
        assert.equal((await failureOf(() => opened.data(opened.objects[0], 1 << 30)))?.code, "ERR_SIF_CLOSED")
        assert.equal((await failureOf(() => opened.fd))?.code, "ERR_SIF_CLOSED")
      })
    })
  })
