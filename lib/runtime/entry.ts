// The script that becomes the payload: sources the image's environment as the peers do, then replaces itself.

/** Where it and the generated files are seen inside. */
export const ENTRY_FOLDER = "/.sifcrypt"

/** /bin/sh of any image runs it: `entry ACTION [ARGUMENT…]`. */
export const entryScript: string = `#!/bin/sh
action=$1
shift
# Some shells set a prompt of their own, which would keep the image's from being set.
unset PS1
for script in /.singularity.d/env/*.sh; do
  case $script in
    */99-runtimevars.sh) ;;
    *) if [ -f "$script" ]; then . "$script"; fi ;;
  esac
done
. ${ENTRY_FOLDER}/overrides.sh
. ${ENTRY_FOLDER}/host.sh
unset script
refuse() {
  echo "sifcrypt: $1" >&2
  exit 255
}
case $action in
  exec)
    command -v -- "$1" >/dev/null 2>&1 || refuse "$1: not found in the image, or not executable"
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
refuse "unknown action $action"
`
