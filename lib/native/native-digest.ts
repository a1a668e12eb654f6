/**
 * The sources that native files have to be made of (`scripts/native-digest.sh`). In dist, scripts/bundle-command.mjs puts in here what it
 * was built beside; where it is undefined, these are the sources themselves, and nothing is compared.
 */
export const nativeDigest: string | undefined = undefined
