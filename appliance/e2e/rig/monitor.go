package rig

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// Monitor speaks QMP with a program of qemu.
type Monitor struct {
	conn    net.Conn
	replies *bufio.Scanner
}

// monitorPatience is how long a command may take, and the program to listen.
const monitorPatience = 10 * time.Second

// DialMonitor waits for the socket of a program that was just started, and greets it.
func DialMonitor(ctx context.Context, socket string) (*Monitor, error) {
	ctx, cancel := context.WithTimeout(ctx, monitorPatience)
	defer cancel()
	conn, err := dialUnix(ctx, socket)
	if err != nil {
		return nil, err
	}
	m := &Monitor{conn: conn, replies: bufio.NewScanner(conn)}
	m.replies.Scan() // its greeting; an error is the first command's
	if err := m.Do("qmp_capabilities", nil); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return m, nil
}

// dialUnix waits for a socket that a program just started will listen on.
func dialUnix(ctx context.Context, socket string) (net.Conn, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
	}
}

// Do executes a command and waits for its answer. Arguments may be nil.
func (m *Monitor) Do(execute string, arguments map[string]any) error {
	if err := m.conn.SetDeadline(time.Now().Add(monitorPatience)); err != nil {
		return err
	}
	command := map[string]any{"execute": execute}
	if arguments != nil {
		command["arguments"] = arguments
	}
	if err := json.NewEncoder(m.conn).Encode(command); err != nil {
		return err
	}
	if err := m.answer(); err != nil {
		return fmt.Errorf("%s: %w", execute, err)
	}
	return nil
}

// answer reads up to the answer of a command; events come in between.
func (m *Monitor) answer() error {
	for m.replies.Scan() {
		var reply struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(m.replies.Bytes(), &reply); err != nil {
			return err
		}
		if reply.Error != nil {
			return errors.New(reply.Error.Desc)
		}
		if reply.Return != nil {
			return nil
		}
	}
	return errors.Join(m.replies.Err(), errors.New("the connection ended"))
}

// Close ends the connection; the program goes on.
func (m *Monitor) Close() error { return m.conn.Close() }
