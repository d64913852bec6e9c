package rig

import (
	"bufio"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// answering is a program of qemu that greets and gives the answers, a command each.
func answering(t *testing.T, answers ...string) (socket string, asked <-chan string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "qmp")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	commands := make(chan string, len(answers))
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintln(conn, `{"QMP": {"version": {}}}`)
		lines := bufio.NewScanner(conn)
		for _, a := range answers {
			if !lines.Scan() {
				return
			}
			commands <- lines.Text()
			fmt.Fprintln(conn, a)
		}
	}()
	return socket, commands
}

func TestMonitor(t *testing.T) {
	event := `{"event": "BLOCK_IO_ERROR", "data": {}}`
	socket, asked := answering(t, `{"return": {}}`, event+"\n"+`{"return": {}}`, `{"error": {"class": "GenericError", "desc": "no such node"}}`)
	m, err := DialMonitor(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Do("block_resize", map[string]any{"node-name": "d", "size": 4096}); err != nil {
		t.Fatal(err)
	}
	if err := m.Do("quit", nil); err == nil || err.Error() != "quit: no such node" {
		t.Fatal(err)
	}
	for _, want := range []string{`"qmp_capabilities"`, `"size":4096`, `{"execute":"quit"}`} {
		if got := <-asked; !strings.Contains(got, want) {
			t.Errorf("asked %s, want %s", got, want)
		}
	}
	if err := m.Do("stop", nil); err == nil {
		t.Error("a command on a connection that has ended")
	}
}

func TestMonitorThatRefuses(t *testing.T) {
	socket, _ := answering(t, `{"error": {"desc": "busy"}}`)
	if _, err := DialMonitor(t.Context(), socket); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Fatal(err)
	}
}

func TestQMPReplies(t *testing.T) {
	for text, want := range map[string]string{
		"{\"return\": {}}\n":                               "",
		"{\"event\": \"X\"}\n{\"return\": {}}\n":           "",
		"{\"error\": {\"class\": \"c\", \"desc\": \"d\"}}": "d",
		"no JSON\n": "invalid character",
		"":          "the connection ended",
	} {
		err := (&Monitor{replies: bufio.NewScanner(strings.NewReader(text))}).answer()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
