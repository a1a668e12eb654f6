// Work for few bytes: each parser gets four times as much of one thing, and takes about four times as long, not sixteen.
import assert from "node:assert/strict"
import { closeSync, mkdirSync, openSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { PacketList, readKey } from "openpgp"
import { parseCsv } from "../../lib/cli/csv.ts"
import { parseDefinition } from "../../lib/definition/definition-file.ts"
import { matcher } from "../../lib/definition/glob-match.ts"
import { expandBraces, expandGlob } from "../../lib/definition/glob.ts"
import { FolderTree } from "../../lib/device/folder-tree.ts"
import { parseGocryptfsConfig } from "../../lib/device/gocryptfs.ts"
import { decodeLuksHeader, encodeLuksCopy } from "../../lib/device/luks-header.ts"
import { parseStrictJson } from "../../lib/device/strict-json.ts"
import { BuildError } from "../../lib/errors.ts"
import { proxyFor } from "../../lib/http/proxy.ts"
import { parsePublicKey } from "../../lib/key/key-file.ts"
import { pemBlocks } from "../../lib/key/pem.ts"
import { parseLayoutIndex } from "../../lib/oci/layout.ts"
import { parseConfig, parseDocument } from "../../lib/oci/manifest.ts"
import { parseReference } from "../../lib/oci/reference.ts"
import { parseChallenges } from "../../lib/registry/authorization.ts"
import { parseLinkerCache } from "../../lib/runtime/gpu.ts"
import { groupWith, passwdWith } from "../../lib/runtime/passwd.ts"
import { readResources } from "../../lib/runtime/resources.ts"
import { parseRanges } from "../../lib/runtime/subordinate-ids.ts"
import { DataType, serializeDescriptor, serializeHeader } from "../../lib/sif/format.ts"
import { headerJson, listJson, listText } from "../../lib/sif/listing.ts"
import { openSif } from "../../lib/sif/open.ts"
import { keysIn } from "../../lib/signing/key-packets.ts"
import { Keyring, parseClearSigned } from "../../lib/signing/openpgp.ts"
import { verifySif, type VerifyOptions } from "../../lib/signing/verify.ts"
import { ociEnvironment } from "../../lib/source/oci-source.ts"
import { newFolder } from "../support/scratch.ts"
import { vector } from "../vectors/load.ts"

/** Milliseconds of this process, the better of two: what else the machine does counts for little. */
async function processorTime(work: () => unknown): Promise<number> {
  let best = Infinity
  for (let round = 0; round < 2; round++) {
    const before = process.cpuUsage()
    try {
      await work()
    } catch {
      // A refusal takes no longer than an answer may.
    }
    const { user, system } = process.cpuUsage(before)
    best = Math.min(best, (user + system) / 1000)
  }
  return best
}

/** Quadratic work shows as sixteen times as much; what takes no time at all is not compared. */
async function assertLinear<T>(
  make: (count: number) => T,
  work: (made: T) => unknown,
  count: number,
): Promise<void> {
  const [few, many] = [make(count), make(4 * count)]
  let [fewMs, manyMs] = [Infinity, Infinity]
  // What is quadratic is so in each of them; a collection of garbage is not.
  for (let attempt = 0; attempt < 5 && !(manyMs < 8 * fewMs + 50); attempt++) {
    fewMs = await processorTime(() => work(few))
    manyMs = Math.min(manyMs, await processorTime(() => work(many)))
  }
  assert.ok(
    manyMs < 8 * fewMs + 50,
    `${count}: ${fewMs.toFixed(1)} ms, four times as much: ${manyMs.toFixed(1)} ms`,
  )
}

/** An image of empty objects. */
function imageOf(objects: readonly { group: number; type?: number; toGroup?: number }[]): Buffer {
  const dataOffset = 4096 + objects.length * 585
  const header = serializeHeader({
    launchScript: "#!/usr/bin/env run-singularity\n",
    version: "01",
    arch: "02",
    id: "11111111-1111-1111-1111-111111111111",
    created: 0,
    modified: 0,
    free: 0,
    total: objects.length,
    tableOffset: 4096,
    tableSize: objects.length * 585,
    dataOffset,
    dataSize: 0,
  })
  const records = objects.map(({ group, type = DataType.generic, toGroup }, index) =>
    serializeDescriptor({
      type,
      id: index + 1,
      group,
      link: toGroup === undefined ? { to: "none" } : { to: "group", group: toGroup },
      offset: dataOffset,
      size: 0,
      paddedSize: 0,
      time: 0,
      name: "x",
      extra: Buffer.alloc(0),
    }),
  )
  return Buffer.concat([header, Buffer.alloc(4096 - header.length), ...records, Buffer.alloc(16)])
}

/** As large as a header may be. */
const LUKS_HEADER = 4 << 20

type LuksJson = Record<
  "keyslots" | "digests" | "segments" | "tokens" | "config",
  Record<string, object | string>
>
const peerLuks = ((): LuksJson => {
  const area = vector("peer/luks-rsa2048.sif").subarray(36864 + 4096, 36864 + 16384)
  return JSON.parse(area.toString("utf8", 0, area.indexOf(0))) as LuksJson
})()

const identity = { uid: 1000, gid: 1000, name: "me", group: "us", home: "/home/me", shell: "/bin/sh" }

/** The packets of a peer's OpenPGP key: the key, its name, the signature on that, a subkey. */
async function packetsOf(): Promise<Buffer[]> {
  const key = await readKey({ armoredKey: vector("sif/pgp-private.asc").toString("latin1") })
  return key
    .toPublic()
    .toPacketList()
    .map((one) => {
      const alone = new PacketList()
      alone.push(one)
      return Buffer.from(alone.write())
    })
}

const numbers = (count: number): number[] => Array.from({ length: count }, (_, index) => index + 1)

describe("work for few bytes", () => {
  const images: Record<string, (count: number) => Buffer> = {
    groups: (count) => imageOf(numbers(count).map((group) => ({ group }))),
    "objects in one group": (count) => imageOf(numbers(count).map(() => ({ group: 1 }))),
    "groups with a signature each": (count) =>
      imageOf(
        numbers(count).flatMap((group) => [
          { group },
          { group: 0, type: DataType.signature, toGroup: group },
        ]),
      ),
    "objects in no group": (count) => imageOf(numbers(count).map(() => ({ group: 0 }))),
  }
  const options: Record<string, (count: number) => VerifyOptions> = {
    verify: () => ({}),
    "verify --sif-id, for each,": (count) => ({ objects: numbers(count) }),
    "verify --legacy-insecure --all": () => ({ legacy: "all" }),
  }
  for (const [how, optionsFor] of Object.entries(options))
    for (const [what, make] of Object.entries(images))
      it(`${how} is linear in ${what}`, async () => {
        await assertLinear(
          (count) => ({ bytes: make(count), options: optionsFor(count) }),
          async ({ bytes, options: asked }) => {
            await using image = await openSif(bytes)
            await verifySif(image, asked)
          },
          1000,
        )
      })

  const definition = (text: string): unknown => parseDefinition(text, { path: "x.def" })
  const lines = (line: string) => (count: number) => line.repeat(count)
  const texts: Record<string, readonly [(count: number) => string, (text: string) => unknown, number]> = {
    "comments before a definition's first header": [
      lines("#\n"),
      (text) => definition(`${text}Bootstrap: x`),
      5000,
    ],
    "lines that a header's value is continued on": [
      lines("x\\\n"),
      (text) => definition(`Bootstrap: ${text}`),
      30_000,
    ],
    "percent signs, with a line separator behind them": [
      lines("%"),
      (text) => definition(`${text} x\u2028y`),
      300,
    ],
    "transfers of %files": [
      lines("a b\n"),
      (text) => definition(`Bootstrap: localimage\nFrom: x\n%files\n${text}`),
      5000,
    ],
    "quotes of %files": [lines(`"a' `), (text) => definition(`Bootstrap: x\n%files\n${text}`), 3000],
    "stages of a definition": [lines("Bootstrap: x\nFrom: y\n"), definition, 30],
    "templates of a definition": [
      lines("{{ a }} "),
      (text) => definition(`Bootstrap: x\n%arguments\na=b\n%post\n${text}`),
      3000,
    ],
    "labels of a definition": [lines("a b\n"), (text) => definition(`Bootstrap: x\n%labels\n${text}`), 5000],
    "fields of a mount": [lines(`"a""b",`), (text) => parseCsv(`${text}c`), 5000],
    "values of JSON": [lines("[],"), (text) => parseStrictJson(`[${text}[]]`), 1000],
    "names of JSON": [
      (count) =>
        numbers(count)
          .map((index) => `"${index}":0`)
          .join(),
      (text) => parseStrictJson(`{${text}}`),
      1000,
    ],
    "letters of a JSON text without an end": [lines("a"), (text) => parseStrictJson(`"${text}`), 5000],
    "beginnings of PEM blocks": [
      lines("-----BEGIN X-----\n"),
      (text) => [...pemBlocks(Buffer.from(text))],
      5000,
    ],
    "challenges of a registry": [lines(`a b="c\\"d", `), parseChallenges, 5000],
    "letters of a challenge": [lines("a"), parseChallenges, 5000],
    "blanks of a challenge": [(count) => `a${" ".repeat(count)}`, parseChallenges, 5000],
    "parts of an image's name": [lines("a/"), (text) => parseReference(`docker://${text}a`), 5000],
    "dashes of an image's name": [lines("-"), (text) => parseReference(`docker://a${text}`), 5000],
    "at signs of a layout's name": [lines("@1"), (text) => parseReference(`oci:x${text}x`), 5000],
    "lines of a clear-signed message": [
      lines("a \t\n"),
      (text) =>
        parseClearSigned(
          Buffer.from(
            `-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n${text}-----BEGIN PGP SIGNATURE-----\n\nx\n-----END PGP SIGNATURE-----\n`,
          ),
        ),
      5000,
    ],
    "beginnings of armored keys": [
      lines("-----BEGIN PGP PUBLIC KEY BLOCK-----\n"),
      (text) => keysIn(Buffer.from(text), "ring"),
      5000,
    ],
    "layers of a manifest": [
      (count) =>
        JSON.stringify({
          schemaVersion: 2,
          config: descriptor,
          layers: numbers(count).map(() => descriptor),
        }),
      (text) => parseDocument(Buffer.from(text), undefined, "manifest"),
      2000,
    ],
    "labels of a configuration": [
      (count) =>
        JSON.stringify({
          config: { Labels: Object.fromEntries(numbers(count).map((index) => [`l${index}`, "v"])) },
          rootfs: { diff_ids: [] },
        }),
      (text) => parseConfig(Buffer.from(text), "configuration"),
      3000,
    ],
  }
  const descriptor = { mediaType: "x", digest: `sha256:${"0".repeat(64)}`, size: 1 }
  for (const [what, [make, parse, count]] of Object.entries(texts))
    it(`is linear in ${what}`, async () => {
      await assertLinear(make, parse, count)
    })

  const members = (count: number, value: unknown): Record<string, unknown> =>
    Object.fromEntries(numbers(count).map((index) => [String(index), value]))
  const names = (count: number): string[] => numbers(count).map(String)
  const luks = (change: (document: LuksJson) => void) => (): Buffer => {
    const document = structuredClone(peerLuks)
    change(document)
    const binary = { headerSize: LUKS_HEADER, sequence: 1n, uuid: "11111111-1111-1111-1111-111111111111" }
    document.config["json_size"] = String(LUKS_HEADER - 4096)
    const copy = encodeLuksCopy("primary", binary, document as never)
    assert.ok(copy !== undefined, "it does not fit")
    return Buffer.concat([copy, Buffer.alloc(LUKS_HEADER)])
  }
  const decodeLuks = (bytes: Buffer): unknown => decodeLuksHeader(bytes, 1 << 30)
  const config = (change: object): Buffer =>
    Buffer.from(JSON.stringify({ rootfs: { diff_ids: [] }, config: {}, ...change }))
  const folder = newFolder("work")
  const cgroups = (line: string) => (count: number) => {
    const file = path.join(folder, `${line.length}-${count}.toml`)
    writeFileSync(file, line.repeat(count))
    return file
  }
  const ring = async (bytes: Buffer): Promise<void> => {
    await new Keyring().add(bytes, "ring")
  }
  let [key, name, signature, subkey]: Buffer[] = []
  before(async () => {
    ;[key, name, signature, subkey] = await packetsOf()
  })
  /** The key as it is, and many of these behind what is in front of them there. */
  const keyWith = (what: () => readonly (Buffer | undefined)[]) => (count: number) =>
    Buffer.concat(
      [key, name, signature, ...numbers(count).flatMap(what)].map((part) => part ?? Buffer.alloc(0)),
    )

  const others: Record<string, readonly [(count: number) => unknown, (made: never) => unknown, number]> = {
    "keyslots of a LUKS2 header": [
      (count) =>
        luks(({ keyslots, digests }) => {
          Object.assign(keyslots, members(count, keyslots["0"]))
          Object.assign(digests["0"] ?? {}, { keyslots: ["0", ...names(count)] })
        })(),
      decodeLuks,
      300,
    ],
    "keyslots that a LUKS2 digest names": [
      (count) =>
        luks(({ digests }) => {
          Object.assign(digests["0"] ?? {}, { keyslots: ["0", ...names(count)] })
        })(),
      decodeLuks,
      2000,
    ],
    "keyslots that no LUKS2 digest names": [
      (count) =>
        luks(({ keyslots }) => {
          Object.assign(keyslots, members(count, keyslots["0"]), { 0: keyslots["0"] })
        })(),
      decodeLuks,
      300,
    ],
    "digests of a LUKS2 header": [
      (count) => luks(({ digests }) => Object.assign(digests, members(count, digests["0"])))(),
      decodeLuks,
      300,
    ],
    "segments of a LUKS2 header": [
      (count) => luks(({ segments }) => Object.assign(segments, members(count, segments["0"])))(),
      decodeLuks,
      300,
    ],
    "tokens of a LUKS2 header": [
      (count) => luks(({ tokens }) => Object.assign(tokens, members(count, { type: "x", keyslots: [] })))(),
      decodeLuks,
      2000,
    ],
    "objects of a listing": [
      (count) => imageOf(numbers(count).map((group) => ({ group }))),
      async (bytes: Buffer) => {
        await using image = await openSif(bytes)
        listText(image)
        listJson(image)
        headerJson(image)
      },
      2000,
    ],
    "members of gocryptfs.conf": [
      (count) => Buffer.from(JSON.stringify({ ...members(count, 0), FeatureFlags: names(count) })),
      (bytes: Buffer) => parseGocryptfsConfig(bytes, undefined),
      1000,
    ],
    "manifests of an index": [
      (count) =>
        Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: names(count).map(() => descriptor) })),
      (bytes: Buffer) => parseLayoutIndex(bytes, "index"),
      2000,
    ],
    "annotations of a descriptor": [
      (count) =>
        Buffer.from(
          JSON.stringify({
            schemaVersion: 2,
            manifests: [{ ...descriptor, annotations: members(count, "x") }],
          }),
        ),
      (bytes: Buffer) => parseDocument(bytes, undefined, "index"),
      3000,
    ],
    "variables of a configuration": [
      (count) => config({ config: { Env: names(count).map((name) => `A${name}=b`) } }),
      (bytes: Buffer) => ociEnvironment(parseConfig(bytes, "configuration").env),
      3000,
    ],
    "layers of a configuration": [
      (count) => config({ rootfs: { diff_ids: names(count).map(() => descriptor.digest) } }),
      (bytes: Buffer) => parseConfig(bytes, "configuration"),
      3000,
    ],
    "lines of a cgroups file": [
      (count) => {
        const file = path.join(folder, `lines-${count}.toml`)
        writeFileSync(
          file,
          `[unified]\n${names(count)
            .map((name) => `k${name} = 1\n`)
            .join("")}`,
        )
        return file
      },
      readResources,
      3000,
    ],
    "tables of a cgroups file": [cgroups("[[devices]]\nallow = true\n"), readResources, 2000],
    "depth of a cgroups file": [cgroups("["), readResources, 3000],
    "dots of a cgroups file": [cgroups("a."), readResources, 3000],
    "quotes of a cgroups file": [cgroups('a = """"""\n#'), readResources, 3000],
    "blanks of a cgroups file": [cgroups(" \t"), readResources, 5000],
    "copies of a key in a ring": [keyWith(() => [key, name, signature]), ring, 100],
    "names of a key": [keyWith(() => [name]), ring, 500],
    "signatures of a key": [keyWith(() => [signature]), ring, 200],
    "subkeys of a key": [keyWith(() => [subkey]), ring, 200],
    "packets of a ring": [
      keyWith(() => [Buffer.of(0xcc, 1, 0)]),
      (bytes: Buffer) => keysIn(bytes, "ring"),
      5000,
    ],
    "sections of a definition": [(count) => `Bootstrap: x\n${"%post\nx\n".repeat(count)}`, definition, 1000],
    "apps of a definition": [
      (count) =>
        `Bootstrap: x\n${names(count)
          .map((name) => `%appinstall a${name}\nx\n%appenv a${name}\nx\n`)
          .join("")}`,
      definition,
      1000,
    ],
    "stages of a definition that name others": [
      (count) =>
        names(count)
          .map((name) => `Bootstrap: x\nStage: s${name}\n%files from s1\na b\n`)
          .join("\n"),
      definition,
      300,
    ],
    "arguments of a definition": [
      (count) =>
        `Bootstrap: x\n%arguments\n${names(count)
          .map((name) => `A${name}=x\n`)
          .join("")}%post\n${names(count)
          .map((name) => `{{ A${name} }}\n`)
          .join("")}`,
      definition,
      1000,
    ],
    "arguments that hold arguments": [
      (count) =>
        `Bootstrap: x\n%arguments\n${names(count)
          .map((name) => `A${name}={{ A${Number(name) + 1} }}{{ A${Number(name) + 1} }}\n`)
          .join("")}%post\n{{ A1 }}`,
      definition,
      300,
    ],
    "headers of a definition": [(count) => `Bootstrap: x\n${"From: x\n".repeat(count)}`, definition, 3000],
    "braces of a pattern": [(count) => "{".repeat(count), expandBraces, 1000],
    "choices of a pattern": [(count) => `{${"a,".repeat(count)}b}`, expandBraces, 1000],
    "braces behind each other": [(count) => "{a,b}".repeat(count), expandBraces, 100],
    "stars of a pattern": [
      (count) => "*a".repeat(count),
      (pattern: string) => matcher(pattern)("a".repeat(255)),
      300,
    ],
    "groups of a pattern": [
      (count) => "+(a|*(b|a))".repeat(count),
      (pattern: string) => matcher(pattern)("a".repeat(100)),
      8,
    ],
    "brackets of a pattern": [(count) => "[".repeat(count), (pattern: string) => matcher(pattern)("a"), 3000],
    "parentheses of a pattern": [
      (count) => "+(".repeat(count),
      (pattern: string) => matcher(pattern)("a"),
      1000,
    ],
    "lines of passwd": [
      (count) => "a:b:c:d\n".repeat(count),
      (text: string) => [passwdWith(text, identity), groupWith(text, identity)],
      5000,
    ],
    "lines of an authorized_keys file": [
      (count) => Buffer.from("ssh-rsa AAAA\n".repeat(count)),
      async (bytes: Buffer) => await parsePublicKey(bytes, "keys"),
      3000,
    ],
    "keys of a JWK set": [
      (count) =>
        Buffer.from(JSON.stringify({ keys: names(count).map(() => ({ kty: "RSA", n: "AA", e: "AQAB" })) })),
      async (bytes: Buffer) => await parsePublicKey(bytes, "keys"),
      3000,
    ],
    "lines of ldconfig": [(count) => "\ta.so (b) => /c\n".repeat(count), parseLinkerCache, 5000],
    "subordinate ids": [
      (count) => "me:1:1\n".repeat(count),
      (text: string) => parseRanges(text, "me", 1),
      5000,
    ],
    "links in the ways of a folder's links": [
      (count) => {
        const folder = newFolder("links")
        for (let link = 0; link < count; link++)
          symlinkSync(`${link + 1}/${"../".repeat(1300)}`, path.join(folder, String(link)))
        mkdirSync(path.join(folder, String(count)))
        return folder
      },
      async (folder: string) => {
        const fd = openSync(folder, "r")
        try {
          await new FolderTree(fd, folder).stat("/0", true)
        } finally {
          closeSync(fd)
        }
      },
      9,
    ],
    "hosts that take no proxy": [
      (count) => "a.example.org,".repeat(count),
      (list: string) => proxyFor(new URL("http://example.net"), { no_proxy: list, http_proxy: "x" }),
      3000,
    ],
  }
  for (const [what, [make, parse, count]] of Object.entries(others))
    it(`is linear in ${what}`, async () => {
      await assertLinear(make, parse as (made: unknown) => unknown, count)
    })

  it("takes as many transfers as a definition has lines for", () => {
    const text = `Bootstrap: localimage\nFrom: x\n%files\n${"a b\n".repeat(150_000)}`
    const { stages } = parseDefinition(text, { path: "x.def" })
    assert.equal(stages[0]?.files[0]?.transfers.length, 150_000)
  })

  it("ends where a pattern leads to the same folders in too many ways", async () => {
    const folder = newFolder("globs")
    mkdirSync(path.join(folder, ...Array.from({ length: 20 }, () => "a")), { recursive: true })
    const pattern = `${"**/a/".repeat(8)}b`
    await assert.rejects(
      expandGlob(pattern, { resolve: async (name) => await Promise.resolve(path.join(folder, name)) }, 5000),
      (error: unknown) => error instanceof BuildError && error.code === "ERR_BUILD_SOURCE",
    )
  })
})
