// What scripts ask the peers about themselves before they do anything: answered with what there is here, which is mostly nothing.
import { keyring, RunError } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { isPeer, versionNumber } from "../name.ts"
import { printLines } from "../output.ts"

interface Listing {
  readonly name: string
  readonly summary: string
  /** What `list` prints. */
  readonly lines: readonly string[]
  /** Other commands of the peers, and what takes their place. */
  readonly others: readonly string[]
  readonly instead: string
  readonly helpsAlone?: true
}

const listings: readonly Listing[] = [
  {
    name: "plugin",
    summary: "plugins: there are none",
    lines: ["There are no plugins installed."],
    others: ["compile", "create", "disable", "enable", "inspect", "install", "uninstall"],
    instead: "nothing is loaded into this program: use it as a library instead",
  },
  {
    name: "remote",
    helpsAlone: true,
    summary: "services of the peers: none is asked",
    lines: ["", "NAME  URI  DEFAULT?  GLOBAL?  EXCLUSIVE?  SECURE?"],
    others: [
      "add",
      "add-keyserver",
      "get-login-password",
      "login",
      "logout",
      "remove",
      "remove-keyserver",
      "status",
      "use",
    ],
    instead: "no service is asked for images or keys unless an address names it",
  },
  {
    name: "keyserver",
    helpsAlone: true,
    summary: "key servers that are asked where none is named",
    lines: ["", `#1  ${keyring.DEFAULT_KEY_SERVER}`],
    others: ["add", "login", "logout", "remove"],
    instead: "--url and --keyserver name the server where one is asked",
  },
]

function group({ lines, others, instead, ...text }: Listing): CommandRow {
  const { name, summary } = text
  const absent = others.map((other) =>
    command({
      name: other,
      description: `Not here: ${instead}.`,
      hidden: true,
      arguments: [["[args...]", "ignored"]],
      takesAnything: true,
      run: () =>
        Promise.reject(new RunError("ERR_RUN_OPTION", `${name} ${other} does not exist here: ${instead}`)),
    }),
  )
  const list = command({ name: "list", description: "Lists them.", run: () => printLines(lines) })
  return { ...text, description: `Of ${summary}.`, hidden: true, commands: [list, ...absent] }
}

/** Names and folders as the peers' build has them: what scripts look for is where configurations would be. */
function settings(): ReadonlyMap<string, string> {
  const name = isPeer ? "apptainer" : "sifcrypt"
  const places = {
    PREFIX: "/usr",
    EXECPREFIX: "/usr",
    BINDIR: "/usr/bin",
    SBINDIR: "/usr/sbin",
    LIBEXECDIR: "/usr/lib",
    DATAROOTDIR: "/usr/share",
    DATADIR: "/usr/share",
    SYSCONFDIR: "/etc",
    SHAREDSTATEDIR: "/usr/com",
    LOCALSTATEDIR: "/var/lib",
    RUNSTATEDIR: "/var/lib/run",
    INCLUDEDIR: "/usr/include",
    DOCDIR: `/usr/share/doc/${name}`,
    INFODIR: "/usr/share/info",
    LIBDIR: "/usr/lib",
    LOCALEDIR: "/usr/share/locale",
    MANDIR: "/usr/share/man",
    SESSIONDIR: `/var/lib/${name}/mnt/session`,
    PLUGIN_ROOTDIR: `/usr/lib/${name}/plugin`,
  }
  const own = ["APPTAINER", "SINGULARITY"].flatMap((family) => [
    [`${family}_CONFDIR`, `/etc/${name}`],
    [`${family}_CONF_FILE`, `/etc/${name}/${name}.conf`],
    [`${family}_SUID_INSTALL`, "0"],
  ])
  return new Map([
    ["PACKAGE_NAME", name],
    ["PACKAGE_VERSION", versionNumber()],
    ...Object.entries(places),
    ...(own as [string, string][]),
  ])
}

const buildcfg = command({
  name: "buildcfg",
  description: "Prints where the peers would keep what they need, or the value of NAME.",
  hidden: true,
  arguments: [["[name]", "one of them"]],
  run: async (_, [name], made) => {
    const all = settings()
    if (name !== undefined && !all.has(name)) made.error(`error: there is no '${name}'`)
    await printLines(
      name === undefined ? [...all].map(([key, value]) => `${key}=${value}`) : [all.get(name) ?? ""],
    )
  },
})

export const probes: readonly CommandRow[] = [...listings.map(group), buildcfg]
