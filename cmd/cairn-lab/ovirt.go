package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

// ovirtFlags are those of the command ovirt.
type ovirtFlags struct {
	dir, listen, user, password string
	vms                         int
	rate                        float64
	pace                        time.Duration
	verbose                     bool
}

func ovirtCommand() *cobra.Command {
	f := &ovirtFlags{}
	c := &cobra.Command{
		Use: "ovirt", Short: "A simulated oVirt engine with its hosts' imageio, until it is interrupted", Args: cobra.NoArgs,
		Long: "Serves a simulated oVirt engine and the imageio of its hosts on this machine. Disks are real qcow2 files, to which the guests of running VMs write\n" +
			"content that can be checked; a guest that is booted tells in the engine's events what its check found. All of it is gone when\n" +
			"the command ends. It needs Debian's qemu-system-common and qemu-utils.",
		RunE: func(cmd *cobra.Command, _ []string) error { return f.serve(cmd) },
	}
	c.Flags().StringVar(&f.dir, "dir", "", "where disks lie, a short path; a temporary directory by default")
	c.Flags().StringVar(&f.listen, "listen", "127.0.0.1:0", "address of the engine")
	c.Flags().StringVar(&f.user, "user", "admin@internal", "who may log in")
	c.Flags().StringVar(&f.password, "password", "secret", "the password of that user; it protects nothing but a simulation")
	c.Flags().IntVar(&f.vms, "vms", 0, "a large site of so many VMs instead of the small one")
	c.Flags().Float64Var(&f.rate, "rate", 2, "how many rounds a second the guests write, in the small site")
	c.Flags().DurationVar(&f.pace, "pace", 500*time.Millisecond, "how long each phase of the engine's operations lasts")
	c.Flags().BoolVar(&f.verbose, "verbose", false, "print each request")
	return c
}

func (f *ovirtFlags) site() ovirtsim.Site {
	if f.vms > 0 {
		return ovirtsim.LargeSite(f.vms)
	}
	s := ovirtsim.SmallSite()
	vms := s.DataCenters[0].Clusters[0].VMs
	for i := range vms {
		vms[i].Rate = f.rate
	}
	return s
}

// tellMovers prints what a mover that plays the guest of a mover's VM has for its /sys: the disks that are plugged in show there.
func (f *ovirtFlags) tellMovers(cmd *cobra.Command, e *ovirtsim.Engine) error {
	for name, id := range e.Movers() {
		guest, err := e.Guest(cmd.Context(), id)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "sysfs of %s %s\n", name, guest.Sys); err != nil {
			return err
		}
	}
	return nil
}

func (f *ovirtFlags) serve(cmd *cobra.Command) (err error) {
	dir := f.dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "cairn-ovirt-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	disks := filepath.Join(dir, "disks")
	if err := os.MkdirAll(disks, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(disks)
	level := slog.LevelWarn
	if f.verbose {
		level = slog.LevelDebug
	}
	e, err := ovirtsim.New(ovirtsim.Config{
		Dir: disks, Site: f.site(), Users: []ovirtsim.User{{Name: f.user, Password: f.password}}, Pace: f.pace, Listen: f.listen,
		Log: slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level})),
	})
	if err != nil {
		return err
	}
	ca := filepath.Join(dir, "ca.pem")
	if err = os.WriteFile(ca, e.CA(), 0o600); err == nil {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "engine %s\nuser %s\npassword %s\nca %s\n", e.URL(), f.user, f.password, ca)
	}
	if err == nil && f.vms == 0 {
		err = f.tellMovers(cmd, e)
	}
	if err == nil {
		<-cmd.Context().Done()
	}
	if closed := e.Close(); err == nil {
		err = closed
	}
	return err
}
