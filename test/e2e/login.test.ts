// Names and passwords for registries: shown before they are kept, kept beside what others keep, and used from there.
import assert from "node:assert/strict"
import { chmodSync, existsSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import {
  build,
  pull,
  push,
  registryLogin,
  registryLogins,
  registryLogout,
  type RegistryLogin,
} from "../../lib/index.ts"
import { sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { Server } from "../support/http-server.ts"
import { basic, htpasswd, Registry, secret, startTokens } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"

/** Keeps what it is told in files beside it, as Docker's do. */
const helper = `#!/bin/sh
folder=$(dirname "$0")/kept
mkdir -p "$folder"
input=$(cat)
file() { printf %s "$1" | tr '/:' '__'; }
case $1 in
  store) server=$(printf %s "$input" | sed 's/.*"ServerURL":"\\([^"]*\\)".*/\\1/'); printf %s "$input" >"$folder/$(file "$server")" ;;
  get) cat "$folder/$(file "$input")" 2>/dev/null || { echo "credentials not found in native keychain"; exit 1; } ;;
  erase) rm -f "$folder/$(file "$input")" ;;
  list) printf '{'; first=1
    for one in "$folder"/*; do
      [ -e "$one" ] || continue
      [ $first = 1 ] || printf ,
      first=0
      sed 's/.*"ServerURL":"\\([^"]*\\)","Username":"\\([^"]*\\)".*/"\\1":"\\2"/' "$one"
    done
    printf '}' ;;
esac
`

describe("a login at a registry", () => {
  const image = path.join(newFolder("login"), "image.sif")
  let registry: Registry

  before(async () => {
    registry = await Registry.start({ htpasswd })
    const tree = newFolder("login-tree")
    writeFileSync(path.join(tree, "file"), "content\n")
    await build({ output: image, source: tree })
    await push({
      ...{ image, reference: `oras://${registry.host}/private:1`, unsigned: "allow" },
      registry: { environment: { HOME: "/nonexistent" }, credentials: secret },
    })
  })
  after(() => registry[Symbol.asyncDispose]())

  /** A home of its own. */
  function atHome(): {
    readonly environment: Record<string, string>
    readonly file: string
    readonly login: (host?: string, password?: string, authFile?: string) => Promise<RegistryLogin>
    readonly config: () => Record<string, unknown>
    readonly pulls: () => Promise<unknown>
  } {
    const home = newFolder("login-home")
    const environment = { HOME: home, PATH: `${home}:${process.env["PATH"] ?? ""}` }
    const file = path.join(home, ".apptainer", "docker-config.json")
    return {
      environment,
      file,
      login: (host = registry.host, password = "secret", authFile) =>
        registryLogin({
          ...{ registry: host, username: "user", password: Buffer.from(password), environment },
          ...{ authFile, retryDelayMs: 1 },
        }),
      config: () => JSON.parse(readFileSync(file, "utf8")) as Record<string, unknown>,
      pulls: () =>
        pull({
          reference: `oras://${registry.host}/private:1`,
          output: path.join(newFolder("login-pulled"), "image.sif"),
          oci: { environment, disableCache: true },
        }),
    }
  }

  it("is kept for its user alone, where pull finds it, and forgotten again", async () => {
    const { environment, file, login, config, pulls } = atHome()
    await assert.rejects(pulls(), { code: "ERR_OCI_CREDENTIALS" })
    const umask = process.umask(0)
    try {
      assert.deepEqual(await login(`oras://${registry.host}`), {
        ...{ registry: registry.host, username: "user", file, helper: undefined },
      })
    } finally {
      process.umask(umask)
    }
    assert.deepEqual([statSync(file).mode & 0o777, statSync(path.dirname(file)).mode & 0o777], [0o600, 0o700])
    assert.deepEqual(config(), { auths: { [registry.host]: { auth: basic.slice(6) } } })
    await pulls()
    assert.deepEqual(await registryLogins({ environment }), [
      { registry: registry.host, username: "user", file, helper: undefined },
    ])
    const forgotten = await registryLogout({ registry: registry.host, environment })
    assert.deepEqual(forgotten, { file, found: true, others: [] })
    assert.deepEqual(config(), { auths: {} })
    await assert.rejects(pulls(), { code: "ERR_OCI_CREDENTIALS" })
    assert.equal((await registryLogout({ registry: registry.host, environment })).found, false)
  })

  it("is forgotten with what others have written for parts of the registry", async () => {
    const { environment, file, login, config } = atHome()
    await login()
    const entry = { auth: basic.slice(6) }
    const { host } = registry
    const kept = { [`${host}0/group`]: entry, "other.example/group": entry }
    const parts = { [`${host}/group`]: entry, [`https://${host}/group/name`]: entry }
    writeFileSync(file, JSON.stringify({ auths: { ...kept, ...parts } }))
    assert.equal((await registryLogout({ registry: host, environment })).found, true)
    assert.deepEqual(config(), { auths: kept })
    assert.deepEqual(
      (await registryLogins({ environment })).map(({ registry: name }) => name),
      Object.keys(kept),
    )
  })

  it("is not kept if the registry refuses it", async () => {
    const { file, login } = atHome()
    await assert.rejects(login(registry.host, "wrong"), { code: "ERR_OCI_CREDENTIALS" })
    await assert.rejects(login("not a host"), { code: "ERR_OCI_REFERENCE" })
    assert.equal(existsSync(file), false)
  })

  it("is shown to who gives tokens, though he would give one to anybody", async () => {
    await using tokens = await startTokens()
    await using second = await Registry.start({ token: tokens.registry })
    const { login, config } = atHome()
    await assert.rejects(login(second.host, "wrong"), { code: "ERR_OCI_CREDENTIALS" })
    assert.equal(tokens.asked.includes(undefined), false, "nobody asked without a name")
    await login(second.host)
    assert.deepEqual(config(), { auths: { [second.host]: { auth: basic.slice(6) } } })
  })

  it("is shown to nobody else, wherever the registry leads", async () => {
    const shown: (string | undefined)[] = []
    await using elsewhere = await Server.start((request, response) => {
      shown.push(request.headers.authorization)
      response.writeHead(401, { "www-authenticate": 'Basic realm="elsewhere"' }).end()
    })
    await using first = await Server.start((request, response) => {
      if (request.headers.authorization === undefined)
        response.writeHead(302, { location: `http://${elsewhere.host}/v2/` }).end()
      else response.end()
    })
    const { file, login } = atHome()
    await assert.rejects(login(first.host), { code: "ERR_OCI_CREDENTIALS" })
    assert.deepEqual([shown, existsSync(file)], [[undefined], false])
  })

  it("leaves whatever else the file has, and a link where it was", async () => {
    const { environment, file, login, config } = atHome()
    const real = path.join(newFolder("login-real"), "config.json")
    const others = {
      HttpHeaders: { "X-Meta": "kept" },
      auths: {
        "other.example": { auth: "bmFtZTpwYXNz", email: "a@b" },
        [`https://${registry.host}`]: { auth: "b2xkOm9sZA==" },
      },
      credHelpers: { "third.example": "third" },
    }
    writeFileSync(real, JSON.stringify(others), { mode: 0o644 })
    mkdirSync(path.dirname(file))
    symlinkSync(real, file)
    await login()
    const { "other.example": other } = others.auths
    assert.deepEqual(config(), {
      ...others,
      auths: { "other.example": other, [registry.host]: { auth: basic.slice(6) } },
    })
    assert.equal(statSync(real).mode & 0o777, 0o600)
    await registryLogout({ registry: registry.host, environment })
    assert.deepEqual(config(), { ...others, auths: { "other.example": other } })
    writeFileSync(real, "no JSON")
    await assert.rejects(login(), { code: "ERR_OCI_CREDENTIALS" })
    assert.equal(readFileSync(real, "utf8"), "no JSON")
  })

  it("loses no other that is made at the same time", async () => {
    const { login, config } = atHome()
    await using open = await Server.start((_, response) => response.end("{}"))
    const hosts = [open.host, registry.host, open.host.replace("127.0.0.1", "localhost")]
    await Promise.all(hosts.map((host) => login(host)))
    assert.deepEqual(Object.keys(config()["auths"] as object).sort(), hosts.sort())
  })

  it("is with the credential helper that the file names, and nowhere else", async () => {
    const { environment, file, login, config, pulls } = atHome()
    const program = path.join(environment["HOME"] ?? "", "docker-credential-test")
    writeFileSync(program, helper)
    chmodSync(program, 0o755)
    for (const named of [{ credsStore: "test" }, { credHelpers: { [registry.host]: "test" } }]) {
      mkdirSync(path.dirname(file), { recursive: true })
      writeFileSync(file, JSON.stringify(named))
      const made = { registry: registry.host, username: "user", file, helper: "test" }
      assert.deepEqual(await login(), made)
      assert.deepEqual(config(), { ...named, auths: { [registry.host]: {} } })
      await pulls()
      assert.deepEqual(await registryLogins({ environment }), [made])
      await registryLogout({ registry: registry.host, environment })
      assert.deepEqual(await registryLogins({ environment }), [])
      await assert.rejects(pulls(), { code: "ERR_OCI_CREDENTIALS" })
    }
  })

  it("is forgotten whatever becomes of the helper, whose descendants keep nobody waiting", async () => {
    const { environment, file, login, config } = atHome()
    await login()
    writeFileSync(file, JSON.stringify({ ...config(), credsStore: "gone" }))
    await assert.rejects(registryLogout({ registry: registry.host, environment }), {
      code: "ERR_OCI_CREDENTIALS",
      message: /docker-credential-gone/,
    })
    assert.deepEqual(config()["auths"], {})
    const program = path.join(environment["HOME"] ?? "", "docker-credential-slow")
    writeFileSync(program, `#!/bin/sh\nsleep 300 &\necho $! >"$(dirname "$0")/left"\necho '{}'\n`)
    chmodSync(program, 0o755)
    writeFileSync(file, JSON.stringify({ credsStore: "slow" }))
    assert.deepEqual(await registryLogins({ environment }), [])
    process.kill(Number(readFileSync(path.join(environment["HOME"] ?? "", "left"), "utf8")))
  })

  it("is a command that reads the password from standard input, and takes none as an argument", async () => {
    const home = newFolder("login-command", userId)
    const env = { HOME: home }
    const name = ["registry", "login", "-u", "user"]
    const refused = await sifcrypt([...name, "-p", "secret", registry.host], { env })
    assert.equal(refused.status, 22)
    assert.match(refused.stderr, /everybody's to read: --password-stdin/)
    const nobody = await sifcrypt([...name, registry.host], { env, input: "" })
    assert.match(nobody.stderr, /there is no terminal to ask/)
    const wrong = await sifcrypt([...name, "--password-stdin", registry.host], { env, input: "wrong\n" })
    assert.equal(wrong.status, 22, wrong.stderr)
    const authFile = path.join(home, "config.json")
    await sifcryptOk([...name, "--password-stdin", `docker://${registry.host}`], { env, input: "secret\n" })
    await sifcryptOk([...name, "--password-stdin", "--authfile", authFile, registry.host], {
      ...{ env, input: "secret" },
    })
    const output = path.join(home, "image.sif")
    await sifcryptOk(["pull", output, `oras://${registry.host}/private:1`], { env })
    const { text } = await sifcryptOk(["registry", "list"], { env })
    assert.match(text, /^\nURI +USER +FILE\n127\.0\.0\.1:\d+ +user +\/.*docker-config\.json\n$/)
    await sifcryptOk(["registry", "logout", registry.host], { env })
    assert.equal((await sifcryptOk(["registry", "list"], { env })).text, "\nURI  USER  FILE\n")
    const json = await sifcryptOk(["registry", "list", "--json", "--authfile", authFile], { env })
    assert.equal((JSON.parse(json.text) as RegistryLogin[])[0]?.username, "user")
  })
})
