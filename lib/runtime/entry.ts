// The script that becomes the payload: sources the image's environment as the peers do, then replaces itself.
import { DEFAULT_PATH } from "./environment.ts"

/** Where it and the generated files are seen inside. */
export const ENTRY_FOLDER = "/.sifcrypt"

/**
 * /bin/sh of any image runs it: `entry ACTION [ARGUMENT…]`. Beside it lie `overrides.sh` and `host.sh`, and `runscript` where
 * that of the image must not be taken as it is.
 */
export const entryScript: string = `#!/bin/sh
_sifcrypt_action=$1
shift
# Some shells set a prompt of their own, which would keep the image's from being set.
unset PS1
_sifcrypt_fill_path() {
  for _sifcrypt_folder in ${DEFAULT_PATH.replaceAll(":", " ")}; do
    case :$PATH: in
      *:$_sifcrypt_folder:*) ;;
      *) PATH=$PATH\${PATH:+:}$_sifcrypt_folder ;;
    esac
  done
  export PATH
}
_sifcrypt_overridden=
if [ -d /.singularity.d/env ]; then
  for _sifcrypt_script in /.singularity.d/env/*.sh; do
    [ -f "$_sifcrypt_script" ] || continue
    . "$_sifcrypt_script"
    case $_sifcrypt_script in
      */10-docker2singularity.sh | */10-docker.sh) _sifcrypt_fill_path ;;
      */99-base.sh)
        . ${ENTRY_FOLDER}/overrides.sh
        _sifcrypt_overridden=1
        ;;
    esac
  done
elif [ -f /environment ]; then
  . /environment
  _sifcrypt_fill_path
fi
[ -n "$_sifcrypt_overridden" ] || . ${ENTRY_FOLDER}/overrides.sh
# The image's own 99-runtimevars.sh has done it, unless the image is older.
[ -z "$SING_USER_DEFINED_PREPEND_PATH" ] || PATH=$SING_USER_DEFINED_PREPEND_PATH:$PATH
[ -z "$SING_USER_DEFINED_APPEND_PATH" ] || PATH=$PATH:$SING_USER_DEFINED_APPEND_PATH
[ -z "$SING_USER_DEFINED_PATH" ] || PATH=$SING_USER_DEFINED_PATH
export PATH
unset SING_USER_DEFINED_PREPEND_PATH SING_USER_DEFINED_APPEND_PATH SING_USER_DEFINED_PATH SHLVL OLDPWD
. ${ENTRY_FOLDER}/host.sh
export PS1="\${PS1:-sifcrypt> }"
# bash that is the command itself reads files that set the prompt of the host's.
if [ -z "$PROMPT_COMMAND" ]; then
  export PROMPT_COMMAND="PS1=\\"$PS1\\"; unset PROMPT_COMMAND"
else
  export PROMPT_COMMAND="$PROMPT_COMMAND; PROMPT_COMMAND=\\"\\\${PROMPT_COMMAND%%; PROMPT_COMMAND=*}\\"; PS1=\\"$PS1\\""
fi
export APPTAINER_ENVIRONMENT="\${APPTAINER_ENVIRONMENT:-/.singularity.d/env/91-environment.sh}"
export SINGULARITY_ENVIRONMENT="$APPTAINER_ENVIRONMENT"
say() {
  echo "sifcrypt: $1" >&2
}
refuse() {
  say "$1"
  exit "\${2:-255}"
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
start() {
  case $1 in
    */*)
      if [ -d "$1" ]; then refuse "$1: a folder, not a program"; fi
      if [ -e "$1" ] && [ ! -x "$1" ]; then refuse "$1: not executable in the image"; fi
      runnable "$1"
      ;;
    *) findable "$1" ;;
  esac || refuse "$1: not found in the image, or not executable"
  exec "$@"
}
_sifcrypt_app=/scif/apps/$SINGULARITY_APPNAME/scif
case $_sifcrypt_action in
  exec) start "$@" ;;
  run)
    if [ -n "$SINGULARITY_APPNAME" ]; then
      if [ -x "$_sifcrypt_app/runscript" ]; then exec "$_sifcrypt_app/runscript" "$@"; fi
      refuse "the app $SINGULARITY_APPNAME has no run script" 1
    fi
    if [ -f ${ENTRY_FOLDER}/runscript ]; then
      . ${ENTRY_FOLDER}/runscript
      [ $# -eq 0 ] || start "$@"
      exit 0
    fi
    for script in /.singularity.d/runscript /singularity /apptainer; do
      if [ -x $script ]; then exec $script "$@"; fi
    done
    say "there is no run script in the image: /bin/sh instead"
    exec /bin/sh "$@"
    ;;
  test)
    if [ -n "$SINGULARITY_APPNAME" ]; then
      if [ -x "$_sifcrypt_app/test" ]; then exec "$_sifcrypt_app/test" "$@"; fi
      refuse "the app $SINGULARITY_APPNAME has no test script" 1
    fi
    if [ -x /.singularity.d/test ]; then exec /.singularity.d/test "$@"; fi
    say "there is no test script in the image"
    exit 0
    ;;
  start)
    if [ -n "$SINGULARITY_APPNAME" ]; then
      if [ -x "$_sifcrypt_app/startscript" ]; then exec "$_sifcrypt_app/startscript" "$@"; fi
    elif [ -x /.singularity.d/startscript ]; then
      exec /.singularity.d/startscript "$@"
    fi
    say "there is no start script in the image"
    exit 0
    ;;
  shell)
    if [ -n "$SINGULARITY_SHELL" ]; then
      if runnable "$SINGULARITY_SHELL"; then exec "$SINGULARITY_SHELL"; fi
      say "$SINGULARITY_SHELL: not found in the image, or not executable: another shell instead"
    fi
    if [ -x /bin/bash ]; then
      export SHELL=/bin/bash
      exec /bin/bash --norc
    fi
    export SHELL=/bin/sh
    exec /bin/sh
    ;;
esac
refuse "unknown action $_sifcrypt_action"
`

/** The quoted words of an OCI image's entry point or command, in a run script as the peers write them. */
function wordsIn(script: string, name: string): string | undefined {
  return new RegExp(`^${name}=((?:'[^']*'|"'")*)$`, "m").exec(script)?.[1]
}

/**
 * The peers make a run script for OCI images that has a shell expand the user's arguments as well as the image's words. This
 * one does the same to the image's words alone.
 *
 * @returns undefined for any other run script.
 */
export function ociRunScript(script: string): string | undefined {
  const entryPoint = wordsIn(script, "OCI_ENTRYPOINT")
  const command = wordsIn(script, "OCI_CMD")
  if (entryPoint === undefined || command === undefined || !script.includes("SINGULARITY_OCI_RUN"))
    return undefined
  return `_sifcrypt_entry_point=${entryPoint}
_sifcrypt_command=${command}
if [ $# -gt 0 ]; then
  eval "set -- $_sifcrypt_entry_point \\"\\$@\\""
else
  eval "set -- $_sifcrypt_entry_point $_sifcrypt_command"
fi
`
}
