import assert from "node:assert/strict"
import {
  architectureDigits,
  architectureName,
  dataTypeName,
  fileSystemName,
  hashName,
  messageFormatName,
  messageTypeName,
  partitionTypeName,
  sbomFormatName,
} from "../../../lib/sif/names.ts"

describe("names of SIF's numbers", () => {
  it("gives each architecture its two digits, and back", () => {
    const names = "386 amd64 arm arm64 ppc64 ppc64le mips mipsle mips64 mips64le s390x riscv64 loong64".split(
      " ",
    )
    names.forEach((name, index) => {
      const digits = String(index + 1).padStart(2, "0")
      assert.equal(architectureName(digits), name)
      assert.equal(architectureDigits(name), digits)
    })
  })

  it("knows Node's names of architectures", () => {
    assert.equal(architectureDigits("x64"), "02")
    assert.equal(architectureDigits("ia32"), "01")
    assert.equal(architectureDigits("mipsel"), "08")
    for (const none of ["unknown", "", "sparc", "constructor"])
      assert.equal(architectureDigits(none), undefined)
  })

  it("calls an architecture that nobody defined unknown", () => {
    for (const digits of ["00", "14", "99", "2", "", "0x", "002", "\0\0"])
      assert.equal(architectureName(digits), "unknown", JSON.stringify(digits))
  })

  it("names what the peers name", () => {
    assert.equal(dataTypeName(0x4004), "FS")
    assert.equal(dataTypeName(0x4008), "Cryptographic Message")
    assert.equal(fileSystemName(5), "Encrypted squashfs")
    assert.equal(fileSystemName(6), "Gocryptfs squashfs")
    assert.equal(partitionTypeName(2), "*System")
    assert.equal(hashName(2), "SHA-384")
    assert.equal(messageFormatName(2), "PEM")
    assert.equal(messageTypeName(0x200), "RSA-OAEP")
    assert.equal(sbomFormatName(8), "syft-json")
  })

  it("calls every other number Unknown", () => {
    for (const name of [
      dataTypeName,
      fileSystemName,
      partitionTypeName,
      hashName,
      messageFormatName,
      messageTypeName,
      sbomFormatName,
    ])
      for (const code of [0, -1, 77, 2 ** 31 - 1, -(2 ** 31)]) assert.equal(name(code), "Unknown")
  })
})
