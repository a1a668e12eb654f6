import assert from "node:assert/strict"
import { once } from "node:events"
import { closeSync, mkdirSync, mkdtempSync, openSync, readdirSync, rmSync, writeFileSync } from "node:fs"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import path from "node:path"
import { setImmediate } from "node:timers/promises"
import { networkArguments, networkOf } from "../../../lib/runtime/network.ts"
import {
  addressesOf,
  bridgeOf,
  createNetwork,
  freeSubnet,
  listNetworks,
  openNetwork,
  overlaps,
  parseRoutes,
  parseSubnet,
  removeNetwork,
} from "../../../lib/runtime/networks.ts"

describe("subnets", () => {
  it("are read strictly", () => {
    assert.deepEqual(parseSubnet("10.89.4.0/24"), { first: 0x0a590400, bits: 24 })
    for (const wrong of [
      ...["10.89.4.0", "10.89.4.0/8", "10.89.4.0/30", "10.89.4.1/24", "::/64", "10.89.4/24", "10.89.4.0/24 "],
      ...["127.0.0.0/24", "0.1.0.0/16", "224.0.0.0/24", "10.89.4.0/024", "300.0.0.0/24"],
    ])
      assert.throws(() => parseSubnet(wrong), { code: "ERR_NETWORK_SUBNET" }, wrong)
  })

  it("overlap when they share an address", () => {
    const of = parseSubnet
    assert.ok(overlaps(of("10.0.0.0/16"), of("10.0.7.0/24")))
    assert.ok(overlaps(of("10.0.7.0/24"), of("10.0.0.0/16")))
    assert.ok(!overlaps(of("10.0.0.0/24"), of("10.0.1.0/24")))
  })

  it("are the first that no route and no other network has", () => {
    const used = [parseSubnet("10.89.0.0/24"), parseSubnet("10.89.2.0/23")]
    assert.deepEqual(freeSubnet(used), parseSubnet("10.89.1.0/24"))
    assert.deepEqual(freeSubnet([...used, parseSubnet("10.89.1.0/24")]), parseSubnet("10.89.4.0/24"))
    assert.throws(() => freeSubnet([parseSubnet("10.89.0.0/16")]), { code: "ERR_NETWORK_SUBNET" })
  })

  it("of routes are found, but for the one to everywhere", () => {
    const table = [
      "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT",
      "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0",
      "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0",
      "vpn0\t0000590A\t00000000\t0001\t0\t0\t0\t0000FEFF\t0\t0\t0",
      "",
    ].join("\n")
    assert.deepEqual(parseRoutes(table), [
      { first: 0xc0000200, bits: 24 },
      { first: 0x0a590000, bits: 15 },
    ])
  })
})

