package failpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Deed is what a child does at a failpoint.
type Deed string

// The deeds.
const (
	Kill  Deed = "kill"  // ends itself with SIGKILL
	Hold  Deed = "hold"  // says so and goes no further, whatever else the process does
	Stall Deed = "stall" // goes on after Order.For, at this passage and every later one
	Begin Deed = "begin" // no failpoint: the child begins its work when it reads this
)

// Order is one order. An order for a point replaces the one before.
type Order struct {
	Point   string        `json:"point,omitempty"`
	Passage int           `json:"passage,omitempty"` // counted from the order on; 0 is the first
	Do      Deed          `json:"do"`
	For     time.Duration `json:"for,omitempty"`
}

// Event is what a child says: that it came to a point for the first time, or stays there.
type Event struct {
	Point string `json:"point"`
	Held  bool   `json:"held,omitempty"`
}

// Child is the process's side.
type Child struct {
	end func() // the process's; does not return

	mu struct { // held over one write to the harness
		sync.Mutex
		out    *json.Encoder
		orders map[string]Order
		passed map[string]bool
	}
}

// NewChild returns a child without orders that tells out what it does.
func NewChild(out io.Writer) *Child {
	c := &Child{end: func() {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // it is on its way
	}}
	c.mu.out, c.mu.orders, c.mu.passed = json.NewEncoder(out), map[string]Order{}, map[string]bool{}
	return c
}

// Obey takes orders until Begin, then others in the background until in ends.
func (c *Child) Obey(in io.Reader) error {
	orders := json.NewDecoder(in)
	for {
		var o Order
		if err := orders.Decode(&o); err != nil {
			return fmt.Errorf("no order to begin: %w", err)
		}
		if o.Do == Begin {
			break
		}
		c.take(o)
	}
	go func() { // as long as the process lives
		for {
			var o Order
			if orders.Decode(&o) != nil {
				return
			}
			c.take(o)
		}
	}()
	return nil
}

func (c *Child) take(o Order) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.orders[o.Point] = o
}

// Hook is for the appliance's options.
func (c *Child) Hook(point string) {
	switch o := c.pass(point); o.Do {
	case Kill:
		c.end()
	case Hold:
		select {}
	case Stall:
		timer := time.NewTimer(o.For)
		defer timer.Stop()
		<-timer.C
	}
}

// pass counts a passage and returns what is to be done now.
func (c *Child) pass(point string) Order {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.mu.passed[point] {
		c.mu.passed[point] = true
		_ = c.mu.out.Encode(Event{Point: point}) // a harness that is gone wants to know nothing
	}
	o, ok := c.mu.orders[point]
	if !ok {
		return Order{}
	}
	if o.Passage > 1 {
		o.Passage--
		c.mu.orders[point] = o
		return Order{}
	}
	if o.Do == Hold {
		_ = c.mu.out.Encode(Event{Point: point, Held: true})
	}
	return o
}

// Harness is the other side: what it knows of one child.
type Harness struct {
	orders *json.Encoder
	held   chan struct{}

	mu struct { // no I/O
		sync.Mutex
		passed map[string]bool
		holds  bool
	}
}

// NewHarness gives orders to a child and listens to it until events ends, which it closes then.
func NewHarness(orders io.Writer, events io.ReadCloser) *Harness {
	h := &Harness{orders: json.NewEncoder(orders), held: make(chan struct{})}
	h.mu.passed = map[string]bool{}
	go h.listen(events)
	return h
}

func (h *Harness) listen(events io.ReadCloser) {
	defer events.Close()
	for in := json.NewDecoder(events); ; {
		var e Event
		if in.Decode(&e) != nil {
			return // it has died
		}
		h.mu.Lock()
		h.mu.passed[e.Point] = true
		if e.Held && !h.mu.holds {
			h.mu.holds = true
			close(h.held)
		}
		h.mu.Unlock()
	}
}

// Order gives an order. That the child has died is no error: it may have done so by an earlier one.
func (h *Harness) Order(o Order) error {
	if err := h.orders.Encode(o); err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Held is closed when the child stays at a point.
func (h *Harness) Held() <-chan struct{} { return h.held }

// Passed lists the points that the child came to.
func (h *Harness) Passed() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []string
	for p := range h.mu.passed {
		all = append(all, p)
	}
	return all
}
