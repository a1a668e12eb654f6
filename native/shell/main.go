// sifcrypt-shell: runs the entry script of a container, and with it the image's environment scripts, in the language in
// which the peers run them, whatever shell the image has; then becomes the payload. It is linked statically, so that it
// runs in any image.
//
//	sifcrypt-shell SCRIPT ACTION [ARGUMENT...]
//
// Inside, $0 is /.singularity.d/actions/ACTION, $1 is ACTION, and the ARGUMENTs follow. The language is that of
// mvdan.cc/sh, which is the peers' interpreter as well; here is what it leaves to a program that is a shell.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

const (
	// The payload was not started.
	failure = 255
	// A script asks for what the interpreter does not know.
	unsupported = 2
	// The script sets it at its end: an exit that is not its own has not started the payload either.
	endVariable  = ownPrefix + "end"
	nameVariable = ownPrefix + "name"
	// What a script asks for that the interpreter does not have (rewrite).
	unknownCommand    = ownPrefix + "unknown"
	tracebackVariable = "GOTRACEBACK"
	// The caller's soft limit.
	openFilesVariable = ownPrefix + "open_files"
	// So many calls of this program are some thousand of a script's functions within each other.
	maxDepth = 20_000
	// The entry script's own, which no subshell can leave in the payload's environment.
	ownPrefix = "_sifcrypt_"
)

// What messages begin with: the name by which the command was called.
var name = "sifcrypt"

func say(to io.Writer, format string, values ...any) {
	fmt.Fprintf(to, name+": "+format+"\n", values...)
}

func fail(status int, format string, values ...any) {
	say(os.Stderr, format, values...)
	os.Exit(status)
}

func main() {
	if len(os.Args) < 3 {
		fail(failure, "usage: sifcrypt-shell SCRIPT ACTION [ARGUMENT...]")
	}
	if called := os.Getenv(nameVariable); called != "" {
		name = called
	}
	// Whoever starts this has Go's runtime show no traces; it has read that already.
	os.Unsetenv(tracebackVariable)
	dieSilently(syscall.SIGQUIT, syscall.SIGABRT)
	limitOpenFiles()
	os.Exit(run(os.Args[1], os.Args[2:]))
}

// dieSilently has signals end this process as they end any other: the runtime of Go prints what it was doing.
func dieSilently(signals ...os.Signal) {
	caught := make(chan os.Signal, len(signals))
	for _, one := range signals {
		if !signal.Ignored(one) {
			signal.Notify(caught, one)
		}
	}
	go func() {
		number := (<-caught).(syscall.Signal)
		// sigaction(2) with the default, which is all zeros; os/signal gives back the runtime's own.
		byDefault := [8]uint64{}
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(number), uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0)
		unix.Kill(os.Getpid(), number)
	}()
}

// limitOpenFiles takes back what the runtime of Go has raised, for itself and for what it starts: programs that look at each
// descriptor there may be, or have them in a set of 1024, depend on it.
func limitOpenFiles() {
	soft, err := strconv.ParseUint(os.Getenv(openFilesVariable), 10, 64)
	limit := syscall.Rlimit{}
	if err != nil || syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil || soft > limit.Max {
		return
	}
	limit.Cur = soft
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		say(os.Stderr, "the limit on open files: %v", err)
	}
}

// run interprets the script; it returns the exit status if that has not become the payload.
func run(script string, words []string) (status int) {
	file, err := os.Open(script)
	if err != nil {
		fail(failure, "%v", err)
	}
	program, err := syntax.NewParser().Parse(file, "/.singularity.d/actions/"+words[0])
	file.Close()
	if err != nil {
		fail(failure, "%v", err)
	}
	folder, err := os.Getwd()
	if err != nil {
		folder = "/"
	}
	shell := &shell{}
	shell.runner, err = interp.New(
		interp.Dir(folder),
		interp.Env(first{expand.ListEnviron(os.Environ()...)}),
		interp.Params(append([]string{"--"}, words...)...),
		interp.StdIO(standard[0], standard[1], standard[2]),
		interp.CallHandler(shell.call),
		interp.ExecHandler(shell.exec),
		interp.OpenHandler(open),
	)
	if err != nil {
		fail(failure, "%v", err)
	}
	defer func() {
		// So the interpreter says that there is something that it cannot do: coproc, shopt -q, <&-.
		if what := recover(); what != nil {
			say(os.Stderr, "the environment's scripts: %v", what)
			status = unsupported
		}
	}()
	err = shell.runner.Run(context.Background(), program)
	if code, ok := interp.IsExitStatus(err); ok {
		return int(code)
	}
	if err != nil {
		fail(failure, "the environment's scripts: %v", err)
	}
	if !shell.runner.Vars[endVariable].IsSet() {
		fail(failure, "the environment's scripts have ended before anything was started")
	}
	return 0
}

// unknown ends the script, a subshell's as well, with what it asks for and the interpreter does not have.
func unknown(hc interp.HandlerContext, what string) error {
	say(hc.Stderr, "the environment's scripts: %s is not known here", what)
	return interp.NewExitStatus(unsupported)
}

type shell struct {
	runner *interp.Runner
}

// first is the environment of the script itself. A subshell has a copy of what Each shows.
type first struct {
	expand.Environ
}

