// A program that becomes the starter of its payload.
import assert from "node:assert/strict"
import { once } from "node:events"
import path from "node:path"
import { pathToFileURL } from "node:url"
import { finish, idOf, packageRoot, sifcryptOk, startProgram } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

describe("a program that is replaced", () => {
  const image = path.join(newFolder("handover", idOf("user")), "image.sif")

  before(async () => {
    await sifcryptOk(["build", image, makeRootTree()])
  })

  it("passes a signal on that comes when nothing of it listens any more", async () => {
    const library = pathToFileURL(path.join(packageRoot, "dist", "index.js")).href
    const program = `
      import { open } from ${JSON.stringify(library)}
      const caught = new AbortController()
      process.on("SIGTERM", () => caught.abort())
      process.on("exit", () => {
        process.stderr.write("replaced\\n")
        for (const start = Date.now(); Date.now() - start < 500; );
      })
      const image = await open(${JSON.stringify(image)})
      await image.exec(["sleep", "20"], {
        engine: "userspace",
        stdio: "inherit",
        signal: caught.signal,
        replaceProcess: { file: process.execPath, args: ["-e", ""], env: {} },
      })`
    const child = startProgram([process.execPath, "--input-type=module", "-e", program])
    const ended = finish(child)
    await once(child.stderr ?? assert.fail(), "data")
    child.kill("SIGTERM")
    assert.equal((await ended).signal, "SIGTERM")
  })
})
