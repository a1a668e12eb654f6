// Commands of the peers that have no meaning here, and why: better than a command that is unknown.
import { RunError } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"

const reasons: readonly (readonly [name: string, why: string, helpsAlone?: true])[] = [
  [
    "capability",
    "there is no setuid program that could grant capabilities: root has what it has, and --add-caps grants them within a user namespace",
  ],
  [
    "config",
    "there is no configuration: user namespaces are the kernel's to map, and /etc/subuid is the administrator's to edit (usermod --add-subuids)",
    true,
  ],
  [
    "oci",
    "bundles are made and given to crun for each run, none is kept: use crun for bundles of your own",
    true,
  ],
  ["checkpoint", "checkpoints of processes are not made here", true],
  ["search", "there are no libraries of images here"],
  ["delete", "there are no libraries of images here"],
]

/** Commands that do nothing but say why. */
export const absent: readonly CommandRow[] = reasons.map(([name, why, helps = false]) =>
  command({
    name,
    description: `Not here: ${why}.`,
    hidden: true,
    ...(helps ? { helpsAlone: true } : {}),
    arguments: [["[args...]", "ignored"]],
    takesAnything: true,
    run: () => Promise.reject(new RunError("ERR_RUN_OPTION", `${name} does not exist here: ${why}`)),
  }),
)
