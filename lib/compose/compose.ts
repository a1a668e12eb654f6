/**
 * Services of a compose file, as a program uses them.
 *
 * @packageDocumentation
 */
import path from "node:path"
import * as is from "../arguments.ts"
import { Field } from "./field.ts"
import { defaultEnvFiles, findFiles, loadTree, lookupWith, newLoading, textAt } from "./load.ts"
import { readModel } from "./model.ts"
import { Project, Services } from "./project.ts"
import { fileError } from "./tree.ts"

export { Project, Services }
export type {
  DownOptions,
  ExecServiceOptions,
  ImageAccess,
  ProjectEvent,
  RunServiceOptions,
  ServiceInstance,
  ServiceLogOptions,
  ServiceLogPiece,
  StopServicesOptions,
  UpOptions,
} from "./project.ts"

/** How {@link load} finds a project. */
export interface LoadOptions {
  /** Compose files, each over the one before; default: those of `COMPOSE_FILE`, or the nearest `compose.yaml`, with its override. */
  readonly files?: readonly string[] | undefined
  /** What paths in them are relative to; default: the folder of the first. */
  readonly folder?: string | undefined
  /** Default: `COMPOSE_PROJECT_NAME`, what the files say, or the folder's name. */
  readonly name?: string | undefined
  /** Services of these are there as well; default: those of `COMPOSE_PROFILES`. `*` stands for all. */
  readonly profiles?: readonly string[] | undefined
  /** Services that are there whatever their profiles are. */
  readonly services?: readonly string[] | undefined
  /** Files of variables; default: `.env` in the folder, if it is there. */
  readonly envFiles?: readonly string[] | undefined
  /** Variables, stronger than those of files; default: this process's. */
  readonly environment?: Readonly<Record<string, string | undefined>> | undefined
  /** Hears what the user should know, in a sentence. */
  readonly onNotice?: ((text: string) => void) | undefined
}

const texts = is.list(is.text)
const checkLoad = is.shape<LoadOptions>({
  files: is.list(is.path),
  folder: is.path,
  name: is.text,
  profiles: texts,
  services: texts,
  envFiles: is.list(is.path),
  environment: is.variables,
  onNotice: is.callback,
})

/** A project's name: what instances, networks and volumes begin with. */
const PROJECT_NAME = /^[a-z0-9][a-z0-9_-]{0,39}$/

function projectName(wanted: string | undefined, folder: string): string {
  if (wanted !== undefined) {
    if (!PROJECT_NAME.test(wanted))
      throw fileError(
        `${wanted} is no name for a project: small letters, digits, dashes and underscores, at most 40`,
      )
    return wanted
  }
  const name = path
    .basename(folder)
    .toLowerCase()
    .replaceAll(/[^a-z0-9_-]/g, "")
    .replace(/^[_-]+/, "")
    .slice(0, 40)
  if (name === "")
    throw fileError(`${folder}: no name for a project can be made of it: give one`, { path: folder })
  return name
}

/** Words with the separator of `COMPOSE_FILE` or commas between them. */
function words(value: string | undefined, separator: string): string[] | undefined {
  const found = value?.split(separator).filter((word) => word !== "") ?? []
  return found.length > 0 ? found : undefined
}

/**
 * What runs of a project, found by its name alone.
 *
 * @throws ComposeError `ERR_COMPOSE_FILE` for what is no name.
 */
export function open(name: string): Services {
  return new Services(projectName(is.text(name, "name"), ""))
}

/**
 * Reads compose files.
 *
 * @throws ComposeError `ERR_COMPOSE_FILE`, which names file, line and path in it; `ERR_COMPOSE_UNSUPPORTED` for what the Compose
 * specification has and is not here.
 */
export function load(options: LoadOptions = {}): Project {
  const given = checkLoad(options, "options")
  const environment = given.environment ?? process.env
  const { onNotice = () => undefined } = given
  const named =
    given.files ?? words(environment["COMPOSE_FILE"], environment["COMPOSE_PATH_SEPARATOR"] ?? ":")
  const found = named ?? findFiles(given.folder ?? process.cwd())
  const [first] = found ?? []
  if (found === undefined || first === undefined)
    throw fileError(
      "there is no compose.yaml here, nor in a folder above: --file FILE names one, -p NAME what runs",
    )
  const files = found.map((file) => path.resolve(file))
  const folder = path.resolve(given.folder ?? path.dirname(first))
  const own = (name: string): string | undefined =>
    Object.hasOwn(environment, name) ? environment[name] : undefined
  const envFiles = given.envFiles ?? defaultEnvFiles(folder)
  const lookup = lookupWith(
    own,
    envFiles.map((file) => path.resolve(file)),
  )
  const loading = newLoading(lookup, onNotice)
  const tree = loadTree(files, folder, loading)
  if (tree.entries.has("version")) onNotice(`${first}: version says nothing any more`)
  const name = projectName(given.name ?? lookup("COMPOSE_PROJECT_NAME") ?? textAt(tree, "name"), folder)
  const profiles = new Set(given.profiles ?? words(lookup("COMPOSE_PROFILES"), ",") ?? [])
  const wanted = new Set(given.services ?? [])
  const isActive = (service: string, some: readonly string[]): boolean =>
    some.length === 0 || wanted.has(service) || profiles.has("*") || some.some((one) => profiles.has(one))
  const folderOf = (file: string): string => (files.includes(file) ? folder : path.dirname(file))
  const model = readModel(new Field(tree, ""), name, lookup, folderOf, isActive)
  return new Project(name, { folder, files, tree, model, lookup })
}
