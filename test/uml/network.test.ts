// Services with ports and names on another kernel than the machine's: up, asked from here and from another machine, down, nothing left.
import assert from "node:assert/strict"
import type { ChildProcess } from "node:child_process"
import { once } from "node:events"
import { chmodSync, copyFileSync, mkdirSync } from "node:fs"
import path from "node:path"
import { finish, idOf, packageRoot, runProgram, startProgram } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { isSoak } from "../support/soak.ts"
import {
  assertSettles,
  cheapImageForBoth,
  kernelState,
  loadModule,
  needsDeviceMapper,
  output,
} from "./guest.ts"

const program = path.join(packageRoot, "test", "uml", "network-cells.mjs")
const modules = [
  ...["veth", "tun", "bridge", "iptable_filter", "iptable_nat", "ip6table_filter", "ip6table_nat"],
  ...["xt_addrtype", "xt_comment", "xt_conntrack", "xt_mark", "xt_MASQUERADE", "xt_nat", "xt_tcpudp"],
]
/** What a starter says where the kernel has no such rule. */
const rule = /^(?:sifcrypt: what listens on the machine's loopback may be sent to from inside: .*\n)*$/

describe("services with ports", function () {
  let image: string
  let outside: ChildProcess | undefined

  before(async function () {
    needsDeviceMapper(this)
    const missing = modules.filter((name) => !loadModule(name))
    if (missing.length > 0) skip(this, `this kernel has no module ${missing.join(", ")}`)
    chmodSync("/dev/net/tun", 0o666)
    // It has tables of the old kind only, and iptables of Debian is for the new one.
    output("mount", ["--bind", "/usr/sbin/xtables-legacy-multi", "/usr/sbin/xtables-nft-multi"])
    image = path.join(newFolder("network"), "image.sif")
    copyFileSync(await cheapImageForBoth(), image)
    chmodSync(image, 0o644)
    // The guest is a machine of its own; the other end of its cable is another one.
    outside = startProgram(["unshare", "-n", "sh", "-c", "echo ready && exec sleep infinity"], { as: "self" })
    assert.ok(outside.stdout)
    await once(outside.stdout, "data")
    const there = `nsenter -t ${String(outside.pid)} -n`
    output("sh", [
      "-c",
      `ip link add up0 type veth peer name up1 netns ${String(outside.pid)} &&
       ip addr add 192.0.2.2/24 dev up0 && ip link set up0 up && ${there} ip addr add 192.0.2.1/24 dev up1 &&
       ${there} ip link set up1 up && ip route add default via 192.0.2.1`,
    ])
  })
  after(() => {
    outside?.kill("SIGKILL")
    if (outside !== undefined) output("umount", ["/usr/sbin/xtables-nft-multi"])
  })

  const get = async (url: string, from: readonly string[] = []): Promise<string | undefined> => {
    const { status, text } = await runProgram([...from, "busybox", "wget", "-qO-", url], { as: "self" })
    return status === 0 ? text : undefined
  }

  // Root's is the same without the user namespace.
  for (const as of isSoak ? (["nobody", "self"] as const) : (["nobody"] as const))
    it(`come and go: ${as === "self" ? "root's" : "an ordinary user's"}`, async () => {
      const links = (): string =>
        output("sh", ["-c", "ip -o link | cut -d: -f2; iptables-save -t nat | grep -v '^#'"])
      const [state, linked] = [kernelState(), links()]
      const runtime = newFolder("runtime", idOf(as))
      mkdirSync("/run/sifcrypt", { recursive: true, mode: 0o700 })
      const child = startProgram(
        [process.execPath, program, testKeys().privateKey, image, newFolder("cells", idOf(as))],
        {
          ...{ as, env: { XDG_RUNTIME_DIR: runtime } },
        },
      )
      assert.ok(child.stdout)
      const ended = finish(child, { timeoutMs: 240_000, holdInput: true })
      const told = once(child.stdout, "data").then(([data]) => String(data))
      const said = await Promise.race([told, ended.then(({ stderr }) => stderr)])
      assert.equal(said, "guest-num-1 running, guest-page-1 running\n")
      await waitFor(
        "the page",
        async () => (await get("http://127.0.0.1:8080/cgi-bin/page")) === "4711\n",
        60_000,
      )
      const from = ["nsenter", "-t", String(outside?.pid), "-n"]
      assert.equal(await get("http://192.0.2.2:8000/num", from), "4711\n")
      assert.equal((await get("http://192.0.2.2:8000/large", from))?.length, 8 << 20)
      assert.equal(await get("http://192.0.2.2:8080/", from), undefined)
      child.stdin?.end()
      const { status, stderr } = await ended
      assert.equal(status, 0, stderr)
      assert.match(stderr, rule)
      await assertSettles(state)
      assert.equal(links(), linked)
    })
})
