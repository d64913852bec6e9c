package rig

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// Fault is what a proxy does to connections, old and new.
type Fault int

// The faults. A switch to Refuse or Reset ends the connections there are; under Hang they stay, and nothing moves.
const (
	Pass   Fault = iota
	Refuse       // the connection is closed at once
	Reset        // and with a RST
	Hang         // accepted, and nothing moves
)

// Proxy stands between the appliance and a server and counts what passes.
type Proxy struct {
	listener net.Listener
	server   string
	sent     atomic.Int64
	received atomic.Int64

	// mu is held for memory only.
	mu struct {
		sync.Mutex
		fault   Fault
		changed chan struct{} // closed and replaced when fault changes
		conns   map[net.Conn]bool
		closed  bool
	}
}

// NewProxy listens on a free port of 127.0.0.1 and passes on to server, host:port.
func NewProxy(server string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: l, server: server}
	p.mu.changed = make(chan struct{})
	p.mu.conns = make(map[net.Conn]bool)
	go p.accept()
	return p, nil
}

// Addr is host:port of the proxy.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Sent is how many bytes clients have sent, Received how many they got.
func (p *Proxy) Sent() int64 { return p.sent.Load() }

// Received is how many bytes clients got.
func (p *Proxy) Received() int64 { return p.received.Load() }

// Set changes the fault.
func (p *Proxy) Set(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.fault = f
	close(p.mu.changed)
	p.mu.changed = make(chan struct{})
	if f == Refuse || f == Reset {
		p.dropLocked(f == Reset)
	}
}

func (p *Proxy) dropLocked(reset bool) {
	for c := range p.mu.conns {
		if tcp, ok := c.(*net.TCPConn); ok && reset {
			_ = tcp.SetLinger(0) // a close is then a RST
		}
		_ = c.Close()
	}
	clear(p.mu.conns)
}

// Close ends everything.
func (p *Proxy) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.mu.closed {
		p.mu.closed = true
		close(p.mu.changed)
		p.mu.changed = make(chan struct{})
	}
	p.dropLocked(false)
	return p.listener.Close()
}

func (p *Proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		go p.serve(c)
	}
}

func (p *Proxy) serve(client net.Conn) {
	if !p.keep(client) {
		return
	}
	defer p.forget(client)
	if !p.pass() {
		return
	}
	server, err := net.Dial("tcp", p.server)
	if err != nil || !p.keep(server) {
		return
	}
	defer p.forget(server)
	done := make(chan struct{}, 2)
	go p.copy(server, client, &p.sent, done)
	go p.copy(client, server, &p.received, done)
	<-done
}

// keep registers a connection; under Refuse and Reset it is closed instead.
func (p *Proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.conns[c] = true
	if f := p.mu.fault; f == Refuse || f == Reset || p.mu.closed {
		p.dropLocked(f == Reset)
		return false
	}
	return true
}

func (p *Proxy) forget(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.mu.conns, c)
	_ = c.Close()
}

// pass waits while the fault is Hang; false when the proxy is closed.
func (p *Proxy) pass() bool {
	for {
		p.mu.Lock()
		hang, closed, changed := p.mu.fault == Hang, p.mu.closed, p.mu.changed
		p.mu.Unlock()
		if closed || !hang {
			return !closed
		}
		<-changed
	}
}

func (p *Proxy) copy(to, from net.Conn, count *atomic.Int64, done chan<- struct{}) {
	defer func() { done <- struct{}{} }()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if !p.pass() {
				return
			}
			count.Add(int64(n)) // before: who has the bytes finds them counted
			if sent, err := to.Write(buf[:n]); err != nil {
				count.Add(int64(sent - n))
				return
			}
		}
		if err != nil {
			if tcp, ok := to.(*net.TCPConn); ok && err == io.EOF {
				_ = tcp.CloseWrite()
			}
			return
		}
	}
}
