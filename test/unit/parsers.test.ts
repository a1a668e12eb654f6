// Every parser of what strangers write, with real inputs that were changed at random: what comes out is a value or one of the errors
// that the parser has, never one that the command would call a defect, and soon. SIFCRYPT_SEED repeats a run.
import assert from "node:assert/strict"
import { generateKeyPairSync, type KeyObject } from "node:crypto"
import { writeFileSync } from "node:fs"
import path from "node:path"
import { InvalidArgumentError } from "commander"
import { parseCsv } from "../../lib/cli/csv.ts"
import { parseMountSpec } from "../../lib/cli/mount-spec.ts"
import { duration, parseSize, SECONDS, size, MEBIBYTES, words } from "../../lib/cli/values.ts"
import { parseOverlay } from "../../lib/container/overlays.ts"
import {
  buildArgumentLines,
  labelsOf,
  looksLikeDefinition,
  parseBuildArguments,
  parseDefinition,
} from "../../lib/definition/definition-file.ts"
import { expandBraces } from "../../lib/definition/glob.ts"
import { matcher } from "../../lib/definition/glob-match.ts"
import { parseStrictJson } from "../../lib/device/strict-json.ts"
import { ContainerError } from "../../lib/errors.ts"
import { proxyFor } from "../../lib/http/proxy.ts"
import { parseJson } from "../../lib/json.ts"
import { decodeCryptoMessage, encodeCryptoMessage } from "../../lib/key/crypto-message.ts"
import { parseFingerprint } from "../../lib/key/fingerprint.ts"
import { parsePrivateKey, parsePublicKey, parseSigningKey } from "../../lib/key/key-file.ts"
import { parseConfig, parseDocument } from "../../lib/oci/manifest.ts"
import { checkLayoutVersion, parseLayoutIndex } from "../../lib/oci/layout.ts"
import { parseReference, parseRegistryName } from "../../lib/oci/reference.ts"
import { parseChallenges } from "../../lib/registry/authorization.ts"
import { findCredential } from "../../lib/registry/credentials.ts"
import { parseBinds, parseImageId } from "../../lib/runtime/binds.ts"
import { parseCapabilities } from "../../lib/runtime/capabilities.ts"
import { parseSecurity } from "../../lib/runtime/confinement.ts"
import { ociRunScript } from "../../lib/runtime/entry.ts"
import { parseLinkerCache, parseList } from "../../lib/runtime/gpu.ts"
import { parseMountInfo } from "../../lib/runtime/mountinfo.ts"
import { gecosOf, groupWith, passwdWith } from "../../lib/runtime/passwd.ts"
import { readResources } from "../../lib/runtime/resources.ts"
import { readProfile } from "../../lib/runtime/seccomp.ts"
import { parseRanges } from "../../lib/runtime/subordinate-ids.ts"
import {
  dump,
  headerJson,
  headerText,
  infoJson,
  infoText,
  listJson,
  listText,
} from "../../lib/sif/listing.ts"
import { openSif } from "../../lib/sif/open.ts"
import { parseVerityStatement } from "../../lib/sif/verity.ts"
import { parseEnvelope } from "../../lib/signing/dsse.ts"
import { inspectKeys } from "../../lib/signing/key-ring.ts"
import { keysIn } from "../../lib/signing/key-packets.ts"
import { parseMetadata } from "../../lib/signing/metadata.ts"
import { Keyring, parseClearSigned, SecretKeyring } from "../../lib/signing/openpgp.ts"
import { mutate } from "../support/mutate.ts"
import { seeded } from "../support/random.ts"
import { newFolder } from "../support/scratch.ts"
import { times } from "../support/soak.ts"
import { images, vector } from "../vectors/load.ts"

interface Parser {
  /** Real ones. */
  readonly inputs: readonly (string | Buffer)[]
  readonly parse: (bytes: Buffer) => unknown
  /** What it may throw besides our errors: its callers turn these into one. */
  readonly throws?: readonly (abstract new (...args: never[]) => Error)[]
  /** How many take as long as a thousand of the others. */
  readonly share?: number
}

const text = (parse: (text: string) => unknown) => (bytes: Buffer) => parse(bytes.toString("utf8"))

