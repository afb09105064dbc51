package debian

import (
	"context"
	"errors"
	"strings"
	"time"
)

// patience is how long another apt-get may be at the lists, and again how long is waited before each further try.
var patience, again = 5 * time.Minute, time.Second

// Update brings apt's lists up to date. While another process does so, which apt-get takes for an error, it waits.
func Update(ctx context.Context) error {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		_, err := run(ctx, "", "apt-get", "-q", "update")
		if err == nil || !strings.Contains(err.Error(), "Could not get lock") {
			return err
		}
		select {
		case <-waiting.Done():
			return errors.Join(err, waiting.Err())
		case <-time.After(again):
		}
	}
}
