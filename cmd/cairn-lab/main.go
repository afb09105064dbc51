// Command cairn-lab makes small real VMs for demos, tests and training, simulates oVirt, and measures the API, and the repository on images of
// machines. It is no part of the appliance.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := Run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cairn-lab:", err)
		os.Exit(1)
	}
}

// Run runs the program.
func Run(ctx context.Context, args []string, stdout io.Writer) error {
	root := &cobra.Command{
		Use:           "cairn-lab",
		Short:         "Small real VMs and a simulated oVirt for demos and tests, and measurements of the repository and the API",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.AddCommand(kvmCommand(), ovirtCommand(), repoCommand(), benchCommand(), loadCommand())
	return root.ExecuteContext(ctx)
}
