package target

import "github.com/vhdrelay/vhdrelay/shipper/retry"

// Meanings are the codes of this package's sentinels.
func Meanings() []retry.Meaning {
	var list []retry.Meaning
	for _, v := range verdicts {
		m := retry.Meaning{Code: v.code, Class: v.class, Action: v.hint}
		if m.Action == "" {
			m.Action = retry.DefaultAction(v.class)
		}
		list = append(list, m)
	}
	return retry.Sorted(list)
}
