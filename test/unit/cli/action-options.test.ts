// The options of exec, run, shell and test: flags, the variables that stand for them, and which counts.
import assert from "node:assert/strict"
import { Command } from "commander"
import { actionOptions, actionRows } from "../../../lib/cli/action-options.ts"
import { addOptions } from "../../../lib/cli/command.ts"
import { parseCsv } from "../../../lib/cli/csv.ts"
import { parseMountSpec } from "../../../lib/cli/mount-spec.ts"
import { errors } from "../../../lib/cli/output.ts"
import type { ExecOptions } from "../../../lib/index.ts"

function parse(
  args: readonly string[],
  variables: Readonly<Record<string, string>> = {},
  name: string = "exec",
): ExecOptions {
  const command = addOptions(new Command(name), actionRows(name)).argument("<image>").passThroughOptions()
  command.parse([...args, "image.sif"], { from: "user" })
  return actionOptions(name, command.opts(), variables)
}

/** What is said on standard error meanwhile. */
function saying(run: () => void): string {
  const stream = errors()
  let said = ""
  Object.assign(stream, {
    write: (chunk: string) => {
      said += chunk
      return true
    },
  })
  try {
    run()
  } finally {
    // What the prototype has is seen again.
    Reflect.deleteProperty(stream, "write")
  }
  return said
}

