package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"mvdan.cc/sh/v3/interp"
)

// What runs a script that does not say what runs it.
const scriptShell = "/bin/sh"

// isText: the kernel does not know what it is, and it is not a program of another machine either.
func isText(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	start := make([]byte, 4)
	n, _ := io.ReadFull(file, start)
	return string(start[:n]) != "\x7fELF"
}

// start runs a program, and waits for it.
func start(hc interp.HandlerContext, path string, words []string) error {
	command := exec.Cmd{
		Path:       path,
		Args:       words,
		Env:        environment(hc.Env),
		Dir:        hc.Dir,
		ExtraFiles: descriptorsOf(hc.Stderr).files(),
	}
	// What is a file is the program's, and not copied to it.
	command.Stdin, _ = behind(hc.Stdin).(io.Reader)
	command.Stdout, _ = behind(hc.Stdout).(io.Writer)
	command.Stderr, _ = behind(hc.Stderr).(io.Writer)
	err := command.Run()
	var ended *exec.ExitError
	if !errors.As(err, &ended) {
		return err
	}
	status := ended.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return interp.NewExitStatus(uint8(128 + int(status.Signal())))
	}
	return interp.NewExitStatus(uint8(status.ExitStatus()))
}

// become replaces this process by a program. It starts where this process was started, wherever the script is.
func become(hc interp.HandlerContext, words []string) {
	path, err := interp.LookPathDir(hc.Dir, hc.Env, words[0])
	if err != nil {
		fail(failure, "%s: %s", words[0], whyNot(hc.Dir, words[0]))
	}
	if err := redirect(hc.Stdin, hc.Stdout, hc.Stderr); err != nil {
		fail(failure, "exec: %v", err)
	}
	variables := environment(hc.Env)
	words = append([]string{path}, words[1:]...)
	err = syscall.Exec(path, words, variables)
	if err == syscall.ENOEXEC && isText(path) {
		err = syscall.Exec(scriptShell, append([]string{scriptShell}, words...), variables)
	}
	switch err {
	case syscall.ENOENT:
		fail(failure, "%s: what runs it is not in the image: its interpreter, or its loader", path)
	case syscall.ENOEXEC:
		fail(failure, "%s: a program of another machine, or none", path)
	case syscall.EACCES:
		fail(failure, "%s: not executable in the image", path)
	}
	fail(failure, "%s: %v", path, err)
}

// whyNot says why a name is that of no program.
func whyNot(folder, name string) string {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(folder, name)
		}
		if info, err := os.Stat(name); err == nil && info.IsDir() {
			return "a folder, not a program"
		} else if err == nil || errors.Is(err, fs.ErrPermission) {
			return "not executable in the image"
		}
	}
	return "not found in the image, or not executable"
}
