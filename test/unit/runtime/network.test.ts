import assert from "node:assert/strict"
import { networkOf, parsePublication } from "../../../lib/runtime/network.ts"

const option = { code: "ERR_RUN_OPTION" }

describe("parsePublication", () => {
  it("reads addresses, ports, ranges and protocols", () => {
    const one = { protocol: "tcp", address: "0.0.0.0", machinePort: 8080, containerPort: 80, count: 1 }
    assert.deepEqual(parsePublication("8080:80"), one)
    assert.deepEqual(parsePublication("8080:80/tcp"), one)
    assert.deepEqual(parsePublication("127.0.0.1:8080:80/udp"), {
      ...one,
      protocol: "udp",
      address: "127.0.0.1",
    })
    assert.deepEqual(parsePublication("65000-65535:1-536"), {
      ...one,
      machinePort: 65_000,
      containerPort: 1,
      count: 536,
    })
  })
  it("refuses everything else", () => {
    for (const text of [
      ...["", "80", ":80", "80:", "8080:80:", "1:2:3", "::1:8080:80", "[::1]:8080:80", "localhost:8080:80"],
      ...["1.2.3.4.5:1:2", "127.0.0.1:1:2:3", "0:80", "80:0", "65536:80", "80:65536", "9-8:9-8", "1-2:1-3"],
      ...["-1:1", "1-:1-", "a:b", "1e3:1", "0x1:1", "8080:80/sctp", "8080:80/", "8080:80/tcp/udp", "1 :1"],
      ...["127.0.0.1,-t,all:1:1", "1:1,2:2", "65535-65536:1-2", "080808:1"],
    ])
      assert.throws(() => parsePublication(text), option, text)
  })
})

describe("networkOf", () => {
  it("is the machine's unless something else is asked for", () => {
    assert.deepEqual(networkOf({}), { namespaces: [] })
    assert.deepEqual(networkOf({ network: "host" }), { namespaces: [] })
    assert.deepEqual(networkOf({ net: true, network: "none" }), { namespaces: [{ type: "network" }] })
    for (const options of [{ net: true }, { network: "bridge" }, { network: "pasta" }])
      assert.deepEqual(networkOf(options), { namespaces: [], connected: { published: [], joined: [] } })
  })
  it("takes the peers' words for ports", () => {
    const { connected } = networkOf({ publish: ["1:2"], networkArgs: ["portmap=3:4/udp"] })
    assert.deepEqual(
      connected?.published.map(({ machinePort, protocol }) => [machinePort, protocol]),
      [
        [1, "tcp"],
        [3, "udp"],
      ],
    )
    assert.throws(() => networkOf({ networkArgs: ["IP=10.22.0.7"] }), option)
  })
  it("refuses what contradicts itself, and a port that leads to two places", () => {
    for (const options of [
      { network: "host", net: true },
      { network: "host", publish: ["1:1"] },
      { network: "none", publish: ["1:1"] },
      { netnsPath: "/proc/self/ns/net", publish: ["1:1"] },
      { netnsPath: "/proc/self/ns/net", net: true },
      { netnsPath: "/etc" },
      { publish: ["1:1", "1:2"] },
      { publish: ["127.0.0.1:1:1", "1:2"] },
      { publish: ["5-9:5-9", "127.0.0.1:9:2"] },
      { publish: Array.from({ length: 257 }, (_, at) => `${at + 1}:${at + 1}`) },
    ])
      assert.throws(() => networkOf(options), option, JSON.stringify(options))
    for (const publish of [
      ["1:1", "1:1/udp"],
      ["127.0.0.1:1:1", "127.0.0.2:1:1"],
      ["5-9:5-9", "10:10"],
    ])
      assert.equal(networkOf({ publish }).connected?.published.length, 2)
  })
})
