// JSON Web Keys (RFC 7517): one, or a set with one RSA key. Their numbers are text in the file and strings here, which
// nothing can wipe.
import { isJsonObject } from "../json.ts"
import { admitPrivateKey, admitPublicKey } from "./admission.ts"
import { encodeIntegers } from "./der.ts"
import { damaged, unsupported, wrongType, type FoundKey, type FoundKeys } from "./found-key.ts"

const numbers = ["n", "e", "d", "p", "q", "dp", "dq", "qi"] as const

function jwkKey(fields: Record<string, unknown>, origin: string): FoundKey {
  const half = "d" in fields ? "private" : "public"
  const what = `a JWK with a ${half} key`
  return {
    what,
    half,
    locked: false,
    read: () => {
      if (fields["kty"] !== "RSA")
        throw wrongType(origin, `a JWK of type ${/^\w{1,20}$/.exec(String(fields["kty"]))?.[0] ?? "unknown"}`)
      if ("oth" in fields) throw unsupported(origin, "a JWK with more than two primes")
      // What else stands there means nothing here. PKCS#1 has the same numbers in the same order.
      const decoded = (half === "private" ? numbers : numbers.slice(0, 2)).map((name) => {
        const value = fields[name]
        if (typeof value !== "string" || !/^[\w-]+$/.test(value)) throw damaged(origin, `${name} of ${what}`)
        return Buffer.from(value, "base64url")
      })
      const der = encodeIntegers(half === "private" ? [Buffer.alloc(1), ...decoded] : decoded)
      try {
        return half === "private"
          ? admitPrivateKey(der, "pkcs1", origin, what)
          : admitPublicKey(der, "pkcs1", origin, what)
      } finally {
        for (const bytes of [der, ...decoded]) bytes.fill(0)
      }
    },
  }
}

/** The keys in a JSON file; undefined when it is JSON of another kind. */
export function jwkKeys(file: Buffer, origin: string): FoundKeys | undefined {
  let value: unknown
  try {
    value = JSON.parse(file.toString("utf8").replace(/^\uFEFF/, ""))
  } catch {
    // The parser's message quotes what it could not read.
    throw damaged(origin, "the JSON of a JWK")
  }
  if (!isJsonObject(value)) return undefined
  const list: unknown[] = Array.isArray(value["keys"]) ? (value["keys"] as unknown[]) : [value]
  const keys = list.filter(isJsonObject).filter((key) => typeof key["kty"] === "string")
  return keys.length === 0 ? undefined : { keys: keys.map((key) => jwkKey(key, origin)), others: [] }
}
