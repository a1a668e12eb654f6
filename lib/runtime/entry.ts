// The script that becomes the payload: sources the image's environment as the peers do, then replaces itself.

/** Where it and the generated files are seen inside. */
export const ENTRY_FOLDER = "/.sifcrypt"

/** /bin/sh of any image runs it: `entry ACTION [ARGUMENT…]`. */
export const entryScript: string = `#!/bin/sh
_sifcrypt_action=$1
shift
# Some shells set a prompt of their own, which would keep the image's from being set.
unset PS1
for _sifcrypt_script in /.singularity.d/env/*.sh; do
  case $_sifcrypt_script in
    */99-runtimevars.sh) ;;
    *) if [ -f "$_sifcrypt_script" ]; then . "$_sifcrypt_script"; fi ;;
  esac
done
. ${ENTRY_FOLDER}/overrides.sh
. ${ENTRY_FOLDER}/host.sh
refuse() {
  echo "sifcrypt: $1" >&2
  exit 255
}
# The shell's own words for it would be an exit status of 126 or 127, which programs also use themselves.
runnable() {
  [ -f "$1" ] && [ -x "$1" ]
}
# Not "command -v", which also finds what is built into the shell.
findable() (
  set -f
  IFS=:
  for folder in $PATH; do
    runnable "\${folder:-.}/$1" && exit 0
  done
  exit 1
)
case $_sifcrypt_action in
  exec)
    case $1 in
      */*) runnable "$1" ;;
      *) findable "$1" ;;
    esac || refuse "$1: not found in the image, or not executable"
    exec "$@"
    ;;
  run)
    if [ -x /.singularity.d/runscript ]; then exec /.singularity.d/runscript "$@"; fi
    if [ -x /singularity ]; then exec /singularity "$@"; fi
    exec /bin/sh "$@"
    ;;
  shell)
    export PS1="\${PS1:-sifcrypt> }"
    if [ -x /bin/bash ]; then exec /bin/bash --norc; fi
    exec /bin/sh
    ;;
esac
refuse "unknown action $_sifcrypt_action"
`
