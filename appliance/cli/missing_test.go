package cli

import (
	"bytes"
	"strings"
	"testing"
)

func TestWarnMissingNamesPointAndDisk(t *testing.T) {
	var stderr, stdout bytes.Buffer
	a := &app{Deps: Deps{Stdout: &stdout, Stderr: &stderr}}
	a.warnMissing("1-3", []string{"data.raw"})
	if got := stderr.String(); !strings.Contains(got, "1-3") || !strings.Contains(got, "data.raw") {
		t.Errorf("warning %q", got)
	}
	if stdout.Len() > 0 {
		t.Errorf("in the output: %q", stdout.String())
	}
	stderr.Reset()
	a.warnMissing("1-3", nil)
	if stderr.Len() > 0 {
		t.Errorf("a whole point warns: %q", stderr.String())
	}
}
