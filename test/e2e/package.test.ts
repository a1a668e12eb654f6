// What users install: the packed tarball, unpacked where nothing was built.
import assert from "node:assert/strict"
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { cli, idOf, packageRoot, runProgram, sifcryptOk } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { brokenLinks } from "../support/links.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

describe("the package", () => {
  let folder: string
  let installed: string
  const node = async (script: string, kind: "module" | "commonjs" = "module"): Promise<string> => {
    const input = `--input-type=${kind}`
    const result = await runProgram([process.execPath, input, "-e", script], { as: "self", cwd: folder })
    assert.equal(result.status, 0, result.stderr)
    return result.text.trim()
  }

  before(async () => {
    folder = newFolder("installed")
    const packed = await runProgram(
      ["npm", "pack", "--ignore-scripts", "--json", "--pack-destination", folder],
      {
        as: "self",
        cwd: packageRoot,
      },
    )
    assert.equal(packed.status, 0, packed.stderr)
    const [{ filename }] = JSON.parse(packed.text) as [{ filename: string }]
    await runProgram(["tar", "xf", filename], { as: "self", cwd: folder })
    installed = path.join(folder, "node_modules", "sifcrypt")
    mkdirSync(path.dirname(installed))
    cpSync(path.join(folder, "package"), installed, { recursive: true })
    rmSync(path.join(installed, "prebuilds"), { recursive: true, force: true })
    const { dependencies } = JSON.parse(readFileSync(path.join(packageRoot, "package.json"), "utf8")) as {
      dependencies: Record<string, string>
    }
    for (const name of [...Object.keys(dependencies), "file-uri-to-path"])
      symlinkSync(path.join(packageRoot, "node_modules", name), path.join(folder, "node_modules", name))
  })

  it("reads tables without anything native", async () => {
    const image = path.join(packageRoot, "test", "vectors", "sif", "one-object-crypt-message.sif")
    const opened = `await sif.openSif(${JSON.stringify(image)})`
    assert.equal(await node(`import { sif } from "sifcrypt"; console.log((${opened}).objects.length)`), "1")
  })

  it("imports no file that is not there", () => {
    const dist = path.join(installed, "dist")
    const files = readdirSync(dist, { recursive: true, encoding: "utf8" }).filter(
      (name) => name.endsWith(".js") && !name.startsWith("cli/"),
    )
    assert.ok(files.length > 150, String(files.length))
    const missing = files.flatMap((name) =>
      [...readFileSync(path.join(dist, name), "utf8").matchAll(/(?:from |import\()"(\.[^"]+)"/g)]
        .map(([, to = ""]) => path.join(dist, path.dirname(name), to))
        .filter((to) => !existsSync(to))
        .map((to) => `${name} → ${to}`),
    )
    assert.deepEqual(missing, [])
  })

  it("has what its documents link to", () => {
    const pages = readdirSync(installed, { recursive: true, encoding: "utf8" }).filter((name) =>
      name.endsWith(".md"),
    )
    assert.ok(pages.includes("README.md") && pages.includes("docs/guide/keys.md"))
    assert.deepEqual(
      pages.flatMap((page) => brokenLinks(installed, page).map((link) => `${page}: ${link}`)),
      [],
    )
  })

  it("says what is missing and what to do where there is no addon", async () => {
    const image = path.join(newFolder("no-addon"), "image.sif")
    const command = path.join(installed, "dist", "cli", "main.js")
    const result = await runProgram([process.execPath, command, "build", image, makeRootTree()], {
      as: "self",
    })
    assert.equal(result.status, 24)
    assert.match(result.stderr, /no native addon for linux-/)
    assert.match(result.stderr, /hint: /)
    const built = `build({ output: ${JSON.stringify(image)}, source: "/etc" })`
    const code = `import { build } from "sifcrypt"; await ${built}.catch((error) => console.log(error.code))`
    assert.equal(await node(code), "ERR_ENV_NO_ADDON")
  })

  it("builds and reads with the prebuilt files in it, imported and required", async () => {
    const prebuilds = path.join(installed, "prebuilds", `${process.platform}-${process.arch}`)
    mkdirSync(prebuilds, { recursive: true })
    const release = path.join(packageRoot, "build", "Release")
    copyFileSync(path.join(release, "sifcrypt.node"), path.join(prebuilds, "sifcrypt.glibc.node"))
    for (const program of ["sifcrypt-starter", "sifcrypt-init", "sifcrypt-shell"])
      copyFileSync(path.join(release, program), path.join(prebuilds, `${program}.glibc`))
    const output = path.join(folder, "image.sif")
    const keys = testKeys()
    const options = { output, source: makeRootTree(), unlock: [{ key: { file: keys.publicKey } }] }
    await node(`import { build } from "sifcrypt"; await build(${JSON.stringify(options)})`)
    const open = `open(${JSON.stringify(output)}, { unlock: [{ key: { file: ${JSON.stringify(keys.privateKey)} } }] })`
    const read = `const { open } = require("sifcrypt"); ${open}.then(async (image) => {
      console.log((await image.list("/")).length > 0); await image.close() })`
    assert.equal(await node(read, "commonjs"), "true")
  })

  it("has the command that the tests run", () => {
    for (const name of ["main.js", "command.js", "run.js"]) {
      const file = path.join(installed, "dist", "cli", name)
      assert.deepEqual(readFileSync(file), readFileSync(path.join(path.dirname(cli), name)))
    }
  })

  it("brings no compiled code of V8's, which is one machine's", () => {
    const files = readdirSync(path.join(installed, "dist"), { recursive: true, encoding: "utf8" })
    assert.deepEqual(
      files.filter(
        (file) =>
          !/\.(?:js|d\.ts|json|1)$|^cli\/completion\//.test(file) &&
          !statSync(path.join(installed, "dist", file)).isDirectory(),
      ),
      [],
    )
  })

  it("loads nothing for an exec that takes time and that it has no use for", async () => {
    const place = newFolder("loaded", idOf("user"))
    const image = path.join(place, "image.sif")
    const keys = testKeys()
    await sifcryptOk(["build", "--pem-path", keys.publicKey, image, makeRootTree()])
    const hook = path.join(place, "hook.cjs")
    const list = path.join(place, "list")
    const write = `require("node:fs").writeFileSync(${JSON.stringify(list)}, process.moduleLoadList.join("\\n"))`
    writeFileSync(hook, `process.on("exit", () => ${write})`)
    const options = ["--engine", "userspace", "--pem-path", keys.privateKey]
    const exec = ["exec", ...options, image, "/bin/echo", "started"]
    await sifcryptOk(exec) // after the first, which writes the code cache
    const result = await runProgram([process.execPath, "--require", hook, cli, ...exec])
    assert.equal(result.text, "started\n", result.stderr)
    const loaded = readFileSync(list, "utf8").split("\n")
    assert.ok(loaded.includes("NativeModule crypto"))
    for (const name of [
      "child_process",
      "dns",
      "http",
      "https",
      "net",
      "tls",
      "v8",
      "worker_threads",
      "zlib",
    ])
      assert.equal(loaded.includes(`NativeModule ${name}`), false, name)
  })
})
