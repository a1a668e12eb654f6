// What an image has besides its source's files: /.singularity.d with the scripts that a runtime calls, the mount points
// that it needs, and the SIF objects that say the same without a mount. For every kind of build.
import { DataType } from "../sif/format.ts"

/** An entry that is written into a tree besides what its source has; it belongs to root. */
export type AddedEntry = {
  /** Without a leading slash. Folders come before what is in them. */
  readonly path: string
  /** Permission bits. */
  readonly mode: number
  /** What the source has by this name stays; default: it is replaced. A folder over a folder only adds to it. */
  readonly keep?: boolean
} & (
  | { readonly type: "file"; readonly content: string }
  | { readonly type: "directory" }
  | { readonly type: "symlink"; readonly target: string }
)

/** What a SCIF app says of itself, as the peers' object has it. */
export interface AppDescription {
  readonly labels: Readonly<Record<string, string>>
  /** Scripts by their paths inside. */
  readonly environment: Readonly<Record<string, string>>
  readonly runscript?: string | undefined
  readonly startscript?: string | undefined
  readonly test?: string | undefined
  readonly helpfile?: string | undefined
}

/** What an image says of itself. What is undefined gets a default, unless the source has it. */
export interface ImageDescription {
  /** The definition file. */
  readonly definition: string
  readonly labels: Readonly<Record<string, string>>
  /** A whole script, with its first line; so are the next two. */
  readonly runscript?: string | undefined
  readonly startscript?: string | undefined
  readonly test?: string | undefined
  /** What `run-help` shows. */
  readonly help?: string | undefined
  /** `90-environment.sh`, whole. */
  readonly environment?: string | undefined
  /** `10-docker2singularity.sh`, whole: variables that come with an OCI image. */
  readonly ociEnvironment?: string | undefined
  /** The `config` of an OCI image, JSON. */
  readonly ociConfig?: string | undefined
  /** By their names. */
  readonly apps?: Readonly<Record<string, AppDescription>> | undefined
}

/** A SIF object about the root file system. */
export interface MetadataObject {
  readonly type: number
  readonly name: string
  readonly data: Buffer
}

const FOLDER = ".singularity.d"

const sourceEnvironment = `#!/bin/sh
for script in /.singularity.d/env/*.sh; do
  if [ -f "$script" ]; then . "$script"; fi
done
`

/** Runs what the application, if one is named, or the image has by that name. */
function chooseScript(file: string, otherwise: string): string {
  return `
if [ -n "\${SINGULARITY_APPNAME:-}" ]; then
  app=/scif/apps/$SINGULARITY_APPNAME/scif/${file}
  if [ -x "$app" ]; then exec "$app" "$@"; fi
  echo "the image has no ${file} for the application $SINGULARITY_APPNAME" >&2
  exit 1
fi
if [ -x /.singularity.d/${file} ]; then exec /.singularity.d/${file} "$@"; fi
${otherwise}
`
}

/** For runtimes that call the image's own scripts (SingularityCE with --oci does). */
const actions: Readonly<Record<string, string>> = {
  exec: `${sourceEnvironment}
exec "$@"
`,
  run: `${sourceEnvironment}${chooseScript("runscript", 'exec /bin/sh "$@"')}`,
  shell: `${sourceEnvironment}
for shell in "\${SINGULARITY_SHELL:-}" /bin/bash /bin/sh; do
  [ -n "$shell" ] && [ -x "$shell" ] || continue
  SHELL=$shell
  export SHELL
  case $shell in
    */bash) exec "$shell" --norc "$@" ;;
    *) exec "$shell" "$@" ;;
  esac
done
echo "the image has no shell" >&2
exit 1
`,
  // The first process waits until it is told that the instance is on its way.
  start: `#!/bin/sh
kill -CONT 1
${sourceEnvironment.replace("#!/bin/sh\n", "")}
if [ -x /.singularity.d/startscript ]; then exec /.singularity.d/startscript "$@"; fi
`,
  test: `${sourceEnvironment}${chooseScript("test", "exit 0")}`,
}

