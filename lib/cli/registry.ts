// The options of commands that fetch OCI images.
import { OciError, type BuildOptions } from "../index.ts"
import { under, type OptionRows } from "./command.ts"
import { interruption } from "./interrupt.ts"
import { Progress } from "./progress.ts"
import { promptLine, promptSecret } from "./terminal.ts"
import { truthVariable, variable } from "./variables.ts"
import { flag, GIBIBYTES, size, text } from "./values.ts"

type Options = NonNullable<BuildOptions["oci"]>
export interface ClientFlags extends Pick<Options, "authFile" | "certFolder" | "noHttps"> {
  readonly noHttpsOld?: true
  readonly dockerLogin?: true
  readonly dockerUsername?: string
  readonly dockerPassword?: string
}
export interface RegistryFlags
  extends ClientFlags, Pick<Options, "disableCache" | "maxLayerBytes" | "allowPartial"> {
  readonly dockerHost?: string
}

export interface ArchitectureFlags {
  readonly architecture?: string
  readonly architectureVariant?: string
}

/** Which of several images it is to be. */
export const architectureRows: OptionRows<ArchitectureFlags> = {
  architecture: [
    "--arch <architecture>",
    "of the image to choose: amd64, arm64, arm32v7, ppc64le, ...",
    text,
  ],
  architectureVariant: ["--arch-variant <variant>", "of that architecture: v7", text],
}

/** The API's option for these flags. */
export function chosenArchitecture(flags: ArchitectureFlags): string | undefined {
  const { architecture, architectureVariant: variant } = flags
  return variant === undefined ? architecture : `${architecture ?? process.arch}/${variant}`
}

/** Of what is for images by their names. */
export const registryHeading = "Images at registries"

/** How a registry is spoken to. */
export const clientRows: OptionRows<ClientFlags> = under(registryHeading, {
  authFile: ["--authfile <file>", "credentials for registries, as docker login writes them", text],
  dockerLogin: ["--docker-login", "ask for a name and a password at the registry", flag],
  certFolder: [
    "--cert-dir <dir>",
    "certificates to trust (*.crt) and to show (*.cert, *.key) at the registry",
    text,
  ],
  noHttps: ["--no-https", "speak HTTP without TLS to the registry", flag],
  noHttpsOld: ["--nohttps", "the same as --no-https", flag, { hidden: true }],
  dockerUsername: ["--docker-username <name>", "not here", text, { hidden: true }],
  dockerPassword: ["--docker-password <password>", "not here", text, { hidden: true }],
})

export const registryRows: OptionRows<RegistryFlags> = under(registryHeading, {
  ...clientRows,
  disableCache: ["--disable-cache", "keep nothing of what is fetched", flag],
  maxLayerBytes: [
    "--max-layer-size <size>",
    "of all layers uncompressed, in GiB or with a unit (default 64)",
    size(GIBIBYTES, 0.001, 99_999),
  ],
  allowPartial: [
    "--allow-partial",
    "take an OCI image of which only some layers are encrypted, though anybody can have put in the others",
    flag,
  ],
  dockerHost: ["--docker-host <host>", "accepted: no Docker daemon is asked here", text, { hidden: true }],
})

/** Why a password is no option. */
const passwordReason: string =
  "a password on the command line is everybody's to read: --docker-login asks for it, DOCKER_USERNAME and DOCKER_PASSWORD " +
  "or --authfile FILE hold it"

type Credentials = NonNullable<Options["credentials"]>

async function askCredentials(): Promise<Credentials> {
  const username = await promptLine("Enter Docker Username: ", interruption)
  const password = username === undefined ? undefined : promptSecret("Enter Docker Password: ", interruption)
  if (username === undefined || password === undefined)
    throw new OciError("ERR_OCI_CREDENTIALS", "--docker-login asks on a terminal, and there is none")
  return { username, password: await password }
}

/**
 * Runs `use` with what the flags say of whom a registry speaks to; wipes what was typed.
 *
 * @throws OciError `ERR_OCI_CREDENTIALS` where a password was to be typed and cannot be, or stands on the command line.
 */
export async function withClientOptions<T>(
  flags: ClientFlags,
  use: (options: Pick<Options, "authFile" | "certFolder" | "noHttps" | "credentials">) => Promise<T>,
): Promise<T> {
  const { dockerLogin, dockerUsername, dockerPassword, noHttpsOld } = flags
  if (dockerUsername !== undefined || dockerPassword !== undefined)
    throw new OciError("ERR_OCI_CREDENTIALS", passwordReason)
  const login = dockerLogin ?? truthVariable("DOCKER_LOGIN")
  const credentials = login === true ? await askCredentials() : undefined
  try {
    return await use({
      authFile: flags.authFile ?? variable("AUTHFILE"),
      certFolder: flags.certFolder,
      noHttps: flags.noHttps ?? noHttpsOld ?? truthVariable("NO_HTTPS", "NOHTTPS"),
      credentials,
    })
  } finally {
    credentials?.password.fill(0)
  }
}

/**
 * Runs `use` with what the flags say of registries.
 *
 * @throws OciError as {@link withClientOptions}.
 */
export async function withRegistryOptions<T>(
  flags: RegistryFlags,
  source: string,
  tmpFolder: string | undefined,
  use: (options: Options) => Promise<T>,
): Promise<T> {
  const { maxLayerBytes, allowPartial } = flags
  const disableCache = flags.disableCache ?? truthVariable("DISABLE_CACHE")
  const fetching = new Progress(`fetching ${source}`)
  try {
    return await withClientOptions(flags, (client) =>
      use({
        ...client,
        ...{ disableCache, maxLayerBytes, allowPartial, tmpFolder },
        onFetch: (bytes, total) => {
          if (bytes < total) fetching.update(bytes, total)
          else fetching.done()
        },
      }),
    )
  } finally {
    fetching.done()
  }
}
