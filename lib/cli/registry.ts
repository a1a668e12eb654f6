// The options of commands that fetch images of layers.
import { Option, type Command } from "commander"
import { OciError, type BuildOptions } from "../index.ts"
import { interruption } from "./interrupt.ts"
import { Progress, promptLine, promptSecret } from "./terminal.ts"
import { GIBIBYTES, size } from "./values.ts"

export interface RegistryFlags {
  readonly authfile?: string
  readonly certDir?: string
  readonly https?: boolean
  readonly disableCache?: true
  readonly maxLayerSize?: number
  readonly dockerLogin?: true
  readonly dockerUsername?: string
  readonly dockerPassword?: string
}

/** Adds the options of {@link RegistryFlags}. */
export function addRegistryOptions(command: Command): Command {
  return command
    .option("--authfile <file>", "credentials for registries, as docker login writes them")
    .option("--docker-login", "ask for a name and a password at the registry")
    .option("--cert-dir <dir>", "certificates to trust (*.crt) and to show (*.cert, *.key) at the registry")
    .option("--no-https", "speak HTTP without TLS to the registry")
    .option("--disable-cache", "keep nothing of what is fetched")
    .option(
      "--max-layer-size <size>",
      "of all layers uncompressed, in GiB or with a unit (default 64)",
      size(GIBIBYTES, 0.001, 99_999),
    )
    .addOption(new Option("--docker-username <name>", "not here").hideHelp())
    .addOption(new Option("--docker-password <password>", "not here").hideHelp())
}

type Credentials = NonNullable<NonNullable<BuildOptions["oci"]>["credentials"]>

async function askCredentials(): Promise<Credentials> {
  const username = await promptLine("Enter Docker Username: ", interruption)
  const password = username === undefined ? undefined : promptSecret("Enter Docker Password: ", interruption)
  if (username === undefined || password === undefined)
    throw new OciError("ERR_OCI_CREDENTIALS", "--docker-login asks on a terminal, and there is none")
  return { username, password: await password }
}

/**
 * Runs `use` with what the flags say of registries; wipes what was typed.
 *
 * @throws OciError `ERR_OCI_CREDENTIALS` where a password was to be typed and cannot be, or stands on the command line.
 */
export async function withRegistryOptions<T>(
  flags: RegistryFlags,
  source: string,
  tmpFolder: string | undefined,
  use: (options: NonNullable<BuildOptions["oci"]>) => Promise<T>,
): Promise<T> {
  if (flags.dockerUsername !== undefined || flags.dockerPassword !== undefined)
    throw new OciError(
      "ERR_OCI_CREDENTIALS",
      "a password on the command line is everybody's to read: --docker-login asks for it, DOCKER_USERNAME and DOCKER_PASSWORD " +
        "or --authfile FILE hold it",
    )
  const credentials = flags.dockerLogin === true ? await askCredentials() : undefined
  const fetching = new Progress(`fetching ${source}`)
  try {
    return await use({
      credentials,
      authFile: flags.authfile,
      certFolder: flags.certDir,
      ...(flags.https === false ? { noHttps: true } : {}),
      disableCache: flags.disableCache,
      maxLayerBytes: flags.maxLayerSize,
      tmpFolder,
      onFetch: (bytes, total) => {
        if (bytes < total) fetching.update(bytes, total)
        else fetching.done()
      },
    })
  } finally {
    fetching.done()
    credentials?.password.fill(0)
  }
}