const environments: Readonly<Record<string, string>> = {
  "01-base.sh": "#!/bin/sh\n",
  "94-appsbase.sh": "",
  "95-apps.sh": `#!/bin/sh
if [ -n "\${SINGULARITY_APPNAME:-}" ]; then
  export SINGULARITY_APPNAME
  SCIF_APPS=/scif/apps
  SCIF_APPROOT=/scif/apps/$SINGULARITY_APPNAME
  export SCIF_APPS SCIF_APPROOT
  if [ ! -d "$SCIF_APPROOT" ]; then
    echo "\${_sifcrypt_name:+$_sifcrypt_name: }the image has no application $SINGULARITY_APPNAME" >&2
    exit 1
  fi
  PATH=$SCIF_APPROOT/bin:$SCIF_APPROOT:$PATH
  export PATH
  if [ -d "$SCIF_APPROOT/lib" ]; then
    LD_LIBRARY_PATH=$SCIF_APPROOT/lib:\${LD_LIBRARY_PATH:-}
    export LD_LIBRARY_PATH
  fi
  for script in "$SCIF_APPROOT/scif/env/01-base.sh" "$SCIF_APPROOT/scif/env/90-environment.sh"; do
    if [ -f "$script" ]; then . "$script"; fi
  done
fi
`,
  "99-base.sh": `#!/bin/sh
LD_LIBRARY_PATH=\${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs
if [ -z "\${PS1:-}" ]; then PS1="Apptainer> "; fi
export LD_LIBRARY_PATH PS1
`,
  "99-runtimevars.sh": `#!/bin/sh
if [ -n "\${SING_USER_DEFINED_PREPEND_PATH:-}" ]; then PATH=$SING_USER_DEFINED_PREPEND_PATH:$PATH; fi
if [ -n "\${SING_USER_DEFINED_APPEND_PATH:-}" ]; then PATH=$PATH:$SING_USER_DEFINED_APPEND_PATH; fi
if [ -n "\${SING_USER_DEFINED_PATH:-}" ]; then PATH=$SING_USER_DEFINED_PATH; fi
unset SING_USER_DEFINED_PREPEND_PATH SING_USER_DEFINED_APPEND_PATH SING_USER_DEFINED_PATH
export PATH
`,
}

/** What `%environment` is appended to. */
export const ENVIRONMENT_START = "#!/bin/sh\n# Custom environment shell code should follow\n\n"
/** Without a `%runscript`. */
export const DEFAULT_RUNSCRIPT = '#!/bin/sh\nexec /bin/sh "$@"\n'
/** Without a `%startscript`. */
export const DEFAULT_STARTSCRIPT = "#!/bin/sh\n"

function directory(path: string, keep = false): AddedEntry {
  return { path, type: "directory", mode: 0o755, keep }
}

function script(name: string, content: string, keep = false): AddedEntry {
  return { path: `${FOLDER}/${name}`, type: "file", mode: 0o755, content, keep }
}

function link(path: string, target: string): AddedEntry {
  return { path, type: "symlink", mode: 0o777, target, keep: true }
}

/** A script that is given replaces what the source has; a default does not. */
function either(name: string, given: string | undefined, otherwise: string): AddedEntry {
  return script(name, given ?? otherwise, given === undefined)
}

function labelsText(labels: Readonly<Record<string, string>>): string {
  const sorted = Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0))
  return `${JSON.stringify(Object.fromEntries(sorted), undefined, "\t")}\n`
}

/** What is bound over when the image runs; the image's own stays. */
const mountPoints: readonly AddedEntry[] = [
  ...["dev", "etc", "home", "proc", "root", "sys", "tmp", "var"].map((path) => directory(path, true)),
  { path: "var/tmp", type: "directory", mode: 0o755, keep: true },
  ...["etc/hosts", "etc/resolv.conf"].map((path): AddedEntry => ({
    path,
    type: "file",
    mode: 0o644,
    content: "",
    keep: true,
  })),
]

