package cli

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

// The manual knows every command and flag that the help knows, and nothing in it is taken for markup by mistake.
func TestManualHasEveryCommand(t *testing.T) {
	r := newRig(t)
	var page bytes.Buffer
	if err := Manual(&page, r.deps); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		".TH VHDRELAY 8", ".SS vhdrelay sync", ".SS vhdrelay journal check", "\\-\\-wait", "\\-\\-config string", "EXIT STATUS",
		"(default \"/etc/vhdrelay/vhdrelay.yaml\")",
	} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("no %q in the manual", want)
		}
	}
	if strings.Contains(page.String(), ".SS vhdrelay completion") || strings.Contains(page.String(), ".SS vhdrelay help") {
		t.Error("cobra's own commands are in the manual")
	}
	known := strings.Fields(".TH .SH .SS .TP .PP .B .I .BR .nf .fi")
	for line := range strings.Lines(page.String()) {
		macro, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasPrefix(line, "'") || strings.HasPrefix(line, ".") && !strings.Contains(" "+strings.Join(known, " ")+" ", " "+macro+" ") {
			t.Errorf("markup by mistake: %q", line)
		}
	}
}

func TestEscape(t *testing.T) {
	for text, want := range map[string]string{`a-b`: `a\-b`, `.x`: `\&.x`, `'x`: `\&'x`, `C:\x`: `C:\ex`, ``: ``} {
		if got := escape(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}

func TestManualIsReadable(t *testing.T) {
	man, err := exec.LookPath("man")
	if err != nil {
		t.Skip("no man here")
	}
	r := newRig(t)
	var page, warnings bytes.Buffer
	if err := Manual(&page, r.deps); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(man, "--warnings", "-E", "UTF-8", "-l", "-")
	cmd.Env = append(cmd.Environ(), "MANWIDTH=100", "MANPAGER=cat", "LC_ALL=C.UTF-8")
	cmd.Stdin, cmd.Stderr = &page, &warnings
	text, err := cmd.Output()
	if err != nil || warnings.Len() > 0 || !strings.Contains(string(text), "SYNOPSIS") {
		t.Errorf("%v, warnings %q, text of %d bytes", err, warnings.String(), len(text))
	}
}

// A shell must take its script; bash also completes a command with it.
func TestCompletions(t *testing.T) {
	r := newRig(t)
	for _, shell := range []string{"bash", "zsh", "fish"} {
		var script bytes.Buffer
		if err := Completion(&script, r.deps, shell); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(script.String(), "vhdrelay") {
			t.Errorf("%s: %d bytes without our name", shell, script.Len())
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			t.Logf("no %s here: its script is not parsed", shell)
			continue
		}
		cmd := exec.Command(path, "-n")
		cmd.Stdin = &script
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s does not take its script: %v\n%s", shell, err, out)
		}
	}
	if err := Completion(&bytes.Buffer{}, r.deps, "csh"); err == nil {
		t.Error("csh has completions")
	}
}
