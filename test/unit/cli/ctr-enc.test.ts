import assert from "node:assert/strict"
import { ctrEncWords } from "../../../lib/cli/ctr-enc.ts"

describe("the words of ctr-enc", () => {
  const cases: readonly [theirs: string, ours: string][] = [
    [
      "images encrypt --recipient jwe:pub.pem --platform linux/amd64 alpine:3.20 alpine:enc",
      "image encrypt --recipient=jwe:pub.pem --platform=linux/amd64 store:alpine:3.20 store:alpine:enc",
    ],
    [
      "-n k8s.io -a /run/sock images encrypt -recipient=pgp:me --layer -1 x",
      "image encrypt --recipient=pgp:me --layer=-1 store:x store:x",
    ],
    [
      "--debug i decrypt --key k.pem --key=l.pem:fd=3 x y",
      "image decrypt --key=k.pem --key=l.pem:fd=3 store:x store:y",
    ],
    [
      "images decrypt --gpg-homedir /g --gpg-version v2 x",
      "image decrypt --gpg-homedir=/g --key=pgp: store:x store:x",
    ],
    ["images decrypt --gpg-homedir /g --key k x y", "image decrypt --gpg-homedir=/g --key=k store:x store:y"],
    [
      "images encrypt --all-platforms --skip-decrypt-auth --plain-http oci:d docker://h/x",
      "image encrypt --no-https oci:d docker://h/x",
    ],
    ["images layerinfo --platform linux/arm64 x", "image layerinfo --platform=linux/arm64 store:x"],
    ["images ls", "image list"],
    ["images rm --sync x y", "image rm x y"],
    // What is not known is refused by whoever reads it.
    ["images mount x y", "images mount x y"],
    ["images encrypt --unknown x", "image encrypt --unknown store:x store:x"],
    ["run --key k x", "run x --key=k"],
    ["", ""],
  ]
  for (const [theirs, ours] of cases)
    it(theirs === "" ? "none" : theirs, () => {
      assert.deepEqual(ctrEncWords(theirs === "" ? [] : theirs.split(" ")).join(" "), ours)
    })
})