/** Everything that an image needs in its root file system besides its source's files. */
export function metadataFiles(description: ImageDescription): AddedEntry[] {
  const { runscript, startscript, test, help, environment, ociEnvironment } = description
  return [
    ...mountPoints,
    ...[FOLDER, `${FOLDER}/actions`, `${FOLDER}/env`, `${FOLDER}/libs`].map((path) => directory(path)),
    { path: `${FOLDER}/Singularity`, type: "file", mode: 0o644, content: description.definition },
    { path: `${FOLDER}/labels.json`, type: "file", mode: 0o644, content: labelsText(description.labels) },
    ...Object.entries(actions).map(([name, content]) => script(`actions/${name}`, content)),
    ...Object.entries(environments).map(([name, content]) => script(`env/${name}`, content)),
    ...(ociEnvironment === undefined ? [] : [script("env/10-docker2singularity.sh", ociEnvironment)]),
    either("env/90-environment.sh", environment, ENVIRONMENT_START),
    either("runscript", runscript, DEFAULT_RUNSCRIPT),
    either("startscript", startscript, DEFAULT_STARTSCRIPT),
    ...(test === undefined ? [] : [script("test", test)]),
    ...(help === undefined
      ? []
      : [{ path: `${FOLDER}/runscript.help`, type: "file" as const, mode: 0o644, content: help }]),
    link(".exec", `${FOLDER}/actions/exec`),
    link(".run", `${FOLDER}/actions/run`),
    link(".shell", `${FOLDER}/actions/shell`),
    link(".test", `${FOLDER}/actions/test`),
    link("singularity", `${FOLDER}/runscript`),
    link("environment", `${FOLDER}/env/90-environment.sh`),
  ]
}

/** The objects that the peers write before the root file system, in their order. */
export function metadataObjects(description: ImageDescription): MetadataObject[] {
  const { definition, labels, ociEnvironment, ociConfig } = description
  const environment = {
    ...(ociEnvironment === undefined
      ? {}
      : { "/.singularity.d/env/10-docker2singularity.sh": ociEnvironment }),
    "/.singularity.d/env/90-environment.sh": description.environment ?? ENVIRONMENT_START,
  }
  const attributes = {
    environment,
    labels,
    runscript: description.runscript ?? DEFAULT_RUNSCRIPT,
    test: description.test,
    helpfile: description.help,
    deffile: definition,
    startscript: description.startscript ?? DEFAULT_STARTSCRIPT,
    apps: description.apps,
  }
  const inspected = { data: { attributes }, type: "container" }
  const json = (name: string, text: string): MetadataObject => ({
    type: DataType.json,
    name,
    data: Buffer.from(text, "utf8"),
  })
  return [
    { type: DataType.definition, name: "", data: Buffer.from(definition, "utf8") },
    json("inspect-metadata.json", JSON.stringify(inspected)),
    ...(ociConfig === undefined ? [] : [json("oci-config.json", ociConfig)]),
  ]
}

const days = "Sunday Monday Tuesday Wednesday Thursday Friday Saturday".split(" ")
const months = "January February March April May June July August September October November December".split(
  " ",
)

/**
 * The labels that every build sets, as the peers do.
 *
 * @param time - Seconds since 1970.
 */
export function buildLabels(
  architecture: string,
  time: number,
  bootstrap: string,
  from: string,
): Record<string, string> {
  const date = new Date(time * 1000)
  const clock = `${date.getUTCHours()}:${date.getUTCMinutes()}:${date.getUTCSeconds()}`
  const day = `${days[date.getUTCDay()] ?? ""}_${date.getUTCDate()}_${months[date.getUTCMonth()] ?? ""}_${date.getUTCFullYear()}`
  return {
    "org.label-schema.schema-version": "1.0",
    "org.label-schema.build-arch": architecture,
    "org.label-schema.build-date": `${day}_${clock}_UTC`,
    "org.label-schema.usage.singularity.deffile.bootstrap": bootstrap,
    "org.label-schema.usage.singularity.deffile.from": from,
  }
}
