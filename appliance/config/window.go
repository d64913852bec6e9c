package config

import (
	"fmt"
	"time"
)

// Day is 24 hours; durations in the file may use d as a unit.
const Day = 24 * time.Hour

// TimeOfDay is a wall-clock time in minutes since midnight, 0 … 1440.
type TimeOfDay int

// String returns HH:MM.
func (t TimeOfDay) String() string { return fmt.Sprintf("%02d:%02d", int(t)/60, int(t)%60) }

// Days is a set of weekdays, bit 0 is Sunday as in time.Weekday.
type Days uint8

// EveryDay has all seven.
const EveryDay Days = 1<<7 - 1

// dayNames are in the order an operator writes them.
var dayNames = []struct {
	name string
	day  time.Weekday
}{
	{"mon", time.Monday}, {"tue", time.Tuesday}, {"wed", time.Wednesday}, {"thu", time.Thursday},
	{"fri", time.Friday}, {"sat", time.Saturday}, {"sun", time.Sunday},
}

// Has reports whether d contains the day.
func (d Days) Has(day time.Weekday) bool { return d&(1<<day) != 0 }

// Names returns the days as the file writes them, Monday first.
func (d Days) Names() []string {
	var names []string
	for _, n := range dayNames {
		if d.Has(n.day) {
			names = append(names, n.name)
		}
	}
	return names
}

// Window is a weekly recurring time in the host's local time. A window whose end is not after its start crosses midnight
// and belongs to the day it starts on; equal ends make 24 hours.
type Window struct {
	Days     Days
	From, To TimeOfDay
}

// Contains reports whether the window is open at t, in t's own location.
func (w Window) Contains(t time.Time) bool {
	now := TimeOfDay(t.Hour()*60 + t.Minute())
	today, yesterday := t.Weekday(), (t.Weekday()+6)%7
	if w.From < w.To {
		return w.Days.Has(today) && w.From <= now && now < w.To
	}
	return w.Days.Has(today) && now >= w.From || w.Days.Has(yesterday) && now < w.To
}

// NextChange returns the first minute after t at which Contains answers differently, or the zero time if it never does.
// It steps over real minutes, so a change of daylight saving time needs no case of its own.
func (w Window) NextChange(t time.Time) time.Time {
	open := w.Contains(t)
	next := t.Truncate(time.Minute)
	for range 8 * 24 * 60 {
		next = next.Add(time.Minute)
		if w.Contains(next) != open {
			return next
		}
	}
	return time.Time{}
}
