import assert from "node:assert/strict"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { readEnvFile } from "../../../lib/runtime/env-file.ts"

describe("readEnvFile", () => {
  let folder: string
  beforeEach(() => {
    folder = mkdtempSync(path.join(tmpdir(), "sifcrypt-unit-"))
  })
  afterEach(() => {
    rmSync(folder, { recursive: true })
  })

  async function evaluate(
    text: string,
    host: Readonly<Record<string, string>> = {},
    args: readonly string[] = [],
  ): Promise<Record<string, string>> {
    const file = path.join(folder, "it's a file")
    writeFileSync(file, text)
    return Object.fromEntries(await readEnvFile(file, host, args))
  }

  it("gives what the file sets, exported or not, and nothing of the host", async () => {
    assert.deepEqual(await evaluate('A=1\nexport B="two\nlines"\nC=\n# D=4\n', { HOST: "host" }), {
      A: "1",
      B: "two\nlines",
      C: "",
    })
  })

  it("expands the host's variables, arguments and commands", async () => {
    const found = await evaluate('A="$HOST $1"\nB=$(echo "$A")\nHOST=mine\n', { HOST: "it's host" }, ["x y"])
    assert.deepEqual(found, { A: "it's host x y", B: "it's host x y", HOST: "mine" })
  })

  it("sets what a file sets to what it was", async () => {
    assert.deepEqual(await evaluate("HOST=host\nPATH=/usr/bin\n", { HOST: "host", PATH: "/usr/bin" }), {
      HOST: "host",
      PATH: "/usr/bin",
    })
  })

  it("leaves out what belongs to the shell", async () => {
    assert.deepEqual(await evaluate("HOME=/x\nPWD=/x\nIFS=x\nA=1\n"), { A: "1" })
  })

  it("A7: knows no key and no setting of ours or the peers", async () => {
    const host = { SIFCRYPT_ENCRYPTION_PASSPHRASE: "secret", APPTAINERENV_X: "secret" }
    const text = 'A="${SIFCRYPT_ENCRYPTION_PASSPHRASE-none} ${APPTAINERENV_X-none}"\nB=$(set)\n'
    const { A, B } = await evaluate(text, host)
    assert.equal(A, "none none")
    assert.doesNotMatch(B ?? "", /secret/)
  })

  it("gives what it runs no standard input, and nothing of the environment", async () => {
    assert.deepEqual(await evaluate("A=$(cat)\nB=$(env | grep -c HOST)\n", { HOST: "host" }), {
      A: "",
      B: "0",
    })
  })

  it("says what is wrong", async () => {
    await assert.rejects(readEnvFile(path.join(folder, "missing"), {}, []), {
      code: "ERR_RUN_OPTION",
      message: /there is no such file/,
    })
    await assert.rejects(evaluate("A=(\n"), {
      code: "ERR_RUN_OPTION",
      message: /the shell ended with status/,
    })
    await assert.rejects(evaluate("exit 3\n"), { code: "ERR_RUN_OPTION", message: /status 3/ })
  })
})
