// bcrypt-pbkdf comes without declarations. Of what it exports only this is used.
declare module "bcrypt-pbkdf" {
  const bcrypt: {
    /** bcrypt's hash of two SHA-512 digests, into the 32 bytes of `out`. */
    hash(password: Uint8Array, salt: Uint8Array, out: Uint8Array): void
  }
  export default bcrypt
}
