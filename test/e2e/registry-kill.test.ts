// SIGKILL of pull, push, exec, copy and encrypt at random moments of what they say to a registry: no name stands for a part, no
// architecture is lost, and the next one finishes what the last one began. SIFCRYPT_KILLS sets how often.
import assert from "node:assert/strict"
import { createHash, randomBytes } from "node:crypto"
import type http from "node:http"
import { chmodSync, copyFileSync, existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { build, listCache, oci, pull, push } from "../../lib/index.ts"
import { finish, sifcryptOk, startSifcrypt, userId } from "../support/cli.ts"
import { relaying, Server } from "../support/http-server.ts"
import { Layout } from "../support/layout.ts"
import { seeded } from "../support/random.ts"
import { htpasswd, Registry, secret } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"
import { times } from "../support/soak.ts"
import { makeRootTree } from "../support/trees.ts"
import { vectorPath } from "../vectors/load.ts"

const random = seeded()
const kills = times("SIFCRYPT_KILLS", 100, 6)
const killedCopies = times("SIFCRYPT_KILLS", 100, 3)

/** Passes on what is asked, and calls `kill` at one moment of it. */
class Relay {
  /** Requests and pieces of bodies so far. */
  events = 0
  /** At which of them to kill. */
  moment = Infinity
  kill: () => void = () => undefined
  readonly #onward

  constructor(host: string) {
    this.#onward = relaying(host)
  }

  #event(): boolean {
    if (++this.events !== this.moment) return false
    this.kill()
    return true
  }

  readonly answer = (request: http.IncomingMessage, response: http.ServerResponse): void => {
    // Killed before it is passed on, or while its body is, or the answer's.
    if (this.#event()) return
    request.on("data", () => this.#event())
    const write = response.write.bind(response) as (...args: unknown[]) => boolean
    response.write = ((...args: unknown[]) => {
      this.#event()
      return write(...args)
    }) as typeof response.write
    this.#onward(request, response)
  }
}

describe("killed while it speaks with a registry", function () {
  const folder = newFolder("registry-kill", userId)
  const [image, arm] = ["image.sif", "arm.sif"].map((name) => path.join(folder, name)) as [string, string]
  const env = { HOME: folder }
  let open: Registry
  let closed: Registry

  before(async () => {
    ;[open, closed] = await Promise.all([Registry.start(), Registry.start({ htpasswd })])
    const tree = makeRootTree()
    writeFileSync(path.join(tree, "data", "noise"), randomBytes(2 << 20))
    await build({ output: image, source: tree })
    copyFileSync(image, arm)
    const bytes = readFileSync(arm)
    // The header's architecture and the partition's.
    for (let at = bytes.indexOf("02\0", 0, "latin1"), n = 0; n < 2; n++) {
      bytes.write("04\0", at, "latin1")
      at = bytes.indexOf("02\0", at, "latin1")
    }
    writeFileSync(arm, bytes)
    for (const file of [image, arm]) chmodSync(file, 0o644)
    for (const { host } of [open, closed])
      await push({
        ...{ image, reference: `oras://${host}/kept:1`, unsigned: "allow" },
        registry: { environment: env, credentials: secret },
      })
  })
  after(() => Promise.all([open, closed].map((one) => one[Symbol.asyncDispose]())))

  /** Runs the command with a registry behind a relay, again and again, and kills it; `check` sees what is left, and goes on. */
  async function killed(
    registry: Registry,
    args: (host: string, n: number) => readonly string[],
    check: (host: string, n: number) => Promise<void>,
    more: Readonly<Record<string, string>> = {},
    count = kills,
  ): Promise<void> {
    const relay = new Relay(registry.host)
    await using server = await Server.start(relay.answer)
    const options = { env: { ...env, ...more } }
    const { host } = server
    let longest = 0
    for (let n = 0; n <= count; n++) {
      relay.events = 0
      // The first one says how many moments there are.
      relay.moment = n === 0 ? Infinity : 1 + random(longest)
      const child = startSifcrypt(args(host, n), options)
      relay.kill = () => child.kill("SIGKILL")
      const { status, stderr } = await finish(child)
      if (n === 0) assert.equal(status, 0, stderr)
      longest ||= relay.events
      relay.moment = Infinity
      await check(host, n)
    }
  }

  for (const [what, registry, login] of [
    ["everybody may have", () => open, {}],
    ["takes a password", () => closed, { DOCKER_USERNAME: "user", DOCKER_PASSWORD: "secret" }],
  ] as const)
    it(`pull of what ${what}, ${kills} times`, async function () {
      this.timeout((kills + 1) * 20_000)
      const place = newFolder("kill-pull", userId)
      const cache = newFolder("kill-cache", userId)
      const env = { ...login, SIFCRYPT_CACHEDIR: cache }
      const output = (n: number): string => path.join(place, `${n}.sif`)
      await killed(
        registry(),
        (host, n) => ["pull", output(n), `oras://${host}/kept:1`],
        async (host, n) => {
          assert.deepEqual(
            readdirSync(place).filter((name) => !/^\d+\.sif$/.test(name)),
            [],
          )
          if (existsSync(output(n))) assert.deepEqual(readFileSync(output(n)), readFileSync(image))
          await sifcryptOk(["pull", "-F", output(n), `oras://${host}/kept:1`], {
            env: { ...env, HOME: folder },
          })
          assert.deepEqual(readFileSync(output(n)), readFileSync(image))
          assert.deepEqual(
            (await listCache(cache)).filter(({ isPartial }) => isPartial),
            [],
          )
          await sifcryptOk(["cache", "clean"], { env })
        },
        env,
      )
    })

  it(`push, ${kills} times`, async function () {
    this.timeout((kills + 1) * 20_000)
    const pulled = async (reference: string, architecture: string): Promise<string | undefined> => {
      const output = path.join(newFolder("kill-pulled"), "image.sif")
      const oci = { environment: env, disableCache: true }
      try {
        return (await pull({ reference, output, architecture, oci })).imageDigest
      } catch (error) {
        if ((error as { code?: string }).code === "ERR_OCI_NOT_FOUND") return undefined
        throw error
      }
    }
    const own = await pulled(`oras://${open.host}/kept:1`, "amd64")
    const tag = (host: string, n: number): string => `oras://${host}/pushed-${n}:1`
    const add = (file: string, reference: string): ReturnType<typeof push> =>
      push({ image: file, reference, index: true, unsigned: "allow", registry: { environment: env } })
    for (let n = 0; n <= kills; n++) await add(image, tag(open.host, n))
    await killed(
      open,
      (host, n) => ["push", "-U", arm, tag(host, n)],
      async (_, n) => {
        const reference = tag(open.host, n)
        assert.equal(await pulled(reference, "amd64"), own, "the other architecture is there")
        const before = await pulled(reference, "arm64")
        const { imageDigest } = await add(arm, reference)
        assert.ok(before === undefined || before === imageDigest)
        assert.deepEqual(
          [await pulled(reference, "amd64"), await pulled(reference, "arm64")],
          [own, imageDigest],
        )
      },
    )
  })

  describe("with an image of two platforms", () => {
    const index = "application/vnd.oci.image.index.v1+json"
    const key = (name: string): string => vectorPath(`ocicrypt/keys/${name}.pem`)
    const nobody = { environment: env }
    let digest: string

    before(async () => {
      const layout = new Layout("kill-layout")
      const bytes = randomBytes(1 << 20)
      const [layer] = layout.manifest.layers
      assert.ok(layer !== undefined)
      layout.manifest.layers = [layout.add(bytes, "application/vnd.oci.image.layer.v1.tar"), layer]
      layout.config.rootfs.diff_ids = [
        `sha256:${createHash("sha256").update(bytes).digest("hex")}`,
        layout.config.rootfs.diff_ids[0] ?? "",
      ]
      const manifests = ["amd64", "arm64"].map((architecture) => {
        layout.config.architecture = architecture
        return { ...layout.write(), platform: { os: "linux", architecture } }
      })
      const all = layout.add(JSON.stringify({ schemaVersion: 2, mediaType: index, manifests }), index)
      layout.writeIndex({ schemaVersion: 2, manifests: [all] })
      const target = `docker://${open.host}/layers:1`
      await oci.copy({ source: `oci:${layout.folder}`, target, all: true, registry: nobody })
      digest = all.digest
      layout.remove()
    })

    /** Every name that it has leads to all of an image, every file is what it is called, and nothing else lies there. */
    async function assertWhole(place: string): Promise<void> {
      if (!existsSync(place)) return
      const known = new Set(["blobs", "oci-layout", "index.json"])
      assert.deepEqual(
        readdirSync(place).filter((name) => !known.has(name)),
        [],
      )
      const blobs = path.join(place, "blobs", "sha256")
      for (const name of existsSync(blobs) ? readdirSync(blobs) : []) {
        const bytes = readFileSync(path.join(blobs, name))
        assert.equal(createHash("sha256").update(bytes).digest("hex"), name)
      }
      if (existsSync(path.join(place, "index.json")))
        for (const image of await oci.list({ place: `oci:${place}` }))
          assert.deepEqual(
            [image.damage, image.digest, image.platforms],
            [undefined, digest, ["linux/amd64", "linux/arm64"]],
          )
    }

    it(`copy to a layout, ${killedCopies} times`, async function () {
      this.timeout((killedCopies + 1) * 20_000)
      const places = newFolder("kill-copy", userId)
      const place = (n: number): string => path.join(places, String(n))
      const copy = (host: string, n: number): string[] => [
        ...["image", "copy", "--all", `docker://${host}/layers:1`, `oci:${place(n)}:it`],
      ]
      const check = async (host: string, n: number): Promise<void> => {
        await assertWhole(place(n))
        await sifcryptOk(copy(host, n), { env })
        await assertWhole(place(n))
        assert.equal((await oci.inspect({ source: `oci:${place(n)}:it` })).digest, digest)
      }
      await killed(open, copy, check, {}, killedCopies)
      assert.equal(readdirSync(places).length, killedCopies + 1)
    })

    it(`encrypt at a registry, ${killedCopies} times`, async function () {
      this.timeout((killedCopies + 1) * 20_000)
      const name = (host: string, n: number): string => `docker://${host}/encrypted-${n}:1`
      const encrypt = (host: string, n: number): string[] => [
        ...["image", "encrypt", "-r", `jwe:${key("rsa1.pub")}`, `docker://${host}/layers:1`, name(host, n)],
      ]
      const back = newFolder("kill-decrypt")
      const decrypted = async (n: number): Promise<string | undefined> => {
        const target = `oci:${back}:${n}`
        const unlock = [{ key: { file: key("rsa1") } }]
        try {
          return (await oci.decrypt({ source: name(open.host, n), target, unlock, oci: nobody })).digest
        } catch (error) {
          if ((error as { code?: string }).code === "ERR_OCI_NOT_FOUND") return undefined
          throw error
        }
      }
      const check = async (host: string, n: number): Promise<void> => {
        assert.ok([undefined, digest].includes(await decrypted(n)))
        await sifcryptOk(encrypt(host, n), { env })
        assert.equal(await decrypted(n), digest)
      }
      await killed(open, encrypt, check, {}, killedCopies)
    })
  })

  it(`exec, ${kills} times`, async function () {
    this.timeout((kills + 1) * 20_000)
    const cache = newFolder("kill-cache", userId)
    const env = { SIFCRYPT_CACHEDIR: cache }
    const exec = (host: string): string[] => ["exec", `oras://${host}/kept:1`, "cat", "/data/hello"]
    await killed(
      open,
      exec,
      async (host) => {
        assert.equal((await sifcryptOk(exec(host), { env: { ...env, HOME: folder } })).text, "hello\n")
        await sifcryptOk(["cache", "clean"], { env })
      },
      env,
    )
  })
})
