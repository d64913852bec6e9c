package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/guest/wire"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stamp"
)

// host is the other end of an agent's port.
type host struct {
	t    *testing.T
	port *os.File
	in   *bufio.Reader
	life string
}

func startAgent(t *testing.T) *host {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "guest")
	t.Cleanup(func() { near.Close(); far.Close() })
	go newAgent(far).serve(bufio.NewReader(far))
	h := &host{t: t, port: near, in: bufio.NewReader(near)}
	if empty, err := h.in.ReadString('\n'); err != nil || empty != "\n" {
		t.Fatalf("%q, %v", empty, err)
	}
	hello := h.hear()
	if hello.Life == "" || hello.Boot == "" || hello.ID != 0 {
		t.Fatalf("%+v", hello)
	}
	h.life = hello.Life
	return h
}

func (h *host) hear() wire.Answer {
	h.t.Helper()
	line, err := h.in.ReadBytes('\n')
	var answer wire.Answer
	if err == nil {
		err = json.Unmarshal(line, &answer)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return answer
}

func (h *host) send(req wire.Request) {
	h.t.Helper()
	line, err := json.Marshal(req)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.port.Write(append(line, '\n')); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) ask(req wire.Request) wire.Answer {
	h.t.Helper()
	req.ID, req.Life = 5, h.life
	h.send(req)
	answer := h.hear()
	if answer.ID != 5 {
		h.t.Fatalf("%+v", answer)
	}
	return answer
}

func TestAgentRunsPrograms(t *testing.T) {
	h := startAgent(t)
	a := h.ask(wire.Request{Exec: &wire.Exec{Args: []string{"sh", "-c", "cat; echo no >&2; exit 3"}, Stdin: []byte("in")}})
	if string(a.Out) != "in" || string(a.Diag) != "no\n" || a.Code != 3 || a.Error != "" {
		t.Errorf("%+v", a)
	}
	if a := h.ask(wire.Request{Exec: &wire.Exec{Args: []string{"/no/such/program"}}}); a.Error == "" {
		t.Errorf("%+v", a)
	}
	if a := h.ask(wire.Request{}); a.Error == "" {
		t.Errorf("%+v", a)
	}
}

// What was meant for an agent of before a reboot is not done by the next.
func TestAgentIgnoresRequestsOfAnotherLife(t *testing.T) {
	h := startAgent(t)
	file := filepath.Join(t.TempDir(), "x")
	h.send(wire.Request{ID: 4, Life: "another", Put: &wire.Put{Path: file}})
	if _, err := h.port.WriteString("rubbish\n"); err != nil {
		t.Fatal(err)
	}
	h.ask(wire.Request{Exec: &wire.Exec{Args: []string{"true"}}})
	if _, err := os.Stat(file); err == nil {
		t.Error("it was done")
	}
}

func TestAgentPutsFiles(t *testing.T) {
	h := startAgent(t)
	file := filepath.Join(t.TempDir(), "a", "b")
	for _, text := range []string{"one", "two"} {
		if a := h.ask(wire.Request{Put: &wire.Put{Path: file, Data: []byte(text), Mode: 0o600}}); a.Error != "" {
			t.Fatal(a.Error)
		}
		got, err := os.ReadFile(file)
		if err != nil || string(got) != text {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// The blocks in the guest are byte for byte those that the host has in its ledger.
func TestAgentWritesStampedBlocks(t *testing.T) {
	h := startAgent(t)
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 8*stamp.BlockSize), 0o600); err != nil {
		t.Fatal(err)
	}
	name := wire.File{Path: file, Flags: unix.O_RDWR}
	if a := h.ask(wire.Request{Write: &wire.Write{File: name, ID: 9, Seq: 2, First: 3, Count: 2, Writer: 1, Disk: 1}}); a.Error != "" {
		t.Fatal(a.Error)
	}
	if a := h.ask(wire.Request{Sync: &wire.Sync{File: name}}); a.Error != "" {
		t.Fatal(a.Error)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, len(got))
	for b := int64(3); b < 5; b++ {
		stamp.Stamp{ID: 9, Seq: 2, Block: b, First: 3, Count: 2, Writer: 1, Disk: 1}.Put(want[b*stamp.BlockSize:])
	}
	if !bytes.Equal(got, want) {
		t.Error("other bytes")
	}
	if a := h.ask(wire.Request{Sync: &wire.Sync{File: wire.File{Path: file + ".absent"}}}); a.Error == "" {
		t.Error("an absent file is synced")
	}
}
