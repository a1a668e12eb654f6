// Before `npm publish`: whether package.json says where the project is. It cannot before there is such a place.
import { readFileSync } from "node:fs"

const { repository, homepage, bugs } = JSON.parse(
  readFileSync(new URL("../package.json", import.meta.url), "utf8"),
)
const missing = Object.entries({ repository: repository?.url, homepage, bugs: bugs?.url })
  .filter(([, url]) => !URL.canParse(url))
  .map(([field]) => field)
if (missing.length > 0) {
  console.error(
    `npm publish: package.json has no address for ${missing.join(", ")} (CONTRIBUTING.md, "A release")`,
  )
  process.exitCode = 1
}
