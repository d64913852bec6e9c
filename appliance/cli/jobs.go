package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vhdrelay/vhdrelay/appliance/control"
)

func (a *app) jobsCommand() *cobra.Command {
	var asJSON, wait bool
	var vm string
	cmd := a.command(spec{
		use: "jobs [ID] [--vm VM] [--wait] [--json]", short: "Show long work", args: cobra.MaximumNArgs(1),
		long: "Enabling protection, resync, pruning, and verifications and exports that run in the appliance: what runs comes first,\n" +
			"then the newest. With an ID also the steps. Jobs survive a restart of the appliance and go on. --wait shows the\n" +
			"progress of the job and returns when it has ended: with 1 if it failed.",
		exits: []control.Exit{control.ExitConfig, control.ExitUnreachable, control.ExitNotFound},
		run: func(ctx context.Context, args []string) error {
			daemon, err := a.daemon()
			if err != nil {
				return err
			}
			switch {
			case len(args) == 1:
				return a.job(ctx, daemon, args[0], wait, asJSON)
			case wait:
				return usagef("--wait needs the ID of a job")
			}
			jobs, err := daemon.Jobs(ctx, vm)
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(jobs)
			}
			return printJobs(a.Stdout, jobs.Jobs, a.Now())
		},
	})
	jsonFlag(cmd, &asJSON)
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the job has ended")
	cmd.Flags().StringVar(&vm, "vm", "", "only the jobs of this VM")
	return cmd
}

// job shows one job, now or when it has ended.
func (a *app) job(ctx context.Context, daemon *control.Client, id string, wait, asJSON bool) error {
	ask := daemon.Job
	if wait {
		ask = a.awaitJob(daemon)
	}
	j, err := ask(ctx, id)
	if err != nil {
		return err
	}
	if asJSON {
		err = a.printJSON(j)
	} else {
		err = a.printJob(j)
	}
	if err == nil && wait && j.State != control.JobDone {
		err = silent(control.ExitFailed)
	}
	return err
}

// awaitJob waits with a progress bar.
func (a *app) awaitJob(daemon *control.Client) func(context.Context, string) (control.Job, error) {
	return func(ctx context.Context, id string) (control.Job, error) {
		m := newMeter(a.Deps)
		defer m.close()
		return daemon.WaitJob(ctx, id, m.update)
	}
}

func printJobs(w io.Writer, jobs []control.Job, now time.Time) error {
	var b bytes.Buffer
	if len(jobs) == 0 {
		b.WriteString("no job\n")
	}
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, j := range jobs {
		what := string(j.Kind) + " " + j.VM
		if j.Disk != "" {
			what += "/" + j.Disk
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", j.ID, what, j.State, jobAge(j, now))
		if text := jobDetail(j); text != "" {
			fmt.Fprintf(t, "\v  %s\n", text) // a vertical tab: a line of its own, no column
		}
	}
	// A tabwriter over a bytes.Buffer cannot fail.
	_ = t.Flush()
	if _, err := io.WriteString(w, fold(b.String())); err != nil {
		return fmt.Errorf("writing the jobs: %w", err)
	}
	return nil
}

func jobAge(j control.Job, now time.Time) string {
	if !j.Over() {
		return "for " + age(now.Sub(j.Started))
	}
	return fmt.Sprintf("%s ago, took %s", age(now.Sub(j.Ended)), age(j.Ended.Sub(j.Started)))
}

// jobDetail is what else there is to say of a job, in one line.
func jobDetail(j control.Job) string {
	switch {
	case j.State == control.JobFailed:
		return j.Cause
	case j.Over():
		return j.Result
	}
	return jobText(j)
}

// jobText is how far a running job is.
func jobText(j control.Job) string {
	text := string(j.Kind)
	if step := j.Step(); step != "" && step != text {
		text += ", " + step
	}
	if j.TotalBytes > 0 {
		text += fmt.Sprintf(", %s of %s (%d %%)", bytesText(j.DoneBytes), bytesText(j.TotalBytes), percent(j.DoneBytes, j.TotalBytes))
	}
	if j.RateBytesPerSecond > 0 {
		text += ", " + bytesText(j.RateBytesPerSecond) + "/s"
	}
	if j.ETASeconds != nil {
		text += ", " + age(time.Duration(*j.ETASeconds*float64(time.Second))) + " left"
	}
	if j.Message != "" {
		text += ": " + j.Message
	}
	return text
}

func (a *app) printJob(j control.Job) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "job %s: %s %s", j.ID, j.Kind, j.VM)
	if j.Disk != "" {
		fmt.Fprintf(&b, "/%s", j.Disk)
	}
	fmt.Fprintf(&b, ", %s\n", j.State)
	row := func(name, text string) {
		if text != "" {
			fmt.Fprintf(&b, "  %-9s %s\n", name, text)
		}
	}
	row("reason", j.Reason)
	row("started", j.Started.UTC().Format(timeForm))
	if j.Over() {
		row("ended", j.Ended.UTC().Format(timeForm)+", took "+age(j.Ended.Sub(j.Started)))
	} else {
		row("progress", jobText(j))
	}
	for _, s := range j.Steps {
		text := string(s.State)
		if !s.Ended.IsZero() {
			text += " in " + age(s.Ended.Sub(s.Started))
		}
		fmt.Fprintf(&b, "  step      %s: %s\n", s.Name, text)
	}
	row("result", j.Result)
	row("cause", j.Cause)
	row("next", j.Action)
	if _, err := a.Stdout.Write(b.Bytes()); err != nil {
		return fmt.Errorf("writing the job: %w", err)
	}
	return nil
}

// background has the appliance do what was asked for, and says how to look after it.
func (a *app) background(ctx context.Context, req control.JobRequest, asJSON bool) error {
	daemon, err := a.daemon()
	if err != nil {
		return err
	}
	j, err := daemon.StartJob(ctx, req)
	if err != nil {
		return err
	}
	if asJSON {
		return a.printJSON(j)
	}
	return a.print("job %s\nlook after it with: vhdrelay jobs %s --wait", j.ID, j.ID)
}