describe("actionOptions", () => {
  it("is empty where nothing is asked for", () => {
    assert.deepEqual(parse([]), {})
  })

  it("takes an empty word for none, which hides a variable, where the peers do", () => {
    const options = ["cwd", "pwd", "workdir", "hostname", "app", "network", "apply-cgroups", "env-file"]
    const limits = ["memory", "memory-swap", "cpus", "cpuset-cpus"]
    for (const name of [...options, ...limits]) assert.deepEqual(parse([`--${name}`, ""]), {}, name)
    assert.deepEqual(parse(["--fusemount", "", "--device", ""]), {})
    assert.deepEqual(parse(["-W", ""], { SINGULARITY_WORKDIR: "/x" }), {})
    assert.deepEqual(parse(["--home", ""]), { home: "" })
    for (const name of ["pids-limit", "cpu-shares", "blkio-weight"])
      assert.throws(() => parse([`--${name}`, ""]), { code: "ERR_RUN_OPTION" })
  })

  it("reads flags, words, lists and numbers", () => {
    assert.deepEqual(
      parse([
        ...["-c", "-e", "--no-home", "--no-umask", "-H", "/a:/b", "--no-pid", "-p"],
        ...["-S", "/x,/y", "-S", "/z", "--dns", "1.1.1.1, 8.8.8.8", "--cpus", "1.5", "--pids-limit", "-1"],
        ...["--memory", "1.5g", "--memory-swap", "-1"],
      ]),
      {
        contain: true,
        cleanEnv: true,
        noHome: true,
        noUmask: true,
        home: "/a:/b",
        noPid: true,
        pid: true,
        scratch: ["/x", "/y", "/z"],
        dns: ["1.1.1.1", "8.8.8.8"],
        cpus: 1.5,
        pidsLimit: -1,
        memory: 1.5 * 2 ** 30,
        memorySwap: -1,
      },
    )
  })

  it("keeps --home and --no-home, --pid and --no-pid apart", () => {
    assert.deepEqual(parse(["--no-home"]), { noHome: true })
    assert.deepEqual(parse(["--home", "/x"]), { home: "/x" })
    assert.deepEqual(parse(["--no-pid"]), { noPid: true })
  })

  it("reads --env: a comma ends a value only where an assignment follows", () => {
    const env = (...texts: string[]): ExecOptions["env"] => parse(texts.flatMap((one) => ["--env", one])).env
    assert.deepEqual(env("A=1"), ["A=1"])
    assert.deepEqual(env("A=1,B=2", "C=3"), ["A=1", "B=2", "C=3"])
    assert.deepEqual(env("A=x,y"), ["A=x,y"])
    assert.deepEqual(env("A=x,y,B=z"), ["A=x,y", "B=z"])
    assert.deepEqual(env('"A=1,B=2"'), ["A=1,B=2"])
    assert.deepEqual(env('A=1,"B=2,C=""3"""'), ["A=1", 'B=2,C="3"'])
    assert.deepEqual(env('A={"k": 1}'), ['A={"k": 1}'])
    assert.deepEqual(env("A=a=b"), ["A=a=b"])
  })

  it("takes a variable of each family, ours first, where there is no flag", () => {
    assert.deepEqual(parse([], { SINGULARITY_WORKDIR: "/s" }), { workdir: "/s" })
    const said = saying(() => {
      assert.deepEqual(parse([], { SINGULARITY_WORKDIR: "/s", APPTAINER_WORKDIR: "/a" }), { workdir: "/a" })
    })
    assert.match(said, /SINGULARITY_WORKDIR and APPTAINER_WORKDIR have different values: the latter counts/)
    assert.equal(
      saying(() => {
        const variables = { SIFCRYPT_WORKDIR: "/a", APPTAINER_WORKDIR: "/a" }
        assert.deepEqual(parse([], variables), { workdir: "/a" })
        assert.deepEqual(parse(["-W", "/flag"], { APPTAINER_WORKDIR: "/a" }), { workdir: "/flag" })
      }),
      "",
    )
  })

  it("takes blank variables for none, and the first of several names", () => {
    assert.deepEqual(parse([], { APPTAINER_CONTAIN: " ", APPTAINER_SCRATCH: "" }), {})
    assert.deepEqual(parse([], { APPTAINER_OVERLAY: "/a , /b", APPTAINER_OVERLAYIMAGE: "/c" }), {
      overlay: ["/a", "/b"],
    })
    assert.deepEqual(parse([], { APPTAINER_TARGET_PWD: "/p", SINGULARITY_CWD: "/c" }), { cwd: "/c" })
  })

  it("adds binds of variables and of --mount to those of --bind", () => {
    const variables = {
      APPTAINER_BIND: "/b",
      APPTAINER_BINDPATH: "/c",
      SINGULARITY_MOUNT: "type=bind,src=/m,dst=/n\ntype=bind,src=/o,dst=/p,ro",
    }
    assert.deepEqual(parse(["--mount", "type=bind,source=/d,target=/e", "-B", "/a,/x"], variables).binds, [
      "/a,/x",
      "/b",
      "/c",
      { source: "/d", destination: "/e", readOnly: false, nested: true },
      { source: "/m", destination: "/n", readOnly: false, nested: true },
      { source: "/o", destination: "/p", readOnly: true, nested: true },
    ])
  })

  it("reads flags of variables as Go does", () => {
    for (const word of ["1", "t", "true", "TRUE"])
      assert.deepEqual(parse([], { SINGULARITY_CONTAIN: word }), { contain: true })
    assert.deepEqual(parse([], { SINGULARITY_CONTAIN: "0" }), { contain: false })
    assert.throws(() => parse([], { APPTAINER_CONTAIN: "yes" }), {
      code: "ERR_RUN_OPTION",
      message: /--contain: yes is neither true nor false/,
    })
  })

  it("has --shell for shell alone", () => {
    assert.deepEqual(parse(["-s", "/bin/zsh"], {}, "shell"), { shell: "/bin/zsh" })
    assert.deepEqual(parse([], { APPTAINER_SHELL: "/bin/zsh" }, "shell"), { shell: "/bin/zsh" })
    assert.deepEqual(parse([], { APPTAINER_SHELL: "/bin/zsh" }), {})
  })

  it("has --preserve-fds for all that are waited for", () => {
    assert.deepEqual(parse(["--preserve-fds", "2"], {}, "exec"), { preserveFds: 2 })
    assert.deepEqual(parse(["--preserve-fds", "5,9"], {}, "exec"), { preserveFds: [5, 9] })
    assert.deepEqual(parse(["--preserve-fd", "9"], {}, "exec"), { preserveFds: [9] })
    assert.deepEqual(parse(["--preserve-fd=9,5", "--preserve-fd", "7"], {}, "exec"), {
      preserveFds: [9, 5, 7],
    })
    assert.deepEqual(parse([], { SIFCRYPT_PRESERVE_FDS: "2", SIFCRYPT_PRESERVE_FD: "2" }, "exec"), {})
    const { options } = addOptions(new Command("start"), actionRows("instance"))
    assert.ok(options.every((option) => option.name() !== "preserve-fds"))
  })

  it("has a variable for every option but --env and --preserve-fds, and none twice", () => {
    // What the peers name otherwise than the flag.
    const others: Readonly<Record<string, string>> = {
      "no-env": "NOENV",
      "no-init": "NOSHIMINIT",
      "no-nv": "NV_OFF",
      "no-rocm": "ROCM_OFF",
    }
    const command = addOptions(new Command("shell"), actionRows("shell"))
    for (const option of command.options) {
      const long = option.name()
      if (long === "env" || long.startsWith("preserve-fd") || option.hidden) continue
      const key = others[long] ?? long.toUpperCase().replaceAll("-", "_")
      const value = long === "mount" ? "type=bind,src=/a,dst=/b" : option.isBoolean() ? "true" : "1"
      const values = long === "engine" ? "kernel" : value
      for (const prefix of ["SIFCRYPT", "APPTAINER", "SINGULARITY"])
        assert.equal(Object.keys(parse([], { [`${prefix}_${key}`]: values }, "shell")).length, 1, key)
    }
  })

  for (const [args, message] of [
    [["--cpus", "many"], /--cpus: many is not a number/],
    [["--pids-limit", "1.5"], /--pids-limit: 1.5 is not an integer/],
    [["--cpu-shares", "-2"], /--cpu-shares: -2 is not an integer from -1 on/],
    [["--memory", "1x"], /--memory: 1x is no size/],
    [["--dns", '"1'], /--dns: a quote that is not closed/],
    [["--boot"], /--boot: no init system/],
    [["--fusemount", "x"], /--fusemount: /],
  ] as const)
    it(`refuses ${args.join(" ")}`, () => {
      assert.throws(() => parse(args), { code: "ERR_RUN_OPTION", message })
    })
})

