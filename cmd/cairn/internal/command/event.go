package command

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
	"github.com/cairn-backup/cairn/internal/fault"
)

var topics = []string{string(client.TopicRun), string(client.TopicTask), string(client.TopicRunEvent), string(client.TopicInventory)}

func (a *App) events() *cobra.Command {
	group := a.group("event", "What the appliance says as it happens", "")
	var chosen []string
	watch := &cobra.Command{
		Use: "watch", Short: "Follow what happens until interrupted", Args: args(),
		Long: "Follow what happens until interrupted. A broken connection is taken up again where it stopped.\nWith -o json every line is one event.",
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			for _, t := range chosen {
				if !slices.Contains(topics, t) {
					return failure.UsageError("Use some of "+strings.Join(topics, ", ")+".", "there is no topic %q", t)
				}
			}
			return a.followEvents(ctx, s, chosen)
		}),
	}
	watch.Flags().StringSliceVar(&chosen, "topic", nil, "only this `TOPIC`, may be repeated: "+strings.Join(topics, ", "))
	_ = watch.RegisterFlagCompletionFunc("topic", cobra.FixedCompletions(topics, cobra.ShellCompDirectiveNoFileComp))
	group.AddCommand(watch)
	return group
}

// followEvents prints events until it is interrupted. Only the first connection must succeed at once.
func (a *App) followEvents(ctx context.Context, s *remote.Session, chosen []string) error {
	last, seen, heard := "", false, a.Now()
	for {
		opened, err := a.streamOnce(ctx, s, chosen, &last)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case opened:
			seen, heard = true, a.Now()
		case !seen, !fault.Retryable(err), a.Now().Sub(heard) > patience:
			return err
		}
		a.Debug("the stream ended (%v); connecting again", err)
		timer := time.NewTimer(a.poll)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (a *App) streamOnce(ctx context.Context, s *remote.Session, chosen []string, last *string) (opened bool, err error) {
	params := &client.StreamEventsParams{LastEventID: optional[string](*last)}
	if len(chosen) > 0 {
		list := make([]client.Topic, len(chosen))
		for i, t := range chosen {
			list[i] = client.Topic(t)
		}
		params.Topics = &list
	}
	resp, err := s.StreamEvents(ctx, params)
	if err != nil || resp.StatusCode != 200 {
		return false, remote.Done(s, resp, err)
	}
	defer resp.Body.Close()
	return true, readEvents(resp.Body, func(id, data string) error {
		*last = id
		var e client.StreamEvent
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return fault.Wrap(fault.Internal, "read event", id, err)
		}
		return a.Printer().Line(json.RawMessage(data), func(w io.Writer) error { return a.printEvent(w, e) })
	})
}

// errLongEvent says that an event is longer than anything the appliance sends.
var errLongEvent = errors.New("event longer than 1 MiB")

// readEvents reads server-sent events: "id:" and "data:" lines, an empty line ends an event, ":" starts a comment.
func readEvents(r io.Reader, handle func(id, data string) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	var id string
	var data []string
	size := 0
	for lines.Scan() {
		line := lines.Text()
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "":
			if len(data) > 0 {
				if err := handle(id, strings.Join(data, "\n")); err != nil {
					return err
				}
			}
			data, size = nil, 0
		case field == "id":
			id = value
		case field == "data":
			if size += len(value); size > 1<<20 {
				return errLongEvent
			}
			data = append(data, value)
		}
	}
	return lines.Err()
}

func (a *App) printEvent(w io.Writer, e client.StreamEvent) error {
	var text string
	switch e.Topic {
	case string(client.TopicRun):
		text = fmt.Sprintf("%s  %s %s", e.Run.ID, runLabel([]client.Run{e.Run}), e.Run.State)
	case string(client.TopicTask):
		text = fmt.Sprintf("%s  %s %s %s %s", e.Task.ID, e.Task.Kind, e.Task.VMName, taskPhase(e.Task), percent(e.Task.Progress.BytesScanned, e.Task.Progress.BytesTotal))
	case string(client.TopicRunEvent):
		text = fmt.Sprintf("%s  %s: %s", e.RunEvent.RunID, e.RunEvent.Level, eventText(e.RunEvent))
	case string(client.TopicInventory):
		text = "inventory of " + e.ConnectionID + " changed"
	default:
		text = e.Topic
	}
	_, err := fmt.Fprintf(w, "%s  %-9s  %s\n", e.Time.In(a.Location).Format("15:04:05"), e.Topic, strings.TrimSpace(output.Printable(text)))
	return err
}
