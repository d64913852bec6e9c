package rig

import (
	"errors"
	"os"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/failpoint"
)

// launchMortal runs the command mortal, with its orders on one pipe and its events on another.
func (r *Rig) launchMortal() error {
	ordersIn, orders, err := os.Pipe()
	if err != nil {
		return err
	}
	events, eventsOut, err := os.Pipe()
	if err != nil {
		return errors.Join(err, ordersIn.Close(), orders.Close())
	}
	p, err := start(r.LogFile(), r.environ(), []*os.File{ordersIn, eventsOut}, r.Mortal, r.config())
	_, _ = ordersIn.Close(), eventsOut.Close() // the child has them
	if err != nil {
		return errors.Join(err, orders.Close(), events.Close())
	}
	r.proc, r.reins = p, failpoint.NewHarness(orders, events)
	go func() {
		<-p.done
		_ = orders.Close() // nobody reads them any more
	}()
	for _, o := range append(r.Orders, failpoint.Order{Do: failpoint.Begin}) {
		if err := r.reins.Order(o); err != nil {
			return err
		}
	}
	return nil
}

// Order gives an order to a mortal appliance that runs.
func (r *Rig) Order(o failpoint.Order) error { return r.reins.Order(o) }

// Held is closed when a mortal appliance stays at a point.
func (r *Rig) Held() <-chan struct{} { return r.reins.Held() }

// Passed lists the points that a mortal appliance came to in this life.
func (r *Rig) Passed() []string { return r.reins.Passed() }

// Exited is closed when the appliance has ended.
func (r *Rig) Exited() <-chan struct{} { return r.exited() }
