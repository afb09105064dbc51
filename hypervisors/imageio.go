package hypervisors

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strings"
)

// Imageio says where an image transfer of oVirt's is served, for reading or for writing. It can be sent over the wire.
//
// Export.DirtyContext asks for what changed since the backup's checkpoint: any text but "" does, "dirty" is the daemon's own word.
type Imageio struct {
	// TransferURL is served by the daemon on the host, ProxyURL by the one on the engine's machine; the latter, if there is one, is
	// used where the former cannot be connected to.
	TransferURL TicketURL `json:"transfer_url"`
	ProxyURL    TicketURL `json:"proxy_url,omitempty"`
	// CA has the PEM certificates of the authority that both are verified by; "" are those of the mover's own system.
	CA string `json:"ca,omitempty"`
	// Addresses has for hosts of the URLs the address, or address and port, to connect to instead of resolving their names. The
	// certificate must still be the one of the URL's host.
	Addresses map[string]string `json:"addresses,omitempty"`
	// InactivitySeconds is how long the transfer may be idle before the platform ends it, as it was asked for; 0 means 60.
	InactivitySeconds int `json:"inactivity_seconds,omitempty"`
	// Checksum asks the daemon at the end for the checksum of a disk that was read as a whole, and compares it with what arrived. The
	// daemon reads the disk a second time for it.
	Checksum bool `json:"checksum,omitempty"`
}

// Address returns what Addresses has for a host, whose name may be written with capitals; "" is nothing.
func (i Imageio) Address(host string) string {
	if to := i.Addresses[host]; to != "" {
		return to
	}
	return i.Addresses[strings.ToLower(host)]
}

// Loopback says whether the transfer is served on the machine only that the URL was made for.
func (i Imageio) Loopback() bool {
	for _, raw := range []TicketURL{i.TransferURL, i.ProxyURL} {
		u, err := url.Parse(string(raw))
		if raw == "" || err != nil {
			continue
		}
		host := u.Hostname()
		if other := i.Address(host); other != "" {
			host = other
			if name, _, err := net.SplitHostPort(other); err == nil {
				host = name
			}
		}
		if !LoopbackHost(host) {
			return false
		}
	}
	return i.TransferURL != ""
}

// LoopbackHost says whether a name or an address is that of the machine itself.
func LoopbackHost(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// TicketURL ends in a ticket, which is all that is needed to read or write a disk: it is never printed, logged or formatted.
type TicketURL string

// LogValue hides the URL from logs.
func (TicketURL) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// Format hides the URL from everything that prints, by whatever verb.
func (TicketURL) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[redacted]") }

// Format does the same for what holds one: a verb that is none for a pointer would show all that is behind it.
func (Imageio) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "image transfer") }

// LogValue shows of an export what tells it from others, and nothing that opens it.
func (e Export) LogValue() slog.Value {
	return slog.GroupValue(slog.String("transport", string(e.Transport)), slog.String("name", e.Name), slog.Int64("size_bytes", e.SizeBytes))
}
