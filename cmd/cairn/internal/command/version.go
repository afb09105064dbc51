package command

import (
	"io"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/profile"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/version"
)

// versions is what "version" prints.
type versions struct {
	Client    string          `json:"client"`
	Go        string          `json:"go"`
	Server    string          `json:"server,omitempty"`
	Appliance *client.Version `json:"appliance,omitempty"`
}

func (a *App) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Versions of cairn and, where one is chosen, of the appliance", Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Client: version.Version, Go: runtime.Version()}
			target, err := a.target()
			var failed error
			if err == nil {
				v.Server = target.Server
				v.Appliance, failed = a.applianceVersion(cmd, target)
			} else if fault.KindOf(err) != fault.Invalid {
				return err
			}
			err = a.one(v, v.Client, func(p output.Printer, w io.Writer) error {
				fields := []output.Field{{Name: "cairn", Value: v.Client}, {Name: "Go", Value: v.Go}, {Name: "Server", Value: v.Server}}
				if v.Appliance != nil {
					fields = append(fields, output.Field{Name: "Appliance", Value: v.Appliance.Version}, output.Field{Name: "API", Value: v.Appliance.API})
				}
				return p.Fields(w, fields...)
			})
			if err == nil && failed != nil {
				failure.Print(a.Err, failed, a.ColourErr())
				return failure.Ended{Code: failure.CodeOf(failed)}
			}
			return err
		},
	}
}

func (a *App) applianceVersion(cmd *cobra.Command, target profile.Context) (*client.Version, error) {
	s, err := remote.Open(target)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	resp, err := s.GetVersion(cmd.Context())
	v, err := remote.Decode[client.Version](s, resp, err)
	if err != nil {
		return nil, err
	}
	return &v, nil
}
