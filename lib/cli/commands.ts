// Every command there is, in the order of --help.
import type { CommandRow } from "./command.ts"
import { absent } from "./commands/absent.ts"
import { batch } from "./commands/batch.ts"
import { build } from "./commands/build.ts"
import { cache } from "./commands/cache.ts"
import { cert } from "./commands/cert.ts"
import { completion } from "./commands/completion.ts"
import { compose } from "./commands/compose.ts"
import { cat, extract, info, ls } from "./commands/content.ts"
import { ctdDecoder } from "./commands/ctd-decoder.ts"
import { decrypt, encrypt, reencrypt } from "./commands/convert.ts"
import { ecl } from "./commands/ecl.ts"
import { image } from "./commands/image.ts"
import { inspect, runHelp } from "./commands/inspect.ts"
import { instance } from "./commands/instance.ts"
import { key } from "./commands/key.ts"
import { link } from "./commands/link.ts"
import { map } from "./commands/map.ts"
import { mount, mounts, unmount } from "./commands/mount.ts"
import { network } from "./commands/network.ts"
import { view } from "./commands/view.ts"
import { ociRuntime } from "./commands/oci-runtime.ts"
import { overlay } from "./commands/overlay.ts"
import { probes } from "./commands/probe.ts"
import { pull } from "./commands/pull.ts"
import { push } from "./commands/push.ts"
import { recipient } from "./commands/recipient.ts"
import { registry } from "./commands/registry.ts"
import { actions } from "./commands/run.ts"
import { serve } from "./commands/serve-build.ts"
import { sif } from "./commands/sif.ts"
import { sign } from "./commands/sign.ts"
import { verify } from "./commands/verify.ts"
import { version } from "./commands/version.ts"

export const commands: readonly CommandRow[] = [
  ...[build, pull, push, encrypt, decrypt, reencrypt, recipient, overlay, sif, sign, verify, serve],
  ...[image, ls, cat, extract, info, map, inspect, runHelp, mount, view, unmount, mounts],
  ...[
    ...actions,
    instance,
    compose,
    network,
    batch,
    cert,
    ...absent,
    ...probes,
    key,
    ecl,
    cache,
    registry,
    ctdDecoder,
    ociRuntime,
    link,
  ],
  ...[completion, version],
]
