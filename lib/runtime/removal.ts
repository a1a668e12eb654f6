// A folder that containers of an ordinary user have written to: what is of his subordinate ids he removes as they made it, as root of a
// user namespace.
import type { ContainerError } from "../errors.ts"
import { chooseSession } from "./bundle.ts"
import { callerIdentity } from "./identity.ts"
import { startStarter } from "./starter.ts"
import type { Failure } from "./starter-protocol.ts"
import { idMapArguments, subordinateIds } from "./subordinate-ids.ts"

/**
 * Removes a folder with all that is in it and in its file system.
 *
 * @param explain - Says what the starter could not do.
 */
export async function removeAsRootInside(
  folder: string,
  explain: (failure: Failure) => ContainerError,
): Promise<void> {
  const { name, uid, gid } = callerIdentity()
  const ids = subordinateIds(name, uid, gid)
  const starter = startStarter({
    launch: {
      ...{ engine: "userspace", image: folder, explain },
      // A workspace removes its folder when its program has ended, and this one does nothing.
      compose: () => [
        "workspace",
        `--session=${chooseSession([folder])}`,
        `--folder=${folder}`,
        ...(ids === undefined ? [] : idMapArguments(ids)),
        ...["--", "/bin/true"],
      ],
    },
    attached: true,
    stdio: ["ignore", "ignore", "ignore"],
  })
  await starter.ended
}