// No script can ask for a variable by such a name.
const firstMark = "the script itself"

func (e first) Get(name string) expand.Variable {
	if name == firstMark {
		return expand.Variable{Kind: expand.String}
	}
	return e.Environ.Get(name)
}

// isScript tells the script itself from its subshells: (...), $(...), the left side of a pipe, what runs beside it.
func isScript(hc interp.HandlerContext) bool {
	return hc.Env.Get(firstMark).IsSet()
}

// call sees each command before it is looked up.
func (s *shell) call(ctx context.Context, words []string) ([]string, error) {
	plain := words
	for len(plain) > 1 && (plain[0] == "command" || plain[0] == "builtin") {
		plain = plain[1:]
	}
	hc := interp.HandlerCtx(ctx)
	// The stack could grow until that ends the process, with a trace.
	if runtime.Callers(maxDepth, make([]uintptr, 1)) > 0 {
		return nil, fmt.Errorf("%s: too many calls within each other", plain[0])
	}
	switch plain[0] {
	case "exec":
		if len(plain) == 1 {
			stayOpen(hc.Stdin, hc.Stdout, hc.Stderr)
		}
		if len(plain) == 1 && isScript(hc) {
			// The interpreter would keep those of all commands from here on.
			if err := keep(hc.Stdin, hc.Stdout, hc.Stderr); err != nil {
				return nil, err
			}
			return []string{"true"}, nil
		}
	case "umask":
		if err := umask(hc.Stdout, plain[1:]); err != nil {
			say(hc.Stderr, "umask: %v", err)
			return []string{"false"}, nil
		}
		return []string{"true"}, nil
	case "wait":
		// For one: there is nothing that knows it, so for all.
		return []string{"wait"}, nil
	case "hash":
		// Nothing is remembered that could be forgotten.
		return []string{"true"}, nil
	case "eval":
		return []string{"eval", string(rewrite([]byte(strings.Join(plain[1:], " ")), ""))}, nil
	case "shopt":
		for _, word := range plain[1:] {
			if word == "-p" || word == "-q" {
				return nil, unknown(hc, "shopt "+word)
			}
		}
	case "test", "[":
		for number, word := range plain[1:] {
			if (word == "-G" || word == "-N" || word == "-O") && number+2 < len(plain) {
				return nil, unknown(hc, "test "+word)
			}
		}
	case unknownCommand:
		return nil, unknown(hc, strings.Join(plain[1:], " "))
	case "trap", "fg", "bg":
		say(hc.Stderr, "%s does nothing in the environment's scripts", plain[0])
		return []string{"true"}, nil
	case "declare", "export", "local", "nameref", "readonly", "typeset":
		// These are part of the grammar, unless their names were quoted, as in `\export`.
		text, err := declaration(plain)
		if err != nil {
			say(hc.Stderr, "%s: %v", plain[0], err)
			return []string{"false"}, nil
		}
		return []string{"eval", text}, nil
	}
	return words, nil
}

// declaration is the text of one whose words have been expanded already.
func declaration(words []string) (string, error) {
	text := words[0]
	for _, word := range words[1:] {
		name, value, assigns := strings.Cut(word, "=")
		if assigns && syntax.ValidName(name) {
			text += " " + name + "="
		} else {
			text += " "
			value = word
		}
		quoted, err := syntax.Quote(value, syntax.LangBash)
		if err != nil {
			return "", err
		}
		text += quoted
	}
	return text, nil
}

func umask(out io.Writer, words []string) error {
	if len(words) == 0 {
		mask := unix.Umask(0)
		unix.Umask(mask)
		fmt.Fprintf(out, "%#.4o\n", mask)
		return nil
	}
	mask, err := strconv.ParseUint(words[0], 8, 9)
	if err != nil {
		return fmt.Errorf("%s is no mode in digits", words[0])
	}
	unix.Umask(int(mask))
	return nil
}

// environment is what a program gets: what is exported, and is a string.
func environment(all expand.Environ) []string {
	variables := map[string]expand.Variable{}
	// The last of several counts; of one that is unset, that it is.
	all.Each(func(name string, variable expand.Variable) bool {
		variables[name] = variable
		return true
	})
	list := make([]string, 0, len(variables))
	for name, variable := range variables {
		if variable.Exported && variable.Kind == expand.String && !strings.HasPrefix(name, ownPrefix) {
			list = append(list, name+"="+variable.Str)
		}
	}
	sort.Strings(list)
	return list
}

// exec starts a program, or is one from then on.
func (s *shell) exec(ctx context.Context, words []string) error {
	hc := interp.HandlerCtx(ctx)
	if isScript(hc) && s.runner.Exited() {
		become(hc, words)
	}
	path, err := interp.LookPathDir(hc.Dir, hc.Env, words[0])
	if err != nil {
		say(hc.Stderr, "%v", err)
		return interp.NewExitStatus(127)
	}
	err = start(hc, path, words)
	if errors.Is(err, syscall.ENOEXEC) && isText(path) {
		err = start(hc, scriptShell, append([]string{scriptShell, path}, words[1:]...))
	}
	if _, ok := interp.IsExitStatus(err); err != nil && !ok {
		say(hc.Stderr, "%v", err)
		return interp.NewExitStatus(126)
	}
	return err
}
