package hypervisors

import "context"

// ConfirmHost is asked by a driver at the beginning of each session with a host or manager, before anything else is done in it: host is
// how that calls itself, id its identity as in Health.HostID. Its error ends the session, and is that of the call that needed it. It
// may be called from several goroutines.
type ConfirmHost func(ctx context.Context, host, id string) error
