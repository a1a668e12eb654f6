// Every parser of what strangers write: real inputs, how to change them so that they still look right, and what may be thrown.
import assert from "node:assert/strict"
import { createHash, createPrivateKey, createPublicKey } from "node:crypto"
import { readdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { InvalidArgumentError } from "commander"
import { parseConfiguration } from "../../lib/batch/configuration.ts"
import { parseHead } from "../../lib/batch/bundle.ts"
import { parseRequest } from "../../lib/batch/key-exchange.ts"
import { parseCsv } from "../../lib/cli/csv.ts"
import { parseMountSpec } from "../../lib/cli/mount-spec.ts"
import { duration, parseSize, SECONDS, size, MEBIBYTES, words } from "../../lib/cli/values.ts"
import { load } from "../../lib/compose/compose.ts"
import { parseEnvFile } from "../../lib/compose/env-file.ts"
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
import { parseGocryptfsConfig } from "../../lib/device/gocryptfs.ts"
import { decodeLuksHeader } from "../../lib/device/luks-header.ts"
import { parseStrictJson } from "../../lib/device/strict-json.ts"
import { encodeTrailer, readFooter, readSealed } from "../../lib/encryption/sealed.ts"
import { ContainerError } from "../../lib/errors.ts"
import { proxyFor } from "../../lib/http/proxy.ts"
import { parseJson } from "../../lib/json.ts"
import { decodeCryptoMessage, decodeRecipient, encodeCryptoMessage } from "../../lib/key/crypto-message.ts"
import { parseFingerprint } from "../../lib/key/fingerprint.ts"
import { parsePrivateKey, parsePublicKey, parseSigningKey } from "../../lib/key/key-file.ts"
import { parsePkcs12 } from "../../lib/key/pkcs12.ts"
import { parseCertificate } from "../../lib/key/x509.ts"
import { parseConfig, parseDocument } from "../../lib/oci/manifest.ts"
import { checkLayoutVersion, parseLayoutIndex } from "../../lib/oci/layout.ts"
import { macOf, messagesOf, schemesOf } from "../../lib/ocicrypt/annotations.ts"
import { Attempts } from "../../lib/ocicrypt/attempts.ts"
import { jweRecipients, unwrapJwe } from "../../lib/ocicrypt/jwe.ts"
import { readLayerKey } from "../../lib/ocicrypt/layer-key.ts"
import { pgpRecipients } from "../../lib/ocicrypt/pgp.ts"
import { pkcs7Recipients, unwrapPkcs7 } from "../../lib/ocicrypt/pkcs7.ts"
import { ProtobufError, readFields } from "../../lib/ocicrypt/protobuf.ts"
import { parseTokenFile } from "../../lib/ocicrypt/token-file.ts"
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
import { DataType } from "../../lib/sif/format.ts"
import { BufferReader } from "../../lib/sif/source.ts"
import { parseVerityStatement } from "../../lib/sif/verity.ts"
import { parseEnvelope } from "../../lib/signing/dsse.ts"
import { inspectKeys } from "../../lib/signing/key-ring.ts"
import { keysIn } from "../../lib/signing/key-packets.ts"
import { parseMetadata } from "../../lib/signing/metadata.ts"
import { Keyring, parseClearSigned, SecretKeyring } from "../../lib/signing/openpgp.ts"
import { newFolder } from "../support/scratch.ts"
import { images, vector, vectorPath } from "../vectors/load.ts"
import {
  anywhere,
  armored,
  der,
  json,
  lines,
  numbersAt,
  oneOf,
  protobuf,
  wire,
  type Change,
} from "./structure.ts"

export interface Parser {
  /** Real ones. */
  readonly inputs: readonly (string | Buffer)[]
  /** By whom it is changed; not given: anybody, anywhere. */
  readonly change?: Change
  readonly parse: (bytes: Buffer) => unknown
  /** What it may throw besides our errors: its callers turn these into one. */
  readonly throws?: readonly (abstract new (...args: never[]) => Error)[]
  /** How many take as long as a thousand of the others. */
  readonly share?: number
  /** What one may cost: so many times what one of the others may. */
  readonly times?: number
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

// The same in each run: what is exported with a password has a salt of its own each time, so these are files.
const keys = path.join(import.meta.dirname, "corpus", "keys")
const keyFile = (name: string): Buffer => readFileSync(path.join(keys, name))
const publicKey = createPublicKey(createPrivateKey(keyFile("rsa-pkcs1.pem")))
const password = Buffer.from("x")
const opensshFiles = ["openssh.key", "openssh-locked.key"].map(keyFile)
const pkcs12Files = readdirSync(keys)
  .filter((name) => name.endsWith(".p12"))
  .map(keyFile)
const rsaFiles = [
  "rsa-pkcs1.pem",
  "rsa-pkcs1-locked.pem",
  "rsa-pkcs8.der",
  "rsa-pkcs8-locked.pem",
  "rsa-pkcs8-locked.der",
  "rsa.jwk",
].map(keyFile)
const publicFiles = [...rsaFiles, ...["rsa-public.pem", "rsa.pub", "certificate.pem"].map(keyFile)]
const signingFiles = [...rsaFiles, keyFile("ec.pem")]
const certificateFile = keyFile("certificate.der")

// What lib/encryption/sealed.ts puts behind a squashfs: objects, and at their end a footer of one sector.
const SECTOR = 4096
const SQUASHFS_SIZE = 8192
const sealedTrailer = encodeTrailer(
  SQUASHFS_SIZE,
  [
    {
      added: { type: DataType.definition, name: "Singularity.def", group: 1 },
      data: Buffer.from("Bootstrap: docker\n\n\n"),
    },
  ],
  0,
)
const footerNumbers = [0, 8, 16, 24, 32, 40].map(
  (offset) => [sealedTrailer.length - SECTOR + offset, 8] as const,
)

/** JSON, changed by who reads it or by who does not. */
const documents = oneOf(json, json, anywhere)

/** Before the fields of an OpenSSH container: its magic word. */
const OPENSSH_HEAD = 15

// The SIF specification's header and descriptors: what in them is a number.
const sifNumbers = [
  ...([64, 72, 80, 88, 96, 104, 112, 120] as const).map((at) => [at, 8] as const),
  ...[0, 1, 2, 3].flatMap((slot) => {
    const at = 4096 + slot * 585
    return [
      [at, 4] as const,
      [at + 4, 1] as const,
      ...[5, 9, 13, 201, 205].map((offset) => [at + offset, 4] as const),
      ...[17, 25, 33, 41, 49, 57, 65].map((offset) => [at + offset, 8] as const),
    ]
  }),
]

// LUKS2 on-disk format, 2.1: both copies of a header, with 16 KiB each.
const LUKS_COPY = 16384
const LUKS_JSON = 4096
const LUKS_PARTITION = 17821696
// Where the encrypted partition of the vector is.
const LUKS_AT = 36864
const luksBinary = vector("peer/luks-rsa2048.sif").subarray(LUKS_AT, LUKS_AT + 2 * LUKS_COPY)
const luksJson = luksBinary.subarray(LUKS_JSON, luksBinary.indexOf(0, LUKS_JSON))
const luksNumbers = [
  [6, 2],
  [8, 8],
  [16, 8],
  [256, 8],
  [LUKS_COPY + 6, 2],
  [LUKS_COPY + 8, 8],
  [LUKS_COPY + 16, 8],
  [LUKS_COPY + 256, 8],
] as const

/** Both checksums are made to fit. */
function sealed(metadata: Buffer): Buffer {
  const bytes = Buffer.from(metadata)
  for (let at = 0; at + LUKS_COPY <= bytes.length; at += LUKS_COPY) {
    const copy = bytes.subarray(at, at + LUKS_COPY)
    copy.fill(0, 448, 512)
    createHash("sha256").update(copy).digest().copy(copy, 448)
  }
  return bytes
}

/** Around this JSON. */
function luksMetadata(document: Buffer): Buffer {
  const bytes = Buffer.from(luksBinary)
  for (const at of [0, LUKS_COPY]) {
    bytes.fill(0, at + LUKS_JSON, at + LUKS_COPY)
    document.copy(bytes, at + LUKS_JSON, 0, LUKS_COPY - LUKS_JSON - 1)
  }
  return sealed(bytes)
}

const gocryptfsConfig = JSON.stringify({
  Creator: "gocryptfs 2.3",
  EncryptedKey: Buffer.alloc(64, 1).toString("base64"),
  ScryptObject: { Salt: Buffer.alloc(32, 2).toString("base64"), N: 65536, R: 8, P: 1, KeyLen: 32 },
  Version: 2,
  FeatureFlags: ["HKDF", "GCMIV128", "PlaintextNames"],
})

const batchFile = `
cluster: { partition: batch, time: "01:30:00", constraint: null, job_sets: sets, key_wait: 90 }
images:
  - image: oras://registry.example/group/model:1.0
    signing_key: { fingerprint: ${"ab".repeat(20)}, file: keys/vendor.asc }
    encryption: { certificate: { sha256_thumbprint: ${"cd".repeat(32)} } }
  - image: plain.sif
jobs:
  - id: sweep
    max_task_retries: 2
    environment_variables: { SCALE: 10, NAME: "n" }
    tasks:
      - image: plain.sif
        command: [exec, echo, 1.50, "{0}-{1}"]
        task_factory: { product: [{ start: 1, stop: 3 }, [a, b]] }
      - image: plain.sif
        max_wall_time: 2-00:00:10
    merge_task: { image: plain.sif, command: [merge] }
`
const keyRequest = JSON.stringify({
  version: 1,
  set: "s",
  slurmJob: 1,
  array: 1,
  element: 0,
  node: "n",
  digest,
  publicKey: Buffer.alloc(32, 1).toString("base64"),
  nonce: "AA==",
})
const bundleHead = JSON.stringify({ version: 1, set: "s", uid: 1000, expires: 1, digests: [digest] })

interface LayerVector {
  readonly annotations: Readonly<Record<string, string>>
}
const layers = JSON.parse(readFileSync(vectorPath("ocicrypt/layers.json"), "utf8")) as readonly LayerVector[]
const layerKey = createPrivateKey(readFileSync(vectorPath("ocicrypt/keys/rsa1.pem")))
/** Messages of one scheme, as other programs wrote them. */
function wrapped(scheme: string): readonly Buffer[] {
  return layers.flatMap(({ annotations }) => messagesOf(annotations, scheme, "x"))
}
const isTexts = (value: unknown): value is Readonly<Record<string, string>> =>
  typeof value === "object" && value !== null && Object.values(value).every((one) => typeof one === "string")

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

const composed = written((name) => load({ files: [name], environment: {}, name: "x", envFiles: [] }).config())
const composeFolder = vectorPath("compose/accepted")
const composeFiles = readdirSync(composeFolder)
  .filter((name) => name.endsWith(".yaml"))
  .map((name) => readFileSync(path.join(composeFolder, name)))
  // What needs files or variables beside it is not for here.
  .filter((bytes) => {
    try {
      return composed(bytes) !== undefined
    } catch {
      return false
    }
  })

export const parsers: Readonly<Record<string, Parser>> = {
  "a definition": {
    inputs: [definition],
    change: oneOf(lines, anywhere),
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
    change: documents,
    parse: (bytes) => [parseDocument(bytes, undefined, "x"), parseLayoutIndex(bytes, "x")],
  },
  "a manifest": {
    inputs: [manifest],
    change: documents,
    parse: (bytes) => parseDocument(bytes, undefined, "x"),
  },
  "a configuration": {
    inputs: [configuration],
    change: documents,
    parse: (bytes) => parseConfig(bytes, "x"),
  },
  "a layout's version": {
    inputs: ['{"imageLayoutVersion":"1.0.0"}'],
    change: documents,
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
    change: documents,
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
  "a seccomp profile": {
    inputs: [profile],
    change: documents,
    parse: written((name) => readProfile(name, ["CAP_SYS_ADMIN"])),
  },
  JSON: { inputs: [configuration], change: documents, parse: text(parseJson), throws: [SyntaxError] },
  "strict JSON": {
    inputs: [configuration],
    change: documents,
    parse: text(parseStrictJson),
    throws: [SyntaxError],
  },
  "a SIF image": {
    inputs: images.map(vector).filter(({ length }) => length < 1 << 18),
    change: oneOf(numbersAt(sifNumbers), numbersAt(sifNumbers), anywhere),
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
  "what is sealed behind a squashfs": {
    inputs: [sealedTrailer],
    change: oneOf(numbersAt(footerNumbers), numbersAt(footerNumbers), anywhere),
    parse: async (bytes) => {
      // The ciphertext has whole sectors, so the plaintext has.
      const whole = Buffer.alloc(Math.ceil(bytes.length / SECTOR) * SECTOR)
      bytes.copy(whole, whole.length - bytes.length)
      const reader = new BufferReader(Buffer.concat([Buffer.alloc(SQUASHFS_SIZE), whole]))
      const plaintext = { reader, squashfsSize: SQUASHFS_SIZE }
      const found = await readSealed(plaintext, await readFooter(plaintext, "image"), "image")
      for (const object of found?.objects ?? []) await found?.data(object, 64 << 20)
    },
    share: 0.3,
  },
  "a hash tree's statement": {
    inputs: [Buffer.alloc(384, 1)],
    parse: (bytes) => parseVerityStatement(Buffer.concat([bytes, Buffer.alloc(384)]).subarray(0, 384)),
  },
  "a crypto message": {
    inputs: [encodeCryptoMessage(Buffer.alloc(256, 7), publicKey)],
    parse: (bytes) => {
      decodeRecipient(bytes)
      return decodeCryptoMessage(bytes)
    },
  },
  "a fingerprint": { inputs: [`SHA256:${"A".repeat(43)}`], parse: text(parseFingerprint) },
  "a key to open with": {
    inputs: rsaFiles,
    change: oneOf(armored(der), anywhere),
    parse: async (bytes) => await parsePrivateKey(bytes, "x", password),
    share: 0.3,
  },
  "a key to encrypt to": {
    inputs: publicFiles,
    change: oneOf(armored(der), anywhere),
    parse: async (bytes) => await parsePublicKey(bytes, "x", password),
    share: 0.3,
  },
  "a key to sign with": {
    inputs: signingFiles,
    change: oneOf(armored(der), anywhere),
    parse: async (bytes) => await parseSigningKey(bytes, "x", password),
    share: 0.3,
  },
  "a key in DER": {
    inputs: [keyFile("rsa-pkcs8.der"), keyFile("rsa-pkcs8-locked.der"), certificateFile],
    change: der,
    parse: async (bytes) => await parsePublicKey(bytes, "x", password),
    share: 0.3,
  },
  "an OpenSSH key": {
    inputs: opensshFiles,
    change: armored(wire(OPENSSH_HEAD)),
    parse: async (bytes) => await parsePrivateKey(bytes, "x", Buffer.from("xxxxx")),
    share: 0.2,
    // bcrypt is JavaScript: the 500 rounds that lib/key/stretching.ts allows, of 1.4 million each.
    times: 15,
  },
  "a PKCS#12 file": {
    inputs: pkcs12Files,
    change: oneOf(der, anywhere),
    parse: async (bytes) => await parsePkcs12(bytes, password),
    share: 0.1,
  },
  "a certificate": {
    inputs: [certificateFile],
    change: der,
    parse: (bytes) => parseCertificate(bytes, "x"),
  },
  "what was signed": { inputs: [statement], change: documents, parse: parseMetadata },
  "an envelope": {
    change: documents,
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
    change: oneOf(lines, anywhere),
    parse: parseClearSigned,
  },
  "an OpenPGP key": {
    inputs: [vector("sif/pgp-private.asc")],
    change: armored(anywhere),
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
  "a LUKS2 header": {
    inputs: [luksJson],
    change: oneOf(json, anywhere),
    parse: (bytes) => {
      const header = decodeLuksHeader(luksMetadata(bytes), LUKS_PARTITION)
      assert.ok(header.segment.offset + header.segment.size <= LUKS_PARTITION)
      assert.ok(header.areaSize <= header.segment.offset)
    },
  },
  "a LUKS2 header's numbers": {
    inputs: [luksMetadata(luksJson)],
    change: oneOf(numbersAt(luksNumbers, true), anywhere),
    parse: (bytes) => decodeLuksHeader(sealed(bytes), LUKS_PARTITION),
  },
  "gocryptfs.conf": {
    inputs: [gocryptfsConfig],
    change: documents,
    // Whatever is accepted is payable.
    parse: (bytes) => {
      assert.ok(parseGocryptfsConfig(bytes, undefined).memory <= 1 << 20)
    },
  },
  "a compose file": {
    inputs: composeFiles,
    change: oneOf(lines, lines, anywhere),
    parse: composed,
    share: 0.1,
  },
  "a file of variables": {
    inputs: ["A=b\nexport C='d e'\nE=\"f\\n${A:-x}\" # g\nH\n"],
    change: oneOf(lines, anywhere),
    parse: text((all) => [parseEnvFile(all, "x", () => "y"), parseEnvFile(all, "x", () => undefined, true)]),
  },
  "a configuration of jobs": {
    inputs: [batchFile],
    change: oneOf(lines, lines, anywhere),
    parse: text((all) => parseConfiguration(all, "/set/sifcrypt.yaml")),
    share: 0.1,
  },
  "a request for a key": {
    inputs: [keyRequest],
    change: documents,
    parse: parseRequest,
    throws: [SyntaxError, TypeError, RangeError],
  },
  "a bundle of keys": {
    inputs: [bundleHead],
    change: documents,
    parse: text(parseHead),
    throws: [SyntaxError, TypeError, RangeError],
  },
  "a JWE": {
    inputs: wrapped("jwe"),
    change: oneOf(json, anywhere),
    parse: (bytes) => jweRecipients(bytes, "x"),
  },
  "a JWE that is opened": {
    inputs: wrapped("jwe"),
    change: oneOf(json, anywhere),
    parse: async (bytes) => await unwrapJwe(bytes, [layerKey], new Attempts(), "x"),
    share: 0.1,
  },
  "a PKCS#7 message": {
    inputs: wrapped("pkcs7"),
    change: oneOf(der, anywhere),
    parse: (bytes) => [pkcs7Recipients(bytes, "x"), unwrapPkcs7(bytes, [layerKey], new Attempts(), "x")],
    share: 0.2,
  },
  "an OpenPGP message": {
    inputs: wrapped("pgp"),
    parse: async (bytes) => await pgpRecipients(bytes, "x"),
    share: 0.1,
  },
  "a key provider's answer": {
    inputs: [
      Buffer.concat([Buffer.from([0x0a, 20]), Buffer.alloc(20, 0x7b), Buffer.from([0x12, 3, 1, 2, 3])]),
    ],
    change: oneOf(protobuf, anywhere),
    parse: readFields,
    throws: [ProtobufError],
  },
  "a layer's key": {
    inputs: [
      JSON.stringify({
        symkey: Buffer.alloc(32, 1).toString("base64"),
        digest,
        cipheroptions: { nonce: Buffer.alloc(16, 2).toString("base64") },
      }),
    ],
    change: documents,
    parse: (bytes) => {
      readLayerKey(Buffer.from(bytes), "x")[Symbol.dispose]()
    },
  },
  "annotations of a layer": {
    inputs: [JSON.stringify(layers[0]?.annotations)],
    change: documents,
    parse: (bytes) => {
      const value = JSON.parse(bytes.toString("utf8")) as unknown
      if (!isTexts(value)) return
      macOf(value, "x")
      for (const scheme of schemesOf(value)) messagesOf(value, scheme, "x")
    },
    throws: [SyntaxError],
  },
  "a token's key file": {
    inputs: [
      'pkcs11:\n  uri: "pkcs11:token=a%20b;object=c;id=%01%02?module-name=softhsm2&pin-value=1234"\nmodule:\n  env:\n    SOFTHSM2_CONF: /x\n',
    ],
    change: oneOf(lines, anywhere),
    parse: async (bytes) => await parseTokenFile(bytes, "x"),
    share: 0.3,
  },
}
