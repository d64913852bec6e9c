package appliance

import (
	"context"
	"math"
	"os"
	"os/signal"
	"syscall"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/health"
)

// hangups are the SIGHUPs from now on. They are asked for before anybody is told that the appliance serves: until then one
// would end the process.
func hangups() chan os.Signal {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	return hup
}

// reloads reads the config again at every SIGHUP, until ctx ends.
func (a *Appliance) reloads(ctx context.Context, hup chan os.Signal) error {
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			a.reload()
		}
	}
}

// reload puts what can change live in force and names what cannot. A file that
// does not read leaves everything as it is.
func (a *Appliance) reload() {
	old := a.config()
	next, err := config.Load(old.Path)
	a.misread(err)
	if err != nil {
		a.log.Error("config not reloaded; the old one stays in force", "path", old.Path, "code", health.ConfigInvalid, "cause", err, "action", "mend it, then: systemctl reload vhdrelay")
		return
	}
	inForce, restart := old.Reload(next)
	a.conf.Store(inForce)
	a.keepConfig()
	a.log.Info("config reloaded", "path", old.Path, "after_restart", restart)
}

// bandwidth is how much the appliance may send now, in bytes a second, 0 for no
// limit: the rule of the hour, or what the account takes while it throttles. So the
// most urgent goes first under both.
func (a *Appliance) bandwidth() int64 {
	limit := a.config().BandwidthAt(a.now())
	if rate := a.pacer.Rate(); !math.IsInf(rate, 1) && (limit == 0 || rate < float64(limit)) {
		return int64(rate)
	}
	return limit
}
