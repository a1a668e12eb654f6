// Slurm's own containers, with our OCI runtime: an encrypted image as an ordinary user's job step.
import assert from "node:assert/strict"
import { chownSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { isRoot, sifcryptOk } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { SlurmCluster, user } from "../support/slurm.ts"
import { makeRootTree } from "../support/trees.ts"

const MARKER = "marker-90be-inside"

describe("containers of Slurm", () => {
  const folder = newFolder("oci-slurm", user.id)
  const bundle = path.join(folder, "bundle")
  const links = newFolder("oci-slurm-links")
  const calls = path.join(folder, "calls")
  let cluster: SlurmCluster | undefined

  before(async function () {
    if (!isRoot) skip(this, "needs root, for slurmd")
    // Of cgroups of both versions side by side crun takes none.
    const hidden = ["unshare", "--mount", "sh", "-c", 'umount /sys/fs/cgroup/unified; exec "$@"', "sh"]
    cluster = await SlurmCluster.start(1, "", hidden)
    await sifcryptOk(["link", links, "sifcrypt-oci"], { as: "self" })
    const told = path.join(links, "told")
    writeFileSync(told, `#!/bin/sh\necho "$(id -u) $*" >>${calls}\nexec ${links}/sifcrypt-oci "$@"\n`, {
      mode: 0o755,
    })
    const runtime = `${told} --cgroup-manager=disabled --root=${folder}/state-$(id -u %u)`
    // What lies in a user's folder may say anything: root would end whatever process it names.
    const own = "exec setpriv --reuid=$(id -u %u) --regid=$(id -g %u) --clear-groups"
    writeFileSync(
      path.join(cluster.folder, "oci.conf"),
      `RunTimeRun="exec env -u HOME ${runtime} run --bundle %b %n.%u.%j.%s.%t"
RunTimeQuery="${own} ${runtime} state %n.%u.%j.%s.%t"
RunTimeKill="${own} ${runtime} kill -a %n.%u.%j.%s.%t"
RunTimeDelete="${own} ${runtime} delete --force %n.%u.%j.%s.%t"
`,
    )
  })

  after(async () => {
    await cluster?.[Symbol.asyncDispose]()
  })

  it("run an encrypted image as an ordinary user's step, and nothing of theirs is root's to read", async () => {
    const keys = testKeys()
    const tree = makeRootTree()
    writeFileSync(path.join(tree, "etc", "marker"), `${MARKER}\n`)
    const image = path.join(folder, "image.sif")
    await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree], { as: "nobody" })
    for (const name of ["bundle", `state-${user.id}`]) {
      mkdirSync(path.join(folder, name))
      chownSync(path.join(folder, name), user.id, user.id)
    }
    symlinkSync(image, path.join(bundle, "rootfs"))
    const mapping = [{ containerID: 0, hostID: user.id, size: 1 }]
    writeFileSync(
      path.join(bundle, "config.json"),
      JSON.stringify({
        ociVersion: "1.0.2",
        process: { user: { uid: 0, gid: 0 }, args: ["true"], env: ["PATH=/bin:/usr/bin"], cwd: "/" },
        root: { path: "rootfs" },
        annotations: { "org.sifcrypt.key": keys.privateKey },
        mounts: [
          { destination: "/proc", type: "proc", source: "proc" },
          { destination: "/dev", type: "tmpfs", source: "tmpfs" },
        ],
        linux: {
          uidMappings: mapping,
          gidMappings: mapping,
          namespaces: ["pid", "mount", "ipc", "user"].map((type) => ({ type })),
        },
      }),
    )
    const text = await (cluster ?? assert.fail()).slurm(
      ["srun", `--container=${bundle}`, "/bin/sh", "-c", "cat /etc/marker; id -u; echo $SLURM_JOB_ID"],
      { as: "nobody" },
    )
    assert.match(text, new RegExp(`^${MARKER}\n0\n\\d+\n$`))
    const callers = (): string[] => readFileSync(calls, "utf8").split("\n")
    // It asks when the step is over.
    await waitFor("Slurm has asked for the state", () => callers().some((call) => call.includes(" state ")))
    assert.deepEqual([...new Set(callers().map((call) => call.split(" ")[0]))], [`${user.id}`, ""])
  })
})
