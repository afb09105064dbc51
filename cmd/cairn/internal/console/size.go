package console

import (
	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
)

// size is a flag that takes bytes as people write them, "50M".
type size struct{ n *int64 }

// SizeFlag registers a flag for a number of bytes; 0 is no limit and the default.
func SizeFlag(cmd *cobra.Command, n *int64, name, usage string) {
	cmd.Flags().Var(size{n}, name, usage)
}

// Set implements pflag.Value.
func (s size) Set(text string) (err error) {
	*s.n, err = output.ParseSize(text)
	return err
}

// String implements pflag.Value.
func (s size) String() string {
	if s.n == nil || *s.n == 0 {
		return ""
	}
	return output.Size(*s.n)
}

// Type implements pflag.Value.
func (size) Type() string { return "size" }
