package hypervisors

import "strings"

// ShownAddress is an address of a connection as messages may show it: without the password that somebody has written into it.
func ShownAddress(address string) string {
	scheme, rest, ok := strings.Cut(address, "://")
	at := strings.LastIndex(rest, "@")
	if !ok || at < 0 {
		return address
	}
	user, _, _ := strings.Cut(rest[:at], ":")
	return scheme + "://" + user + rest[at:]
}
