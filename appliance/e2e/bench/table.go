package main

import (
	"fmt"
	"io"
	"strings"
)

// row is a line of the README's table.
type row struct {
	what    string
	against string
	value   string
	median  float64
	budget  budget
	detail  string
}

// ratioRow is a row of quotients.
func ratioRow(what, against string, r ratios, b budget, detail string) row {
	return row{what: what, against: against, value: r.String(), median: median(r), budget: b, detail: detail}
}

// printTable writes rows as markdown.
func printTable(w io.Writer, rows []row) {
	printColumns(w, []string{"what", "against", "measured", "budget", "met", "figures"}, func(yield func([]string)) {
		for _, r := range rows {
			yield([]string{r.what, r.against, r.value, r.budget.String(), r.budget.verdict(r.median), r.detail})
		}
	})
}

// printColumns writes a markdown table; a bar inside a cell would end it.
func printColumns(w io.Writer, head []string, lines func(func([]string))) {
	line := func(cells []string) {
		escaped := make([]string, len(cells))
		for i, c := range cells {
			escaped[i] = strings.ReplaceAll(c, "|", `\|`)
		}
		fmt.Fprintf(w, "| %s |\n", strings.Join(escaped, " | "))
	}
	line(head)
	fmt.Fprintf(w, "|%s\n", strings.Repeat("---|", len(head)))
	lines(line)
}

// rate prints bytes per second or operations per second.
func rate(v float64, bytes bool) string {
	if bytes {
		return fmt.Sprintf("%.0f MiB/s", v/(1<<20))
	}
	return fmt.Sprintf("%.0f/s", v)
}
