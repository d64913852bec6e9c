package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
)

// app is one invocation of the command.
type app struct {
	Deps
	configPath string
	// configGiven says that --config was on the command line: then the file must exist.
	configGiven bool
	// ran says that a command was reached; an error before that is the command line's.
	ran bool
}

// Run executes the command line args (without the program's name) and returns the exit code. It writes nothing but to
// d.Stdout and d.Stderr and never exits the process.
func Run(ctx context.Context, d Deps, args []string) control.Exit {
	a := &app{Deps: d}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(d.Stdout)
	root.SetErr(d.Stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return control.ExitDone
	}
	if !a.ran {
		// Cobra's suggestions come on lines of their own.
		err = usageError{strings.Join(strings.Fields(err.Error()), " ")}
	}
	complain(d.Stderr, err)
	return exitOf(err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "vhdrelay",
		Short:         "Replicate the virtual disks of this host to page blobs, and bring them back anywhere",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.PersistentFlags().StringVar(&a.configPath, "config", config.DefaultPath, "configuration file")
	root.AddCommand(
		a.serveCommand(), a.checkConfigCommand(), a.preflightCommand(), a.statusCommand(), a.jobsCommand(), a.syncCommand(), a.resyncCommand(), a.adoptCommand(), a.pointsCommand(),
		a.exportCommand(), a.verifyCommand(), a.pauseCommand(), a.resumeCommand(), a.protectCommand(), a.unprotectCommand(), a.imageCommand(), a.unmountCommand(), a.journalCommand(), a.versionCommand(),
	)
	return root
}

// spec is what sets one command apart from another.
type spec struct {
	use, short, long string
	args             cobra.PositionalArgs
	exits            []control.Exit
	run              func(ctx context.Context, args []string) error
}

func (a *app) command(s spec) *cobra.Command {
	return &cobra.Command{
		Use:                   s.use,
		Short:                 s.short,
		Long:                  s.short + ".\n\n" + s.long + "\n\n" + exitStatus(s.exits...),
		Args:                  s.args,
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			a.ran = true
			a.configGiven = cmd.Flags().Changed("config")
			return s.run(cmd.Context(), args)
		},
	}
}

// group is a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return fmt.Errorf("%q needs a command: see vhdrelay %s --help", use, use)
	}}
	g.AddCommand(commands...)
	return g
}

// config reads the whole configuration.
func (a *app) config() (*config.Config, error) { return config.Load(a.configPath) }

// daemon returns a client of the appliance that the configuration names.
func (a *app) daemon() (*control.Client, error) {
	c, err := a.config()
	if err != nil {
		return nil, err
	}
	return control.NewClient(c.ControlSocket), nil
}

// target reads what a command without a daemon needs. A configuration at the default path may be missing then, if url says
// where to go.
func (a *app) target(url string) (config.Target, error) {
	path := a.configPath
	if _, err := os.Stat(path); url != "" && !a.configGiven && errors.Is(err, fs.ErrNotExist) {
		path = ""
	}
	c, err := config.LoadTargetOnly(path, url)
	if err != nil {
		return config.Target{}, err
	}
	return c.Target, nil
}

// printJSON writes a document as --json does: indented, for people look at it too.
func (a *app) printJSON(doc any) error {
	out := json.NewEncoder(a.Stdout)
	out.SetIndent("", "  ")
	out.SetEscapeHTML(false)
	if err := out.Encode(doc); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

// print writes a line of the result.
func (a *app) print(format string, args ...any) error {
	if _, err := fmt.Fprintf(a.Stdout, format+"\n", args...); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

func jsonFlag(cmd *cobra.Command, dst *bool) {
	cmd.Flags().BoolVar(dst, "json", false, "print JSON; times are RFC 3339 in UTC, sizes are bytes")
}

func targetFlag(cmd *cobra.Command, dst *string) {
	cmd.Flags().StringVar(dst, "target", "", "URL of the target, instead of the configuration's")
}
