import { createNetwork, listNetworks, openNetwork, removeNetwork } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { columns, GAP, jsonRow, printJson, printLines } from "../output.ts"
import { inform } from "../terminal.ts"
import { each, flag, pairs, text } from "../values.ts"

const notStarted = [
  "no network",
  "there is no such network, or it can have no such name, or no such subnet",
] as const

const create = command({
  name: "create",
  notStarted,
  summary: "make a network",
  description:
    "Makes the network NAME. Containers that are started with --network NAME find each other in it by their names. Nothing of it runs until one is there.",
  examples: [["two services that talk to each other", "sifcrypt network create shop"]],
  arguments: [["<name>", "what to call it: letters, digits, dots, dashes, underscores"]],
  options: {
    subnet: [
      "--subnet <address/bits>",
      "its addresses, IPv4; default: the first free ones of 10.89.0.0/16",
      text,
    ],
    internal: ["--internal", "nothing leads out of it", flag],
    label: ["--label <name=value>", "kept with it (repeatable)", each(text)],
    json: jsonRow,
  },
  run: async ({ subnet, internal, label, json }, [name]) => {
    const made = await createNetwork(name, { subnet, internal, labels: pairs(label ?? []) })
    if (json === true) await printJson(made)
    else inform(`network ${made.name} made: ${made.subnet}`)
  },
})

const list = command({
  name: "list",
  summary: "list networks",
  description: "Lists your networks.",
  examples: [["for a program", "sifcrypt network list --json"]],
  arguments: [],
  options: { json: jsonRow },
  run: async ({ json }) => {
    const networks = await listNetworks()
    if (json === true) {
      await printJson(networks)
      return
    }
    const rows = networks.map(({ name, subnet, internal, containers }) => [
      name,
      subnet,
      internal ? "yes" : "no",
      containers.map((one) => one.name).join(","),
    ])
    await printLines(columns([["NAME", "SUBNET", "INTERNAL", "CONTAINERS"], ...rows], GAP))
  },
})

const inspect = command({
  name: "inspect",
  notStarted,
  summary: "what is known of a network",
  description: "Prints what is known of the network NAME, and who is in it, as JSON.",
  examples: [["who is in it", "sifcrypt network inspect shop"]],
  arguments: [["<name>", "its name"]],
  options: { json: jsonRow },
  run: async (_, [name]) => {
    await printJson(await openNetwork(name))
  },
})

const remove = command({
  name: "rm",
  notStarted,
  summary: "remove networks",
  description: "Removes networks that no container is in.",
  examples: [["two of them", "sifcrypt network rm shop backend"]],
  arguments: [["<names...>", "their names"]],
  options: { json: jsonRow },
  run: async ({ json }, [names]) => {
    for (const name of names) await removeNetwork(name)
    if (json === true) await printJson({ removed: names })
  },
})

export const network: CommandRow = {
  name: "network",
  heading: "Run images",
  notStarted,
  summary: "networks that containers are in together",
  description: "Makes, lists and removes networks for --network NAME.",
  commands: [create, list, inspect, remove],
}
