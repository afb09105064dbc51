package kvmlab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
)

// state is what a lab's directory remembers of it between processes.
type state struct {
	Tag     string `json:"tag"`
	Private bool   `json:"private"`
}

const stateFile = "lab.json"

// save writes down how to find the lab again; it is done before anything is made.
func (l *Lab) save(private bool) error {
	b, err := json.Marshal(state{Tag: l.tag, Private: private})
	if err != nil {
		return err
	}
	return os.WriteFile(l.path(stateFile), b, 0o600)
}

// Leave lets the lab live on without this process; Reopen finds it again. It is for labs with a directory of their
// own choice: the others are removed when their process is gone. The Lab cannot be used afterwards.
func (l *Lab) Leave() {
	for _, f := range l.unuse {
		f()
	}
	l.unuse = nil
}

// Reopen returns the lab that was left in a directory, or an error that matches fs.ErrNotExist.
func Reopen(ctx context.Context, dir string) (*Lab, error) {
	l := &Lab{dir: dir, log: slog.New(slog.DiscardHandler), initrds: map[bool]string{}, daemon: &Daemon{URI: SystemURI}}
	b, err := os.ReadFile(l.path(stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no lab in %s: %w", dir, err)
	}
	var s state
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return nil, fmt.Errorf("read the lab in %s: %w", dir, err)
	}
	l.tag, l.name = s.Tag, "lab-"+s.Tag
	if s.Private {
		l.daemon = privateDaemon(l.path(privateDir))
		return l, l.daemon.start(ctx)
	}
	l.daemon, err = EnsureLibvirtd(ctx)
	return l, err
}

// VMs returns the VMs that the lab itself defined, by name.
func (l *Lab) VMs(ctx context.Context) ([]*VM, error) {
	names, err := l.Virsh(ctx, "list", "--all", "--name")
	if err != nil {
		return nil, err
	}
	var out []*VM
	for _, name := range splitLines(names) {
		if own(name, l.tag) {
			vm, err := l.Find(ctx, name)
			if err != nil {
				return nil, err
			}
			out = append(out, vm)
		}
	}
	return out, nil
}
