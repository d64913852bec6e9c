package cli

import (
	"context"
	"errors"
	"log/slog"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/systemd"
)

func (a *app) serveCommand() *cobra.Command {
	var debug bool
	cmd := a.command(spec{
		use: "serve", short: "Run the appliance", args: cobra.NoArgs,
		long: "Mounts the stores, records changes and replicates them until it is told to stop (SIGTERM, SIGINT). This is what\n" +
			"the systemd unit runs. SIGHUP reads the configuration again. Where guests wait for a mount that the process before this one\n" +
			"left, a configuration that does not read gives way to the one of before. The log goes to standard error.",
		exits: []control.Exit{control.ExitConfig, control.ExitRefused},
		run: func(ctx context.Context, _ []string) error {
			level := slog.LevelInfo
			if debug {
				level = slog.LevelDebug
			}
			return a.Serve(ctx, a.configPath, slog.New(systemd.LogHandler(a.Stderr, level)))
		},
	})
	cmd.Flags().BoolVar(&debug, "debug", false, "log more")
	return cmd
}

func (a *app) checkConfigCommand() *cobra.Command {
	var effective, asJSON bool
	cmd := a.command(spec{
		use: "check-config [--print | --json]", short: "Check the configuration", args: cobra.NoArgs,
		long: "Every key that is unknown, given twice, out of its range or in contradiction with another is named with file, line\n" +
			"and column, all of them at once. Nothing but the file is looked at; preflight looks at the rest.",
		exits: []control.Exit{control.ExitConfig},
		run: func(context.Context, []string) error {
			c, err := a.config()
			if asJSON {
				return a.printConfigErrors(err)
			}
			if err != nil {
				return err
			}
			if !effective {
				return a.print("%s: ok", c.Path)
			}
			text, err := c.Marshal()
			if err != nil {
				return err
			}
			_, err = a.Stdout.Write(text)
			return err
		},
	})
	cmd.Flags().BoolVar(&effective, "print", false, "print the configuration in force, defaults included")
	jsonFlag(cmd, &asJSON)
	cmd.MarkFlagsMutuallyExclusive("print", "json")
	return cmd
}

// configChecked is what check-config --json prints.
type configChecked struct {
	Path   string        `json:"path"`
	Valid  bool          `json:"valid"`
	Errors []configError `json:"errors"`
}

// configError is one thing wrong with the file. Line and column count from 1, 0 where the whole file is meant.
type configError struct {
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Key     string `json:"key"`
	Message string `json:"message"`
}

// printConfigErrors prints what is wrong with the configuration, if anything is.
func (a *app) printConfigErrors(err error) error {
	doc := configChecked{Path: a.configPath, Valid: err == nil, Errors: []configError{}}
	var all config.Errors
	var one *config.Error
	switch {
	case errors.As(err, &all):
	case errors.As(err, &one):
		all = config.Errors{one}
	case err != nil:
		return err
	}
	for _, e := range all {
		doc.Errors = append(doc.Errors, configError{e.Line, e.Column, e.Key, e.Message})
	}
	if err := a.printJSON(doc); err != nil || doc.Valid {
		return err
	}
	return silent(control.ExitConfig)
}

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := a.command(spec{
		use: "version", short: "Print the version", args: cobra.NoArgs,
		long: "The release, the Go version it was built with, and the platform.",
		run: func(context.Context, []string) error {
			platform := runtime.GOOS + "/" + runtime.GOARCH
			if asJSON {
				return a.printJSON(map[string]string{"version": a.Version, "go": runtime.Version(), "platform": platform})
			}
			return a.print("vhdrelay %s %s %s", a.Version, runtime.Version(), platform)
		},
	})
	jsonFlag(cmd, &asJSON)
	return cmd
}
