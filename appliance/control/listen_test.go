package control

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestSocketModeIs0600(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	info, err := os.Stat(path)
	if err != nil || info.Mode() != SocketMode|fs.ModeSocket {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 2 {
		t.Errorf("besides socket and lock: %v, %v", entries, err)
	}
}

func TestSecondInstanceIsRefused(t *testing.T) {
	client, _ := serve(t, &fake{status: func(context.Context, string) (Status, error) { return Status{Version: "first"}, nil }})
	_, err := Listen(client.path)
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeRunning || e.Exit != ExitRefused {
		t.Errorf("%v", err)
	}
	if s, err := client.Status(deadline(t), ""); err != nil || s.Version != "first" {
		t.Errorf("the first one afterwards: %+v, %v", s, err)
	}
}

// Whoever answers is respected, lock or not.
func TestAnsweringSocketWithoutLockIsRespected(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := Listen(path); !errors.Is(err, &Error{Code: CodeRunning}) {
		t.Errorf("%v", err)
	}
	if conn, err := net.Dial("unix", path); err != nil {
		t.Errorf("the other one is gone: %v", err)
	} else {
		conn.Close()
	}
}

// What a killed appliance leaves is a socket on which nobody listens, and a lock that nobody holds.
func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if err := os.WriteFile(path+".lock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	if err := ln.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	again, err := Listen(path)
	if err != nil {
		t.Fatalf("after a clean stop: %v", err)
	}
	again.Close()
}

func TestWhatIsNoSocketIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil {
		t.Error("accepted")
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "precious" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestMissingDirectory(t *testing.T) {
	if _, err := Listen(filepath.Join(t.TempDir(), "no", "c.sock")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
