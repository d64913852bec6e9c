// Docs writes manual page and shell completions into a directory: they are made from the commands at every build.
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance"
	"github.com/vhdrelay/vhdrelay/appliance/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: docs DIRECTORY")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "docs:", err)
		os.Exit(1)
	}
}

func write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	d := cli.Deps{Version: appliance.Version, Now: time.Now}
	files := map[string]func(io.Writer) error{"vhdrelay.8": func(w io.Writer) error { return cli.Manual(w, d) }}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		files["vhdrelay."+shell] = func(w io.Writer) error { return cli.Completion(w, d, shell) }
	}
	for name, make := range files {
		var text bytes.Buffer
		if err := make(&text); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), text.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}
