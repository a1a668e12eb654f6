// What a service may that is root: not all that root may who starts it.
import { allCapabilities, parseCapabilities } from "../runtime/capabilities.ts"

/** Those that Podman leaves a container (containers-common, containers.conf(5)): no devices are made, and no packets. */
const USUAL = parseCapabilities([
  "CHOWN,DAC_OVERRIDE,FOWNER,FSETID,KILL,NET_BIND_SERVICE,SETFCAP,SETGID,SETPCAP,SETUID,SYS_CHROOT",
])

/**
 * The API's options for `cap_add` and `cap_drop`: what is added by name counts also where all is dropped.
 *
 * @throws RunError `ERR_RUN_OPTION`.
 */
export function capabilityOptions(
  added: readonly string[],
  dropped: readonly string[],
): { readonly addCaps: readonly string[]; readonly dropCaps: readonly string[] } {
  const addCaps = parseCapabilities(added)
  const gone = new Set(parseCapabilities(dropped))
  const kept = new Set([...USUAL.filter((name) => !gone.has(name)), ...addCaps])
  return { addCaps, dropCaps: allCapabilities().filter((name) => !kept.has(name)) }
}
