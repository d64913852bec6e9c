package rig

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// echo answers what it is sent.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func newProxy(t *testing.T) *Proxy {
	t.Helper()
	p, err := NewProxy(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func dial(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// ask sends five bytes and reads five within a while.
func ask(c net.Conn, within time.Duration) error {
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(within))
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}

const soon = 200 * time.Millisecond

func TestProxyPassesAndCounts(t *testing.T) {
	p := newProxy(t)
	c := dial(t, p)
	for range 3 {
		if err := ask(c, 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if p.Sent() != 15 || p.Received() != 15 {
		t.Fatalf("%d sent, %d received", p.Sent(), p.Received())
	}
}

func TestProxyRefuses(t *testing.T) {
	p := newProxy(t)
	old := dial(t, p)
	if err := ask(old, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	p.Set(Refuse)
	if err := ask(old, 5*time.Second); err == nil {
		t.Fatal("an old connection lives on")
	}
	if err := ask(dial(t, p), 5*time.Second); err == nil {
		t.Fatal("a new connection is served")
	}
	p.Set(Pass)
	if err := ask(dial(t, p), 5*time.Second); err != nil {
		t.Fatal(err)
	}
}

func TestProxyResets(t *testing.T) {
	p := newProxy(t)
	c := dial(t, p)
	if err := ask(c, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	p.Set(Reset)
	_, err := c.Read(make([]byte, 1))
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("%v, want a reset", err)
	}
}

// What hangs goes on where it was, old connections and new.
func TestProxyHangs(t *testing.T) {
	p := newProxy(t)
	old := dial(t, p)
	if err := ask(old, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	p.Set(Hang)
	fresh := dial(t, p)
	for _, c := range []net.Conn{old, fresh} {
		var timeout net.Error
		if err := ask(c, soon); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Fatalf("%v, want a timeout", err)
		}
	}
	p.Set(Pass)
	for _, c := range []net.Conn{old, fresh} {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestProxyCloses(t *testing.T) {
	p := newProxy(t)
	p.Set(Hang)
	c := dial(t, p)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ask(c, 5*time.Second); err == nil {
		t.Fatal("a closed proxy answers")
	}
}
