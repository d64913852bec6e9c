package config

import (
	"testing"
	"time"
)

// at returns a time in the week of Monday 2026-03-02, in UTC.
func at(day time.Weekday, hour, minute int) time.Time {
	return time.Date(2026, 3, 2+(int(day)+6)%7, hour, minute, 30, 0, time.UTC)
}

func TestWindowContains(t *testing.T) {
	weekdays := EveryDay &^ (1<<time.Saturday | 1<<time.Sunday)
	office := Window{weekdays, 8 * 60, 18 * 60}
	night := Window{weekdays, 18 * 60, 8 * 60}
	whole := Window{1 << time.Saturday, 0, 24 * 60}
	same := Window{1 << time.Saturday, 6 * 60, 6 * 60}
	for _, c := range []struct {
		name   string
		window Window
		t      time.Time
		want   bool
	}{
		{"before", office, at(time.Monday, 7, 59), false},
		{"first minute", office, at(time.Monday, 8, 0), true},
		{"last minute", office, at(time.Monday, 17, 59), true},
		{"after", office, at(time.Monday, 18, 0), false},
		{"another day", office, at(time.Saturday, 12, 0), false},
		{"evening", night, at(time.Friday, 23, 0), true},
		{"past midnight belongs to the day before", night, at(time.Saturday, 7, 59), true},
		{"its end", night, at(time.Saturday, 8, 0), false},
		{"no window on Saturday evening", night, at(time.Saturday, 23, 0), false},
		{"nor on Monday morning", night, at(time.Monday, 3, 0), false},
		{"whole day, start", whole, at(time.Saturday, 0, 0), true},
		{"whole day, end", whole, at(time.Saturday, 23, 59), true},
		{"whole day, over", whole, at(time.Sunday, 0, 0), false},
		{"equal ends, start", same, at(time.Saturday, 6, 0), true},
		{"equal ends, before", same, at(time.Saturday, 5, 59), false},
		{"equal ends, next morning", same, at(time.Sunday, 5, 59), true},
		{"equal ends, over", same, at(time.Sunday, 6, 0), false},
	} {
		if got := c.window.Contains(c.t); got != c.want {
			t.Errorf("%s: %v at %s", c.name, got, c.t.Format("Mon 15:04"))
		}
	}
}

func TestNextChange(t *testing.T) {
	night := Window{1 << time.Friday, 22 * 60, 6 * 60}
	opens := night.NextChange(at(time.Monday, 12, 0))
	if want := at(time.Friday, 22, 0).Truncate(time.Minute); !opens.Equal(want) {
		t.Errorf("opens %s, want %s", opens, want)
	}
	closes := night.NextChange(opens)
	if want := at(time.Saturday, 6, 0).Truncate(time.Minute); !closes.Equal(want) {
		t.Errorf("closes %s, want %s", closes, want)
	}
	always := Window{EveryDay, 0, 0}
	if got := always.NextChange(opens); !got.IsZero() {
		t.Errorf("a window that is always open changes at %s", got)
	}
}

// A window is local time: the hour that is skipped in spring is not waited for.
func TestNextChangeAcrossDaylightSaving(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skipf("no time zones here: %v", err)
	}
	w := Window{EveryDay, 1 * 60, 4 * 60}
	opens := time.Date(2026, 3, 29, 1, 0, 0, 0, berlin)
	if closes := w.NextChange(opens); closes.Sub(opens) != 2*time.Hour || closes.Hour() != 4 {
		t.Errorf("closes %s after %s, want 04:00 after 2h", closes, closes.Sub(opens))
	}
}

func TestBandwidthAtTakesTheLowestOpenWindow(t *testing.T) {
	c := &Config{Bandwidth: []Bandwidth{
		{Window{EveryDay, 8 * 60, 18 * 60}, 10 << 20},
		{Window{EveryDay, 12 * 60, 13 * 60}, 50 << 20},
		{Window{1 << time.Monday, 9 * 60, 10 * 60}, 1 << 20},
	}}
	for _, x := range []struct {
		t    time.Time
		want int64
	}{
		{at(time.Tuesday, 7, 0), 0}, {at(time.Tuesday, 9, 0), 10 << 20}, {at(time.Monday, 9, 0), 1 << 20},
		{at(time.Tuesday, 12, 30), 10 << 20}, {at(time.Tuesday, 20, 0), 0},
	} {
		if got := c.BandwidthAt(x.t); got != x.want {
			t.Errorf("%s: %d, want %d", x.t.Format("Mon 15:04"), got, x.want)
		}
	}
}

func TestDaysNames(t *testing.T) {
	if got := EveryDay.Names(); len(got) != 7 || got[0] != "mon" || got[6] != "sun" {
		t.Errorf("%v", got)
	}
	if got := Days(1 << time.Sunday).Names(); len(got) != 1 || got[0] != "sun" {
		t.Errorf("%v", got)
	}
}

func TestDurationsAndSizesAsWritten(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "30s": 30 * time.Second, "1m30s": 90 * time.Second, "7d": 7 * Day, "1d12h": 36 * time.Hour, "0d": 0} {
		if got, err := parseDuration(text); err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "d", "-1d", "1d25h", "1d-1h", "5", "1w", "99999d", "1.5d", "1d1d"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
	for text, want := range map[string]int64{
		"0": 0, "512": 512, "1KiB": 1024, "10GiB": 10 << 30, "10 GiB": 10 << 30, "5MB": 5e6, "7B": 7, "1_000": 1000, "8PiB": 8 << 50} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "GiB", "-1", "1.5GiB", "8192PiB", "1EiB", "9223372036854775808"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q is %d", text, got)
		}
	}
	for d, want := range map[time.Duration]string{5 * time.Minute: "5m", 24 * time.Hour: "24h", 7 * Day: "7d", 90 * time.Second: "1m30s",
		90 * time.Minute: "1h30m", 0: "0s", 10 * time.Second: "10s", 20 * time.Minute: "20m", 10 * time.Hour: "10h"} {
		if got := shortDuration(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
