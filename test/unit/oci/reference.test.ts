import assert from "node:assert/strict"
import { parseReference, parseRegistryName, storeFolder, storeName } from "../../../lib/oci/reference.ts"

const hex = "ab".repeat(32)
const digest = `sha256:${hex}`

describe("parseRegistryName", () => {
  for (const [name, host, repository, tag, isPinned] of [
    ["debian", "docker.io", "library/debian", "latest", false],
    ["debian:12", "docker.io", "library/debian", "12", false],
    ["index.docker.io/library/debian", "docker.io", "library/debian", "latest", false],
    ["user/image:v1.0-rc_1", "docker.io", "user/image", "v1.0-rc_1", false],
    ["localhost/image", "localhost", "image", "latest", false],
    ["localhost:5000/a/b/c:t", "localhost:5000", "a/b/c", "t", false],
    ["[::1]:5000/a:t", "[::1]:5000", "a", "t", false],
    ["registry.example.org/a", "registry.example.org", "a", "latest", false],
    [`registry.example.org/a@${digest}`, "registry.example.org", "a", undefined, true],
    [`registry.example.org/a:t@${digest}`, "registry.example.org", "a", "t", true],
  ] as const)
    it(`S13: ${name} leads to ${host}`, () => {
      const found = parseRegistryName(name)
      assert.deepEqual(
        [found.host, found.repository, found.tag, found.digest?.hex],
        [host, repository, tag, isPinned ? hex : undefined],
      )
      // What is shown is complete, and leads to the same.
      const again = parseRegistryName(found.text)
      assert.deepEqual({ ...again }, { ...found })
    })

  for (const name of [
    "",
    "/a",
    "a/",
    "a//b",
    "A",
    "a/../b",
    "a/./b",
    "a:",
    "a:.t",
    `a:${"t".repeat(129)}`,
    `a/${"b".repeat(255)}`,
    "host:99999999/a",
    "user@host.example/a",
    "host.example:5000:1/a",
    "-host.example/a",
    "a b",
    "a\nb",
    "a%2fb",
    `a@${digest}@${digest}`,
  ])
    it(`refuses ${JSON.stringify(name.slice(0, 40))}`, () => {
      assert.throws(() => parseRegistryName(name), { name: "OciError" })
    })
})

describe("parseReference", () => {
  it("takes what has no transport for a path", () => {
    for (const path of ["image.sif", "./oci", "/tmp/docker:x", "C:x", "oci", "folder/oci:x"])
      assert.equal(parseReference(path), undefined, path)
  })

  it("tells layouts and archives apart from what is in them", () => {
    const local = (text: string): unknown => {
      const found = parseReference(text)
      return found === undefined || found.transport === "docker" ? undefined : [found.path, found.selection]
    }
    assert.deepEqual(local("oci:folder"), ["folder", {}])
    assert.deepEqual(local("oci:folder:tag"), ["folder", { name: "tag" }])
    assert.deepEqual(local("oci-archive:/a/b.tar:name:1"), ["/a/b.tar", { name: "name:1" }])
    assert.deepEqual(local("docker-archive:b.tar@2"), ["b.tar", { index: 2 }])
    assert.deepEqual(local("docker-archive:b.tar:@2"), ["b.tar", { index: 2 }])
    assert.equal((local(`oci:b@${digest}`) as [string, { digest: { hex: string } }])[1].digest.hex, hex)
  })

  it("knows what is kept here by the name that it has at a registry, or by its digest", () => {
    const kept = (text: string): unknown => {
      const found = parseReference(text)
      return found?.transport === "store" ? found.selection : undefined
    }
    assert.deepEqual(kept("store:alpine"), { name: "docker.io/library/alpine:latest" })
    assert.deepEqual(kept("store:index.docker.io/a/b:1"), { name: "docker.io/a/b:1" })
    assert.deepEqual(kept("store:localhost:5000/a:1"), { name: "localhost:5000/a:1" })
    assert.deepEqual(kept("store:"), {})
    assert.equal((kept(`store:@${digest}`) as { digest: { hex: string } }).digest.hex, hex)
  })

  for (const name of [
    "store:../x",
    "store:A",
    `store:a@${digest}`,
    "store:@0",
    "oci:",
    "oci::tag",
    "oci:folder:",
    "oci:b@sha256:ab",
    "docker:debian",
    "library://a/b",
    "shub://a/b",
    "unknown://a/b",
  ])
    it(`refuses ${name}`, () => {
      assert.throws(() => parseReference(name), { name: "OciError" })
    })
})

describe("storeFolder", () => {
  it("is where the environment says, or among this user's data", () => {
    assert.equal(storeFolder({ SIFCRYPT_STOREDIR: "/a", XDG_DATA_HOME: "/b", HOME: "/c" }), "/a")
    assert.equal(
      storeFolder({ SIFCRYPT_STOREDIR: "", XDG_DATA_HOME: "/b", HOME: "/c" }),
      "/b/sifcrypt/images",
    )
    assert.equal(storeFolder({ HOME: "/c" }), "/c/.local/share/sifcrypt/images")
  })
})

describe("storeName", () => {
  it("is what an image is called elsewhere, complete, or none", () => {
    assert.equal(storeName("alpine"), "docker.io/library/alpine:latest")
    assert.equal(storeName("registry.example/a:1"), "registry.example/a:1")
    for (const name of [`registry.example/a@${digest}`, "../../etc", "A B", ""])
      assert.equal(storeName(name), undefined, name)
  })
})
