import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import {
  composeEnvironment,
  hostScript,
  overrideScript,
  shellQuote,
} from "../../../lib/runtime/environment.ts"

const object = (map: ReadonlyMap<string, string>): Record<string, string> => Object.fromEntries(map)

describe("composeEnvironment", () => {
  it("takes the host's variables, but none that are the image's or ours to set", () => {
    const { host, overrides } = composeEnvironment({
      host: {
        FOO: "bar",
        EMPTY: "",
        UNSET: undefined,
        HOME: "/h",
        PATH: "/p",
        LD_LIBRARY_PATH: "/l",
        PWD: "/w",
        OLDPWD: "/o",
        SHLVL: "1",
        IFS: "x",
        PS1: "x",
        _: "x",
        UID: "0",
        PPID: "1",
        SHELLOPTS: "x",
      },
    })
    assert.deepEqual(object(host), { FOO: "bar", EMPTY: "" })
    assert.equal(overrides.size, 0)
  })

  it("takes no key, no passphrase, no password and no setting of ours or the peers'", () => {
    const families = ["SIFCRYPT", "APPTAINER", "SINGULARITY"]
    const secrets = families.flatMap((family) => [
      [`${family}_ENCRYPTION_PASSPHRASE`, "secret"],
      [`${family}_ENCRYPTION_PEM_DATA`, "secret"],
      [`${family}_ENCRYPTION_PEM_PATH`, "secret"],
      [`${family}_BIND`, "secret"],
      [`${family}_DOCKER_PASSWORD`, "secret"],
      [`${family}ENV_`, "secret"],
    ])
    secrets.push(["DOCKER_PASSWORD", "secret"])
    for (const clean of [false, true]) {
      const { host, overrides } = composeEnvironment({
        host: Object.fromEntries(secrets) as Record<string, string>,
        clean,
      })
      assert.doesNotMatch(JSON.stringify([object(host), object(overrides)]), /secret/)
    }
  })

  it("takes only the terminal and the proxies when clean", () => {
    const environment = {
      FOO: "bar",
      TERM: "xterm",
      http_proxy: "a",
      NO_PROXY: "b",
      LANG: "de_DE",
      DISPLAY: ":0",
    }
    const { host } = composeEnvironment({ host: environment, clean: true })
    assert.deepEqual(object(host), { TERM: "xterm", http_proxy: "a", NO_PROXY: "b", LANG: "C" })
  })

  it("takes what is set for the inside, ours before the peers', --env before all", () => {
    const environment = {
      SINGULARITYENV_A: "singularity",
      SINGULARITYENV_B: "singularity",
      SINGULARITYENV_C: "singularity",
      APPTAINERENV_B: "apptainer",
      APPTAINERENV_C: "apptainer",
      SIFCRYPTENV_C: "sifcrypt",
      SIFCRYPTENV_D: "sifcrypt",
      SIFCRYPTENV_HOME: "/nowhere",
    }
    for (const clean of [false, true]) {
      const { overrides } = composeEnvironment({
        host: environment,
        assignments: ["D=option", "E=a=b", "F="],
        clean,
      })
      assert.deepEqual(object(overrides), {
        A: "singularity",
        B: "apptainer",
        C: "sifcrypt",
        D: "option",
        E: "a=b",
        F: "",
      })
    }
  })

  it("passes names that no shell can assign, such as those of exported functions, past the scripts", () => {
    const odd = { "BASH_FUNC_x%%": "() { :; }", "a-b": "1", "1a": "1", "a b": "1", "a;id": "1" }
    const others = { ...odd, "": "1", "APPTAINER_a.b": "1", "SIFCRYPT_x%": "1" }
    const composed = composeEnvironment({ host: others })
    assert.deepEqual([composed.host.size, composed.overrides.size], [0, 0])
    assert.deepEqual(object(composed.others), odd)
    assert.equal(hostScript(composed) + overrideScript(composed), "")
    assert.equal(composeEnvironment({ host: others, clean: true }).others.size, 0)
    assert.equal(composeEnvironment({ host: others, omit: ["a-b"] }).others.has("a-b"), false)
  })

  for (const name of ["", "a b", "a;id", "1a", "$(id)", "a\n", "a.b"])
    it(`leaves ${JSON.stringify(name)} out of what the caller sets, and says so`, () => {
      const notices: string[] = []
      const { others, overrides } = composeEnvironment({
        host: { [`APPTAINERENV_${name}`]: "1" },
        fromFile: new Map([[name, "1"]]),
        assignments: [`${name}=1`, "B=2"],
        onNotice: (text) => notices.push(text),
      })
      assert.deepEqual([others.size, object(overrides)], [0, { B: "2" }])
      const why = name === "" ? "there is no name" : `${name} is no name for a shell`
      assert.deepEqual(
        notices,
        [`APPTAINERENV_${name}`, "--env-file", "--env"].map((by) => `${by}: ${why}: left out`),
      )
    })

  for (const assignment of ["", "NAME"])
    it(`refuses ${JSON.stringify(assignment)} for --env`, () => {
      assert.throws(() => composeEnvironment({ host: {}, assignments: [assignment] }), {
        name: "RunError",
        code: "ERR_RUN",
        message: `--env: ${JSON.stringify(assignment)} is not NAME=VALUE`,
      })
    })
})

