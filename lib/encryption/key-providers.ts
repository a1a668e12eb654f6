// Key providers as callers name them.
import * as is from "../arguments.ts"
import { callerEnvironment } from "../caller-environment.ts"
import { KeyProvider } from "../ocicrypt/key-provider.ts"
import { findProvider } from "../ocicrypt/provider-config.ts"

/** A program or a service that wraps and unwraps the keys of layers, in ocicrypt's protocol. */
export interface KeyProviderSource {
  /** Its name in the configuration. */
  readonly provider: string
  /** What it is told. It gets no other's parameter, and no key but the layer's own. */
  readonly parameter?: string | undefined
  /** The file that says what it is. Default: the one that `OCICRYPT_KEYPROVIDER_CONFIG` of this process's environment names. */
  readonly configuration?: string | undefined
}

export const keyProviderSource: is.Check<KeyProviderSource> = is.shape<KeyProviderSource>({
  provider: is.required(is.path),
  parameter: is.text,
  configuration: is.notUndefined(is.path),
})

/**
 * Finds them, each once whatever it is told.
 *
 * @throws KeyError `ERR_KEY_PROVIDER`.
 */
export async function findProviders(
  sources: readonly KeyProviderSource[],
  signal: AbortSignal | undefined,
): Promise<KeyProvider[]> {
  const found = new Map<string, { parameters: string[]; configuration: string | undefined }>()
  for (const { provider, parameter, configuration } of sources) {
    const known = found.get(provider) ?? { parameters: [], configuration }
    if (parameter !== undefined) known.parameters.push(parameter)
    found.set(provider, known)
  }
  const environment = callerEnvironment()
  return await Promise.all(
    [...found].map(async ([name, { parameters, configuration }]) => {
      const entry = await findProvider(name, configuration, environment)
      return new KeyProvider({ name, parameters }, entry, { signal })
    }),
  )
}
