package cli

import (
	"strings"
	"unicode/utf8"
)

// width is the terminal that texts for people fit.
const width = 80

// fold breaks the lines of a text that are longer than width, at spaces where there are any. What follows a break is
// indented by four more than its line.
func fold(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		foldLine(&b, strings.TrimSuffix(line, "\n"))
		b.WriteByte('\n')
	}
	return b.String()
}

func foldLine(b *strings.Builder, line string) {
	body := strings.TrimLeft(line, " ")
	indent := strings.Repeat(" ", min(len(line)-len(body)+4, width/2))
	for utf8.RuneCountInString(line) > width {
		at := breakAt(line, len(indent))
		b.WriteString(strings.TrimRight(line[:at], " "))
		b.WriteByte('\n')
		line = indent + strings.TrimLeft(line[at:], " ")
	}
	b.WriteString(line)
}

// breakAt is the byte at which a line that is too long is broken: after the last space that fits and lies beyond the
// indentation, else in the middle of a word.
func breakAt(line string, indent int) int {
	end, seen := len(line), 0
	for i := range line {
		if seen == width {
			end = i
			break
		}
		seen++
	}
	if line[end] == ' ' {
		return end
	}
	if at := strings.LastIndexByte(line[:end], ' '); at >= indent {
		return at + 1
	}
	return end
}
