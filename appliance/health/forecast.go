package health

import (
	"fmt"
	"slices"
	"time"
)

// Sample is what of a VM grows and shrinks, at one time. In and Out count since the
// start, the others are levels. Bytes.
type Sample struct {
	At      time.Time
	Spooled int64
	In, Out int64            // into the spool, and out of it to the target
	Changed map[string]int64 // by disk: changed and not at the target
}

// Limits are what must not be reached, in bytes.
type Limits struct {
	Spool int64            // seals rest from here on
	Disk  map[string]int64 // the disk is marked from here on
}

// Forecast says when a limit is reached if everything goes on as it does.
type Forecast struct {
	What    string // "spool", or the name of the disk
	In      time.Duration
	Message string
}

// The horizon of a forecast, and the shortest time that says anything of a rate.
const (
	Horizon   = 24 * time.Hour
	shortRate = 20 * time.Second
)

// Predict looks at samples, oldest first, and says which limit is reached first; nil
// if none is within Horizon.
func Predict(samples []Sample, limits Limits) *Forecast {
	if len(samples) < 2 {
		return nil
	}
	first, last := samples[0], samples[len(samples)-1]
	took := last.At.Sub(first.At)
	if took < shortRate {
		return nil
	}
	in, out := perSecond(last.In-first.In, took), perSecond(last.Out-first.Out, took)
	why := fmt.Sprintf("%s change, %s leave", rateText(in), rateText(out))
	var all []Forecast
	if at, ok := reached(last.Spooled, limits.Spool, in-out); ok {
		all = append(all, Forecast{What: "spool", In: at, Message: fmt.Sprintf("the spool is full in %s: %s", span(at), why)})
	}
	for name, level := range last.Changed {
		growth := perSecond(level-first.Changed[name], took)
		if at, ok := reached(level, limits.Disk[name], growth); ok {
			all = append(all, Forecast{What: name, In: at,
				Message: fmt.Sprintf("disk %s reaches its mark in %s: %s more change than leave", name, span(at), rateText(growth))})
		}
	}
	if len(all) == 0 {
		return nil
	}
	soonest := slices.MinFunc(all, func(a, b Forecast) int { return int(a.In - b.In) })
	return &soonest
}

func perSecond(n int64, took time.Duration) float64 { return float64(n) / took.Seconds() }

// reached says when a level that grows reaches its limit.
func reached(level, limit int64, growth float64) (time.Duration, bool) {
	if limit <= 0 || growth <= 0 || level >= limit {
		return 0, false
	}
	seconds := float64(limit-level) / growth
	if seconds > Horizon.Seconds() {
		return 0, false
	}
	return time.Duration(seconds * float64(time.Second)), true
}

// rateText is a rate for people: MB are 10^6 bytes, as lines are sold.
func rateText(perSecond float64) string {
	switch {
	case perSecond >= 9.95e6:
		return fmt.Sprintf("%.0f MB/s", perSecond/1e6)
	case perSecond >= 1e5:
		return fmt.Sprintf("%.1f MB/s", perSecond/1e6)
	}
	return fmt.Sprintf("%.0f kB/s", perSecond/1e3)
}

// span is a time for people.
func span(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	}
	return fmt.Sprintf("%.0f h", d.Hours())
}
