package target

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

// TestI12_Verdicts: every sentinel has a verdict of its own, with a code nobody
// else uses, and what an operator must mend says how.
func TestI12_Verdicts(t *testing.T) {
	shape := regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`)
	seen := map[string]bool{}
	for _, v := range verdicts {
		e := Refused("Op", "name", fmt.Errorf("more: %w", v.err))
		if !errors.Is(e, v.err) || e.Code != v.code || e.Class != v.class || e.SameAnswer() != v.same {
			t.Errorf("%v: %+v is not its verdict", v.err, e)
		}
		if seen[v.code] || !shape.MatchString(v.code) {
			t.Errorf("%v: code %q", v.err, v.code)
		}
		seen[v.code] = true
		if v.class == retry.NonRecoverable && v.hint == "" {
			t.Errorf("%v: non-recoverable without a hint", v.err)
		}
		class, code, _, action := retry.Describe(fmt.Errorf("above: %w", e))
		if class != v.class || code != v.code || action == "" {
			t.Errorf("%v: described as %v %q %q", v.err, class, code, action)
		}
	}
}

// TestI12_CodesStay: scripts rely on them.
func TestI12_CodesStay(t *testing.T) {
	codes := map[error]string{
		ErrNotFound: "target-not-found", ErrNoContainer: "container-not-found", ErrExists: "target-exists",
		ErrCondition: "etag-changed", ErrSequence: "sequence-changed", ErrLeased: "lease-taken", ErrLeaseLost: "lease-lost",
		ErrSnapshots: "has-snapshots", ErrChecksum: "checksum-mismatch", ErrAuth: "not-authorized", ErrThrottled: "throttled",
		ErrTooLarge: "too-large", ErrVersion: "target-version", ErrDamaged: "target-damaged", ErrRange: "bad-range", ErrName: "bad-name",
		ErrNoSum: "no-checksum",
	}
	for err, want := range codes {
		if got := Refused("Op", "name", err).Code; got != want {
			t.Errorf("%v: code %q, want %q", err, got, want)
		}
	}
	if len(codes) != len(verdicts) {
		t.Errorf("%d codes, %d verdicts", len(codes), len(verdicts))
	}
}

// TestSentinelsAreApart: only a lost lease is a kind of another sentinel.
func TestSentinelsAreApart(t *testing.T) {
	for _, a := range verdicts {
		for _, b := range verdicts {
			want := a.err == b.err || a.err == ErrLeaseLost && b.err == ErrLeased
			if errors.Is(a.err, b.err) != want {
				t.Errorf("%v is %v: %v", a.err, b.err, !want)
			}
		}
	}
}

func TestErrorOfTheSystem(t *testing.T) {
	e := Lost("PutPages", "vm/x", syscall.ENOSPC)
	if e.Code != "disk-full" || e.Class != retry.Recoverable || e.Outcome != Unknown || !e.OutcomeUnknown() || e.SameAnswer() {
		t.Errorf("%+v", e)
	}
	if want := "PutPages vm/x: no space left on device (outcome unknown)"; e.Error() != want {
		t.Errorf("%q, want %q", e, want)
	}
	e = Refused("Get", "vm/x", ErrThrottled)
	e.Status, e.RetryAfter = 503, time.Second
	if want := "Get vm/x: target is throttling (status 503)"; e.Error() != want {
		t.Errorf("%q, want %q", e, want)
	}
	if e.RetryDelay() != time.Second || e.ErrorCode() != retry.CodeThrottled {
		t.Errorf("%+v", e)
	}
	if !Refused("Get", "x", context.Canceled).SameAnswer() {
		t.Error("a stopped caller would be asked again")
	}
}

func TestOutcomeOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Outcome
	}{
		{nil, Known},
		{errors.New("from elsewhere"), Unknown},
		{Refused("Get", "x", ErrNotFound), Known},
		{fmt.Errorf("above: %w", Refused("Get", "x", ErrNotFound)), Known},
		{fmt.Errorf("above: %w", Lost("Create", "x", ErrExists)), Unknown},
		{&Error{}, Unknown}, // the careful one is the zero value
	} {
		if got := OutcomeOf(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

func TestCheckRanges(t *testing.T) {
	const size = 8192
	for _, c := range []struct {
		off, n int64
		pages  bool // allowed as a write
		within bool // allowed as a read
	}{
		{0, 512, true, true},
		{0, size, true, true},
		{size - 512, 512, true, true},
		{0, 0, false, true},
		{size, 0, false, true},
		{1, 512, false, true},
		{0, 511, false, true},
		{size, 512, false, false},
		{size - 512, 1024, false, false},
		{-512, 512, false, false},
		{512, -512, false, false},
		{512, 1<<63 - 512, false, false}, // must not overflow
	} {
		if err := CheckPages(c.off, c.n, size); (err == nil) != c.pages {
			t.Errorf("write of %d at %d: %v", c.n, c.off, err)
		}
		if err := CheckWithin(c.off, c.n, size); (err == nil) != c.within || err != nil && !errors.Is(err, ErrRange) {
			t.Errorf("read of %d at %d: %v", c.n, c.off, err)
		}
	}
}

func TestCheckLimits(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"put", CheckPut(0, MaxPut), nil},
		{"large put", CheckPut(0, MaxPut+512), ErrTooLarge},
		{"largest blob", CheckSize(MaxPages), nil},
		{"too large a blob", CheckSize(MaxPages + 512), ErrTooLarge},
		{"odd blob", CheckSize(MaxPages - 1), ErrRange},
		{"sequence", CheckSequence(MaxSequence), nil},
		{"large sequence", CheckSequence(MaxSequence + 1), ErrRange},
		{"object", CheckObject(make([]byte, MaxObject)), nil},
		{"large object", CheckObject(make([]byte, MaxObject+1)), ErrTooLarge},
		{"name", CheckName(strings.Repeat("x", MaxName)), nil},
		{"long name", CheckName(strings.Repeat("x", MaxName+1)), ErrName},
		{"metadata", CheckMetadata(map[string]string{"k": strings.Repeat("v", MaxMetadata-1)}), nil},
		{"much metadata", CheckMetadata(map[string]string{"k": strings.Repeat("v", MaxMetadata)}), ErrTooLarge},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, c.err, c.want)
		}
	}
}

func TestByteRangeEnd(t *testing.T) {
	if got := (ByteRange{Off: 512, Len: 1024}).End(); got != 1536 {
		t.Errorf("end %d", got)
	}
}

// What time mends although its sentinel wants an operator is worth the same request again.
func TestAnswerThatTimeChanges(t *testing.T) {
	for _, c := range []struct {
		err   error
		class retry.Class
		same  bool
	}{
		{ErrAuth, retry.NonRecoverable, true}, {ErrAuth, retry.Recoverable, false}, {ErrLeased, retry.Recoverable, false},
		{ErrCondition, retry.Recoverable, true}, {ErrChecksum, retry.Recoverable, false},
	} {
		e := Refused("Get", "x", c.err)
		e.Class = c.class
		if e.SameAnswer() != c.same {
			t.Errorf("%v, %v: %v", c.err, c.class, e.SameAnswer())
		}
	}
}
