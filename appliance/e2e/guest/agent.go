package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/guest/wire"
)

// ErrGone is wrapped by the error of a request whose guest lost its power or rebooted: its outcome is unknown.
var ErrGone = errors.New("the guest is gone")

// ExitError is a program in the guest that did not exit with 0.
type ExitError struct {
	Args []string
	Code int
	Text string // all that it printed
}

// Error names program, code and output.
func (e *ExitError) Error() string {
	return fmt.Sprintf("in the guest: %s: exit %d: %s", strings.Join(e.Args, " "), e.Code, strings.TrimSpace(e.Text))
}

// link is the host's end of the agent's port.
type link struct {
	conn net.Conn

	mu struct {
		sync.Mutex // held over the write of one line
		life       string
		boot       string
		next       uint64
		waiting    map[uint64]chan wire.Answer
		changed    chan struct{} // closed at the next first word, and at the end
		err        error         // why it ended
	}
}

func newLink(conn net.Conn) *link {
	l := &link{conn: conn}
	l.mu.waiting = map[uint64]chan wire.Answer{}
	l.mu.changed = make(chan struct{})
	go l.read()
	return l
}

// read hands out the answers until the port ends.
func (l *link) read() {
	in := bufio.NewReaderSize(l.conn, 1<<20)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			l.end(fmt.Errorf("%w: %w", ErrGone, err))
			return
		}
		var answer wire.Answer
		if json.Unmarshal(line, &answer) != nil {
			continue // half a line of an agent that died
		}
		l.hand(answer)
	}
}

func (l *link) hand(answer wire.Answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if answer.ID != 0 {
		if ch := l.mu.waiting[answer.ID]; ch != nil {
			delete(l.mu.waiting, answer.ID)
			ch <- answer
		}
		return
	}
	l.mu.life, l.mu.boot = answer.Life, answer.Boot
	l.dropLocked()
}

// dropLocked ends everything asked of an agent that is no more.
func (l *link) dropLocked() {
	for id, ch := range l.mu.waiting {
		delete(l.mu.waiting, id)
		close(ch)
	}
	close(l.mu.changed)
	l.mu.changed = make(chan struct{})
}

func (l *link) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.life, l.mu.boot, l.mu.err = "", "", err
	l.dropLocked()
}

// up waits for an agent of another boot than the one given, and returns its boot id.
func (l *link) up(ctx context.Context, before string) (string, error) {
	for {
		l.mu.Lock()
		boot, err, changed := l.mu.boot, l.mu.err, l.mu.changed
		l.mu.Unlock()
		if err != nil {
			return "", err
		}
		if boot != "" && boot != before {
			return boot, nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("waiting for the guest to boot: %w", context.Cause(ctx))
		case <-changed:
		}
	}
}

// ask sends a request and waits for its answer.
func (l *link) ask(ctx context.Context, req wire.Request) (wire.Answer, error) {
	ch := make(chan wire.Answer, 1)
	if err := l.send(req, ch); err != nil {
		return wire.Answer{}, err
	}
	select {
	case <-ctx.Done():
		return wire.Answer{}, fmt.Errorf("waiting for the guest: %w", context.Cause(ctx))
	case answer, ok := <-ch:
		if !ok {
			return answer, ErrGone
		}
		if answer.Error != "" {
			return answer, fmt.Errorf("in the guest: %s", answer.Error)
		}
		return answer, nil
	}
}

func (l *link) send(req wire.Request, ch chan wire.Answer) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.life == "" {
		return ErrGone
	}
	l.mu.next++
	req.ID, req.Life = l.mu.next, l.mu.life
	line, err := json.Marshal(req)
	if err != nil {
		return err
	}
	l.mu.waiting[req.ID] = ch
	if _, err := l.conn.Write(append(line, '\n')); err != nil {
		delete(l.mu.waiting, req.ID)
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return nil
}
