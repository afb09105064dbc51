package hypervisors_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
)

// TestTicketsAreNotShown prints and logs exports in every way there is; only sending them shows the ticket.
func TestTicketsAreNotShown(t *testing.T) {
	const url = "https://h:54322/images/very-secret"
	e := hypervisors.Export{Transport: hypervisors.TransportImageio, Name: "d", Imageio: &hypervisors.Imageio{TransferURL: url, ProxyURL: url}}
	var log strings.Builder
	for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		l := slog.New(h)
		l.Info("x", "export", e, "pointer", &e, "url", e.Imageio.TransferURL, "group", slog.GroupValue(slog.Any("export", e)))
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		fmt.Fprintf(&log, verb+verb+verb+"\n", e, *e.Imageio, e.Imageio.TransferURL)
	}
	if strings.Contains(log.String(), "secret") || !strings.Contains(log.String(), "imageio") {
		t.Errorf("shown:\n%s", log.String())
	}
	b, err := json.Marshal(e)
	if err != nil || !strings.Contains(string(b), url) {
		t.Errorf("sent: %s, %v", b, err)
	}
}

func TestLoopback(t *testing.T) {
	for _, tt := range []struct {
		name string
		i    hypervisors.Imageio
		want bool
	}{
		{"a host", hypervisors.Imageio{TransferURL: "https://h:54322/images/t"}, false},
		{"this machine", hypervisors.Imageio{TransferURL: "https://127.0.0.1:54322/images/t"}, true},
		{"this machine, and the proxy elsewhere", hypervisors.Imageio{TransferURL: "https://[::1]:54322/images/t", ProxyURL: "https://e/images/t"}, false},
		{"a name for this machine", hypervisors.Imageio{TransferURL: "https://H:1/images/t", Addresses: map[string]string{"h": "127.0.0.1:2"}}, true},
		{"nothing", hypervisors.Imageio{}, false},
	} {
		if got := tt.i.Loopback(); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
