package config

import (
	"testing"
	"time"
)

// check runs a value parser over what it takes and what it refuses.
func check[T comparable](t *testing.T, name string, parse func(string) (T, error), takes map[string]T, refuses ...string) {
	t.Helper()
	for text, want := range takes {
		if got, err := parse(text); err != nil || got != want {
			t.Errorf("%s %q: %v, %v, want %v", name, text, got, err, want)
		}
	}
	for _, text := range refuses {
		if got, err := parse(text); err == nil {
			t.Errorf("%s %q: accepted as %v", name, text, got)
		}
	}
}

func TestValueParsers(t *testing.T) {
	check(t, "absolute", absolute, map[string]string{"/a": "/a", "/a/": "/a", "/a//b/../c": "/a/c", "/": "/"}, "", "a", "./a", "~/a", "../a")
	check(t, "absolute or empty", emptyOr(absolute), map[string]string{"": "", "/a": "/a"}, "a")
	check(t, "switch", switched, map[string]bool{"on": true, "On": true, "true": true, "yes": true, "off": false, "OFF": false, "false": false, "no": false},
		"", "1", "0", "enabled")
	check(t, "time of day", timeOfDay, map[string]TimeOfDay{"00:00": 0, "0:00": 0, "8:05": 485, "18:00": 1080, "23:59": 1439, "24:00": 1440},
		"", "8", "8:5", "24:01", "25:00", "12:60", "-1:00", "12:-1", "12:00:00", "noon", "12.30")
	check(t, "weekday", weekday, map[string]Days{"mon": 1 << time.Monday, "SUN": 1 << time.Sunday, "Sat": 1 << time.Saturday}, "", "monday", "mo", "1")
	check(t, "fraction", fraction(0.01, 1), map[string]float64{"0.5": 0.5, "1": 1, "0.01": 0.01, ".25": 0.25}, "", "0", "1.01", "50%", "NaN", "-0.5", "Inf")
}

// Both ends of every range are inside, one step beyond is not.
func TestRangesIncludeTheirEnds(t *testing.T) {
	check(t, "interval", duration(MinInterval, MaxInterval), map[string]time.Duration{"5s": MinInterval, "24h": MaxInterval, "1d": MaxInterval},
		"4.999s", "24h1s", "0", "-5s")
	check(t, "spool limit", size(MinSpoolLimit, MaxSpoolLimit, true), map[string]int64{"0": 0, "16MiB": MinSpoolLimit, "1PiB": MaxSpoolLimit, "1024TiB": MaxSpoolLimit},
		"16777215", "1125899906842625", "1")
	check(t, "bandwidth limit", size(MinBandwidthLimit, MaxBandwidthLimit, false), map[string]int64{"16KiB": MinBandwidthLimit, "1TiB": MaxBandwidthLimit},
		"0", "16383", "1099511627777")
}

func TestEnumerationsNameTheirMembers(t *testing.T) {
	parse := oneOf(OverflowNow, OverflowWindow)
	check(t, "overflow", parse, map[string]Overflow{"now": OverflowNow, "window": OverflowWindow}, "", "Now", "later")
	for text, want := range map[string]string{
		"later":  `"later" is none of now, window`,
		"nov":    `"nov" is none of now, window; did you mean "now"?`,
		"widow":  `"widow" is none of now, window; did you mean "window"?`,
		"WINDOW": `"WINDOW" is none of now, window; did you mean "window"?`,
	} {
		if _, err := parse(text); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestShortSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 1: "1", 1023: "1023", 1024: "1KiB", 1536: "1536", 1 << 20: "1MiB", 10 << 30: "10GiB", 1 << 50: "1PiB", 1 << 60: "1024PiB"} {
		got := shortSize(n)
		if got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
		if back, err := parseSize(got); err != nil || back != n {
			t.Errorf("%s is read back as %d, %v", got, back, err)
		}
	}
}

// What is printed as a duration must be readable as one.
func TestShortDurationIsReadBack(t *testing.T) {
	for _, d := range []time.Duration{0, time.Second, 59 * time.Second, time.Minute, 61 * time.Second, time.Hour, time.Hour + time.Second,
		Day - time.Second, Day, Day + time.Second, 2 * Day, 30*Day + 12*time.Hour, MaxRetention, 1500 * time.Millisecond} {
		if back, err := parseDuration(shortDuration(d)); err != nil || back != d {
			t.Errorf("%v is written %s and read %v, %v", d, shortDuration(d), back, err)
		}
	}
}

func TestInside(t *testing.T) {
	for _, c := range []struct {
		inner, outer string
		want         bool
	}{{"/a/b", "/a", true}, {"/a", "/a", false}, {"/a", "/a/b", false}, {"/ab", "/a", false}, {"/a/..b", "/a", true}, {"/x", "/", true}, {"/", "/", false}} {
		if got := inside(c.inner, c.outer); got != c.want {
			t.Errorf("inside(%q, %q) = %v", c.inner, c.outer, got)
		}
	}
}

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{"localhost": true, "127.0.0.1": true, "127.8.8.8": true, "::1": true,
		"": false, "10.0.0.1": false, "127.0.0.1.example": false, "localhost.example": false, "0.0.0.0": false} {
		if got := loopback(host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
}

func TestOverridesOverNothingChangeNothing(t *testing.T) {
	r := DefaultReplication()
	if got := (Overrides{}).Over(r); got != r {
		t.Errorf("%+v", got)
	}
	if got := r.overrides().Over(Replication{}); got != r {
		t.Errorf("all keys over an empty one: %+v, want %+v", got, r)
	}
}