const definition = `Bootstrap: docker
From: debian:{{ RELEASE }}
Stage: one
# a comment
%arguments
    RELEASE=12
%setup
    touch \${APPTAINER_ROOTFS}/x
%files
    "a b" /c\\ d
    [a-c]* @(x|y)/{1,2} /opt
%environment
    export A="b c"
%post -c /bin/bash
    echo {{ RELEASE }} >/x
%runscript
    exec "$@"
%startscript
    sleep 1
%test
    true
%labels
    Author x
    Version "1 2"
%help
    text
%appinstall foo
    make
%appenv foo
    X=1
%applabels foo
    A b
%appfiles foo
    x y
%apprun foo
    echo

Bootstrap: localimage
From: y.sif
Fingerprints: 0123456789ABCDEF0123456789ABCDEF01234567
%files from one
    /etc/* /x
%post
    true
`
const digest = `sha256:${"0123456789abcdef".repeat(4)}`
const descriptor = {
  mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
  digest,
  size: 12,
  annotations: { "org.opencontainers.image.ref.name": "latest" },
  platform: { os: "linux", architecture: "arm", variant: "v7" },
  data: "AAAA",
}
const index = JSON.stringify({
  schemaVersion: 2,
  mediaType: "application/vnd.oci.image.index.v1+json",
  manifests: [descriptor, descriptor],
})
const manifest = JSON.stringify({ schemaVersion: 2, config: descriptor, layers: [descriptor, descriptor] })
const configuration = JSON.stringify({
  architecture: "amd64",
  os: "linux",
  config: { Env: ["A=b", "PATH=/bin"], Entrypoint: ["/x"], Cmd: ["y"], Labels: { a: "b" }, WorkingDir: "/" },
  rootfs: { type: "layers", diff_ids: [digest, digest] },
})
const statement = JSON.stringify({
  version: 1,
  header: { digest },
  objects: [{ relativeId: 0, descriptorDigest: digest, objectDigest: digest }],
})

const { privateKey, publicKey } = generateKeyPairSync("rsa", { modulusLength: 2048 })
const ec = generateKeyPairSync("ec", { namedCurve: "P-256" })
const password = Buffer.from("x")
const locked = { cipher: "aes-256-cbc", passphrase: "x" } as const
/** As OpenSSH writes it (RFC 4253, 6.6). */
function sshBlob(key: KeyObject): string {
  const { n = "", e = "" } = key.export({ format: "jwk" })
  const field = (bytes: Buffer): Buffer => {
    const length = Buffer.alloc(4)
    length.writeUInt32BE(bytes.length)
    return Buffer.concat([length, bytes])
  }
  const number = (value: string): Buffer =>
    field(Buffer.concat([Buffer.of(0), Buffer.from(value, "base64url")]))
  return Buffer.concat([
    field(Buffer.from("ssh-rsa")),
    field(Buffer.from(e, "base64url")),
    number(n),
  ]).toString("base64")
}

const rsaFiles = [
  privateKey.export({ type: "pkcs1", format: "pem" }),
  privateKey.export({ type: "pkcs8", format: "der" }),
  privateKey.export({ type: "pkcs8", format: "pem", ...locked }),
  privateKey.export({ type: "pkcs8", format: "der", ...locked }),
  privateKey.export({ type: "pkcs1", format: "pem", ...locked }),
  publicKey.export({ type: "spki", format: "pem" }),
  JSON.stringify({ keys: [privateKey.export({ format: "jwk" })] }),
  `ssh-rsa ${sshBlob(publicKey)} someone@example.org\n`,
]
const signingFiles = [...rsaFiles.slice(0, 5), ec.privateKey.export({ type: "sec1", format: "der" })]

const identity = { uid: 1000, gid: 1000, name: "me", group: "us", home: "/home/me", shell: "/bin/sh" }
const policy = `[memory]\nlimit = 1024\n[cpu]\nshares = 2\n[[devices]]\nallow = true\n[unified]\n"a.b" = "c"\n`
const profile = JSON.stringify({
  defaultAction: "SCMP_ACT_ERRNO",
  archMap: [{ architecture: "SCMP_ARCH_X86_64", subArchitectures: ["SCMP_ARCH_X86"] }],
  syscalls: [
    { names: ["read"], action: "SCMP_ACT_ALLOW", args: null, includes: { caps: ["CAP_SYS_ADMIN"] } },
    { name: "write", action: "SCMP_ACT_ALLOW", excludes: { minKernel: "4.8", arches: ["amd64"] } },
  ],
})
const auths = JSON.stringify({
  auths: {
    "example.org": { auth: "bWU6c2VzYW1l" },
    "example.org/a": { identitytoken: "x" },
    "example.org/b": { registrytoken: "x" },
  },
  credHelpers: { "example.net": "none" },
})

const folder = newFolder("parsers")
const file = path.join(folder, "file")
/** What reads a file by its name. */
const written = (read: (file: string) => unknown) => (bytes: Buffer) => {
  writeFileSync(file, bytes)
  return read(file)
}