describe("parseCsv", () => {
  for (const [record, fields] of [
    ["", [""]],
    ["a,b", ["a", "b"]],
    ["a,", ["a", ""]],
    ['"a,b",c', ["a,b", "c"]],
    ['"a""b"', ['a"b']],
    ['"",x', ["", "x"]],
  ] as const)
    it(`reads ${JSON.stringify(record)}`, () => {
      assert.deepEqual(parseCsv(record), fields)
    })
  for (const record of ['"a', 'a"b', '"a"b,c'])
    it(`refuses ${JSON.stringify(record)}`, () => {
      assert.throws(() => parseCsv(record), RangeError)
    })
})

describe("parseMountSpec", () => {
  it("reads every name of a key", () => {
    for (const text of [
      "type=bind,source=/a,destination=/b,ro",
      "type=bind,src=/a,dst=/b,readonly",
      "dst=/b,type=bind,source=/a,ro=true",
      "type=bind,source=/a,target=/b,ro",
    ])
      assert.deepEqual(parseMountSpec(text), {
        source: "/a",
        destination: "/b",
        readOnly: true,
        nested: true,
      })
    assert.deepEqual(parseMountSpec('type=bind,"src=/a,b:c",dst=/b,nonested'), {
      source: "/a,b:c",
      destination: "/b",
      readOnly: false,
      nested: false,
    })
  })
  it("takes what of an image is bound", () => {
    const spec = { source: "/a", destination: "/b", readOnly: false, nested: true }
    assert.deepEqual(parseMountSpec("type=bind,src=/a,dst=/b,image-src=/x,id=4"), {
      ...spec,
      imageSource: "/x",
      imageId: 4,
    })
  })
  for (const [text, message] of [
    ["src=/a,dst=/b", /type "" is not supported/],
    ["type=tmpfs,dst=/b", /type "tmpfs" is not supported/],
    ["type=bind,dst=/b", /no source/],
    ["type=bind,src=/a", /no destination/],
    ["type=bind,src=/a,dst=/b,rw", /rw is no key/],
    ["type=bind,src=/a,dst=/b,ro=2", /ro is true or false/],
    ["type=bind,src,dst=/b", /src needs a value/],
    ["type=bind,src=/a,dst=/b,id=x", /x is no number of a partition/],
    ['type=bind,src="/a,dst=/b', /a quote in the middle/],
  ] as const)
    it(`refuses ${text}`, () => {
      assert.throws(() => parseMountSpec(text), { code: "ERR_RUN_BIND", message })
    })
})
