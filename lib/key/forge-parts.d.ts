// The parts of node-forge by themselves, which its type declarations know only as members of the whole.
declare module "node-forge/lib/asn1.js" {
  import type forge from "node-forge"
  // Context-specific types are any number.
  const asn1: Omit<typeof forge.asn1, "create"> & {
    create: (
      tagClass: forge.asn1.Class,
      type: number,
      constructed: boolean,
      value: string | forge.asn1.Asn1[],
    ) => forge.asn1.Asn1
  }
  export default asn1
}
declare module "node-forge/lib/pem.js" {
  import type forge from "node-forge"
  const pem: typeof forge.pem
  export default pem
}
declare module "node-forge/lib/util.js" {
  import type forge from "node-forge"
  const util: typeof forge.util
  export default util
}
declare module "node-forge/lib/rc2.js" {
  import type forge from "node-forge"
  const rc2: typeof forge.rc2
  export default rc2
}
