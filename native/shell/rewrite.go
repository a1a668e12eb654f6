package main

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// What the interpreter would take for something else, or for nothing, or end with a panic in a place where that ends the
// process. A text without any of these is left as it is.
var suspect = regexp.MustCompile(`coproc|<>|>\||<&|>&[ \t]*[^12 \t]|[3-9][<>]|[0-9]{2}[<>]|\}[<>]|-[GON][ \t]|@[A-Za-z]\}`)

// rewrite gives a script in the words of the interpreter: of redirections it knows those of the descriptors 0, 1 and 2 to and
// from files, and of one to another of these. All others become such redirections, to names that open knows.
func rewrite(text []byte, name string) []byte {
	if !suspect.Match(text) {
		return text
	}
	program, err := syntax.NewParser().Parse(bytes.NewReader(text), name)
	if err != nil {
		return text // The interpreter says so itself.
	}
	changed := false
	syntax.Walk(program, func(node syntax.Node) bool {
		if statement, is := node.(*syntax.Stmt); is && isUnknown(statement) {
			changed = true
		}
		return true
	})
	if !changed {
		return text
	}
	syntax.Walk(program, func(node syntax.Node) bool {
		if statement, is := node.(*syntax.Stmt); is {
			rewriteStatement(statement)
		}
		return true
	})
	printed := bytes.Buffer{}
	if err := syntax.NewPrinter().Print(&printed, program); err != nil {
		return text
	}
	return printed.Bytes()
}

func isUnknown(statement *syntax.Stmt) bool {
	if unknownWord(statement.Cmd) != "" {
		return true
	}
	for _, one := range statement.Redirs {
		switch one.Op {
		case syntax.DplIn, syntax.RdrInOut, syntax.ClbOut:
			return true
		case syntax.DplOut:
			if word := one.Word.Lit(); word != "1" && word != "2" {
				return true
			}
		}
		if number(one) > 2 || number(one) < 0 {
			return true
		}
	}
	return false
}

// number is that of the descriptor that is redirected; -1 where it is a variable's to say.
func number(one *syntax.Redirect) int {
	if one.N == nil {
		switch one.Op {
		case syntax.RdrIn, syntax.DplIn, syntax.RdrInOut, syntax.Hdoc, syntax.DashHdoc, syntax.WordHdoc:
			return 0
		}
		return 1
	}
	if number, err := strconv.Atoi(one.N.Value); err == nil && number <= maxDescriptor {
		return number
	}
	return -1
}

// unknownWord names what the interpreter does not have of a command; of what is in it others are asked.
func unknownWord(command syntax.Command) string {
	found := ""
	switch command.(type) {
	case *syntax.CoprocClause:
		return "coproc"
	case *syntax.TestClause, *syntax.CallExpr, *syntax.DeclClause:
		syntax.Walk(command, func(node syntax.Node) bool {
			switch node := node.(type) {
			case *syntax.UnaryTest:
				switch node.Op {
				case syntax.TsGrpOwn, syntax.TsUsrOwn, syntax.TsModif:
					found = node.Op.String()
				}
			case *syntax.ParamExp:
				if node.Exp != nil && node.Exp.Op == syntax.OtherParamOps && !strings.Contains("QE", node.Exp.Word.Lit()) {
					found = "@" + node.Exp.Word.Lit()
				}
			}
			return found == ""
		})
	}
	return found
}

func literal(text string) *syntax.Word {
	return &syntax.Word{Parts: []syntax.WordPart{&syntax.Lit{Value: text}}}
}

// refuse has a statement say what it is that is not there.
func refuse(statement *syntax.Stmt, what string) {
	quoted := &syntax.Word{Parts: []syntax.WordPart{&syntax.SglQuoted{Value: what}}}
	statement.Cmd = &syntax.CallExpr{Args: []*syntax.Word{literal(unknownCommand), quoted}}
	statement.Redirs = nil
}

func rewriteStatement(statement *syntax.Stmt) {
	if what := unknownWord(statement.Cmd); what != "" {
		refuse(statement, what)
		return
	}
	redirections := []*syntax.Redirect{}
	for _, one := range statement.Redirs {
		if isDocument(one) && number(one) > 2 {
			redirections = append(redirections, textRedirections(one)...)
			continue
		}
		if what := rewriteRedirection(one); what != "" {
			refuse(statement, what)
			return
		}
		redirections = append(redirections, one)
	}
	statement.Redirs = redirections
}

func isDocument(one *syntax.Redirect) bool {
	return one.Hdoc != nil || one.Op == syntax.WordHdoc
}

// textRedirections give a text of the script to a descriptor from 3 on. The interpreter has it for standard input only: there
// it is taken from, with what was there put aside.
func textRedirections(one *syntax.Redirect) []*syntax.Redirect {
	aside := strconv.Itoa(asideDescriptor)
	carried := func(what string) *syntax.Redirect {
		word := literal(descriptorFolder + what)
		return &syntax.Redirect{Op: syntax.RdrOut, N: &syntax.Lit{Value: "2"}, Word: word}
	}
	descriptor := one.N.Value
	one.N = nil
	return []*syntax.Redirect{
		carried("put/" + aside + "/0"),
		one,
		carried("text/" + descriptor),
		{Op: syntax.RdrIn, Word: literal(descriptorFolder + "copy/" + aside)},
		carried("put/" + aside + "/-"),
	}
}

// rewriteRedirection says what cannot be had.
func rewriteRedirection(one *syntax.Redirect) string {
	descriptor := number(one)
	if descriptor < 0 {
		return "a redirection of " + one.N.Value
	}
	if isDocument(one) {
		if descriptor == 0 {
			return ""
		}
		return "a text for the descriptor " + strconv.Itoa(descriptor)
	}
	// It may be anything that is expanded, so it stands behind what is fixed.
	behind := func(prefix string) *syntax.Word {
		parts := append([]syntax.WordPart{&syntax.Lit{Value: descriptorFolder + prefix}}, one.Word.Parts...)
		return &syntax.Word{Parts: parts}
	}
	switch one.Op {
	case syntax.DplOut, syntax.DplIn:
		word := one.Word.Lit()
		if _, err := strconv.Atoi(word); one.Op == syntax.DplOut && one.N == nil && err != nil && word != "" && word != "-" {
			one.Op = syntax.RdrAll
			return ""
		}
		if descriptor > 2 {
			one.Word = behind("put/" + strconv.Itoa(descriptor) + "/")
			break
		}
		one.Word = behind("copy/")
		one.Op = syntax.RdrOut
		if descriptor == 0 {
			one.Op = syntax.RdrIn
		}
		return ""
	case syntax.ClbOut:
		one.Op = syntax.RdrOut
	case syntax.RdrInOut:
		one.Op = syntax.AppOut
		if descriptor == 0 {
			one.Op = syntax.RdrIn
		}
	}
	if descriptor <= 2 {
		return ""
	}
	for operator, letter := range openLetters {
		if one.Op == operator {
			one.Word = behind("open/" + strconv.Itoa(descriptor) + "/" + letter + "/")
		}
	}
	// What carries it along is standard error, which stays what it is.
	one.Op = syntax.RdrOut
	one.N = &syntax.Lit{Value: "2"}
	return ""
}

var openLetters = map[syntax.RedirOperator]string{syntax.RdrIn: "r", syntax.RdrOut: "w", syntax.AppOut: "a"}
