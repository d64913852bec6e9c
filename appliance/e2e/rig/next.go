package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// raised are the versions of what one process leaves for the next, by package and file. Each is one line of a constant.
var raised = []struct {
	pkg, file string
	constant  *regexp.Regexp
}{
	{"github.com/vhdrelay/vhdrelay/fs", "ledger.go", regexp.MustCompile(`(?m)^\tledgerVersion\s+= \w+`)},
	{"github.com/vhdrelay/vhdrelay/journal", "records.go", regexp.MustCompile(`(?m)^\tformatCurrent\s+= \w+`)},
}

// ErrNoConstant: the source has no such line, or more.
var ErrNoConstant = errors.New("the constant of a format's version is not where it was")

// BuildNext compiles the appliance as a later release: the formats of what it leaves for the next process, the ledger of a mount
// and the journal, are one version higher. The source stays as it is: the compiler is given other text in its place.
func BuildNext(ctx context.Context, dir string) (string, error) {
	replace := map[string]string{}
	for _, v := range raised {
		out, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", v.pkg).Output()
		if err != nil {
			return "", fmt.Errorf("go list %s: %w", v.pkg, err)
		}
		source := filepath.Join(strings.TrimSpace(string(out)), v.file)
		text, err := os.ReadFile(source)
		if err != nil {
			return "", err
		}
		if text, err = raise(text, v.constant); err != nil {
			return "", fmt.Errorf("%s: %w", source, err)
		}
		replace[source] = filepath.Join(dir, "next-"+v.file)
		if err := os.WriteFile(replace[source], text, 0o600); err != nil {
			return "", err
		}
	}
	overlay := filepath.Join(dir, "next.json")
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err == nil {
		err = os.WriteFile(overlay, text, 0o600)
	}
	if err != nil {
		return "", err
	}
	return build(ctx, filepath.Join(dir, "vhdrelay-next"), "github.com/vhdrelay/vhdrelay/appliance/cmd/vhdrelay", "-overlay", overlay)
}

// raise makes the constant one more.
func raise(source []byte, constant *regexp.Regexp) ([]byte, error) {
	if len(constant.FindAll(source, -1)) != 1 {
		return nil, ErrNoConstant
	}
	return constant.ReplaceAll(source, []byte("$0 + 1")), nil
}
