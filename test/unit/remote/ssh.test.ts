// Addresses of machines that build: nothing in one of them is an option of ssh's, or a word for a shell.
import assert from "node:assert/strict"
import { parseRemote, remoteAddress, sshArguments } from "../../../lib/remote/ssh.ts"

describe("parseRemote", () => {
  it("takes a host, with a user, a port and a program", () => {
    for (const [text, user, host, port, program] of [
      ["ssh://builder", undefined, "builder", undefined, undefined],
      ["ssh://builder/", undefined, "builder", undefined, undefined],
      ["ssh://me@builder.example:2222", "me", "builder.example", 2222, undefined],
      ["ssh://a.b+c@d@10.0.0.1", "a.b+c@d", "10.0.0.1", undefined, undefined],
      ["ssh://[fe80::1%eth0]:22/opt/a-b/sifcrypt", undefined, "fe80::1%eth0", 22, "/opt/a-b/sifcrypt"],
    ] as const)
      assert.deepEqual(parseRemote(text), { text, user, host, port, program })
  })

  it("refuses what ssh or a shell would take for something else", () => {
    for (const text of [
      "builder",
      "http://builder",
      "ssh://",
      "ssh://-oProxyCommand=x",
      "ssh://-l@builder",
      "ssh://me@-builder",
      "ssh://me@",
      "ssh://@builder",
      "ssh://builder:0",
      "ssh://builder:65536",
      "ssh://builder:22x",
      "ssh://builder:",
      "ssh://builder/a b",
      "ssh://builder/a;b",
      "ssh://builder/$(b)",
      "ssh://builder/a'b",
      "ssh://builder/a\nb",
      "ssh://builder/~b",
      "ssh://bu ilder",
      "ssh://b`x`",
      "ssh://[::1",
      "ssh://[-1]",
      "ssh://m$e@builder",
      "ssh://builder\n",
      "SSH://builder",
    ]) {
      assert.equal(parseRemote(text), undefined, text)
      assert.throws(() => remoteAddress(text, "remote"), { code: "ERR_INVALID_ARG_VALUE" })
    }
  })

  it("has ssh read no option behind the host", () => {
    const words = sshArguments(parseRemote("ssh://me@builder:2222/opt/sifcrypt")!)
    assert.deepEqual(words.slice(words.indexOf("--")), ["--", "builder", "exec /opt/sifcrypt serve-build"])
    const trusting = sshArguments(parseRemote("ssh://builder")!, true)
    assert.equal(trusting.at(-1), "exec sifcrypt serve-build --allow-unconfined")
    for (const flag of ["-T", "-a", "-x"]) assert.ok(words.indexOf(flag) < words.indexOf("--"), flag)
  })
})
