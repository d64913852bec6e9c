package retry

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// answerError is an error that answers everything this package asks.
type answerError struct {
	class  Class
	code   string
	delay  time.Duration
	unsure bool
	final  bool
}

func (e *answerError) Error() string             { return "answer " + e.code }
func (e *answerError) RetryClass() Class         { return e.class }
func (e *answerError) ErrorCode() string         { return e.code }
func (e *answerError) ErrorAction() string       { return "" }
func (e *answerError) RetryDelay() time.Duration { return e.delay }
func (e *answerError) OutcomeUnknown() bool      { return e.unsure }
func (e *answerError) SameAnswer() bool          { return e.final }

// outage runs Do against an operation that fails with err for a while, and
// returns when each attempt began, how long it took, and what came of it.
func outage(t *testing.T, p Policy, length time.Duration, err error) (starts []time.Duration, result error) {
	t.Helper()
	begin := time.Now()
	result = Do(t.Context(), p, func(context.Context) error {
		starts = append(starts, time.Since(begin))
		if time.Since(begin) < length {
			return err
		}
		return nil
	})
	return starts, result
}

func TestDoPacesUpToBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fault := &answerError{}
		starts, err := outage(t, Policy{}, time.Hour, fault)
		if !errors.Is(err, fault) {
			t.Fatalf("got %v, want the last error of the operation", err)
		}
		want := []time.Duration{0, 500, 1500, 3500, 7500, 15500, 23500} // ms; the next would begin after 31.5 s
		if len(starts) != len(want) {
			t.Fatalf("attempts at %v", starts)
		}
		for i, ms := range want {
			if starts[i] != ms*time.Millisecond {
				t.Fatalf("attempts at %v, want %v ms", starts, want)
			}
		}
	})
}

func TestDoEndsWithOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		starts, err := outage(t, Policy{}, 5*time.Second, &answerError{})
		if err != nil || starts[len(starts)-1] != 7500*time.Millisecond {
			t.Fatalf("%v, attempts at %v", err, starts)
		}
	})
}

func TestDoRepeatsOnlyWhatHelps(t *testing.T) {
	for name, c := range map[string]struct {
		policy   Policy
		err      error
		repeated bool
	}{
		"recoverable":              {Policy{}, &answerError{}, true},
		"unclassified":             {Policy{}, errors.New("new"), true},
		"non-recoverable":          {Policy{}, &answerError{class: NonRecoverable}, false},
		"bug":                      {Policy{}, &answerError{class: Bug}, false},
		"same answer":              {Policy{}, &answerError{final: true}, false},
		"unknown":                  {Policy{}, &answerError{unsure: true}, false},
		"unknown, idempotent":      {Policy{Idempotent: true}, &answerError{unsure: true}, true},
		"same answer, idempotent":  {Policy{Idempotent: true}, &answerError{final: true}, false},
		"asks for more than left":  {Policy{}, &answerError{delay: time.Minute}, false},
		"asks for what is left":    {Policy{}, &answerError{delay: 20 * time.Second}, true},
		"wrapped, non-recoverable": {Policy{}, errors.Join(errors.New("x"), &answerError{class: NonRecoverable}), false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				starts, err := outage(t, c.policy, time.Nanosecond, c.err)
				if repeated := len(starts) > 1; repeated != c.repeated || (err == nil) != c.repeated {
					t.Fatalf("attempts at %v, %v", starts, err)
				}
			})
		})
	}
}

func TestDoHonoursRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		starts, err := outage(t, Policy{}, time.Second, &answerError{code: CodeThrottled, delay: 12 * time.Second})
		if err != nil || starts[1] != 12*time.Second {
			t.Fatalf("%v, attempts at %v", err, starts)
		}
	})
}

func TestDoMends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fault := &answerError{unsure: true}
		var answered []error
		p := Policy{Mend: func(_ context.Context, err error) error {
			answered = append(answered, err)
			return nil
		}}
		starts, err := outage(t, p, time.Second, fault)
		if err != nil || len(answered) != len(starts)-1 || answered[0] != error(fault) {
			t.Fatalf("%v, %d attempts, mended %v", err, len(starts), answered)
		}
		p.Mend = func(context.Context, error) error { return ErrDone }
		if starts, err = outage(t, p, time.Hour, fault); err != nil || len(starts) != 1 {
			t.Fatalf("found applied: %v, %d attempts", err, len(starts))
		}
		broken := errors.New("cannot raise the number")
		p.Mend = func(context.Context, error) error { return broken }
		if starts, err = outage(t, p, time.Hour, fault); !errors.Is(err, broken) || len(starts) != 1 {
			t.Fatalf("cannot mend: %v, %d attempts", err, len(starts))
		}
	})
}

func TestDoNotices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var waits []time.Duration
		p := Policy{Notice: func(_ error, wait time.Duration) { waits = append(waits, wait) }}
		if _, err := outage(t, p, time.Second, &answerError{}); err != nil {
			t.Fatal(err)
		}
		if len(waits) != 2 || waits[0] != DefaultFirst || waits[1] != 2*DefaultFirst {
			t.Fatalf("waits %v", waits)
		}
	})
}

func TestDoStopsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		fault, begin := &answerError{}, time.Now()
		err := Do(ctx, Policy{}, func(context.Context) error { return fault })
		if !errors.Is(err, fault) || time.Since(begin) != 2*time.Second {
			t.Fatalf("%v after %v", err, time.Since(begin))
		}
		err = Do(ctx, Policy{Pacer: NewPacer()}, func(context.Context) error { t.Fatal("sent"); return nil })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("ended before: %v", err)
		}
	})
}

func TestDoTellsPacer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := Policy{Pacer: NewPacer(), Cost: 4 << 20}
		if _, err := outage(t, p, time.Nanosecond, &answerError{}); err != nil {
			t.Fatal(err)
		}
		if limited(p.Pacer) {
			t.Fatal("an ordinary error lowered the rate")
		}
		if _, err := outage(t, p, time.Nanosecond, &answerError{code: CodeThrottled}); err != nil {
			t.Fatal(err)
		}
		if !limited(p.Pacer) {
			t.Fatal("a 503 did not lower the rate")
		}
	})
}
