// Which code belongs to which class. The compiler is the one who refuses: where it would not, a type below is `true` and this file
// does not compile.
import assert from "node:assert/strict"
import {
  ContainerError,
  GocryptfsError,
  type BuildError,
  type DeviceError,
  type EnvironmentError,
  type ErrorCode,
  type KeyError,
  type LuksError,
  type OciError,
  type RunError,
  type SifError,
  type SignatureError,
  type TreeError,
} from "../../lib/errors.ts"

/** Takes the class such a code, or can a program meet it there? */
type Has<
  Class extends new (code: never, message: string) => ContainerError,
  Code extends ErrorCode,
> = Code extends ConstructorParameters<Class>[0] | InstanceType<Class>["code"] ? true : false

describe("classes of errors", () => {
  it("have codes of their own: another one does not compile", () => {
    const foreign: readonly [
      Has<typeof KeyError, "ERR_LUKS_PASSPHRASE">,
      // A family whose name begins alike.
      Has<typeof KeyError, "ERR_KEYRING_BUSY">,
      Has<typeof GocryptfsError, "ERR_LUKS_PASSPHRASE">,
      Has<typeof LuksError, "ERR_GOCRYPTFS_CONFIG">,
      Has<typeof SifError, "ERR_SIGNATURE_INVALID">,
      Has<typeof SignatureError, "ERR_SIF_MAGIC">,
      Has<typeof TreeError, "ERR_EXTRACT">,
      Has<typeof OciError, "ERR_BUILD_SOURCE">,
      Has<typeof BuildError, "ERR_OCI_FORMAT">,
      Has<typeof DeviceError, "ERR_RUN">,
      Has<typeof RunError, "ERR_MOUNT">,
      Has<typeof EnvironmentError, "ERR_RUN">,
    ] = [false, false, false, false, false, false, false, false, false, false, false, false]
    const own: readonly [
      Has<typeof KeyError, "ERR_KEY_MISSING">,
      Has<typeof SignatureError, "ERR_UNSIGNED">,
    ] = [true, true]
    assert.deepEqual([foreign.includes(true as never), own], [false, [true, true]])
  })

  it("tell a program the code, whichever of them it asks for", () => {
    const error: unknown = new GocryptfsError("ERR_GOCRYPTFS_PASSPHRASE", "")
    assert.ok(error instanceof ContainerError && error instanceof GocryptfsError)
    assert.equal(error.code, "ERR_GOCRYPTFS_PASSPHRASE")
  })
})
