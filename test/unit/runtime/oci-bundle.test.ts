// The config.json of a bundle whose root is an image.
import assert from "node:assert/strict"
import { RunError } from "../../../lib/errors.ts"
import { BundleConfig, isMadeOfImage } from "../../../lib/runtime/oci-bundle.ts"

function config(value: unknown): BundleConfig {
  return new BundleConfig(
    "config.json",
    Buffer.from(typeof value === "string" ? value : JSON.stringify(value)),
  )
}

function refuses(act: () => unknown, why: RegExp): void {
  assert.throws(
    act,
    (error) => error instanceof RunError && error.code === "ERR_RUN_BUNDLE" && why.test(error.message),
  )
}

describe("the configuration of a bundle", () => {
  it("gets another root, and stays what it was: numbers of all sizes and forms, and what nobody here knows", () => {
    const text =
      '{"ociVersion":"1.0.2","root":{"path":"image.sif","readonly":true},"process":{"args":["\\"18446744073709551615\\"",' +
      '"\\u0000"],"rlimits":[{"hard":18446744073709551615,"soft":1e3,"more":-1.50}]},"__proto__":{"x":1},"ours":[1,2.5,true,null]}'
    assert.equal(
      config(text).withRoot("/session/root", undefined),
      text.replace('"path":"image.sif","readonly":true', '"path":"/session/root","readonly":true'),
    )
    assert.equal(config("{}").withRoot("/r", undefined), '{"root":{"path":"/r"}}')
  })

  it("says what the image is and what opens it, in annotations that are known", () => {
    const annotations = {
      "org.sifcrypt.image": "/images/one.sif",
      "org.sifcrypt.key": "/keys/one.pem",
      "org.sifcrypt.signer": "AB",
      "io.podman.annotations.x": "TRUE",
    }
    assert.deepEqual(config({ annotations }).annotations, {
      ...{ image: "/images/one.sif", key: "/keys/one.pem", signer: "AB" },
    })
    assert.deepEqual(config({}).annotations, {})
    const one = (name: string, value: unknown) => (): unknown =>
      config({ annotations: { [`org.sifcrypt.${name}`]: value } }).annotations
    refuses(one("kee", "/x"), /annotation org\.sifcrypt\.kee is not known: image, key, /)
    refuses(one("key", "x.pem"), /no absolute path: x\.pem/)
    refuses(one("image", ""), /is no text/)
    refuses(one("image", "/a\0b"), /is no text/)
    refuses(one("engine", 1), /is no text/)
  })

  it("names ids as the user namespace has them that the runtime is in", () => {
    const ids = {
      uids: [
        { inside: 0, outside: 1000, count: 1 },
        { inside: 1, outside: 100_000, count: 65_536 },
      ],
      gids: [{ inside: 0, outside: 1000, count: 1 }],
    }
    const linux = {
      namespaces: [{ type: "user" }],
      uidMappings: [
        { containerID: 0, hostID: 1000, size: 1 },
        { containerID: 1, hostID: 100_010, size: 100 },
      ],
      gidMappings: [{ containerID: 0, hostID: 1000, size: 1 }],
    }
    const made = JSON.parse(config({ linux }).withRoot("/r", ids)) as { linux: typeof linux }
    assert.deepEqual(made.linux, {
      namespaces: [{ type: "user" }],
      uidMappings: [
        { containerID: 0, hostID: 0, size: 1 },
        { containerID: 1, hostID: 11, size: 100 },
      ],
      gidMappings: [{ containerID: 0, hostID: 0, size: 1 }],
    })
    assert.equal(config({ linux }).hasManyIds, true)
    assert.equal(config({ linux: { ...linux, uidMappings: linux.gidMappings } }).hasManyIds, false)
    assert.equal(config({}).hasManyIds, false)
    const foreign = { uidMappings: [{ containerID: 0, hostID: 0, size: 1 }] }
    refuses(
      () => config({ linux: foreign }).withRoot("/r", ids),
      /ids of the machine that are not yours: 0, 1 of them/,
    )
  })

  it("says where something is mounted, and what of the machine", () => {
    const mounts = [
      { destination: "/proc", type: "proc", source: "proc" },
      { destination: "/data/../data/x", type: "bind", source: "/srv/x", options: ["rbind"] },
      { destination: "etc/hosts", source: "/run/hosts", options: ["bind", "ro"] },
      { destination: "/relative", type: "bind", source: "x" },
      { destination: "/", type: "tmpfs" },
      { source: "nowhere" },
    ]
    assert.deepEqual(config({ mounts }).places, [
      ["/proc", ""],
      ["/data/x", "/srv/x"],
      ["/etc/hosts", "/run/hosts"],
      ["/relative", ""],
    ])
  })

  it("has a root that was made of an image where an engine keeps those", () => {
    const id = "0123456789abcdef".repeat(4)
    const bundle = `/home/x/store/vfs-containers/${id}/userdata`
    for (const root of [`/home/x/store/vfs/dir/${id}`, "/home/x/store/overlay/y/merged"])
      assert.ok(isMadeOfImage(bundle, root), root)
    for (const root of [`/var/lib/containers/storage/overlay/${id}/merged`, `/srv/btrfs/subvolumes/${id}`])
      assert.ok(isMadeOfImage("/run/bundle", root), root)
    for (const root of ["/home/x/empty", "/home/x/store-of-mine", `/home/x/${id}/rootfs`, "/home/x/store"])
      assert.ok(!isMadeOfImage(bundle, root), root)
  })

  it("is refused where it is none", () => {
    refuses(() => config("{"), /no valid JSON/)
    refuses(() => config("[".repeat(200)), /128 levels/)
    refuses(() => config("[]"), /is no object/)
    refuses(() => config({ root: 1 }).root, /root is no object/)
    refuses(() => config({ root: { path: 1 } }).root, /root\.path is no text/)
    refuses(() => config({ mounts: {} }).places, /mounts is no list/)
    refuses(() => config({ mounts: Array<object>(4097).fill({}) }).places, /4097 mounts, more than 4096/)
    refuses(() => config({ mounts: [{ destination: "/a\0/b" }] }).places, /a zero byte/)
    refuses(
      () => config({ mounts: [{ destination: "/a", type: "bind", source: "/b\0" }] }).places,
      /a zero byte/,
    )
    refuses(
      () => new BundleConfig("config.json", Buffer.from('{"a":"\xe9"}', "latin1")),
      /no valid JSON: .*utf-8/,
    )
    refuses(() => config({ linux: { uidMappings: [{ hostID: -1 }] } }).hasManyIds, /no list of id mappings/)
  })
})
