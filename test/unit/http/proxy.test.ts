import assert from "node:assert/strict"
import { proxyFor } from "../../../lib/http/proxy.ts"

describe("proxyFor", () => {
  const proxy = "http://proxy.test:3128"
  const isDirect = (url: string, noProxy: string): boolean =>
    proxyFor(new URL(url), { HTTPS_PROXY: proxy, HTTP_PROXY: proxy, NO_PROXY: noProxy }) === undefined

  for (const [noProxy, url, direct] of [
    ["", "https://a.test/", false],
    ["*", "https://a.test/", true],
    ["a.test", "https://a.test/", true],
    ["A.test", "https://b.a.test/", true],
    ["a.test", "https://ba.test/", false],
    [".a.test", "https://b.a.test/", true],
    ["*.a.test", "https://b.a.test/", true],
    ["x, a.test:5000", "https://a.test:5000/", true],
    ["a.test:5000", "https://a.test/", false],
    ["a.test:443", "https://a.test/", true],
    ["10.1.2.3", "https://10.1.2.3/", true],
    ["10.0.0.0/8", "https://10.1.2.3:5000/", true],
    ["10.0.0.0/8", "https://11.1.2.3/", false],
    ["10.0.0.0/8", "https://10.test/", false],
    ["10.0.0.0/33", "https://10.1.2.3/", false],
    ["fd00::/8", "https://[fd00::1]/", true],
    ["fd00::/8", "https://[fe00::1]/", false],
    ["fd00::1", "https://[fd00::1]/", true],
    ["[fd00::1]", "https://[fd00::1]/", true],
    ["[fd00::1]:5000", "https://[fd00::1]:5000/", true],
    ["[fd00::1]:5000", "https://[fd00::1]/", false],
    ["", "http://127.0.0.1:5000/", true],
    ["", "http://localhost/", true],
    ["", "http://127.0.0.1.test/", false],
  ] as const)
    it(`NO_PROXY=${noProxy} asks ${url} ${direct ? "directly" : "through it"}`, () => {
      assert.equal(isDirect(url, noProxy), direct)
    })

  it("shows no password of a proxy that it cannot use", () => {
    for (const wrong of [
      "socks5://user:secret@proxy.test",
      "http://user:secret@a b",
      "http://user:secret%zz@a",
    ])
      assert.throws(
        () => proxyFor(new URL("https://a.test/"), { HTTPS_PROXY: wrong }),
        ({ message }: Error) => !message.includes("secret"),
      )
  })
})
