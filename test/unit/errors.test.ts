// Which code belongs to which class. The compiler is the one who refuses: `@ts-expect-error` fails where it does not.
import assert from "node:assert/strict"
import {
  BuildError,
  ContainerError,
  DeviceError,
  EnvironmentError,
  GocryptfsError,
  KeyError,
  LuksError,
  OciError,
  RunError,
  SifError,
  SignatureError,
  TreeError,
} from "../../lib/errors.ts"

describe("classes of errors", () => {
  it("have codes of their own: another one does not compile", () => {
    const foreign = [
      // @ts-expect-error it is another class's
      new KeyError("ERR_LUKS_PASSPHRASE", ""),
      // @ts-expect-error a family whose name begins alike
      new KeyError("ERR_KEYRING_BUSY", ""),
      // @ts-expect-error it is another class's
      new GocryptfsError("ERR_LUKS_PASSPHRASE", ""),
      // @ts-expect-error it is another class's
      new LuksError("ERR_GOCRYPTFS_CONFIG", ""),
      // @ts-expect-error it is another class's
      new SifError("ERR_SIGNATURE_INVALID", ""),
      // @ts-expect-error it is another class's
      new SignatureError("ERR_SIF_MAGIC", ""),
      // @ts-expect-error it is another class's
      new TreeError("ERR_EXTRACT", ""),
      // @ts-expect-error it is another class's
      new OciError("ERR_BUILD_SOURCE", ""),
      // @ts-expect-error it is another class's
      new BuildError("ERR_OCI_FORMAT", ""),
      // @ts-expect-error it is another class's
      new DeviceError("ERR_RUN", ""),
      // @ts-expect-error it is another class's
      new RunError("ERR_MOUNT", ""),
      // @ts-expect-error it is another class's
      new EnvironmentError("ERR_RUN", ""),
    ]
    assert.equal(foreign.length, 12)
  })

  it("tell a program which codes there are to expect", () => {
    const error: unknown = new GocryptfsError("ERR_GOCRYPTFS_PASSPHRASE", "")
    assert.ok(error instanceof GocryptfsError)
    // @ts-expect-error a code that it cannot have
    assert.ok(error.code !== "ERR_LUKS_PASSPHRASE")
  })

  it("are one of all codes for whoever asks for no more: any other word does not compile", () => {
    const error: unknown = new GocryptfsError("ERR_GOCRYPTFS_PASSPHRASE", "")
    assert.ok(error instanceof ContainerError)
    // @ts-expect-error a code that nothing has
    assert.ok(error.code !== "ERR_NOTHING")
  })
})
