// The script that becomes the payload: sources the image's environment as the peers do, then replaces itself.
import { DEFAULT_PATH } from "./environment.ts"

/** Where it and the generated files are seen inside. */
export const ENTRY_FOLDER = "/.sifcrypt"

/** Where the interpreter is seen inside. */
export const SHELL_PATH: string = `${ENTRY_FOLDER}/shell`

/** A search path that a script of the image has unset is the default one; an empty one is the image's. */
const pathUnlessSet = `[ -n "\${PATH+set}" ] || export PATH=${DEFAULT_PATH}`

/**
 * What sifcrypt-shell runs: `entry ACTION [ARGUMENT…]`. Beside it lie `overrides.sh` and `host.sh`, and `runscript` where
 * that of the image must not be taken as it is.
 */
export const entryScript: string = `# The last variable tells the interpreter that this script has come to its own end.
_sifcrypt_action=$1
_sifcrypt_cwd=$PWD
_sifcrypt_name=\${_sifcrypt_name:-sifcrypt}
shift
readonly APPTAINER_NAME APPTAINER_CONTAINER
shopt -s expand_aliases
_sifcrypt_fill_path() {
  for _sifcrypt_default in ${DEFAULT_PATH.replaceAll(":", " ")}; do
    case :\${PATH:-}: in
      *:$_sifcrypt_default:*) ;;
      *) PATH=\${PATH:-}\${PATH:+:}$_sifcrypt_default ;;
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
        ${pathUnlessSet}
        . ${ENTRY_FOLDER}/overrides.sh
        _sifcrypt_overridden=1
        ;;
    esac
  done
elif [ -f /environment ]; then
  . /environment
  _sifcrypt_fill_path
fi
if [ -z "$_sifcrypt_overridden" ]; then
  ${pathUnlessSet}
  . ${ENTRY_FOLDER}/overrides.sh
fi
# The image's own 99-runtimevars.sh has done it, unless the image is older.
[ -z "\${SING_USER_DEFINED_PREPEND_PATH:-}" ] || PATH=$SING_USER_DEFINED_PREPEND_PATH:\${PATH:-}
[ -z "\${SING_USER_DEFINED_APPEND_PATH:-}" ] || PATH=\${PATH:-}:$SING_USER_DEFINED_APPEND_PATH
[ -z "\${SING_USER_DEFINED_PATH:-}" ] || PATH=$SING_USER_DEFINED_PATH
export PATH
unset SING_USER_DEFINED_PREPEND_PATH SING_USER_DEFINED_APPEND_PATH SING_USER_DEFINED_PATH
shopt -u expand_aliases
command cd "$_sifcrypt_cwd" || :
unset OLDPWD
. ${ENTRY_FOLDER}/host.sh
export PS1="\${PS1:-sifcrypt> }"
# bash that is the command itself reads files that set the prompt of the host's.
if [ -z "\${PROMPT_COMMAND:-}" ]; then
  export PROMPT_COMMAND="PS1=\\"$PS1\\"; unset PROMPT_COMMAND"
else
  export PROMPT_COMMAND="$PROMPT_COMMAND; PROMPT_COMMAND=\\"\\\${PROMPT_COMMAND%%; PROMPT_COMMAND=*}\\"; PS1=\\"$PS1\\""
fi
export APPTAINER_ENVIRONMENT="\${APPTAINER_ENVIRONMENT:-/.singularity.d/env/91-environment.sh}"
export SINGULARITY_ENVIRONMENT="$APPTAINER_ENVIRONMENT"
say() {
  echo "$_sifcrypt_name: $1" >&2
}
refuse() {
  say "$1"
  exit 1
}
_sifcrypt_app=/scif/apps/\${SINGULARITY_APPNAME:-}/scif
case $_sifcrypt_action in
  exec) exec "$@" ;;
  run)
    if [ -n "\${SINGULARITY_APPNAME:-}" ]; then
      if [ -x "$_sifcrypt_app/runscript" ]; then exec "$_sifcrypt_app/runscript" "$@"; fi
      refuse "the app $SINGULARITY_APPNAME has no run script"
    fi
    if [ -f ${ENTRY_FOLDER}/runscript ]; then
      . ${ENTRY_FOLDER}/runscript
      if [ $# -gt 0 ]; then exec "$@"; fi
    else
      for script in /.singularity.d/runscript /singularity /apptainer; do
        if [ -x $script ]; then exec $script "$@"; fi
      done
      if [ ! -x /bin/sh ]; then refuse "there is no run script in the image, and no /bin/sh"; fi
      say "there is no run script in the image: /bin/sh instead"
      exec /bin/sh "$@"
    fi
    ;;
  test)
    if [ -n "\${SINGULARITY_APPNAME:-}" ]; then
      if [ -x "$_sifcrypt_app/test" ]; then exec "$_sifcrypt_app/test" "$@"; fi
      refuse "the app $SINGULARITY_APPNAME has no test script"
    fi
    if [ -x /.singularity.d/test ]; then exec /.singularity.d/test "$@"; fi
    say "there is no test script in the image"
    ;;
  start)
    if [ -n "\${SINGULARITY_APPNAME:-}" ]; then
      if [ -x "$_sifcrypt_app/startscript" ]; then exec "$_sifcrypt_app/startscript" "$@"; fi
    elif [ -x /.singularity.d/startscript ]; then
      exec /.singularity.d/startscript "$@"
    fi
    say "there is no start script in the image"
    ;;
  shell)
    if [ -n "\${SINGULARITY_SHELL:-}" ]; then
      if [ -x "$SINGULARITY_SHELL" ]; then exec "$SINGULARITY_SHELL"; fi
      say "$SINGULARITY_SHELL: not found in the image, or not executable: another shell instead"
    fi
    if [ -x /bin/bash ]; then
      export SHELL=/bin/bash
      exec /bin/bash --norc
    fi
    if [ ! -x /bin/sh ]; then refuse "there is no shell in the image"; fi
    export SHELL=/bin/sh
    exec /bin/sh
    ;;
  *) refuse "unknown action $_sifcrypt_action" ;;
esac
_sifcrypt_end=1
`

/** A line of the run scripts that are made of OCI images here; of the peers', the name of a variable. */
export const OCI_EVALUATION: string = String.raw`eval "set -- $OCI_ENTRYPOINT \"\$@\""`

/** The quoted words of an OCI image's entry point or command, in a run script as the peers write them. */
function wordsIn(script: string, name: string): string | undefined {
  return new RegExp(`^${name}=((?:'[^']*'|"'")*)$`, "m").exec(script)?.[1]
}

/**
 * The peers make a run script for OCI images that has a shell expand the user's arguments as well as the image's words. This
 * one does the same to the image's words alone. Like those made here it needs no shell in the image.
 *
 * @returns undefined for any other run script.
 */
export function ociRunScript(script: string): string | undefined {
  const entryPoint = wordsIn(script, "OCI_ENTRYPOINT")
  const command = wordsIn(script, "OCI_CMD")
  const own = script.includes(OCI_EVALUATION)
  if (entryPoint === undefined || command === undefined || !(own || script.includes("SINGULARITY_OCI_RUN")))
    return undefined
  return `_sifcrypt_entry_point=${entryPoint}
_sifcrypt_command=${command}
if [ $# -gt 0 ]; then
  eval "set -- $_sifcrypt_entry_point \\"\\$@\\""
else
  eval "set -- $_sifcrypt_entry_point $_sifcrypt_command"
fi
${own ? "if [ $# -eq 0 ]; then set -- /bin/sh; fi\n" : ""}`
}
