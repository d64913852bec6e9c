package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/guest/wire"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stamp"
)

// peer is a guest's end of the port.
type peer struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func pair(t *testing.T) (*link, *peer) {
	t.Helper()
	host, guest := net.Pipe()
	t.Cleanup(func() { host.Close(); guest.Close() })
	return newLink(host), &peer{t, guest, bufio.NewReader(guest)}
}

func (p *peer) say(text string) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.conn, text); err != nil {
		p.t.Error(err)
	}
}

func (p *peer) hello(life, boot string) {
	p.t.Helper()
	line, err := json.Marshal(wire.Answer{Life: life, Boot: boot})
	if err != nil {
		p.t.Error(err)
		return
	}
	p.say(string(line))
}

func (p *peer) hear() wire.Request {
	p.t.Helper()
	line, err := p.in.ReadBytes('\n')
	var req wire.Request
	if err == nil {
		err = json.Unmarshal(line, &req)
	}
	if err != nil {
		p.t.Error(err)
	}
	return req
}

func limited(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// Answers find their requests in any order, and noise between them is no answer.
func TestAnswersFindTheirRequests(t *testing.T) {
	l, p := pair(t)
	ctx := limited(t)
	go p.hello("a", "one")
	if boot, err := l.up(ctx, ""); err != nil || boot != "one" {
		t.Fatalf("%q, %v", boot, err)
	}
	m := &Machine{link: l}
	type result struct {
		out string
		err error
	}
	first, second := make(chan result, 1), make(chan result, 1)
	go func() { out, err := m.Run(ctx, "one"); first <- result{out, err} }()
	one := p.hear()
	go func() { out, err := m.Run(ctx, "two", "x"); second <- result{out, err} }()
	two := p.hear()
	if one.Life != "a" || one.ID == two.ID || two.Exec.Args[1] != "x" {
		t.Fatalf("%+v, %+v", one, two)
	}
	p.say(`half a li{"id":`)
	p.say(fmt.Sprintf(`{"id":%d,"out":"Mg==","code":3}`, two.ID))
	p.say(fmt.Sprintf(`{"id":%d,"out":"MQ=="}`, one.ID))
	if r := <-first; r.err != nil || r.out != "1" {
		t.Errorf("%+v", r)
	}
	r := <-second
	if exit, ok := errors.AsType[*ExitError](r.err); !ok || exit.Code != 3 || exit.Text != "2" {
		t.Errorf("%+v", r)
	}
}

// A reboot and a cut both end what was asked: its outcome is unknown, and nobody waits for ever.
func TestWhatWasAskedEndsWithTheGuest(t *testing.T) {
	for name, end := range map[string]func(*peer){
		"reboot": func(p *peer) { p.hello("b", "two") }, "cut": func(p *peer) { p.conn.Close() },
	} {
		l, p := pair(t)
		ctx := limited(t)
		m := &Machine{link: l}
		f := m.Open(ctx, "/vhd/a", unix.O_RDWR)
		block := make([]byte, 2*stamp.BlockSize)
		for i := range int64(2) {
			stamp.Stamp{ID: 7, Seq: 1, Block: 3 + i, First: 3, Count: 2, Writer: 1, Disk: 1}.Put(block[i*stamp.BlockSize:])
		}
		if _, err := f.WriteAt(block, 3*stamp.BlockSize); !Gone(err) {
			t.Fatalf("%s: before the hello: %v", name, err)
		}
		go p.hello("a", "one")
		if _, err := l.up(ctx, ""); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { _, err := f.WriteAt(block, 3*stamp.BlockSize); done <- err }()
		if w := p.hear().Write; w == nil || w.ID != 7 || w.First != 3 || w.Count != 2 || w.Path != "/vhd/a" {
			t.Fatalf("%s: %+v", name, w)
		}
		end(p)
		if err := <-done; !Gone(err) {
			t.Errorf("%s: %v", name, err)
		}
		boot, err := l.up(ctx, "one")
		if name == "reboot" && (boot != "two" || err != nil) || name == "cut" && !Gone(err) {
			t.Errorf("%s: %q, %v", name, boot, err)
		}
	}
}

// Only what a stamp can say is sent.
func TestOnlyStampedWritesAreSent(t *testing.T) {
	l, p := pair(t)
	ctx := limited(t)
	go p.hello("a", "one")
	if _, err := l.up(ctx, ""); err != nil {
		t.Fatal(err)
	}
	f := (&Machine{link: l}).Open(ctx, "/vhd/a", unix.O_RDWR)
	block := make([]byte, stamp.BlockSize)
	if _, err := f.WriteAt(block, 0); !errors.Is(err, stamp.ErrNone) {
		t.Errorf("zeros: %v", err)
	}
	stamp.Stamp{ID: 1, Block: 5, First: 5, Count: 1}.Put(block)
	if _, err := f.WriteAt(block, 0); err == nil || Gone(err) {
		t.Errorf("elsewhere: %v", err)
	}
}
