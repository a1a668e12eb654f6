// What is understood of a compose file, as `compose config` shows it: in the long forms, without what profiles leave out. It can be read as a
// compose file again. Of secrets it says where they are.
import type { Model, Service } from "./model.ts"
import { plain, textOf, type Leaf, type Tree } from "./tree.ts"

/** Keys whose numbers are words: as they are written. */
function shown(tree: Tree): unknown {
  if (tree.kind === "list") return tree.items.map(shown)
  if (tree.kind === "map") return Object.fromEntries([...tree.entries].map(([key, one]) => [key, shown(one)]))
  return scalar(tree)
}

function scalar(leaf: Leaf): unknown {
  // 0440 is a mode and 1.10 a version: as numbers they would be others.
  return typeof leaf.value === "number" && String(leaf.value) !== textOf(leaf) ? textOf(leaf) : leaf.value
}

function withoutEmpty(found: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(found).filter(([, value]) => {
      if (value === undefined) return false
      return typeof value !== "object" || value === null || Object.keys(value).length > 0
    }),
  )
}

function describeService(tree: Tree, service: Service): object {
  const written = shown(tree) as Record<string, unknown>
  const keys = Object.entries(written).filter(([key]) => key !== "env_file")
  const networks = service.networkMode === undefined ? (written["networks"] ?? { default: null }) : undefined
  const { build } = service
  return withoutEmpty({
    ...Object.fromEntries(keys),
    image: service.image,
    ...(build === undefined ? {} : { build: { context: build.context, ...(written["build"] as object) } }),
    environment: service.environment,
    networks,
  })
}

/** A dollar stands for itself when it is read again. */
function escaped(value: unknown): unknown {
  if (typeof value === "string") return value.replaceAll("$", "$$$$")
  if (Array.isArray(value)) return value.map(escaped)
  if (typeof value !== "object" || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, escaped(one)]))
}

/** What can be printed as YAML or JSON. */
export function describe(root: Tree, project: string, model: Model): object {
  const part = (kind: string): ReadonlyMap<string, Tree> => {
    const found = root.kind === "map" ? root.entries.get(kind) : undefined
    return found?.kind === "map" ? found.entries : new Map<string, Tree>()
  }
  const services = [...model.services].map(([name, service]) => {
    const tree = part("services").get(name)
    return [name, tree === undefined ? {} : describeService(tree, service)]
  })
  const named = (kind: string, resources: ReadonlyMap<string, { readonly name: string }>): object =>
    Object.fromEntries(
      [...resources].map(([key, { name }]) => {
        const tree = part(kind).get(key)
        return [key, { ...(tree?.kind === "map" ? (plain(tree) as object) : {}), name }]
      }),
    )
  const crypt = root.kind === "map" ? root.entries.get("x-sifcrypt") : undefined
  const whole = withoutEmpty({
    name: project,
    services: Object.fromEntries(services),
    networks: named("networks", model.networks),
    volumes: named("volumes", model.volumes),
    secrets: Object.fromEntries([...part("secrets")].map(([key, tree]) => [key, plain(tree)])),
    configs: Object.fromEntries([...part("configs")].map(([key, tree]) => [key, plain(tree)])),
    "x-sifcrypt": crypt === undefined ? undefined : plain(crypt),
  })
  return escaped(whole) as object
}
