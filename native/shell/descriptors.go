package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/interp"
)

const (
	maxDescriptor = 255
	// Where standard input is meanwhile, for one redirection; scripts have none of this number.
	asideDescriptor = maxDescriptor + 1
	// Below it are names of what is no file, for redirections that the interpreter does not have (rewrite).
	descriptorFolder = "/.sifcrypt/descriptor/"
)

// descriptors are those from 3 on, as a command has them: each command's are its own, as its redirections are. What the
// interpreter hands on from one to the other, into subshells and functions as well, is standard error, which has them with it.
type descriptors map[int]any

func (d descriptors) with(number int, stream any) descriptors {
	copied := descriptors{}
	for known, one := range d {
		copied[known] = one
	}
	delete(copied, number)
	if stream != nil {
		copied[number] = stream
	}
	return copied
}

// files are the list for a program that is started: the first is its descriptor 3.
func (d descriptors) files() []*os.File {
	list := []*os.File{}
	for number, stream := range d {
		file := fileBehind(stream)
		if file == nil {
			continue
		}
		for len(list) <= number-3 {
			list = append(list, nil)
		}
		list[number-3] = file
	}
	return list
}

// redirection is what a script redirects something to or from.
type redirection struct {
	// A file; or what the interpreter has in its place, another of these as well.
	stream any
	// Closed with the command that was redirected.
	opened *os.File
	// For good: by an exec without a program.
	kept bool
	descriptors
}

func (r *redirection) Read(bytes []byte) (int, error) {
	if reader, is := r.stream.(io.Reader); is {
		return reader.Read(bytes)
	}
	return 0, unix.EBADF
}

func (r *redirection) Write(bytes []byte) (int, error) {
	if writer, is := r.stream.(io.Writer); is {
		return writer.Write(bytes)
	}
	return 0, unix.EBADF
}

// Fd is what the interpreter asks whether it is a terminal.
func (r *redirection) Fd() uintptr {
	if file := fileBehind(r); file != nil {
		return file.Fd()
	}
	return ^uintptr(0)
}

// Close is called when the command has ended that was redirected.
func (r *redirection) Close() error {
	if r.kept || r.opened == nil {
		return nil // The collector closes it when nothing refers to it any more.
	}
	return r.opened.Close()
}

// What the process was given, and what the script has of it.
var (
	given    = []*os.File{os.Stdin, os.Stdout, os.Stderr}
	others   = inherited() // Held here, or the collector would close them.
	standard = []*redirection{{stream: given[0]}, {stream: given[1]}, {stream: given[2], descriptors: others}}
)

// inherited are those that the payload is to have: all others of this process are closed in programs.
func inherited() descriptors {
	found := descriptors{}
	for number := len(given); number <= maxDescriptor; number++ {
		if flags, err := unix.FcntlInt(uintptr(number), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			found[number] = os.NewFile(uintptr(number), "inherited")
		}
	}
	return found
}

func descriptorsOf(stream any) descriptors {
	if one, is := stream.(*redirection); is {
		return one.descriptors
	}
	return standard[2].descriptors
}

// behind is what a stream is in the end.
func behind(stream any) any {
	for {
		one, is := stream.(*redirection)
		if !is {
			return stream
		}
		stream = one.stream
	}
}

// fileBehind is nil for what is no file.
func fileBehind(stream any) *os.File {
	file, _ := behind(stream).(*os.File)
	return file
}

// fileOf is the file of a stream; of standard ones that of the list.
func fileOf(stream any, list []*os.File) (*os.File, error) {
	for {
		for number, one := range standard {
			if stream == any(one) {
				return list[number], nil
			}
		}
		one, is := stream.(*redirection)
		if !is {
			break
		}
		stream = one.stream
	}
	switch stream := stream.(type) {
	case *os.File:
		return stream, nil
	case io.Reader:
		return document(stream)
	}
	return nil, errors.New("a stream that is no file")
}

// open is asked for each file that a script redirects something to or from, and for each script that another one reads.
func open(ctx context.Context, path string, flags int, mode fs.FileMode) (io.ReadWriteCloser, error) {
	hc := interp.HandlerCtx(ctx)
	if strings.HasPrefix(path, descriptorFolder) {
		return openDescriptor(hc, path[len(descriptorFolder):])
	}
	file, err := openFile(hc, path, flags, mode)
	if err != nil {
		return nil, err
	}
	// A test looks whether it can be opened; a redirection has a mode.
	if flags == os.O_RDONLY && mode == 0 {
		return script(file)
	}
	return &redirection{stream: file, opened: file, descriptors: descriptorsOf(hc.Stderr)}, nil
}

