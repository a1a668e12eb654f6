// In a guest whose kernel has SELinux: `selinux-guest.mjs POLICY KEY IMAGE` loads the policy, enforces it, runs payloads with
// and without a label on both engines, and prints what each saw, as JSON.
import { execFileSync } from "node:child_process"
import { readFileSync, writeFileSync } from "node:fs"
import { text } from "node:stream/consumers"
import { open } from "../../dist/index.js"

const [policy, key, image] = process.argv.slice(2)
const selinuxfs = "/sys/fs/selinux"
execFileSync("mount", ["-t", "selinuxfs", "selinuxfs", selinuxfs])
writeFileSync(`${selinuxfs}/load`, readFileSync(policy))
writeFileSync(`${selinuxfs}/enforce`, "1")

const script =
  "cat /proc/self/attr/current; touch /tmp/file; /bin/busybox chown 1 /tmp/file 2>/dev/null; echo $?"
const opened = await open(image, { unlock: [{ key: { file: key } }] })
const outcomes = {}
for (const engine of ["kernel", "userspace"])
  for (const label of [undefined, "u:r:payload_t", "u:r:none_t"])
    try {
      const security = label === undefined ? [] : [`selinux:${label}`]
      const running = await opened.exec(["/bin/sh", "-c", script], { engine, security })
      running.stdin?.end()
      const [output, { exitCode }] = await Promise.all([text(running.stdout), running.exited])
      outcomes[`${engine} ${label}`] = `${output.replaceAll("\0", " ").trim()} ${exitCode}`
    } catch (error) {
      outcomes[`${engine} ${label}`] = error.code
    }
await opened.close()
process.stdout.write(JSON.stringify(outcomes))
