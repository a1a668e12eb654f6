// What makes `up` start a service anew: all that the files say of it, also where they say it elsewhere.
import assert from "node:assert/strict"
import { writeFileSync } from "node:fs"
import path from "node:path"
import { load, type Project } from "../../../lib/compose/compose.ts"
import { newFolder } from "../../support/scratch.ts"

const file = `
services:
  web:
    image: ./web.sif
    build: { dockerfile: web.def }
    networks: [inner]
    volumes: ["data:/data"]
    configs: [{ source: greeting, target: /greeting }]
    secrets: [word]
networks: { inner: { internal: true } }
volumes: { data: { name: web-data } }
configs: { greeting: { content: "good morning" } }
secrets: { word: { file: word.txt } }
`

const folder = newFolder("compose-configuration")

function projectOf(content: string): Project {
  const name = path.join(folder, "compose.yaml")
  writeFileSync(name, content)
  return load({ files: [name], environment: {} })
}

const configurationOf = (content: string): string => projectOf(content).configurationOf("web")

describe("the configuration of a service", () => {
  it("is the same where the same is said", () => {
    assert.equal(configurationOf(file), configurationOf(file))
  })

  it("is the same of one instance and of several", () => {
    const several = file.replace("web.sif", "web.sif\n    scale: 3")
    assert.equal(configurationOf(several), configurationOf(file))
  })

  for (const [what, before, after] of [
    ["itself", "./web.sif", "./other.sif"],
    ["a network that it is in", "internal: true", "internal: false"],
    ["a volume that it has", "web-data", "other-data"],
    ["what is in a config", "morning", "evening"],
    ["the file of a secret", "word.txt", "words.txt"],
  ] as const)
    it(`is another where the files say otherwise of ${what}`, () => {
      const changed = file.replace(before, after)
      assert.notEqual(changed, file)
      assert.notEqual(configurationOf(changed), configurationOf(file))
    })
})

it("a definition file lies beside the compose file that names it, unless context says otherwise", () => {
  const { services } = projectOf(file).config() as { services: { web: { build: object } } }
  assert.deepEqual(services.web.build, { context: folder, dockerfile: "web.def" })
})
