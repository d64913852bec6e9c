package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// Manual writes the manual page, vhdrelay(8), as man(7) markup: every command with its flags and exit codes, as --help
// has them.
func Manual(w io.Writer, d Deps) error {
	m := &manual{}
	root := (&app{Deps: d}).root()
	m.line(`.TH VHDRELAY 8 "%s" "vhdrelay %s" "System Administration"`, d.Now().UTC().Format(time.DateOnly), escape(d.Version))
	m.section("NAME")
	m.text("vhdrelay - " + strings.ToLower(root.Short[:1]) + root.Short[1:])
	m.section("SYNOPSIS")
	m.line(`.B vhdrelay`)
	m.line(`.I command`)
	m.line(`[\fIargument\fR ...] [\fIflag\fR ...]`)
	m.section("COMMANDS")
	m.commands(root)
	m.section("COMMON FLAGS")
	m.flags(root.PersistentFlags().FlagUsages())
	m.files()
	m.section("SEE ALSO")
	m.line(".BR systemctl (1),\n.BR journalctl (1),\n.BR systemd.exec (5),\n.BR fuse (4)")
	_, err := io.WriteString(w, m.String())
	return err
}

// Completion writes the completion script of a shell: bash, zsh or fish.
func Completion(w io.Writer, d Deps, shell string) error {
	root := (&app{Deps: d}).root()
	switch shell {
	case "bash":
		return root.GenBashCompletionV2(w, true)
	case "zsh":
		return root.GenZshCompletion(w)
	case "fish":
		return root.GenFishCompletion(w, true)
	}
	return fmt.Errorf("no completions for the shell %q", shell)
}

type manual struct{ strings.Builder }

// line writes markup as it is.
func (m *manual) line(format string, args ...any) { fmt.Fprintf(m, format+"\n", args...) }

func (m *manual) section(name string) { m.line(".SH %s", name) }

// text writes paragraphs. Indented lines and lists of exit codes keep their lines.
func (m *manual) text(text string) {
	for i, paragraph := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 {
			m.line(".PP")
		}
		kept := strings.Contains(paragraph, "\n  ") || strings.HasPrefix(paragraph, "  ")
		if kept {
			m.line(".nf")
		}
		for line := range strings.Lines(paragraph) {
			m.line("%s", escape(strings.TrimRight(line, "\n")))
		}
		if kept {
			m.line(".fi")
		}
	}
}

// escape protects text from being taken for markup.
func escape(text string) string {
	text = strings.NewReplacer(`\`, `\e`, `-`, `\-`).Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	return text
}

// commands writes every command that does something, groups opened.
func (m *manual) commands(parent *cobra.Command) {
	for _, c := range parent.Commands() {
		switch {
		case !c.IsAvailableCommand() || c.Name() == "completion" || c.Name() == "help":
		case c.HasAvailableSubCommands():
			m.commands(c)
		default:
			m.line(".SS %s", escape(c.UseLine()))
			m.text(c.Long)
			m.flags(c.NonInheritedFlags().FlagUsages())
		}
	}
}

// flags writes what --help says of some flags.
func (m *manual) flags(usages string) {
	if usages == "" {
		return
	}
	m.line(".PP")
	m.line(".nf")
	for line := range strings.Lines(usages) {
		m.line("%s", escape(strings.TrimRight(line, "\n")))
	}
	m.line(".fi")
}

func (m *manual) files() {
	m.section("FILES")
	for _, file := range [][2]string{
		{"/etc/vhdrelay/vhdrelay.yaml", "the configuration; the one that is installed explains every key"},
		{"/etc/credstore/vhdrelay.target", "the target's secret, if there is one; the unit hands it over as /run/credentials/vhdrelay.service/target"},
		{"/var/lib/vhdrelay", "journal, checksum tables and spool"},
		{"/run/vhdrelay/control.sock", "where commands reach the appliance"},
	} {
		m.line(".TP")
		m.line(".I %s", escape(file[0]))
		m.line("%s", escape(file[1]))
	}
}
