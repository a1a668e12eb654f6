// The bundle of a run, from a tree that is only told about.
import assert from "node:assert/strict"
import { mkdtempSync, realpathSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { confine } from "../../../lib/runtime/confinement.ts"
import type { Tree } from "../../../lib/device/tree.ts"
import { composeBinds, type Bind } from "../../../lib/runtime/binds.ts"
import { chooseSession, makeBundle, type BundleOptions } from "../../../lib/runtime/bundle.ts"

/** What the tests read of crun's configuration. */
interface Config {
  readonly root: { readonly readonly: boolean }
  readonly process: {
    readonly args: readonly string[]
    readonly env: readonly string[]
    readonly cwd: string
    readonly noNewPrivileges: boolean
    readonly user: { readonly uid: number; readonly gid: number; readonly umask: number }
    readonly capabilities: Readonly<Record<string, readonly string[]>>
  }
  readonly mounts: readonly {
    readonly destination: string
    readonly type: string
    readonly source: string
    readonly options: readonly string[]
  }[]
  readonly linux: { readonly uidMappings: unknown; readonly gidMappings: unknown }
  readonly hooks?: unknown
}

/** A tree of the named files; undefined stands for a folder, `-> x` for a link. */
function treeOf(files: Readonly<Record<string, string | undefined>>): Tree {
  const find = (name: string, follow: boolean): Promise<object | undefined> => {
    if (!(name in files)) return Promise.resolve(undefined)
    const content = files[name]
    if (content === undefined) return Promise.resolve({ type: "directory", size: 0 })
    if (!content.startsWith("-> ")) return Promise.resolve({ type: "file", size: content.length })
    return follow
      ? find(content.slice(3), true)
      : Promise.resolve({ type: "symlink", size: content.length - 3 })
  }
  const read = (name: string, position: number, length: number): Promise<Buffer> =>
    Promise.resolve(Buffer.from(files[name] ?? "").subarray(position, position + length))
  return { find, read } as unknown as Tree
}

type Changes = Partial<BundleOptions> & { readonly binds?: readonly Bind[] }

const folders = { "/etc": undefined, "/dev": undefined, "/proc": undefined, "/sys": undefined }

describe("makeBundle", () => {
  let home: string
  beforeEach(() => {
    home = realpathSync(mkdtempSync(path.join(tmpdir(), "sifcrypt-unit-")))
  })
  afterEach(() => {
    rmSync(home, { recursive: true })
  })

  /** `binds` are the caller's own; the defaults are added. */
  function options({ binds = [], ...changes }: Changes = {}): BundleOptions {
    return {
      tree: treeOf(folders),
      image: "/images/tool.sif",
      action: "exec",
      argv: ["true", "a b"],
      identity: { uid: 1000, gid: 2000, name: "ada", group: "staff", home, shell: "/bin/sh" },
      hostCwd: home,
      places: composeBinds(
        { uid: 1000, gid: 2000, home, cwd: changes.hostCwd ?? home },
        binds,
        changes.asked,
      ),
      session: "/mnt",
      environment: {
        host: new Map([["A", "host"]]),
        others: new Map([["a.b", "1"]]),
        overrides: new Map([["B", "it's"]]),
      },
      terminal: undefined,
      umask: 0o22,
      init: "",
      shell: "/opt/sifcrypt-shell",
      confinement: confine({}, { uid: 1000, gid: 2000, groups: [] }, false),
      writableRoot: false,
      resources: {},
      cgroupsPath: undefined,
      ...changes,
    }
  }

  async function make(changes: Changes = {}): Promise<{ config: Config; files: Map<string, string> }> {
    const bytes = await makeBundle(options(changes))
    const files = new Map<string, string>()
    for (let at = 0; at < bytes.length;) {
      const end = bytes.indexOf(0x0a, at)
      const [, size = "", name = ""] = /^[0-7]+ (\d+) (.+)$/.exec(bytes.toString("utf8", at, end)) ?? []
      files.set(name, bytes.toString("utf8", end + 1, end + 1 + Number(size)))
      at = end + 1 + Number(size)
    }
    return { config: JSON.parse(files.get("config.json") ?? "") as Config, files }
  }

  it("starts the program through the entry script, as the caller, without new privileges", async () => {
    const { config, files } = await make()
    assert.deepEqual(config.process.args, ["/.sifcrypt/shell", "/.sifcrypt/entry", "exec", "true", "a b"])
    assert.equal(config.process.noNewPrivileges, true)
    assert.equal(config.process.user.uid, 1000)
    assert.equal(config.process.user.gid, 2000)
    assert.equal(config.process.user.umask, 0o22)
    assert.equal(config.process.cwd, home)
    assert.equal(config.root.readonly, true)
    assert.deepEqual([...files.keys()].sort(), [
      "binds",
      "config.json",
      "entry",
      "group",
      "host.sh",
      "overrides.sh",
      "passwd",
      "places",
      "shell",
    ])
    assert.equal(files.get("overrides.sh"), `export B='it'"'"'s'\n`)
    assert.match(files.get("passwd") ?? "", /^ada:x:1000:2000:/m)
  })

  it("gives an ordinary user a user namespace of two numbers and no capability", async () => {
    const { config } = await make()
    assert.deepEqual(config.linux.uidMappings, [{ containerID: 1000, hostID: 0, size: 1 }])
    assert.deepEqual(config.linux.gidMappings, [{ containerID: 2000, hostID: 0, size: 1 }])
    assert.deepEqual(new Set(Object.values(config.process.capabilities).flat()), new Set())
    assert.equal(config.hooks, undefined)
  })

  it("CVE-2025-31133, CVE-2025-52881: masks nothing of /proc, and has nothing written to it", async () => {
    const { config } = await make()
    for (const name of ["maskedPaths", "readonlyPaths", "sysctl"])
      assert.ok(!Object.hasOwn(config.linux, name), `crun is told of ${name}`)
  })

  it("S7: mounts everything nosuid, and nothing but binds", async () => {
    const { config, files } = await make({ binds: [{ source: home, destination: "/in", readOnly: true }] })
    for (const mount of config.mounts) {
      assert.equal(mount.type, "none")
      assert.ok(mount.options.includes("nosuid"), mount.destination)
      assert.ok(mount.options.includes("bind") || mount.options.includes("rbind"), mount.destination)
    }
    const own = config.mounts.find((mount) => mount.destination === "/in")
    assert.ok(own?.options.includes("ro") && own.options.includes("nodev"))
    // The starter binds it there, with its flags.
    const number = Number(/\/bound\/(\d+)$/.exec(own?.source ?? "")?.[1])
    const words = (files.get("binds") ?? "").split("\0")
    assert.deepEqual(words.slice(3 * number, 3 * number + 3), ["", home, "r"])
  })

  for (const folder of ["/dev", "/proc", "/sys", "/etc"])
    for (const [what, content] of [
      ["a link", "-> /elsewhere"],
      ["a file", "text"],
    ] as const)
      it(`refuses an image whose ${folder} is ${what}`, async () => {
        await assert.rejects(make({ tree: treeOf({ ...folders, [folder]: content }) }), {
          name: "RunError",
          code: "ERR_RUN",
          message: `/images/tool.sif: ${folder} in the image is no folder but a ${what === "a link" ? "symlink" : "file"}`,
        })
      })

  it("has the image's scripts interpreted by a file of the machine, whatever the image has", async () => {
    for (const action of ["exec", "run", "shell", "test", "start"] as const) {
      const { config } = await make({ tree: treeOf({ "/etc": undefined }), action })
      assert.deepEqual(config.process.args.slice(0, 3), ["/.sifcrypt/shell", "/.sifcrypt/entry", action])
      const mount = config.mounts.find(({ destination }) => destination === "/.sifcrypt/shell")
      assert.equal(mount?.source, "/opt/sifcrypt-shell")
      assert.deepEqual(mount.options, ["bind", "ro", "nosuid", "nodev"])
    }
  })

  it("tells the payload the image's name and place, and no variable of the caller", async () => {
    const { config } = await make()
    assert.deepEqual(
      config.process.env.filter((line) => line.startsWith("APPTAINER")),
      ["APPTAINER_NAME=tool.sif", "APPTAINER_CONTAINER=/images/tool.sif"],
    )
    assert.ok(!config.process.env.includes("A=host"))
    assert.ok(config.process.env.includes("a.b=1"))
  })

  it("starts in the folder that is asked for, if it is there", async () => {
    const tree = treeOf({ ...folders, "/data": undefined, "/file": "x" })
    for (const cwd of ["/data/../data", "data", "./data/", "../data"])
      assert.equal((await make({ tree, asked: { cwd } })).config.process.cwd, "/data", cwd)
    for (const cwd of ["/missing", "/file", "work"])
      await assert.rejects(make({ tree, asked: { cwd } }), {
        code: "ERR_RUN",
        message: /there is no folder .* inside/,
      })
  })

  it("merges the image's users and groups", async () => {
    const tree = treeOf({
      ...folders,
      "/etc/passwd": "root:x:0:0::/root:/bin/sh\n",
      "/etc/group": "root:x:0:\n",
    })
    const { files } = await make({ tree })
    assert.match(files.get("passwd") ?? "", /^root:x:0:0::\/root:\/bin\/sh\nada:/)
    assert.match(files.get("group") ?? "", /^root:x:0:\nstaff:/)
  })

  it("needs no tree where what is inside is not known before", async () => {
    const { config } = await make({ tree: undefined })
    assert.equal(config.process.args[0], "/.sifcrypt/shell")
  })
})

describe("chooseSession", () => {
  it("finds a folder that is not bound into the container", () => {
    const session = chooseSession(["/", "/tmp", "/home"])
    assert.notEqual(chooseSession([session]), session)
    assert.notEqual(chooseSession([`${session}/below`]), session)
  })

  it("S17: does not mind a bind whose name only starts like the folder", () => {
    const session = chooseSession([])
    assert.equal(chooseSession([`${session}2`, `${session}.d/x`]), session)
  })

  it("refuses when every folder is bound", () => {
    const all = ["/mnt", "/media", "/srv", "/opt", "/var", "/usr", "/boot"]
    assert.throws(() => chooseSession(all), {
      name: "RunError",
      code: "ERR_RUN",
      message: /can hold the session/,
    })
  })
})
