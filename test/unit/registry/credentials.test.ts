import assert from "node:assert/strict"
import { credentialKeys } from "../../../lib/registry/credentials.ts"

describe("credentialKeys", () => {
  it("S14: are of this host alone, the most particular first", () => {
    const keys = credentialKeys("registry.example:5000", "team/project/image")
    assert.deepEqual(keys.slice(0, 4), [
      "registry.example:5000/team/project/image",
      "registry.example:5000/team/project",
      "registry.example:5000/team",
      "registry.example:5000",
    ])
    for (const key of keys) assert.match(key, /^(?:https?:\/\/)?registry\.example:5000(?:\/|$)/)
  })

  it("know Docker Hub by all of its names", () => {
    const keys = credentialKeys("docker.io", "library/debian")
    for (const key of ["docker.io", "https://index.docker.io/v1/", "registry-1.docker.io"])
      assert.ok(keys.includes(key), key)
  })
})
