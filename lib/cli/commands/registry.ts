import { OciError, registryLogin, registryLogins, registryLogout } from "../../index.ts"
import { command, type CommandRow, type OptionRows } from "../command.ts"
import { interruption } from "../interrupt.ts"
import { jsonRow, print, printJson } from "../output.ts"
import { inform, notice, printable, promptLine, promptSecret, secretFromStdin } from "../terminal.ts"
import { flag, text } from "../values.ts"
import { truthVariable, variable } from "../variables.ts"

const fileRow: OptionRows<{ readonly authFile?: string }> = {
  authFile: ["--authfile <file>", "instead of Apptainer's file, one such as ~/.docker/config.json", text],
}

function authFile(flags: { readonly authFile?: string }): { readonly authFile?: string } {
  const file = flags.authFile ?? variable("AUTHFILE")
  return file === undefined ? {} : { authFile: file }
}

const noTerminal = "and there is no terminal to ask for it: give "

async function typedName(): Promise<string> {
  const name = await promptLine("Enter username: ", interruption)
  if (name === undefined)
    throw new OciError("ERR_OCI_CREDENTIALS", `no name is given, ${noTerminal}--username NAME`)
  return name
}

async function typedPassword(): Promise<Buffer> {
  const password = promptSecret("Enter password or token: ", interruption)
  if (password === undefined)
    throw new OciError("ERR_OCI_CREDENTIALS", `no password is given, ${noTerminal}--password-stdin`)
  return await password
}

const login = command({
  name: "login",
  examples: [["asked for the password", "sifcrypt registry login --username jane registry.example"]],
  description:
    "Shows a name and a password to a registry, and keeps them if they are right, where Apptainer keeps them; with the credential " +
    "helper that the file names (credsStore, credHelpers) if it names one.",
  arguments: [["<registry>", "HOST[:PORT], also with oras:// or docker:// before it"]],
  options: {
    username: ["-u, --username <name>", "who to be; asked for otherwise", text],
    password: ["-p, --password <password>", "not here", text, { hidden: true }],
    passwordStdin: ["--password-stdin", "read the password, or a token, from standard input", flag],
    ...fileRow,
    certFolder: [
      "--cert-dir <dir>",
      "certificates to trust (*.crt) and to show (*.cert, *.key) at the registry",
      text,
    ],
    noHttps: ["--no-https", "speak HTTP without TLS to the registry", flag],
    insecure: ["-i, --insecure", "the same as --no-https", flag, { hidden: true }],
    json: jsonRow,
  },
  run: async (flags, [registry]) => {
    const { certFolder, insecure } = flags
    if (flags.password !== undefined)
      throw new OciError(
        "ERR_OCI_CREDENTIALS",
        "a password on the command line is everybody's to read: --password-stdin reads it, and a terminal is asked",
      )
    const username = flags.username ?? (await typedName())
    const password = flags.passwordStdin === true ? secretFromStdin() : await typedPassword()
    try {
      const noHttps = flags.noHttps ?? insecure ?? truthVariable("NO_HTTPS", "NOHTTPS")
      const done = await registryLogin({
        ...{ registry, username, password, ...authFile(flags) },
        ...{ certFolder, noHttps, signal: interruption, onNotice: notice },
      })
      const { helper } = done
      if (flags.json === true) await printJson(done)
      else
        inform(
          `${printable(username)} is who you are at ${done.registry}, by ${helper === undefined ? done.file : `docker-credential-${helper}`}`,
        )
    } finally {
      password.fill(0)
    }
  },
})

const logout = command({
  name: "logout",
  examples: [["forget it", "sifcrypt registry logout registry.example"]],
  description: "Forgets who to be at a registry.",
  arguments: [["<registry>", "HOST[:PORT], also with oras:// or docker:// before it"]],
  options: { ...fileRow, json: jsonRow },
  run: async (flags, [registry]) => {
    const { file, found, others } = await registryLogout({
      ...{ registry, ...authFile(flags), signal: interruption },
    })
    if (flags.json === true) await printJson({ registry, file, found, others })
    else
      inform(found ? `${file} has nothing for ${registry} any more` : `${file} has nothing for ${registry}`)
    for (const other of others) notice(`${other} has something for ${registry}, and keeps it (--authfile)`)
  },
})

const list = command({
  name: "list",
  examples: [["at which registries you are known", "sifcrypt registry list"]],
  description: "Lists who to be at which registry, by which file. No password is shown.",
  options: { ...fileRow, json: jsonRow },
  run: async (flags) => {
    const logins = await registryLogins({ ...authFile(flags), signal: interruption, onNotice: notice })
    if (flags.json === true) {
      await printJson(logins)
      return
    }
    const rows = logins.map((one) => [
      printable(one.registry),
      printable(one.username ?? "?"),
      printable(one.helper === undefined ? one.file : `${one.file} (docker-credential-${one.helper})`),
    ])
    const table = [["URI", "USER", "FILE"], ...rows]
    const width = (column: number): number => Math.max(...table.map((row) => row[column]?.length ?? 0))
    const lines = table.map(([uri = "", user = "", file = ""]) =>
      `${uri.padEnd(width(0))}  ${user.padEnd(width(1))}  ${file}`.trimEnd(),
    )
    await print(`\n${lines.join("\n")}\n`)
  },
})

export const registry: CommandRow = {
  name: "registry",
  heading: "Registries",
  summary: "who to be at registries",
  description:
    "Keeps names and passwords for registries, in the files of Apptainer and Docker: what one of these programs was told the others know.",
  helpsAlone: true,
  commands: [login, logout, list],
}
