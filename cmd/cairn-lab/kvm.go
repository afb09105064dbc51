package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/lab/kvmlab"
	"github.com/spf13/cobra"
)

// demoVM is the VM that `up` makes.
var demoVM = kvmlab.Spec{
	Name: "demo", Title: "A small VM that keeps writing", NIC: true, Rate: 2,
	Disks: []kvmlab.Disk{{MiB: 256, Fill: 48 << 20}, {MiB: 64}},
}

// flags that all commands have.
type flags struct {
	dir, vm string
	rounds  int
	rate    float64
	keep    bool
}

func kvmCommand() *cobra.Command {
	f := &flags{}
	kvm := &cobra.Command{Use: "kvm", Short: "A VM on this machine's libvirt whose guest writes content that it can check"}
	kvm.PersistentFlags().StringVar(&f.dir, "dir", "/var/tmp/cairn-lab-demo", "directory of the lab; QEMU's user must be able to reach it")
	add := func(use, short string, run func(ctx context.Context, cmd *cobra.Command, f *flags) error) *cobra.Command {
		c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), cmd, f)
		}}
		kvm.AddCommand(c)
		return c
	}
	add("up", "Make the VM, boot it and print its name", up)
	down := add("down", "Remove the VM, what was restored from it into its pool, and the directory", down)
	down.Flags().BoolVar(&f.keep, "keep-libvirtd", false, "leave libvirtd running even if it was started for the lab")
	add("status", "Say what is there", status)
	for _, c := range []*cobra.Command{
		add("write", "Make the guest write some rounds now", write),
		add("rate", "Set how many rounds a second the guest writes by itself", rate),
		add("check", "Make the guest read its disks back, and print what its check at boot and this one found", check),
		add("hash", "Print the SHA-256 of each disk; a running VM stands still meanwhile", hash),
	} {
		c.Flags().StringVar(&f.vm, "vm", "", "name of the VM, which may be a restored one; the lab's own by default")
		switch c.Name() {
		case "write":
			c.Flags().IntVar(&f.rounds, "rounds", 10, "how many rounds")
		case "rate":
			c.Flags().Float64Var(&f.rate, "rate", 0, "rounds a second; 0 stops the guest")
		}
	}
	return kvm
}

func up(ctx context.Context, cmd *cobra.Command, f *flags) (err error) {
	l, err := kvmlab.Reopen(ctx, f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		l, err = kvmlab.Open(ctx, kvmlab.Options{Dir: f.dir})
		if err != nil {
			return err
		}
		if _, err = l.Define(ctx, demoVM); err != nil {
			return errors.Join(err, l.Close())
		}
		l.Leave()
	}
	if err != nil {
		return err
	}
	vm, err := find(ctx, l, f)
	if err != nil {
		return err
	}
	state, err := vm.State(ctx)
	if err == nil && state != "running" {
		err = vm.Start(ctx)
	}
	if err != nil {
		return err
	}
	if _, err := vm.Status(ctx); err != nil {
		return err
	}
	fmt.Fprintln(cmd.OutOrStdout(), vm.Name)
	return nil
}

func down(ctx context.Context, cmd *cobra.Command, f *flags) error {
	l, err := kvmlab.Reopen(ctx, f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	} else if err == nil {
		err = l.Close()
	}
	if err != nil || f.keep {
		return err
	}
	stopped, err := kvmlab.StopLibvirtd(ctx)
	if stopped {
		fmt.Fprintln(cmd.OutOrStdout(), "libvirtd, which was started for the lab, is stopped")
	}
	return err
}

func status(ctx context.Context, cmd *cobra.Command, f *flags) error {
	l, err := kvmlab.Reopen(ctx, f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(cmd.OutOrStdout(), "no lab in", f.dir)
		return nil
	}
	if err != nil {
		return err
	}
	vms, err := l.VMs(ctx)
	if err != nil {
		return err
	}
	for _, vm := range vms {
		state, err := vm.State(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s: %s", vm.Name, state)
		if state == "running" {
			st, err := vm.Status(ctx)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), ", round %d, up %s s", st.Round, st.Uptime)
		}
		fmt.Fprintln(cmd.OutOrStdout())
	}
	return nil
}

// find returns the VM that is asked for.
func find(ctx context.Context, l *kvmlab.Lab, f *flags) (*kvmlab.VM, error) {
	if f.vm != "" {
		return l.Find(ctx, f.vm)
	}
	vms, err := l.VMs(ctx)
	if err == nil && len(vms) == 0 {
		err = fmt.Errorf("the lab in %s has no VM", f.dir)
	}
	if err != nil {
		return nil, err
	}
	return vms[0], nil
}

// open returns the VM that a command works with.
func open(ctx context.Context, f *flags) (*kvmlab.VM, error) {
	l, err := kvmlab.Reopen(ctx, f.dir)
	if err != nil {
		return nil, err
	}
	return find(ctx, l, f)
}

func write(ctx context.Context, cmd *cobra.Command, f *flags) error {
	vm, err := open(ctx, f)
	if err != nil {
		return err
	}
	st, err := vm.Write(ctx, f.rounds)
	if err == nil {
		fmt.Fprintf(cmd.OutOrStdout(), "%d rounds written, the last one is %d\n", f.rounds, st.Round)
	}
	return err
}

func rate(ctx context.Context, _ *cobra.Command, f *flags) error {
	vm, err := open(ctx, f)
	if err != nil {
		return err
	}
	return vm.SetRate(ctx, f.rate)
}

func check(ctx context.Context, cmd *cobra.Command, f *flags) error {
	vm, err := open(ctx, f)
	if err != nil {
		return err
	}
	st, err := vm.Check(ctx)
	if err != nil {
		return err
	}
	var parts []string
	for _, r := range st.Boot {
		parts = append(parts, "verified at boot: "+r.String())
	}
	if len(st.Boot) == 0 {
		parts = append(parts, "disks were blank at boot")
	}
	for _, r := range st.Now {
		parts = append(parts, "verified now: "+r.String())
	}
	fmt.Fprintln(cmd.OutOrStdout(), strings.Join(parts, "; "))
	return nil
}

func hash(ctx context.Context, cmd *cobra.Command, f *flags) error {
	vm, err := open(ctx, f)
	if err != nil {
		return err
	}
	hashes, err := vm.Hashes(ctx)
	if err != nil {
		return err
	}
	var lines []string
	for target, sum := range hashes {
		lines = append(lines, target+" "+sum)
	}
	slices.Sort(lines)
	_, err = fmt.Fprintln(cmd.OutOrStdout(), strings.Join(lines, "\n"))
	return err
}
