package rig

import (
	"bufio"
	"errors"
	"io"
	"os/exec"
	"strings"
)

// Shell is a program that answers lines with lines, like a database's.
type Shell struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// StartShell starts it.
func StartShell(name string, args ...string) (*Shell, error) {
	s := &Shell{cmd: exec.Command(name, args...)}
	in, err := s.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.cmd.Stderr = s.cmd.Stdout
	s.in, s.out = in, bufio.NewReader(out)
	return s, s.cmd.Start()
}

// Write sends text that has no answer.
func (s *Shell) Write(text string) (int, error) { return io.WriteString(s.in, text) }

// Ask sends text and returns the line that answers it.
func (s *Shell) Ask(text string) (string, error) {
	if _, err := s.Write(text); err != nil {
		return "", err
	}
	line, err := s.out.ReadString('\n')
	return strings.TrimSpace(line), err
}

// Close ends the input and waits for the program to end.
func (s *Shell) Close() error {
	closed := s.in.Close()
	_, drained := io.Copy(io.Discard, s.out)
	return errors.Join(closed, drained, s.cmd.Wait())
}