describe("networks", () => {
  let before: string | undefined
  let folder: string
  beforeEach(function () {
    // Root's are in /run.
    if (process.geteuid?.() === 0) process.seteuid?.(2345)
    before = process.env["XDG_RUNTIME_DIR"]
    folder = mkdtempSync(path.join(tmpdir(), "sifcrypt-networks-"))
    process.env["XDG_RUNTIME_DIR"] = folder
  })
  afterEach(() => {
    if (before === undefined) delete process.env["XDG_RUNTIME_DIR"]
    else process.env["XDG_RUNTIME_DIR"] = before
    if (process.getuid?.() === 0) process.seteuid?.(0)
    rmSync(folder, { recursive: true })
  })

  it("are made, listed, found and removed", async () => {
    const made = await createNetwork("shop", { subnet: "10.90.0.0/24", internal: true, labels: { of: "us" } })
    assert.deepEqual(made, {
      ...{ name: "shop", subnet: "10.90.0.0/24", gateway: "10.90.0.1", internal: true },
      ...{ labels: { of: "us" }, containers: [] },
    })
    assert.deepEqual(await listNetworks(), [made])
    assert.deepEqual(await openNetwork("shop"), made)
    await assert.rejects(createNetwork("shop"), { code: "ERR_NETWORK_EXISTS" })
    await assert.rejects(createNetwork("other", { subnet: "10.90.0.128/25" }), {
      code: "ERR_NETWORK_SUBNET",
      message: /overlaps the network shop/,
    })
    await removeNetwork("shop")
    await assert.rejects(removeNetwork("shop"), { code: "ERR_NETWORK_NONE" })
    await assert.rejects(openNetwork("shop"), { code: "ERR_NETWORK_NONE" })
    for (const name of ["none", "host", "pasta", "bridge", "", ".a", "a/b", "a".repeat(65)])
      await assert.rejects(createNetwork(name), { code: "ERR_NETWORK_NAME" }, name)
  })

  it("what a keeper that was killed has left keeps nobody from removing one", async () => {
    await createNetwork("shop", { subnet: "10.90.0.0/24" })
    const files = path.join(folder, "sifcrypt", "networks")
    writeFileSync(path.join(files, "members"), "shop 10.90.0.2 web\n")
    await removeNetwork("shop")
    assert.deepEqual(readdirSync(files), [])
  })

  it("stay as long as somebody is in them", async () => {
    await createNetwork("shop", { subnet: "10.90.0.0/24" })
    await createNetwork("other", { subnet: "10.90.1.0/24" })
    const files = path.join(folder, "sifcrypt", "networks")
    writeFileSync(path.join(files, "members"), "shop 10.90.0.2 web\nother 10.90.1.2 web\n")
    const keeper = createServer().listen(path.join(files, "keeper"))
    await once(keeper, "listening")
    try {
      const containers = [{ name: "web", address: "10.90.0.2" }]
      assert.deepEqual((await openNetwork("shop")).containers, containers)
      assert.deepEqual(
        [...(await addressesOf("web"))],
        [
          ["shop", "10.90.0.2"],
          ["other", "10.90.1.2"],
        ],
      )
      await assert.rejects(removeNetwork("shop"), { code: "ERR_NETWORK_BUSY", message: /in use: web$/ })
      // Who has just ended is gone in a moment.
      const removed = removeNetwork("shop")
      await setImmediate()
      writeFileSync(path.join(files, "members"), "other 10.90.1.2 web\n")
      await removed
      assert.deepEqual(
        (await listNetworks()).map(({ name }) => name),
        ["other"],
      )
    } finally {
      keeper.close()
    }
  })

  it("are known to be used wherever their folder is", async () => {
    const long = path.join(folder, "x".repeat(100))
    mkdirSync(long, { mode: 0o700 })
    process.env["XDG_RUNTIME_DIR"] = long
    await createNetwork("shop", { subnet: "10.90.0.0/24" })
    const files = path.join(long, "sifcrypt", "networks")
    writeFileSync(path.join(files, "members"), "shop 10.90.0.2 web\n")
    // A socket's own path cannot be so long.
    const handle = openSync(files, "r")
    const keeper = createServer().listen(`/proc/self/fd/${handle}/keeper`)
    await once(keeper, "listening")
    try {
      await createNetwork("other", { subnet: "10.90.1.0/24" })
      assert.ok(readdirSync(files).includes("keeper"))
      assert.deepEqual((await openNetwork("shop")).containers, [{ name: "web", address: "10.90.0.2" }])
    } finally {
      keeper.close()
      closeSync(handle)
    }
  })

  it("are not made with more labels than can be read again", async () => {
    const labels = { all: "x".repeat(1 << 16) }
    await assert.rejects(createNetwork("shop", { labels }), { code: "ERR_RUN_OPTION", message: /labels/ })
    assert.deepEqual(await listNetworks(), [])
    await createNetwork("shop")
  })

  it("are joined by their names, several at once, with names and addresses there", async () => {
    await createNetwork("shop", { subnet: "10.90.0.0/24" })
    await createNetwork("back", { subnet: "10.90.1.0/24", internal: true })
    const network = [{ name: "shop", aliases: ["www"], address: "10.90.0.9" }, "back"]
    const { connected } = networkOf({ network, networkAlias: ["w"], hostname: "machine", publish: ["81:80"] })
    assert.deepEqual(
      connected?.joined.map(({ name, aliases, address }) => [name, aliases, address]),
      [
        ["shop", ["www", "w", "machine"], "10.90.0.9"],
        ["back", ["w", "machine"], undefined],
      ],
    )
    assert.ok(connected)
    const words = networkArguments(connected, "web", undefined)
    assert.ok(
      words.includes(`--join=shop,${bridgeOf("shop")},10.90.0.0/24,10.90.0.1,,10.90.0.9,www,w,machine`),
    )
    assert.ok(words.includes(`--join=back,${bridgeOf("back")},10.90.1.0/24,10.90.1.1,internal,,w,machine`))
    assert.equal(bridgeOf("shop").length, 14)
    for (const [wrong, why] of [
      [{ network: "missing" }, "ERR_NETWORK_NONE"],
      [{ network: ["shop", "none"] }, "ERR_RUN_OPTION"],
      [{ network: ["shop", "shop"] }, "ERR_RUN_OPTION"],
      [{ network: ["back"], publish: ["81:80"] }, "ERR_RUN_OPTION"],
      [{ network: [{ name: "shop", address: "10.91.0.2" }] }, "ERR_RUN_OPTION"],
      [{ network: [{ name: "shop", aliases: ["a b"] }] }, "ERR_RUN_OPTION"],
      [{ network: "none", networkAlias: ["a"] }, "ERR_RUN_OPTION"],
      [{ networkAlias: ["a"] }, "ERR_RUN_OPTION"],
    ] as const)
      assert.throws(() => networkOf(wrong), { code: why }, JSON.stringify(wrong))
  })
})
