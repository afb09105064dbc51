//go:build linux

// The program sanread reads one disk from LUNs into a file, in a lab guest: the transport of the mover and its pipeline,
// with a file where the repository would be.
//
// It is for tests. Its invariant: the file holds what the transport read and nothing else; where the disk is unchanged
// the file is left as it was.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/datamover/transfer"
	santransport "github.com/cairn-backup/cairn/datamover/transport/san"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// request says what to read.
type request struct {
	Export hypervisors.Export `json:"export"`
	Out    string             `json:"out"`
	// Halfway, if set, is a file that is made when the first bytes have been read; nothing is written until Go is there.
	Halfway string `json:"halfway,omitempty"`
	Go      string `json:"go,omitempty"`
}

// answer says what came of it.
type answer struct {
	Read    int64         `json:"read"`
	Skipped int64         `json:"skipped"`
	Elapsed time.Duration `json:"elapsed"`
	Error   string        `json:"error,omitempty"`
	Kind    string        `json:"kind,omitempty"`
	Meaning string        `json:"meaning,omitempty"`
	Log     string        `json:"log,omitempty"`
}

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	var r request
	if err := json.NewDecoder(in).Decode(&r); err != nil {
		return err
	}
	var log strings.Builder
	res, err := read(context.Background(), r, slog.New(slog.NewTextHandler(&log, nil)))
	a := answer{Read: res.BytesRead, Skipped: res.BytesSkipped, Elapsed: res.Elapsed, Log: log.String()}
	if err != nil {
		a.Error, a.Kind = err.Error(), fault.KindOf(err).String()
		a.Meaning, _ = fault.Explanation(err)
	}
	return json.NewEncoder(out).Encode(a)
}

func read(ctx context.Context, r request, log *slog.Logger) (transfer.Result, error) {
	d, err := santransport.Options{Log: log}.OpenSource(ctx, r.Export)
	if err != nil {
		return transfer.Result{}, err
	}
	defer func() { _ = d.Close() }()
	f, err := os.OpenFile(r.Out, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return transfer.Result{}, err
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(r.Export.SizeBytes); err != nil {
		return transfer.Result{}, err
	}
	return transfer.Backup(ctx, d, &sink{f: f, r: r}, transfer.Options{})
}

// sink writes to the file.
type sink struct {
	f    *os.File
	r    request
	wait sync.Once
}

// ChunkBytes implements transfer.ImageSink.
func (s *sink) ChunkBytes() int { return 64 << 10 }
func (s *sink) FrameBytes() int { return 64 << 10 }

// Write implements transfer.ImageSink.
func (s *sink) Write(_ context.Context, off int64, p []byte) error {
	if s.r.Halfway != "" {
		s.wait.Do(s.pause)
	}
	_, err := s.f.WriteAt(p, off)
	return err
}

// Durable implements transfer.ImageSink: there was no transfer before.
func (s *sink) Durable(context.Context) iter.Seq2[store.Range, error] {
	return func(func(store.Range, error) bool) {}
}

// pause tells that reading has begun and waits until it may go on.
func (s *sink) pause() {
	_ = os.WriteFile(s.r.Halfway, nil, 0o600)
	for {
		if _, err := os.Stat(s.r.Go); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Zero implements transfer.ImageSink.
func (s *sink) Zero(_ context.Context, off, n int64) error {
	zero := make([]byte, 1<<20)
	for n > 0 {
		k, err := s.f.WriteAt(zero[:min(n, int64(len(zero)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(k), n-int64(k)
	}
	return nil
}
