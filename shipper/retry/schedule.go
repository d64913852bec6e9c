package retry

import "time"

// The schedule of a failed cycle (BEHAVIOUR §Retry): 1, 2, 4, 8 and 10 minutes,
// then every 30 minutes without end.
var steps = [...]time.Duration{
	1 * time.Minute,
	2 * time.Minute,
	4 * time.Minute,
	8 * time.Minute,
	10 * time.Minute,
}

// Steady is the wait once the steps are used up.
const Steady = 30 * time.Minute

// Next is how long a cycle waits after its attempt-th failure in a row, counted
// from 1. Smaller numbers count as 1.
func Next(attempt int) time.Duration {
	if attempt > len(steps) {
		return Steady
	}
	return steps[max(attempt, 1)-1]
}
