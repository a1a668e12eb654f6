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

const release = path.join(packageRoot, "build", "Release")

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
    for (const name of [...Object.keys(dependencies), "file-uri-to-path"]) {
      const place = path.join(folder, "node_modules", name)
      mkdirSync(path.dirname(place), { recursive: true })
      symlinkSync(path.join(packageRoot, "node_modules", name), place)
    }
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
    const sought = path.join(installed, "prebuilds", `linux-${process.arch}`, "sifcrypt.glibc.node")
    assert.match(
      result.stderr,
      /no native addon for linux-\w+ \(glibc \d+\.\d+, Node \d+\.\d+\.\d+\): neither /,
    )
    assert.ok(result.stderr.includes(sought), result.stderr)
    assert.match(result.stderr, /prebuilds has nothing$/m)
    assert.ok(result.stderr.includes(`cd ${installed} && npm run build:native`), result.stderr)
    const built = `build({ output: ${JSON.stringify(image)}, source: "/etc" })`
    const code = `import { build } from "sifcrypt"; await ${built}.catch((error) => console.log(error.code))`
    assert.equal(await node(code), "ERR_ENV_NO_ADDON")
  })

  it("builds and reads with the prebuilt files in it, imported and required", async () => {
    const prebuilds = path.join(installed, "prebuilds", `${process.platform}-${process.arch}`)
    mkdirSync(prebuilds, { recursive: true })
    for (const [built, prebuilt] of [
      ["sifcrypt.node", "sifcrypt.glibc.node"],
      ["sifcrypt-starter", "sifcrypt-starter.glibc"],
      ["sifcrypt-init", "sifcrypt-init"],
      ["sifcrypt-shell", "sifcrypt-shell"],
    ] as const)
      copyFileSync(path.join(release, built), path.join(prebuilds, prebuilt))
    const output = path.join(folder, "image.sif")
    const keys = testKeys()
    const options = { output, source: makeRootTree(), unlock: [{ key: { file: keys.publicKey } }] }
    await node(`import { build } from "sifcrypt"; await build(${JSON.stringify(options)})`)
    const open = `open(${JSON.stringify(output)}, { unlock: [{ key: { file: ${JSON.stringify(keys.privateKey)} } }] })`
    const read = `const { open } = require("sifcrypt"); ${open}.then(async (image) => {
      console.log((await image.list("/")).length > 0); await image.close() })`
    assert.equal(await node(read, "commonjs"), "true")
  })

  it("says why the dynamic linker refuses what is there", async () => {
    const addon = path.join(
      installed,
      "prebuilds",
      `${process.platform}-${process.arch}`,
      "sifcrypt.glibc.node",
    )
    const whole = readFileSync(addon)
    const other = Buffer.from(whole)
    other.write("libq.so.6", whole.indexOf("libc.so.6\0"), "latin1")
    writeFileSync(addon, other)
    const image = path.join(newFolder("lacking-library"), "image.sif")
    const code = `import { build } from "sifcrypt"
      await build({ output: ${JSON.stringify(image)}, source: "/etc" }).catch((error) => console.log(error.code, error.message))`
    const said = await node(code)
    writeFileSync(addon, whole)
    assert.match(
      said,
      /^ERR_ENV_NO_ADDON the native addon does not load on linux-.*libq\.so\.6: cannot open shared object file/,
    )
  })

  it("says of a file that is no use here what is the matter with it, and loads none that is cut short", async () => {
    const addon = path.join(
      installed,
      "prebuilds",
      `${process.platform}-${process.arch}`,
      "sifcrypt.glibc.node",
    )
    const whole = readFileSync(addon)
    const image = path.join(newFolder("no-use"), "image.sif")
    const said = (): Promise<string> =>
      node(`import { build } from "sifcrypt"
        await build({ output: ${JSON.stringify(image)}, source: "/etc" }).catch((error) => console.log(error.code, error.message))`)
    writeFileSync(addon, whole.subarray(0, whole.length / 2))
    assert.match(await said(), /^ERR_ENV_NO_ADDON \/.*glibc\.node is cut short$/)
    const other = Buffer.from(whole)
    other.writeUInt16LE(process.arch === "x64" ? 183 : 62, 18)
    writeFileSync(addon, other)
    assert.match(await said(), /^ERR_ENV_NO_ADDON \/.*glibc\.node is for \w+, and this is linux-\w+ \(glibc /)
    rmSync(addon)
    mkdirSync(addon)
    assert.match(await said(), /^ERR_ENV_NO_ADDON \/.*glibc\.node cannot be read \(EISDIR\)$/)
    rmSync(addon, { recursive: true })
    writeFileSync(addon, whole)
  })

  it("never loads an addon, nor starts a program, that was made of other sources", async () => {
    const prebuilds = path.join(installed, "prebuilds", `${process.platform}-${process.arch}`)
    const digest = (
      await runProgram(["scripts/native-digest.sh"], { as: "self", cwd: packageRoot })
    ).text.trim()
    const image = path.join(newFolder("other-addon", idOf("user")), "image.sif")
    const command = path.join(installed, "dist", "cli", "main.js")
    await sifcryptOk(["build", image, makeRootTree()])
    for (const [name, args] of [
      ["sifcrypt.glibc.node", ["ls", "--json", image]],
      ["sifcrypt-starter.glibc", ["exec", "--engine", "userspace", image, "true"]],
      ["sifcrypt-init", ["exec", "--engine", "userspace", image, "true"]],
      ["sifcrypt-shell", ["exec", "--engine", "userspace", image, "true"]],
    ] as const) {
      const whole = readFileSync(path.join(prebuilds, name))
      const at = whole.indexOf(digest)
      assert.ok(at > 0, name)
      const other = Buffer.from(whole)
      other.write("0".repeat(64), at, "latin1")
      writeFileSync(path.join(prebuilds, name), other)
      const result = await runProgram([process.execPath, command, ...args], { as: "self" })
      writeFileSync(path.join(prebuilds, name), whole)
      assert.equal(result.status, 24, name)
      assert.match(result.stderr, /was made of other sources \(000000000000\) than this JavaScript/)
      assert.match(result.stderr, /hint: .*npm run build:native/)
      if (args[0] === "ls") assert.match(result.text, /"code": ?"ERR_ENV_STALE_ADDON"/)
    }
  })

  it("is not packed while a binary is missing or stale, nor published before it says where it comes from", async () => {
    const clone = newFolder("to-be-packed")
    for (const name of [
      "lib",
      "native",
      "scripts",
      "dist",
      "build/typescript.tsbuildinfo",
      "package.json",
      "package-lock.json",
      "tsconfig.json",
      "tsconfig.build.json",
      "CMakeLists.txt",
      "binding.gyp",
    ])
      cpSync(path.join(packageRoot, name), path.join(clone, name), { recursive: true })
    const prebuilds = path.join(clone, "prebuilds")
    for (const machine of ["linux-x64", "linux-arm64"]) {
      mkdirSync(path.join(prebuilds, machine), { recursive: true })
      for (const name of [
        "sifcrypt-init",
        "sifcrypt-shell",
        "sifcrypt-starter.glibc",
        "sifcrypt-starter.musl",
      ])
        writeFileSync(path.join(prebuilds, machine, name), name)
      for (const libc of ["glibc", "musl"])
        writeFileSync(path.join(prebuilds, machine, `sifcrypt.${libc}.node`), libc)
    }
    const said = async (...command: readonly string[]): Promise<string> => {
      const { status, stderr } = await runProgram(command, { as: "self", cwd: clone })
      assert.equal(status === 0, stderr === "", stderr)
      return stderr
    }
    const pack = ["npm", "pack", "--silent", "--dry-run"]
    const manifest = "scripts/prebuilds/manifest.mjs"
    assert.match(await said(...pack), /prebuilds\/manifest\.json is missing/)
    assert.equal(await said("node", manifest, "write", prebuilds), "")
    assert.equal(await said(...pack), "")

    // What `npm publish` calls as well.
    const publish = ["npm", "run", "--silent", "prepublishOnly"]
    const url = "https://example.org/sifcrypt"
    const manifestOfNpm = path.join(clone, "package.json")
    const fields = JSON.parse(readFileSync(manifestOfNpm, "utf8")) as object
    const where = { repository: { type: "git", url: `git+${url}.git` }, homepage: url, bugs: { url } }
    for (const [known, answer] of [
      [{}, /no address for repository, homepage, bugs /],
      [{ ...where, bugs: undefined }, /no address for bugs /],
      [where, /^$/],
    ] as const) {
      const nothing = { repository: undefined, homepage: undefined, bugs: undefined }
      writeFileSync(manifestOfNpm, JSON.stringify({ ...fields, ...nothing, ...known }))
      assert.match(await said(...publish), answer)
    }

    // What npm calls.
    const check = ["node", manifest, "check"]
    const starter = path.join(prebuilds, "linux-arm64", "sifcrypt-starter.musl")
    writeFileSync(starter, "another")
    assert.match(
      await said(...check),
      /^npm pack: prebuilds\/linux-arm64\/sifcrypt-starter\.musl is not what the manifest says$/m,
    )
    rmSync(starter)
    assert.match(
      await said(...check),
      /^npm pack: prebuilds\/linux-arm64\/sifcrypt-starter\.musl is missing$/m,
    )
    // dist is one of lib/ only if tsc and what bundles the command have seen the same.
    const isCompiled = async (): Promise<string> => {
      const script = 'import { isCompiled } from "./scripts/dist-sources.mjs"; console.log(isCompiled())'
      const argv = [process.execPath, "--input-type=module", "-e", script]
      return (await runProgram(argv, { as: "self", cwd: clone })).text.trim()
    }
    assert.equal(await isCompiled(), "true")
    const another = path.join(clone, "lib", "another.ts")
    for (const [file, text] of [
      [another, ""],
      [path.join(clone, "lib", "units.ts"), "// changed\n"],
    ] as const) {
      writeFileSync(file, text)
      assert.equal(await isCompiled(), "false")
      assert.match(await said(...check), /^npm pack: dist was made of another lib\/: `npm run build:ts`/m)
      rmSync(another, { force: true })
    }
    writeFileSync(path.join(clone, "native", "addon.cc"), "// changed\n")
    const stale = await said(...check)
    assert.match(stale, /dist was made beside other native sources/)
    assert.match(stale, /the prebuilt files were made of other native sources/)
    rmSync(path.join(clone, "dist"), { recursive: true })
    assert.match(await said(...check), /dist is missing/)
  })

  it("has npm make dist of a git checkout at a release, and of nothing else", async () => {
    const checkout = newFolder("checkout")
    const { scripts } = JSON.parse(readFileSync(path.join(installed, "package.json"), "utf8")) as {
      scripts: { prepare: string }
    }
    writeFileSync(path.join(checkout, "npm"), '#!/bin/sh\necho "$@"\n', { mode: 0o755 })
    const prepared = async (): Promise<string> => {
      const argv = ["env", `PATH=${checkout}:${process.env["PATH"]}`, "sh", "-c", scripts.prepare]
      const { status, text, stderr } = await runProgram(argv, { as: "self", cwd: checkout })
      assert.equal(status, 0, stderr)
      return text
    }
    assert.equal(await prepared(), "")
    for (const folder of ["prebuilds", "dist"]) mkdirSync(path.join(checkout, folder))
    writeFileSync(path.join(checkout, "prebuilds", "manifest.json"), "{}")
    assert.equal(await prepared(), "run build:ts\n")
    writeFileSync(path.join(checkout, "dist", "index.js"), "")
    assert.equal(await prepared(), "")
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
