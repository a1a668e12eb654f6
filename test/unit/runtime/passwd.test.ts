import assert from "node:assert/strict"
import { groupWith, passwdWith, type Identity } from "../../../lib/runtime/passwd.ts"

const user: Identity = {
  uid: 1000,
  gid: 2000,
  name: "ada",
  group: "staff",
  home: "/home/ada",
  shell: "/bin/bash",
}
const root: Identity = { uid: 0, gid: 0, name: "root", group: "root", home: "/root", shell: "/bin/sh" }

describe("passwdWith", () => {
  it("adds the caller at the end, and makes a file where there is none", () => {
    const line = "ada:x:1000:2000::/home/ada:/bin/bash\n"
    assert.equal(passwdWith("", user), line)
    assert.equal(
      passwdWith("root:x:0:0:root:/root:/bin/sh\n", user),
      `root:x:0:0:root:/root:/bin/sh\n${line}`,
    )
    assert.equal(passwdWith("root:x:0:0:root:/root:/bin/sh", user), `root:x:0:0:root:/root:/bin/sh\n${line}`)
  })

  it("replaces the line with the caller's number, and keeps the image's shell", () => {
    assert.equal(
      passwdWith("a:x:1:1::/:/bin/a\nimage:x:1000:1000:Image User:/home/image:/bin/zsh\nb:x:2:2::/:\n", user),
      "a:x:1:1::/:/bin/a\nada:x:1000:2000:Image User:/home/ada:/bin/zsh\nb:x:2:2::/:\n",
    )
    assert.equal(passwdWith("image:x:1000:1000::/h:\n", user), "ada:x:1000:2000::/home/ada:/bin/bash\n")
    assert.equal(passwdWith("image:x:1000\n", user), "ada:x:1000:2000::/home/ada:/bin/bash\n")
  })

  it("leaves root its name in the image", () => {
    assert.equal(passwdWith("toor:x:0:0::/:/bin/sh\n", root), "toor:x:0:0::/root:/bin/sh\n")
  })

  it("does not take 10000 or 01000 for 1000", () => {
    const file = "a:x:10000:1::/:\nb:x:01000:1::/:\n"
    assert.equal(passwdWith(file, user), `${file}ada:x:1000:2000::/home/ada:/bin/bash\n`)
  })

  it("lets no field end a line or another field", () => {
    const evil = { ...user, name: "a:0:0\nroot", home: "/h\nx::", shell: "/s:\n" }
    assert.equal(passwdWith("", evil), "a_0_0_root:x:1000:2000::/h_x__:/s__\n")
    assert.equal(passwdWith("i:x:1000:1::/h:/bin/sh\n", evil), "a_0_0_root:x:1000:2000::/h_x__:/bin/sh\n")
  })
})

describe("groupWith", () => {
  it("adds the caller's group unless it is there", () => {
    assert.equal(groupWith("", user), "staff:x:2000:ada\n")
    assert.equal(groupWith("root:x:0:\n", user), "root:x:0:\nstaff:x:2000:ada\n")
    assert.equal(groupWith("image:x:2000:\n", user), "image:x:2000:\n")
    assert.equal(groupWith("", root), "root:x:0:\n")
  })

  it("lets no field end a line or another field", () => {
    assert.equal(groupWith("", { ...user, group: "g\n:", name: "n:,\n" }), "g__:x:2000:n_,_\n")
  })
})
