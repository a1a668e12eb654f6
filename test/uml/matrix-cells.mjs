// One row of the matrix in matrix.test.ts: everything that one identity does, in one process, because a process takes
// seconds to start in the guest. Arguments: a key file, a passphrase file, an image, a folder to mount on. Prints JSON.
import { readFileSync } from "node:fs"
import path from "node:path"
import { open, unmount } from "../../dist/index.js"

const [keyFile = "", passphraseFile = "", image = "", folder = ""] = process.argv.slice(2)

const actions = {
  exec: async (opened, engine) => await end(opened.exec(["/bin/sh", "-c", "exit 5"], { engine })),
  run: async (opened, engine) => await end(opened.run(["6"], { engine })),
  shell: async (opened, engine) => await end(opened.shell({ engine }), "exit 7\n"),
  mount: async (opened, engine) => {
    const mount = await opened.mount(folder, { engine, detached: true })
    try {
      return `${mount.info.engine} ${readFileSync(path.join(folder, "data", "hello"), "utf8").trim()}`
    } finally {
      await unmount(folder)
    }
  },
}

async function end(starting, input) {
  const running = await starting
  running.stdin?.end(input)
  const { exitCode } = await running.exited
  return `${running.engine} ${exitCode}`
}

const cells = {}
for (const [name, credentials] of Object.entries({
  rsa: [{ key: { file: keyFile } }],
  passphrase: [{ passphrase: { file: passphraseFile } }],
})) {
  const opened = await open(image, { unlock: credentials })
  for (const engine of ["kernel", "userspace"])
    for (const [action, act] of Object.entries(actions))
      cells[`${name} ${engine} ${action}`] = await act(opened, engine).catch(
        (error) => error.code ?? String(error),
      )
  await opened.close()
}
process.stdout.write(JSON.stringify(cells))