describe("scripts of the environment", () => {
  const values = [
    "",
    "plain",
    "two words",
    "it's",
    "''",
    '"$(id)`id`${x}',
    "a\nb",
    "\\",
    "$HOME",
    "!x",
    "*",
    "\u001b[2J",
    "é",
    "-n",
  ]

  it("quote every value so that a shell reads it back", () => {
    for (const value of values) {
      const output = execFileSync("/bin/sh", ["-c", `printf '%s.' ${shellQuote(value)}`])
      assert.equal(output.toString(), `${value}.`)
    }
  })

  it("override what is set, and set what the host gives only where nothing is", () => {
    const environment = {
      host: new Map([
        ["A", "host"],
        ["B", "host's"],
        ["C", "host"],
      ]),
      overrides: new Map([["C", "$over'ride"]]),
    }
    const script = `A=image; ${overrideScript(environment)}${hostScript(environment)}printf '%s|' "$A" "$B" "$C"`
    assert.equal(execFileSync("/bin/sh", ["-c", script], { env: {} }).toString(), "image|host's|$over'ride|")
  })

  it("add to LD_LIBRARY_PATH what stands before and behind it, whatever it is then", () => {
    for (const [variables, before, after] of [
      [{ APPTAINERENV_PREPEND_LD_LIBRARY_PATH: "/a b:/c" }, "/image", "/a b:/c:/image"],
      [{ SINGULARITYENV_APPEND_LD_LIBRARY_PATH: "/$d" }, "/image", "/image:/$d"],
      [{ SIFCRYPTENV_APPEND_LD_LIBRARY_PATH: "/d", APPTAINERENV_PREPEND_LD_LIBRARY_PATH: "/c" }, "", "/c:/d"],
      [{ APPTAINERENV_PREPEND_LD_LIBRARY_PATH: "" }, "/image", "/image"],
      [
        { APPTAINERENV_PREPEND_LD_LIBRARY_PATH: "/c", APPTAINERENV_LD_LIBRARY_PATH: "/set" },
        "/image",
        "/c:/set:/.singularity.d/libs",
      ],
    ] as const) {
      const environment = composeEnvironment({ host: variables })
      const script = `LD_LIBRARY_PATH=${before}; ${overrideScript(environment)}printf %s "$LD_LIBRARY_PATH"; env`
      const [path = "", ...rest] = execFileSync("/bin/sh", ["-c", script], { env: {} }).toString().split("\n")
      assert.ok(path.startsWith(after), path)
      assert.doesNotMatch(rest.join("\n"), /PEND_LD/)
    }
  })

  it("keep an empty value that the image sets", () => {
    const script = `A=; ${hostScript({ host: new Map([["A", "host"]]), overrides: new Map() })}printf '%s|' "$A"`
    assert.equal(execFileSync("/bin/sh", ["-c", script], { env: {} }).toString(), "|")
  })
})

describe("composeEnvironment, further", () => {
  it("hands over what becomes of the search path", () => {
    const { overrides } = composeEnvironment({
      host: { APPTAINERENV_PREPEND_PATH: "/pre", SINGULARITYENV_APPEND_PATH: "/post" },
      assignments: ["PATH=/only"],
    })
    assert.deepEqual(object(overrides), {
      SING_USER_DEFINED_PREPEND_PATH: "/pre",
      SING_USER_DEFINED_APPEND_PATH: "/post",
      SING_USER_DEFINED_PATH: "/only",
    })
  })

  it("puts the file of --env-file between variables and --env", () => {
    const { overrides } = composeEnvironment({
      host: { APPTAINERENV_A: "variable", APPTAINERENV_B: "variable", APPTAINERENV_C: "variable" },
      fromFile: new Map([
        ["B", "file"],
        ["C", "file"],
      ]),
      assignments: ["C=option"],
    })
    assert.deepEqual(object(overrides), { A: "variable", B: "file", C: "option" })
  })

  it("leaves out what --no-env names", () => {
    assert.deepEqual(object(composeEnvironment({ host: { A: "1", B: "2" }, omit: ["A"] }).host), { B: "2" })
  })

  it("tells of what is not for the caller to set, and of variables that differ", () => {
    const notices: string[] = []
    const { overrides } = composeEnvironment({
      host: { SINGULARITYENV_A: "1", APPTAINERENV_A: "2", SINGULARITYENV_B: "1", APPTAINERENV_B: "1" },
      assignments: ["HOME=/x", "UID=0"],
      onNotice: (text) => notices.push(text),
    })
    assert.deepEqual(object(overrides), { A: "2", B: "1" })
    assert.deepEqual(notices, [
      "SINGULARITYENV_A and APPTAINERENV_A have different values: the latter counts",
      "--env: HOME is not for the caller to set",
      "--env: UID is not for the caller to set",
    ])
  })

  it("lets the shell expand values once, where that is asked for", () => {
    const environment = { host: new Map<string, string>(), overrides: new Map([["A", '$(echo 1) "$B"']]) }
    const script = `B=b; ${overrideScript(environment, true)} printf %s "$A"`
    assert.equal(execFileSync("/bin/sh", ["-c", script], { encoding: "utf8" }), '1 "b"')
  })
})
