// How OCI images are found. Looked at before anything is loaded that finds one: most commands are given a path.
import {
  buffer,
  callback,
  count,
  flag,
  milliseconds,
  path as filePath,
  required,
  shape,
  text,
  variables,
  type Rows,
} from "../arguments.ts"
import type { ClientOptions } from "../registry/client.ts"
import type { OciOptions } from "../registry/transports.ts"

/** How an OCI image is found. */
export interface LayerOptions extends Pick<OciOptions, "architecture" | "signal" | "onNotice"> {
  /** For OCI images. */
  readonly oci?:
    Omit<OciOptions, "architecture" | "signal" | "onNotice" | "layerKeys" | "requireEncrypted"> | undefined
  readonly sourceDateEpoch?: number | undefined
}

type RegistryLogin = NonNullable<OciOptions["credentials"]>

/** How a registry is spoken to. */
export const clientRows: Rows<Omit<ClientOptions, "signal" | "onNotice">> = {
  certFolder: filePath,
  noHttps: flag,
  credentials: shape<RegistryLogin>({ username: required(text), password: required(buffer) }),
  authFile: filePath,
  environment: variables,
  retryDelayMs: milliseconds,
}

export const layerRows: Rows<Pick<LayerOptions, "oci">> = {
  oci: shape<NonNullable<LayerOptions["oci"]>>({
    ...clientRows,
    maxLayerBytes: count,
    allowPartial: flag,
    cacheFolder: filePath,
    disableCache: flag,
    tmpFolder: filePath,
    onFetch: callback,
  }),
}
