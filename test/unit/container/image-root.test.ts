// What a file is, by its first bytes.
import assert from "node:assert/strict"
import { squashfsOffset } from "../../../lib/container/image-root.ts"

describe("squashfsOffset", () => {
  const launch = "#!/usr/bin/env run-singularity\n"
  const cases: readonly (readonly [what: string, head: string, offset: number | undefined])[] = [
    ["a squashfs", "hsqs and more", 0],
    ["a squashfs behind a launch line", `${launch}hsqs`, launch.length],
    ["one behind another interpreter's path", "#!/opt/env run-singularity\nhsqs", 27],
    ["a SIF", `${launch}\0SIF_MAGIC\0hsqs`, undefined],
    ["a script that runs something else", "#!/bin/sh\nhsqs", undefined],
    ["a launch line with something between", `${launch}\nhsqs`, undefined],
    ["a launch line alone", launch, undefined],
    [
      "a squashfs behind a launch line that is too long",
      `#!/${"long/".repeat(50)}env run-singularity\nhsqs`,
      undefined,
    ],
    ["no line end", "#!/usr/bin/env run-singularity hsqs", undefined],
    ["a big-endian squashfs", "sqsh", undefined],
    ["nothing", "", undefined],
  ]
  for (const [what, head, offset] of cases)
    it(`of ${what} is ${String(offset)}`, () => {
      assert.equal(squashfsOffset(Buffer.from(head, "latin1")), offset)
    })
})
