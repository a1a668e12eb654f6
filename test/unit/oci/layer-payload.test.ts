// What containerd says of a layer that is to be decrypted.
import assert from "node:assert/strict"
import { readLayerPayload, wipePayload } from "../../../lib/oci/layer-payload.ts"
import { fieldHead } from "../../../lib/ocicrypt/protobuf.ts"

const TYPE = "io.containerd.ocicrypt.v1.Payload"
const digest = `sha256:${"ab".repeat(32)}`
const Descriptor = { mediaType: "application/vnd.oci.image.layer.v1.tar+encrypted", digest, size: 7 }
const base64 = (text: string): string => Buffer.from(text).toString("base64")

function message(value: unknown, type = TYPE): Buffer {
  const json = Buffer.from(typeof value === "string" ? value : JSON.stringify(value))
  return Buffer.concat([fieldHead(1, type.length), Buffer.from(type), fieldHead(2, json.length), json])
}

describe("the payload of a stream processor", () => {
  it("has the layer, keys of all kinds with their passwords, and providers", () => {
    const Parameters = {
      privkeys: [base64("one"), base64("two")],
      "privkeys-passwords": ["", base64("secret"), base64("for no key")],
      "gpg-privatekeys": [base64("ring")],
      "pkcs11-yamls": [base64("pkcs11: {}")],
      x509s: [base64("certificate")],
      toy: [base64("p:1")],
    }
    const bytes = message({ DecryptConfig: { Parameters }, Descriptor })
    const payload = readLayerPayload(bytes)
    assert.deepEqual([payload.layer.digest.text, payload.layer.size], [digest, 7])
    const found = payload.keys.map(({ key, password }) => [key.toString(), password?.toString()])
    assert.deepEqual(found, [
      ["one", undefined],
      ["two", "secret"],
      ["ring", undefined],
      ["pkcs11: {}", undefined],
    ])
    assert.deepEqual(payload.providers, [{ provider: "toy", parameter: "p:1" }])
    assert.ok(bytes.every((byte) => byte === 0))
    assert.ok(payload.secrets.some((secret) => secret.equals(Buffer.from("for no key"))))
    wipePayload(payload)
    const all = [...payload.secrets, ...payload.keys.flatMap(({ key, password }) => [key, password ?? key])]
    assert.ok(all.every((secret) => secret.every((byte) => byte === 0)))
  })

  it("may be without keys, and of the type's whole name", () => {
    for (const value of [
      { Descriptor },
      { Descriptor, DecryptConfig: null },
      { Descriptor, DecryptConfig: {} },
    ])
      assert.deepEqual(readLayerPayload(message(value, `types.containerd.io/${TYPE}`)).keys, [])
  })

  it("is refused when it is none", () => {
    const good = message({ Descriptor })
    const many = {
      Descriptor,
      DecryptConfig: { Parameters: { privkeys: Array.from({ length: 257 }, () => "AAAA") } },
    }
    const cases: readonly [Buffer, RegExp][] = [
      [Buffer.alloc(0), /it is of type ""$/],
      [good.subarray(0, -1), /it ends in the middle of a field$/],
      [Buffer.from("08", "hex"), /a number in it does not end$/],
      [Buffer.from("0b", "hex"), /it has a field of kind 3$/],
      [message({ Descriptor }, "something.else"), /it is of type "something\.else"$/],
      [message("{"), /it is no JSON$/],
      [message("[]"), /it is no JSON object$/],
      [message({}), /a descriptor is missing$/],
      [message({ Descriptor: { ...Descriptor, size: -1 } }), /a size of -1$/],
      [message({ Descriptor, DecryptConfig: { Parameters: [] } }), /its parameters are no object$/],
      [
        message({ Descriptor, DecryptConfig: { Parameters: { privkeys: ["!"] } } }),
        /privkeys is no list of base64$/,
      ],
      [message(many), /privkeys has more than 256$/],
    ]
    for (const [bytes, text] of cases)
      assert.throws(
        () => readLayerPayload(Buffer.from(bytes)),
        { code: "ERR_OCI_FORMAT", message: text },
        String(text),
      )
  })
})
