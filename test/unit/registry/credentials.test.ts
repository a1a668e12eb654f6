import assert from "node:assert/strict"
import { chmodSync, existsSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { credentialKeys, findCredential } from "../../../lib/registry/credentials.ts"
import { waitFor } from "../../support/processes.ts"
import { newFolder } from "../../support/scratch.ts"

describe("findCredential", () => {
  it("ends a helper that does not answer when it is interrupted", async () => {
    const folder = newFolder("helper")
    const [program = "", authFile = "", started = ""] = ["docker-credential-slow", "auth.json", "pid"].map(
      (name) => path.join(folder, name),
    )
    writeFileSync(
      program,
      `#!/bin/sh\necho $$ >'${started}.new'\nmv '${started}.new' '${started}'\nexec sleep 300\n`,
    )
    chmodSync(program, 0o755)
    writeFileSync(authFile, JSON.stringify({ credsStore: "slow" }))
    const controller = new AbortController()
    const environment = { PATH: `${folder}:${process.env["PATH"] ?? ""}` }
    const found = findCredential({ authFile, environment, signal: controller.signal }, "example.org", "a")
    await waitFor("the helper", () => existsSync(started))
    const reason = new Error("interrupted")
    controller.abort(reason)
    await assert.rejects(found, reason)
    const pid = readFileSync(started, "latin1").trim()
    await waitFor("its end", () => !existsSync(`/proc/${pid}/cmdline`))
  })
})

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
