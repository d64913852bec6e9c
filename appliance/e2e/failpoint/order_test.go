package failpoint

import (
	"io"
	"os"
	"slices"
	"testing"
	"time"
)

// pair is a child and its harness, with pipes between them. died is closed when the child would die.
func pair(t *testing.T) (c *Child, h *Harness, died chan struct{}) {
	t.Helper()
	ordersIn, orders, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	events, eventsOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, f := range []io.Closer{ordersIn, orders, eventsOut} { // the harness closes events
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	c, h, died = NewChild(eventsOut), NewHarness(orders, events), make(chan struct{})
	c.end = func() { close(died) }
	if err := h.Order(Order{Do: Begin}); err != nil {
		t.Fatal(err)
	}
	if err := c.Obey(ordersIn); err != nil {
		t.Fatal(err)
	}
	return c, h, died
}

const timeout = 10 * time.Second

// taken waits until the child has the order.
func taken(t *testing.T, c *Child, o Order) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; <-tick.C {
		c.mu.Lock()
		got := c.mu.orders[o.Point]
		c.mu.Unlock()
		if got == o {
			return
		}
		if time.Since(began) > timeout {
			t.Fatalf("the order %+v does not arrive", o)
		}
	}
}

func TestChildDiesAtThePassageItIsTold(t *testing.T) {
	c, h, died := pair(t)
	c.Hook("here")
	o := Order{Point: "here", Passage: 3, Do: Kill}
	if err := h.Order(o); err != nil {
		t.Fatal(err)
	}
	taken(t, c, o)
	for i := range 3 {
		c.Hook("there")
		select {
		case <-died:
			t.Fatalf("died before passage %d", i+1)
		default:
		}
		c.Hook("here")
	}
	<-died
}

func TestChildStaysAndSaysSo(t *testing.T) {
	c, h, _ := pair(t)
	o := Order{Point: "here", Do: Hold}
	if err := h.Order(o); err != nil {
		t.Fatal(err)
	}
	taken(t, c, o)
	passed := make(chan struct{})
	go func() { // stays for ever
		c.Hook("here")
		close(passed)
	}()
	select {
	case <-h.Held():
	case <-time.After(timeout):
		t.Fatal("nobody says that it stays")
	}
	c.Hook("there") // others go on
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); !slices.Contains(h.Passed(), "there"); <-tick.C {
		if time.Since(began) > timeout {
			t.Fatalf("passed %v", h.Passed())
		}
	}
	select {
	case <-passed:
		t.Error("it went on")
	default:
	}
	if !slices.Contains(h.Passed(), "here") {
		t.Errorf("passed %v", h.Passed())
	}
}

func TestChildComesLateUntilItIsToldOtherwise(t *testing.T) {
	c, h, _ := pair(t)
	late := Order{Point: "here", Do: Stall, For: 30 * time.Millisecond}
	if err := h.Order(late); err != nil {
		t.Fatal(err)
	}
	taken(t, c, late)
	began := time.Now()
	c.Hook("here")
	c.Hook("here")
	if took := time.Since(began); took < 2*late.For {
		t.Errorf("late by %v", took)
	}
	if err := h.Order(Order{Point: "here"}); err != nil {
		t.Fatal(err)
	}
	taken(t, c, Order{Point: "here"})
	c.Hook("here")
}

func TestChildNeedsAnOrderToBegin(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if err := NewChild(io.Discard).Obey(in); err == nil {
		t.Error("it begins")
	}
}

func TestEveryPointHasANameOfItsOwn(t *testing.T) {
	all := All()
	slices.Sort(all)
	for i, p := range all {
		if p == "" || i > 0 && all[i-1] == p {
			t.Errorf("point %q", p)
		}
	}
	if len(all) < 60 {
		t.Errorf("%d points", len(all))
	}
}
