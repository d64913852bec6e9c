package systemd

import (
	"context"
	_ "embed" // the unit file
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// UnitName is the file name of the unit.
const UnitName = "vhdrelay.service"

// Unit is the text of the unit file, as installed by default.
//
//go:embed vhdrelay.service
var Unit string

// ErrNoManager: nobody keeps anything for the next process.
var ErrNoManager = errors.New("no service manager")

// Notifier tells the service manager how the appliance is. Its zero value, and any Notifier outside systemd, does nothing.
type Notifier struct {
	send     func(state string) error
	interval time.Duration
}

// FromEnvironment returns a Notifier for the manager that started this process, as its environment says (sd_notify(3),
// sd_watchdog_enabled(3)). Call it once: the environment is left for child processes, which the unit does not let notify.
func FromEnvironment() (*Notifier, error) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return nil, fmt.Errorf("reading the watchdog's interval: %w", err)
	}
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return &Notifier{}, nil
	}
	return &Notifier{interval: interval, send: func(state string) error {
		_, err := daemon.SdNotify(false, state)
		return err
	}}, nil
}

func (n *Notifier) notify(state string) error {
	if n == nil || n.send == nil {
		return nil
	}
	if err := n.send(state); err != nil {
		return fmt.Errorf("telling systemd %q: %w", state, err)
	}
	return nil
}

// Manages says whether there is a manager that can keep something.
func (n *Notifier) Manages() bool { return n != nil && n.send != nil }

// Ready says that every store is mounted, so that what is ordered after the appliance may start.
func (n *Notifier) Ready() error { return n.notify(daemon.SdNotifyReady) }

// Stopping says that an orderly stop has begun.
func (n *Notifier) Stopping() error { return n.notify(daemon.SdNotifyStopping) }

// Status sets the one line that `systemctl status` shows. It must not contain a line break.
func (n *Notifier) Status(line string) error { return n.notify("STATUS=" + line) }

// Lines sends the STATUS line that make returns, at once and then every interval if it differs, until ctx ends. One that
// cannot be delivered is tried again at the next turn. Outside systemd nothing is made.
func (n *Notifier) Lines(ctx context.Context, every time.Duration, make func() string) {
	if n == nil || n.send == nil {
		return
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for sent := ""; ; {
		if line := make(); line != sent && n.Status(line) == nil {
			sent = line
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// Watchdog keeps the manager's watchdog quiet until ctx ends, four times in its interval, as long as alive returns nil. It
// returns at once where no watchdog is set. What alive says, and a notification that cannot be delivered, is given to
// failed, and tried again at the next turn; failed may be nil.
func (n *Notifier) Watchdog(ctx context.Context, alive func() error, failed func(error)) {
	if n == nil || n.interval <= 0 {
		return
	}
	ticker := time.NewTicker(n.interval / 4)
	defer ticker.Stop()
	for {
		err := alive()
		if err == nil {
			err = n.notify(daemon.SdNotifyWatchdog)
		}
		if err != nil && failed != nil {
			failed(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
