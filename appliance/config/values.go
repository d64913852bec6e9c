package config

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// into makes a setter of a parser. A parser's error is a sentence that says what the value must be.
func into[T any](r *reader, dst *T, parse func(string) (T, error)) setter {
	return func(v value) {
		text, ok := r.scalar(v)
		if !ok {
			return
		}
		got, err := parse(text)
		if err != nil {
			r.failAt(v.key, "%s", err)
			return
		}
		*dst = got
	}
}

// optional is into for a value that may be left out: *dst stays nil then.
func optional[T any](r *reader, dst **T, parse func(string) (T, error)) setter {
	return func(v value) {
		var got T
		before := len(r.errs)
		into(r, &got, parse)(v)
		if len(r.errs) == before {
			*dst = &got
		}
	}
}

func text(s string) (string, error) { return s, nil }

// absolute parses a path that must not depend on a working directory.
func absolute(s string) (string, error) {
	if !filepath.IsAbs(s) {
		return "", fmt.Errorf("%q is not an absolute path", s)
	}
	return filepath.Clean(s), nil
}

// emptyOr makes "" a legal value.
func emptyOr[T any](parse func(string) (T, error)) func(string) (T, error) {
	return func(s string) (v T, err error) {
		if s == "" {
			return v, nil
		}
		return parse(s)
	}
}

// oneOf parses an enumeration.
func oneOf[T ~string](names ...T) func(string) (T, error) {
	return func(s string) (T, error) {
		list := make([]string, len(names))
		for i, n := range names {
			if string(n) == s {
				return n, nil
			}
			list[i] = string(n)
		}
		if near := nearest(s, list); near != "" {
			return "", fmt.Errorf("%q is none of %s; did you mean %q?", s, strings.Join(list, ", "), near)
		}
		return "", fmt.Errorf("%q is none of %s", s, strings.Join(list, ", "))
	}
}

// switched parses on and off.
func switched(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "on", "true", "yes":
		return true, nil
	case "off", "false", "no":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither on nor off", s)
}

// duration parses Go's notation, with d for days in front, within a range.
func duration(low, high time.Duration) func(string) (time.Duration, error) {
	return func(s string) (time.Duration, error) {
		d, err := parseDuration(s)
		if err != nil {
			return 0, fmt.Errorf("%q is not a duration such as 30s, 5m, 2h or 7d", s)
		}
		if d < low || d > high {
			return 0, fmt.Errorf("%s is out of range: %s … %s", s, shortDuration(low), shortDuration(high))
		}
		return d, nil
	}
}

// durationOrZero is duration, or 0 for never.
func durationOrZero(low, high time.Duration) func(string) (time.Duration, error) {
	parse := duration(low, high)
	return func(s string) (time.Duration, error) {
		if d, err := parseDuration(s); err == nil && d == 0 {
			return 0, nil
		}
		return parse(s)
	}
}

func parseDuration(s string) (time.Duration, error) {
	days, rest, hasDays := strings.Cut(s, "d")
	if !hasDays {
		if s == "0" {
			return 0, nil
		}
		return time.ParseDuration(s)
	}
	n, err := strconv.ParseUint(days, 10, 15)
	if err != nil {
		return 0, err
	}
	total := time.Duration(n) * Day
	if rest == "" {
		return total, nil
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 || d >= Day {
		return 0, strconv.ErrSyntax
	}
	return total + d, nil
}

// shortDuration writes a duration as the file would: no 5m0s.
func shortDuration(d time.Duration) string {
	if d > Day && d%Day == 0 {
		return fmt.Sprintf("%dd", d/Day)
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// byteUnits from the longest suffix to the shortest, so that GiB is not taken for B.
var byteUnits = []struct {
	suffix string
	size   int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"PiB", 1 << 50},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"PB", 1e15}, {"B", 1},
}

// size parses a number of bytes, with a unit or without, within a range; 0 is legal if zero is set.
func size(low, high int64, zero bool) func(string) (int64, error) {
	return func(s string) (int64, error) {
		n, err := parseSize(s)
		if err != nil {
			return 0, fmt.Errorf("%q is not a size such as 1048576, 512MiB or 10GiB", s)
		}
		if zero && n == 0 {
			return 0, nil
		}
		if n < low || n > high {
			also := ""
			if zero {
				also = "0, or "
			}
			return 0, fmt.Errorf("%s is out of range: %s%s … %s", s, also, shortSize(low), shortSize(high))
		}
		return n, nil
	}
}

func parseSize(s string) (int64, error) {
	unit := int64(1)
	for _, u := range byteUnits {
		if number, ok := strings.CutSuffix(s, u.suffix); ok {
			s, unit = strings.TrimSpace(number), u.size
			break
		}
	}
	n, err := strconv.ParseInt(strings.ReplaceAll(s, "_", ""), 10, 64)
	if err != nil {
		return 0, err
	}
	if n < 0 || n > (1<<63-1)/unit {
		return 0, strconv.ErrRange
	}
	return n * unit, nil
}

// shortSize writes whole binary units where they fit.
func shortSize(n int64) string {
	units := []string{"", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for n != 0 && n%1024 == 0 && i < len(units)-1 {
		n, i = n/1024, i+1
	}
	return fmt.Sprintf("%d%s", n, units[i])
}

// fraction parses a share of one.
func fraction(low, high float64) func(string) (float64, error) {
	return func(s string) (float64, error) {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return 0, fmt.Errorf("%q is not a number", s)
		}
		if !(f >= low && f <= high) {
			return 0, fmt.Errorf("%s is out of range: %g … %g", s, low, high)
		}
		return f, nil
	}
}

// timeOfDay parses HH:MM; 24:00 is the end of the day.
func timeOfDay(s string) (TimeOfDay, error) {
	hours, minutes, ok := strings.Cut(s, ":")
	h, errH := strconv.ParseUint(hours, 10, 8)
	m, errM := strconv.ParseUint(minutes, 10, 8)
	if !ok || errH != nil || errM != nil || len(minutes) != 2 || m > 59 || h*60+m > 24*60 {
		return 0, fmt.Errorf("%q is not a time of day, 00:00 … 24:00", s)
	}
	return TimeOfDay(h*60 + m), nil
}

// weekday parses one of mon … sun into a set of that one day.
func weekday(s string) (Days, error) {
	var names []string
	for _, d := range dayNames {
		if d.name == strings.ToLower(s) {
			return 1 << d.day, nil
		}
		names = append(names, d.name)
	}
	return 0, fmt.Errorf("%q is none of %s", s, strings.Join(names, ", "))
}
