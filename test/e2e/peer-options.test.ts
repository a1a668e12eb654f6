// Options of the peers that programs give, and what becomes of them here.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { copyFileSync, existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs"
import path from "node:path"
import { sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { underNames } from "../support/names.ts"
import { Registry } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"
import { pulledName } from "../../lib/cli/commands/pull.ts"
import { vectorPath } from "../vectors/load.ts"

const layout = vectorPath("oci/layout")

describe("pull", () => {
  let registry: Registry
  before(async () => {
    registry = await Registry.start()
    await registry.push(`oci:${layout}`, "group/tool:2")
    await registry.push(`oci:${layout}`, "tool:latest")
  })
  after(() => registry[Symbol.asyncDispose]())

  it("names the image in the peers' three ways", async () => {
    const folder = newFolder("pull", userId)
    const source = `docker://${registry.host}/group/tool:2`
    const below = path.join(folder, "below")
    mkdirSync(below, { mode: 0o777 })
    execFileSync("chmod", ["777", below])
    for (const [words, env, made] of [
      [[source], {}, "tool_2.sif"],
      [[`docker://${registry.host}/tool`], {}, "tool_latest.sif"],
      [["given.sif", source], {}, "given.sif"],
      // As snakemake and cwltool ask for it.
      [["--name", "named.simg", source], {}, "named.simg"],
      [["--force", "--name", `${folder}/forced.sif`, source], {}, "forced.sif"],
      [["--dir", "below", source], {}, "below/tool_2.sif"],
      [["other.sif", source], { SINGULARITY_PULLFOLDER: "below" }, "below/other.sif"],
    ] as const) {
      const pulled = await underNames(["singularity", "pull", ...words], { cwd: folder, env })
      assert.equal(pulled.status, 0, pulled.stderr)
      const file = path.join(folder, made)
      assert.equal(statSync(file).mode & 0o111, 0o111, made)
      assert.equal(readFileSync(file).toString("latin1", 0, 30), "#!/usr/bin/env run-singularity")
    }
  })

  it("replaces an image only by force, and nothing if it fails", async () => {
    const folder = newFolder("pull", userId)
    const source = `docker://${registry.host}/tool`
    const pull = (...words: string[]) => sifcrypt(["pull", ...words], { cwd: folder })
    writeFileSync(path.join(folder, "tool_latest.sif"), "mine\n")
    const refused = await pull(source)
    assert.equal(refused.status, 23)
    assert.equal(readFileSync(path.join(folder, "tool_latest.sif"), "utf8"), "mine\n")
    assert.equal((await pull("-F", source)).status, 0)
    assert.equal((await pull(`docker://${registry.host}/none`)).status, 25)
    assert.ok(!existsSync(path.join(folder, "none_latest.sif")))
  })

  it("says of what it does not fetch what to do, and what it is that was named", async () => {
    for (const [source, why] of [
      ["library://lib/image", /library: is not read here; instead: /],
      ["shub://host/image:1", /shub: is not read here; instead: /],
      ["image.sif", /'image\.sif' names no image: docker:\/\/image\.sif would/],
    ] as const) {
      const refused = await sifcrypt(["pull", source], { cwd: newFolder("pull", userId) })
      assert.equal(refused.status, 20, refused.stderr)
      assert.match(refused.stderr, why)
    }
  })

  it("keeps the digest of what was fetched, and inspect shows it", async () => {
    const folder = newFolder("pull", userId)
    const source = `docker://${registry.host}/group/tool:2`
    await sifcryptOk(["pull", source], { cwd: folder })
    const skopeo = ["inspect", "--tls-verify=false", "--format", "{{.Digest}}", source]
    const digest = execFileSync("skopeo", skopeo, { encoding: "utf8" }).trim()
    const shown = await sifcryptOk(["inspect", "tool_2.sif"], { cwd: folder })
    assert.ok(shown.text.includes(`org.opencontainers.image.base.digest: ${digest}\n`), shown.text)
  })

  it("names as the peers do", () => {
    for (const [source, name] of [
      ["docker://alpine", "alpine_latest.sif"],
      ["docker://quay.io:443/a/b/c:1.2-3", "c_1.2-3.sif"],
      ["docker://alpine@sha256:abcd", "alpine@sha256_abcd.sif"],
      ["oci-archive:some/where/image.tar.gz:v1", "image_v1.sif"],
      ["oci:layout", "layout_latest.sif"],
    ] as const)
      assert.equal(pulledName(source), name)
  })
})

describe("options of the peers", () => {
  const folder = newFolder("peer-options", userId)
  const tree = makeRootTree()
  const image = path.join(folder, "image.sif")
  before(() => sifcryptOk(["build", image, tree]))

  it("build takes those that change nothing here, and tells of those that would", async () => {
    const quiet = [
      "-f",
      "--fakeroot",
      "--userns",
      "--writable-tmpfs",
      "--no-cleanup",
      "--ignore-fakeroot-command",
    ]
    const words = [
      ...quiet,
      "--ignore-subuid",
      "--ignore-userns",
      "--nohttps",
      "--library",
      "https://example.org",
    ]
    const built = await sifcrypt(["build", "-F", ...words, "--nvccli", path.join(folder, "a.sif"), tree])
    assert.equal(built.status, 0, built.stderr)
    assert.match(built.stderr, /^sifcrypt: --nvccli changes nothing: .*\n$/)
  })

  it("build takes its compression from words for mksquashfs", async () => {
    const file = path.join(folder, "b.sif")
    const compressor = (): number => {
      const bytes = readFileSync(file)
      // The superblock's field 5, a u16 (squashfs 4.0): 1 is gzip, 4 xz, 6 zstd.
      return bytes.readUInt16LE(bytes.indexOf("hsqs") + 20)
    }
    for (const [words, env, found] of [
      [["--mksquashfs-args", "-comp gzip -Xcompression-level 3 -processors 2"], {}, 1],
      [["--mksquashfs-args=-comp xz -quiet"], {}, 4],
      [["--mksquashfs-args", "-mem 1G"], {}, 6],
      [[], { APPTAINER_MKSQUASHFS_ARGS: "-Xcompression-level 2" }, 1],
    ] as const) {
      await sifcryptOk(["build", "-F", ...words, file, tree], { env })
      assert.equal(compressor(), found, words.join(" "))
    }
    for (const words of ["-comp lzma", "-root-becomes x", "-comp"]) {
      const refused = await sifcrypt(["build", "-F", "--mksquashfs-args", words, file, tree])
      assert.equal(refused.status, 20)
      const byVariable = { SINGULARITY_MKSQUASHFS_ARGS: words }
      assert.equal((await sifcrypt(["build", "-F", file, tree], { env: byVariable })).status, 20)
    }
  })

  it("build --reproducible makes the same image twice", async () => {
    const files = ["c.sif", "d.sif"].map((name) => path.join(folder, name))
    for (const file of files) await sifcryptOk(["build", "--reproducible", file, tree])
    const [one, other] = files.map((file) => readFileSync(file))
    assert.ok(one !== undefined && other !== undefined && one.equals(other))
  })

  it("build --data makes a partition for data, which is bound and is no root", async () => {
    const data = newFolder("data", userId)
    mkdirSync(path.join(data, "sub"))
    writeFileSync(path.join(data, "sub", "file"), "data\n")
    const file = path.join(folder, "data.sif")
    await sifcryptOk(["build", "--data", file, data])
    assert.match((await sifcryptOk(["sif", "list", file])).text, /FS \(Squashfs\/Data\//)
    for (const [bind, inside] of [
      [`${file}:/data:image-src=/`, "/data/sub/file"],
      [`${file}:/data:image-src=/sub`, "/data/file"],
    ] as const) {
      const shown = await sifcryptOk(["exec", "-B", bind, image, "cat", inside])
      assert.equal(shown.text, "data\n")
    }
    assert.equal((await sifcrypt(["exec", file, "echo"])).status, 21)
    for (const words of [
      ["--data", path.join(folder, "x.sif"), image],
      ["--data", "--sandbox", path.join(folder, "x"), data],
    ])
      assert.equal((await sifcrypt(["build", ...words])).status, 25)
  })

  it("build reads a definition from a pipe", async () => {
    const output = path.join(folder, "piped.sif")
    const definition = `Bootstrap: localimage\nFrom: ${image}\n\n%runscript\necho from a pipe\n`
    const script = `exec singularity build --force "$0" <(printf %s "$1")`
    const built = await underNames(["bash", "-c", script, output, definition])
    assert.equal(built.status, 0, built.stderr)
    assert.equal((await sifcryptOk(["run", output])).text, "from a pipe\n")
  })

  it("build takes names of archives as programs write them", async () => {
    const archives = newFolder("archives", userId)
    execFileSync("skopeo", ["copy", `oci:${layout}`, `docker-archive:${archives}/image.tar:a/b:1`], {
      stdio: "ignore",
    })
    copyFileSync(path.join(archives, "image.tar"), path.join(archives, "other"))
    for (const name of [
      "docker-archive://image.tar",
      `docker-archive://${archives}/image.tar`,
      "docker-archive:other",
    ])
      await sifcryptOk(["build", "-F", "e.sif", name], { cwd: archives })
  })

  it("exec takes what is about how an image is fetched or mounted", async () => {
    const words = [
      "--underlay",
      "--nohttps",
      "--no-https",
      "--disable-cache",
      "--no-cleanup",
      "--authfile",
      "none",
    ]
    const done = await sifcrypt(["exec", ...words, image, "echo", "done"])
    assert.deepEqual([done.text, done.stderr], ["done\n", ""])
  })

  it("exec tells of what makes no difference to the payload, and goes on", async () => {
    for (const words of [["--unsquash"], ["--runscript-timeout", "1m"]]) {
      const done = await sifcrypt(["exec", ...words, image, "echo", "done"])
      assert.equal(done.text, "done\n")
      assert.match(done.stderr, new RegExp(`^sifcrypt: ${words[0] ?? ""} changes nothing: `))
    }
    assert.equal((await sifcrypt(["exec", "--unsquash=false", image, "echo"])).stderr, "")
  })

  it("a password on the command line is refused with the reason", async () => {
    for (const words of [
      ["exec", "--docker-username", "me", image, "echo"],
      ["exec", "--docker-password", "secret", image, "echo"],
      ["pull", "--docker-username", "me", "docker://127.0.0.1:1/x"],
      ["build", "--docker-password", "secret", "x.sif", "docker://127.0.0.1:1/x"],
    ]) {
      const refused = await sifcrypt(words, { cwd: folder })
      assert.ok(refused.status === 22 || refused.status === 255, refused.stderr)
      assert.match(refused.stderr, /a password on the command line is everybody's to read/)
      assert.doesNotMatch(refused.stderr, /secret/)
    }
  })
})
