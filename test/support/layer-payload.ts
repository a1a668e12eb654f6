// What containerd says to a decoder of one layer.
import { fieldHead } from "../../lib/ocicrypt/protobuf.ts"

/** @param keys - Files of private keys, without passwords. */
export function decoderPayload(layer: unknown, keys: readonly Buffer[]): Buffer {
  const privkeys = keys.map((key) => key.toString("base64"))
  const parameters = { privkeys, "privkeys-passwords": keys.map(() => "") }
  const json = Buffer.from(JSON.stringify({ DecryptConfig: { Parameters: parameters }, Descriptor: layer }))
  const type = Buffer.from("io.containerd.ocicrypt.v1.Payload")
  return Buffer.concat([fieldHead(1, type.length), type, fieldHead(2, json.length), json])
}
