package main

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

func TestAcksKnowWhatWasHeardWhen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAcks()
		if a.last() != 0 || a.until(time.Now()) != 0 {
			t.Fatal("something was heard")
		}
		go func() {
			for i := range 10 {
				a.hear(strconv.Itoa(i + 1))
				<-time.After(time.Second)
			}
		}()
		began := time.Now()
		if err := a.await(t.Context(), 5); err != nil || time.Since(began) != 4*time.Second {
			t.Fatalf("%v after %v", err, time.Since(began))
		}
		if err := a.await(t.Context(), 10); err != nil || a.last() != 10 {
			t.Fatal(err, a.last())
		}
		for after, want := range map[time.Duration]int{0: 0, time.Millisecond: 1, 3 * time.Second: 3, time.Hour: 10} {
			if n := a.until(began.Add(after)); n != want {
				t.Errorf("%d before %v, want %d", n, after, want)
			}
		}
		<-time.After(time.Second) // the guest's goroutine ends
	})
}

func TestAcksEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := newAcks().await(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
	})
}

// A number that is left out, said twice, or anything else is not taken for an answer.
func TestAcksAreInOrder(t *testing.T) {
	for _, line := range []string{"1", "3", "", "Error: disk I/O error", "-2"} {
		a := newAcks()
		a.hear("1")
		a.hear(line)
		if err := a.await(t.Context(), 1); err == nil {
			t.Errorf("%q is taken", line)
		}
	}
}
