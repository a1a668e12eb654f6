// How OCI images are found. Looked at before anything is loaded that finds one: most commands are given a path.
import * as is from "../arguments.ts"
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
export const clientRows: is.Rows<Omit<ClientOptions, "signal" | "onNotice">> = {
  certFolder: is.path,
  noHttps: is.flag,
  credentials: is.shape<RegistryLogin>({ username: is.required(is.text), password: is.required(is.buffer) }),
  authFile: is.path,
  environment: is.variables,
  retryDelayMs: is.milliseconds,
}

export const layerRows: is.Rows<Pick<LayerOptions, "oci">> = {
  oci: is.shape<NonNullable<LayerOptions["oci"]>>({
    ...clientRows,
    maxLayerBytes: is.count,
    allowPartial: is.flag,
    cacheFolder: is.path,
    disableCache: is.flag,
    tmpFolder: is.path,
    onFetch: is.callback,
  }),
}
