package retry

import (
	"cmp"
	"maps"
	"slices"
)

// Meaning is what a code of an error says: one line of the table that operators read.
type Meaning struct {
	Code   string
	Class  Class
	Action string // the next action, where one can be given without the error
}

// Meanings are the codes of this package, by code: local errors, the network, TLS.
func Meanings() []Meaning {
	known := maps.Clone(general)
	for _, v := range errnos {
		known[v.code] = better(known[v.code], v)
	}
	var list []Meaning
	for _, v := range known {
		if v.action == "" {
			v.action = DefaultAction(v.class)
		}
		list = append(list, Meaning{v.code, v.class, v.action})
	}
	return Sorted(list)
}

// better is the verdict that says what to do; of two that do, the first in order, so
// that the list is always the same.
func better(a, b verdict) verdict {
	if a.code == "" || a.action == "" || b.action != "" && b.action < a.action {
		return b
	}
	return a
}

// Sorted orders meanings by code and keeps one of each: the one whose action comes
// first, so that the list is always the same.
func Sorted(list []Meaning) []Meaning {
	slices.SortFunc(list, func(a, b Meaning) int {
		return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(a.Action, b.Action))
	})
	return slices.CompactFunc(list, func(a, b Meaning) bool { return a.Code == b.Code })
}

// unanswered are the codes of errors that came from no answer at all.
var unanswered = map[string]bool{
	"timeout": true, "connection-closed": true, "connection-refused": true, "network": true, "network-unreachable": true,
	"host-unreachable": true, "dns": true, "dns-no-such-host": true, "account-not-resolved": true,
}

// Unanswered tells whether a code says that nobody answered: when the other side
// answers again, its cause is gone.
func Unanswered(code string) bool { return unanswered[code] }
