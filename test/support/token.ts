// A PKCS#11 token in files, SoftHSM's, with one RSA key: `token=sifcrypt;object=layers`, `id=%01`.
import { execFileSync } from "node:child_process"
import { mkdirSync, writeFileSync } from "node:fs"
import path from "node:path"

export const TOKEN_MODULE = "/usr/lib/softhsm/libsofthsm2.so"
export const TOKEN_PIN = "314159"

/** Makes one; gives the file that `SOFTHSM2_CONF` names. */
export function makeToken(folder: string): string {
  const tokens = path.join(folder, "tokens")
  const configuration = path.join(folder, "softhsm2.conf")
  mkdirSync(tokens)
  writeFileSync(configuration, `directories.tokendir = ${tokens}\n`)
  const run = (program: string, line: string): Buffer =>
    execFileSync(program, line.split(" "), {
      stdio: "pipe",
      env: { ...process.env, SOFTHSM2_CONF: configuration },
    })
  run("softhsm2-util", `--init-token --free --label sifcrypt --pin ${TOKEN_PIN} --so-pin 271828`)
  const pair = "--keypairgen --key-type rsa:2048 --label layers --id 01 --token-label sifcrypt"
  run("pkcs11-tool", `--module ${TOKEN_MODULE} ${pair} --login --pin ${TOKEN_PIN}`)
  return configuration
}