func openFile(hc interp.HandlerContext, path string, flags int, mode fs.FileMode) (*os.File, error) {
	if path != "" && !filepath.IsAbs(path) {
		path = filepath.Join(hc.Dir, path)
	}
	return os.OpenFile(path, flags, mode)
}

// scriptText is a script that is read, as the interpreter takes it.
type scriptText struct {
	*os.File
	text io.Reader
}

func (s *scriptText) Read(bytes []byte) (int, error) {
	if s.text == nil {
		text, err := io.ReadAll(s.File)
		if err != nil {
			return 0, err
		}
		s.text = strings.NewReader(string(rewrite(text, s.Name())))
	}
	return s.text.Read(bytes)
}

func script(file *os.File) (io.ReadWriteCloser, error) {
	return &scriptText{File: file}, nil
}

// openDescriptor is what rewriteStatement has written: copy/FROM, put/NUMBER/FROM, text/NUMBER, or open/NUMBER/LETTER/PATH.
func openDescriptor(hc interp.HandlerContext, what string) (io.ReadWriteCloser, error) {
	now := descriptorsOf(hc.Stderr)
	verb, rest, _ := strings.Cut(what, "/")
	if verb == "copy" {
		stream, opened, err := lookUp(hc, now, rest)
		if err != nil {
			return nil, err
		}
		return &redirection{stream: stream, opened: opened, descriptors: now}, nil
	}
	word, rest, _ := strings.Cut(rest, "/")
	number, _ := strconv.Atoi(word)
	carrier := &redirection{stream: hc.Stderr}
	if verb == "put" {
		if rest == "-" {
			carrier.descriptors = now.with(number, nil)
			return carrier, nil
		}
		stream, opened, err := lookUp(hc, now, rest)
		if err != nil {
			return nil, err
		}
		carrier.opened = opened
		// As it is now, whatever the script makes of its own later.
		carrier.descriptors = now.with(number, behind(stream))
		return carrier, nil
	}
	if verb == "text" {
		file, err := document(hc.Stdin)
		if err != nil {
			return nil, err
		}
		carrier.opened = file
		carrier.descriptors = now.with(number, file)
		return carrier, nil
	}
	letter, path, _ := strings.Cut(rest, "/")
	flags := map[string]int{"r": os.O_RDONLY, "w": os.O_WRONLY | os.O_CREATE | os.O_TRUNC, "a": os.O_RDWR | os.O_CREATE | os.O_APPEND}
	file, err := openFile(hc, path, flags[letter], 0o644)
	if err != nil {
		return nil, err
	}
	carrier.opened = file
	carrier.descriptors = now.with(number, file)
	return carrier, nil
}

// lookUp finds what a word behind >& or <& is for.
func lookUp(hc interp.HandlerContext, now descriptors, word string) (any, *os.File, error) {
	switch word {
	case "0":
		return hc.Stdin, nil, nil
	case "1":
		return hc.Stdout, nil, nil
	case "2":
		return hc.Stderr, nil, nil
	case "-":
		// Nothing can be closed for the interpreter; what is read from it is nothing, and what is written goes nowhere.
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		return null, null, err
	}
	number, err := strconv.Atoi(word)
	stream := now[number]
	if err != nil || stream == nil {
		return nil, nil, &fs.PathError{Op: "redirect", Path: word, Err: unix.EBADF}
	}
	return stream, nil, nil
}

// stayOpen is for redirections that an exec without a program makes.
func stayOpen(streams ...any) {
	for _, stream := range streams {
		for {
			one, is := stream.(*redirection)
			if !is {
				break
			}
			one.kept = true
			stream = one.stream
		}
	}
}

// keep makes the redirections of one command those of the script from here on.
func keep(streams ...any) error {
	files := make([]*os.File, len(streams))
	now := []*os.File{fileBehind(standard[0]), fileBehind(standard[1]), fileBehind(standard[2])}
	for number, stream := range streams {
		var err error
		if files[number], err = fileOf(stream, now); err != nil {
			return err
		}
	}
	standard[2].descriptors = descriptorsOf(streams[2])
	for number, file := range files {
		standard[number].stream = file
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