const parsers: Readonly<Record<string, Parser>> = {
  "a definition": {
    inputs: [definition],
    parse: text((all) => {
      looksLikeDefinition(Buffer.from(all))
      parseDefinition(all, { path: "x.def", buildArguments: new Map([["RELEASE", "13"]]) })
      return labelsOf(all.split("\n"))
    }),
  },
  "build arguments": {
    inputs: ["A=b", "A = 'b c'\nB=d"],
    parse: text((all) => [parseBuildArguments(all.split("\n")), buildArgumentLines(all)]),
  },
  "a pattern": {
    inputs: ["/a/{b,c{d,e}}/[!x-z]*@(f|g|+(h))?.txt", "**/x", "[[:alpha:]]*", "a\\*b"],
    parse: text((pattern) => {
      for (const one of expandBraces(pattern)) matcher(one)("abcdefgh.txt")
    }),
  },
  CSV: { inputs: ['a,"b ""c""",d'], parse: text(parseCsv), throws: [RangeError] },
  words: { inputs: ['a,"b ""c""",d'], parse: text(words), throws: [RangeError] },
  "a mount": { inputs: ['type=bind,src=/a,dst=/b,ro,"image-src=/x",id=3'], parse: text(parseMountSpec) },
  "a size": {
    inputs: ["1.5g", "12MiB"],
    parse: text(size(MEBIBYTES, 1, 2 ** 30)),
    throws: [InvalidArgumentError],
  },
  bytes: { inputs: ["1.5g"], parse: text(parseSize) },
  "a duration": {
    inputs: ["1.5h"],
    parse: text(duration(SECONDS, 1, 2 ** 30)),
    throws: [InvalidArgumentError],
  },
  "an overlay": { inputs: ["/a/b:ro", "x.img"], parse: text(parseOverlay) },
  binds: {
    inputs: ["/etc:/b:ro", "/etc,/usr:/d:rw", "/etc/passwd:/x:image-src=/"],
    parse: text((all) => parseBinds(all.split(","), "/")),
  },
  "a partition's number": { inputs: ["12"], parse: text(parseImageId) },
  capabilities: {
    inputs: ["CAP_SYS_ADMIN,net_raw,all"],
    parse: text((all) => parseCapabilities(all.split(","))),
  },
  "security options": {
    inputs: ["uid:1000,gid:1000:1001", "seccomp:/x", "apparmor:y"],
    parse: text((all) => parseSecurity(all.split(","))),
  },
  "an image's name": {
    inputs: [`docker://example.org:5000/a/b@${digest}`, "oci:/a/b:c@1", "docker-archive:x.tar:y"],
    parse: text(parseReference),
  },
  "a registry's name": {
    inputs: ["example.org:5000/a/b", "example.org/a"],
    parse: text((all) => parseRegistryName(all)),
  },
  "an index": {
    inputs: [index],
    parse: (bytes) => [parseDocument(bytes, undefined, "x"), parseLayoutIndex(bytes, "x")],
  },
  "a manifest": { inputs: [manifest], parse: (bytes) => parseDocument(bytes, undefined, "x") },
  "a configuration": { inputs: [configuration], parse: (bytes) => parseConfig(bytes, "x") },
  "a layout's version": {
    inputs: ['{"imageLayoutVersion":"1.0.0"}'],
    parse: (bytes) => {
      checkLayoutVersion(bytes, "x")
    },
  },
  challenges: {
    inputs: ['Bearer realm="https://a/b",service="c", Basic realm=x'],
    parse: text(parseChallenges),
  },
  "a registry's credentials": {
    inputs: [auths],
    parse: written(async (authFile) => {
      for (const repository of ["a", "b", "c"])
        await findCredential({ authFile, environment: {} }, "example.org", repository)
    }),
    share: 0.3,
  },
  "a proxy": {
    inputs: ["http://user:p%20w@example.org:3128/", "10.0.0.1:80"],
    parse: text((all) => proxyFor(new URL("https://a.example.com/"), { https_proxy: all, no_proxy: all })),
    throws: [Error],
  },
  "an OCI image's run script": {
    inputs: ["OCI_ENTRYPOINT='\"a\"'\nOCI_CMD=''\nSINGULARITY_OCI_RUN=\n"],
    parse: text(ociRunScript),
  },
  passwd: {
    inputs: ["root:x:0:0:root:/root:/bin/sh\nme:x:1000:1000::/:\n"],
    parse: text((all) => [passwdWith(all, identity), groupWith(all, identity), gecosOf(all, 1000)]),
  },
  "subordinate ids": {
    inputs: ["me:100000:65536\n1000:200000:65536\n"],
    parse: text((all) => parseRanges(all, "me", 1000)),
  },
  mountinfo: {
    inputs: ["36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"],
    parse: text(parseMountInfo),
  },
  "ldconfig's list": {
    inputs: ["\tlibc.so.6 (libc6,x86-64, OS ABI: Linux 3.2.0) => /lib/libc.so.6\n"],
    parse: text(parseLinkerCache),
  },
  "a list of libraries": { inputs: ["# x\nlibcuda.so\nnvidia-smi\n"], parse: text(parseList) },
  "a cgroups file": { inputs: [policy], parse: written(readResources) },
  "a seccomp profile": { inputs: [profile], parse: written((name) => readProfile(name, ["CAP_SYS_ADMIN"])) },
  JSON: { inputs: [configuration], parse: text(parseJson), throws: [SyntaxError] },
  "strict JSON": { inputs: [configuration], parse: text(parseStrictJson), throws: [SyntaxError] },
  "a SIF image": {
    inputs: images.map(vector).filter(({ length }) => length < 1 << 18),
    parse: async (bytes) => {
      await using image = await openSif(bytes)
      listText(image)
      listJson(image)
      headerText(image)
      headerJson(image)
      for (const { id } of image.objects.slice(0, 50)) {
        infoText(image, id)
        infoJson(image, id)
        for await (const piece of dump(image, id)) assert.ok(piece.length > 0)
      }
    },
    share: 0.2,
  },
  "a hash tree's statement": {
    inputs: [Buffer.alloc(384, 1)],
    parse: (bytes) => parseVerityStatement(Buffer.concat([bytes, Buffer.alloc(384)]).subarray(0, 384)),
  },
  "a crypto message": {
    inputs: [encodeCryptoMessage(Buffer.alloc(256, 7), publicKey)],
    parse: decodeCryptoMessage,
  },
  "a fingerprint": { inputs: [`SHA256:${"A".repeat(43)}`], parse: text(parseFingerprint) },
  "a key to open with": {
    inputs: rsaFiles.slice(0, 5),
    parse: async (bytes) => await parsePrivateKey(bytes, "x", password),
    share: 0.3,
  },
  "a key to encrypt to": {
    inputs: rsaFiles,
    parse: async (bytes) => await parsePublicKey(bytes, "x", password),
    share: 0.3,
  },
  "a key to sign with": {
    inputs: signingFiles,
    parse: async (bytes) => await parseSigningKey(bytes, "x", password),
    share: 0.3,
  },
  "what was signed": { inputs: [statement], parse: parseMetadata },
  "an envelope": {
    inputs: [
      JSON.stringify({
        payloadType: "application/vnd.sylabs.sif-metadata+json",
        payload: "e30=",
        signatures: [{ keyid: "x", sig: "AA==" }],
      }),
    ],
    parse: parseEnvelope,
  },
  "a clear-signed message": {
    inputs: [
      "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{}\n-----BEGIN PGP SIGNATURE-----\n\nwsB=\n-----END PGP SIGNATURE-----\n",
    ],
    parse: parseClearSigned,
  },
  "an OpenPGP key": {
    inputs: [vector("sif/pgp-private.asc")],
    parse: async (bytes) => {
      for (const add of [
        (): unknown => keysIn(bytes, "x"),
        (): Promise<unknown> => inspectKeys(bytes, "x"),
        (): Promise<unknown> => new Keyring().add(bytes, "x"),
        async (): Promise<unknown> => {
          const ring = new SecretKeyring()
          await ring.add(bytes, "x")
          return await ring.list()
        },
      ])
        try {
          await add()
        } catch (error) {
          if (!(error instanceof ContainerError)) throw error
        }
    },
    share: 0.05,
  },
}

describe("a parser", () => {
  const random = seeded()
  const count = times("SIFCRYPT_MUTATIONS", 20_000, 300)

  for (const [what, { inputs, parse, throws = [], share = 1 }] of Object.entries(parsers))
    it(`of ${what} reads or refuses what was changed at random`, async function () {
      this.timeout(0)
      for (const input of inputs) await parse(Buffer.from(input))
      for (let round = 0; round < Math.ceil(count * share); round++) {
        const input = inputs[random(inputs.length)] ?? ""
        let bytes: Buffer = Buffer.from(input)
        for (let more = random(4); more >= 0; more--) bytes = mutate(bytes, random)
        const told = `round ${round}: ${bytes.toString("base64").slice(0, 20_000)}`
        const before = process.cpuUsage()
        try {
          await parse(bytes)
        } catch (error) {
          if (!(error instanceof ContainerError) && !throws.some((kind) => error instanceof kind))
            throw new Error(told, { cause: error })
        }
        const { user, system } = process.cpuUsage(before)
        assert.ok(user + system < 5_000_000, `${told}: ${(user + system) / 1000} ms`)
      }
    })
})
