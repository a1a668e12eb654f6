// Two services of a compose file, as whoever runs this: `network-cells.mjs KEY IMAGE FOLDER`. Prints the names of those that run, and ends
// them when its standard input ends. One process for all, because a process takes seconds to start in the guest.
import { writeFileSync } from "node:fs"
import path from "node:path"
import { compose } from "../../dist/index.js"

const [keyFile = "", image = "", folder = ""] = process.argv.slice(2)
const file = path.join(folder, "compose.yaml")
const serves = (port, more) => [
  "sh",
  "-c",
  `mkdir -p /tmp/www && cd /tmp/www && ${more} && exec busybox httpd -f -p ${port} -h /tmp/www`,
]
const page = `#!/bin/sh\\necho "Content-Type: text/plain"\\necho\\nbusybox wget -qO- http://num:8000/num\\n`
writeFileSync(
  file,
  JSON.stringify({
    "x-sifcrypt": { pem_path: keyFile, require_encrypted: true },
    services: {
      num: {
        image,
        entrypoint: serves(
          8000,
          "echo 4711 > num && busybox dd if=/dev/zero of=large bs=1M count=8 2>/dev/null",
        ),
        ports: ["8000:8000"],
      },
      page: {
        image,
        entrypoint: serves(
          80,
          `mkdir cgi-bin && printf '${page}' > cgi-bin/page && busybox chmod 755 cgi-bin/page`,
        ),
        ports: ["127.0.0.1:8080:80"],
      },
    },
  }),
)
const project = compose.load({ files: [file], name: "guest" })
await project.up()
console.log((await project.ps()).map(({ name, state }) => `${name} ${state}`).join(", "))
for await (const _ of process.stdin);
await project.down()
