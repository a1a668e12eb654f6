// Keys that GnuPG has, as callers name them.
import * as is from "../arguments.ts"
import { GnuPg, type GnuPgKeys } from "../ocicrypt/gnupg.ts"

/** A key of the user's GnuPG. */
export interface GnuPgSource {
  /**
   * The name or the address of one of its users, its fingerprint or a key ID, whole in each case. Of a recipient it is one key; of whoever
   * opens, true is any of his secret keys.
   */
  readonly gnupg: string | true
  /** GnuPG's folder. Default: `GNUPGHOME`, or else its own. */
  readonly homeFolder?: string | undefined
}

export const gnuPgSource: is.Check<GnuPgSource> = is.shape<GnuPgSource>({
  gnupg: is.required((value, name) => (value === true ? true : is.path(value, name))),
  homeFolder: is.path,
})

/**
 * Public keys, as GnuPG exports them.
 *
 * @throws TypeError where nobody is named; KeyError `ERR_KEY_GNUPG`.
 */
export async function exportGnuPgKey(
  { gnupg, homeFolder }: GnuPgSource,
  signal: AbortSignal | undefined,
): Promise<Buffer> {
  if (gnupg === true) throw new TypeError("a recipient of GnuPG's is named")
  return await new GnuPg({ homeFolder, signal }).exportKey(gnupg)
}

/** @throws KeyError `ERR_KEY_GNUPG`. */
export async function findGnuPgKeys(
  { gnupg, homeFolder }: GnuPgSource,
  signal: AbortSignal | undefined,
): Promise<GnuPgKeys> {
  return await new GnuPg({ homeFolder, signal }).secretKeys(gnupg === true ? undefined : gnupg)
}
