package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
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
		Path:   path,
		Args:   words,
		Env:    environment(hc.Env),
		Dir:    hc.Dir,
		Stdin:  hc.Stdin,
		Stdout: hc.Stdout,
		Stderr: hc.Stderr,
	}
	// What is a file is the program's, and not copied to it.
	if file, isFile := hc.Stdin.(*redirection); isFile {
		command.Stdin = file.File
	}
	if file, isFile := hc.Stdout.(*redirection); isFile {
		command.Stdout = file.File
	}
	if file, isFile := hc.Stderr.(*redirection); isFile {
		command.Stderr = file.File
	}
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

// redirection is a file that a script redirects something to or from.
type redirection struct {
	*os.File
	// For good: by an exec without a program.
	kept bool
}

// What the process was given, and what the script has of it.
var (
	given    = []*os.File{os.Stdin, os.Stdout, os.Stderr}
	standard = []*redirection{{given[0], true}, {given[1], true}, {given[2], true}}
)

// Close is called when the command has ended that was redirected.
func (r *redirection) Close() error {
	if r.kept {
		return nil // The collector closes it when nothing refers to it any more.
	}
	return r.File.Close()
}

func open(ctx context.Context, path string, flags int, mode fs.FileMode) (io.ReadWriteCloser, error) {
	if path != "" && !filepath.IsAbs(path) {
		path = filepath.Join(interp.HandlerCtx(ctx).Dir, path)
	}
	file, err := os.OpenFile(path, flags, mode)
	if err != nil {
		return nil, err
	}
	return &redirection{File: file}, nil
}

// fileOf is the file of a stream; of standard ones that of the list.
func fileOf(stream any, list []*os.File) (*os.File, error) {
	for number, one := range standard {
		if stream == one {
			return list[number], nil
		}
	}
	switch stream := stream.(type) {
	case *redirection:
		return stream.File, nil
	case *os.File:
		return stream, nil
	case io.Reader:
		return document(stream)
	}
	return nil, errors.New("a stream that is no file")
}

// keep makes the redirections of one command those of the script from here on.
func keep(streams ...any) error {
	files := make([]*os.File, len(streams))
	now := []*os.File{standard[0].File, standard[1].File, standard[2].File}
	for number, stream := range streams {
		var err error
		if files[number], err = fileOf(stream, now); err != nil {
			return err
		}
		if file, isFile := stream.(*redirection); isFile {
			file.kept = true
		}
	}
	for number, file := range files {
		standard[number].File = file
	}
	return nil
}

// redirect makes the redirections of one command those of the process. What the script has redirected for good before is
// its own business: the payload has what the process was given.
func redirect(streams ...any) error {
	// All are taken before one is put in its place: they may be each other.
	taken := []int{0, 1, 2}
	for number, stream := range streams {
		file, err := fileOf(stream, given)
		if err != nil {
			return err
		}
		if file == given[number] {
			continue
		}
		if taken[number], err = unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, len(taken)); err != nil {
			return err
		}
	}
	for number, fd := range taken {
		if fd == number {
			continue
		}
		if err := unix.Dup3(fd, number, 0); err != nil {
			return err
		}
	}
	return nil
}

// document is a file of a text in the script. Were it a pipe, who fills it would have to outlive this process.
func document(text io.Reader) (*os.File, error) {
	fd, err := unix.MemfdCreate("here-document", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "here-document")
	if _, err := io.Copy(file, text); err != nil {
		return nil, err
	}
	_, err = file.Seek(0, io.SeekStart)
	return file, err
}
