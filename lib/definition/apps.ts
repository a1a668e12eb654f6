// The files of SCIF applications: https://sci-f.github.io
import type { App } from "./definition-file.ts"
import type { AddedEntry } from "../source/metadata-files.ts"

const root = (app: App): string => `scif/apps/${app.name}`

function baseEnvironment({ name }: App): string {
  const values = [
    ["SCIF_APPNAME", name],
    ["SCIF_APPROOT", `/scif/apps/${name}`],
    ["SCIF_APPMETA", `/scif/apps/${name}/scif`],
    ["SCIF_DATA", "/scif/data"],
    ["SCIF_APPDATA", `/scif/data/${name}`],
    ["SCIF_APPINPUT", `/scif/data/${name}/input`],
    ["SCIF_APPOUTPUT", `/scif/data/${name}/output`],
  ] as const
  return `#!/bin/sh\n\n${values.map(([key, value]) => `export ${key}="${value}"\n`).join("")}`
}

/** Folders, environment, scripts and labels of one application. */
export function appFiles(app: App): AddedEntry[] {
  const { name, run, start, test, env, help, labels } = app
  const folder = (path: string): AddedEntry => ({ path, type: "directory", mode: 0o755, keep: true })
  const file = (path: string, content: string, mode = 0o755): AddedEntry => ({
    path: `${root(app)}/scif/${path}`,
    type: "file",
    mode,
    content,
  })
  const script = (path: string, text: string): AddedEntry[] =>
    text === "" ? [] : [file(path, `#!/bin/sh\n\n${text}\n`)]
  const all = Object.fromEntries(
    Object.entries({ SCIF_APP_NAME: name, ...labels }).sort(([a], [b]) => (a < b ? -1 : 1)),
  )
  return [
    ...["scif", "scif/apps", root(app), "bin", "lib", "scif", "scif/env"].map((path, index) =>
      folder(index < 3 ? path : `${root(app)}/${path}`),
    ),
    ...["scif/data", `scif/data/${name}`, `scif/data/${name}/input`, `scif/data/${name}/output`].map(folder),
    file("env/01-base.sh", baseEnvironment(app)),
    ...(env === "" ? [] : [file("env/90-environment.sh", env)]),
    ...script("runscript", run),
    ...script("startscript", start),
    ...script("test", test),
    ...(help === "" ? [] : [file("runscript.help", help, 0o644)]),
    file("labels.json", JSON.stringify(all, undefined, "\t"), 0o644),
  ]
}

/** `94-appsbase.sh`: where each application is, for all of them. */
export function appEnvironment(apps: readonly App[]): string {
  return apps
    .map((app) => {
      const name = app.name.replace(/\W/g, "_")
      const at = `/${root(app)}`
      const values = [
        [`SCIF_APPDATA_${name}`, `/scif/data/${app.name}`],
        [`SCIF_APPMETA_${name}`, `${at}/scif`],
        [`SCIF_APPROOT_${name}`, at],
        [`SCIF_APPBIN_${name}`, `${at}/bin`],
        [`SCIF_APPLIB_${name}`, `${at}/lib`],
        ...(app.env === "" ? [] : [[`SCIF_APPENV_${name}`, `${at}/scif/env/90-environment.sh`]]),
        [`SCIF_APPLABELS_${name}`, `${at}/scif/labels.json`],
        ...(app.run === "" ? [] : [[`SCIF_APPRUN_${name}`, `${at}/scif/runscript`]]),
      ]
      return values.map(([key = "", value = ""]) => `export ${key}="${value}"\n`).join("")
    })
    .join("")
}

/** What an application adds to `%post`. */
export function appInstall(app: App): string {
  return `\ncd /\n. /${root(app)}/scif/env/01-base.sh\n\ncd /${root(app)}\n${app.install}\n\ncd /\n`
}
