package server

import (
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

func TestAHostIsConnectedOnce(t *testing.T) {
	b := newBench(t)
	add := func(name, address string) error {
		_, err := b.AddConnection(t.Context(), httpapi.NewConnection{Name: name, Platform: memplatform.PlatformName, Address: address})
		return err
	}
	err := add("other", "there")
	if kindOf(err) != "exists" {
		t.Fatalf("second connection to the host: %v, want exists", err)
	}
	if meaning, advice := fault.Explanation(err); meaning == "" || !strings.Contains(advice, "connection lab") {
		t.Errorf("it is explained with %q, %q", meaning, advice)
	}
	if list, err := b.ListConnections(t.Context(), catalog.Page{}); err != nil || len(list.Items) != 1 {
		t.Errorf("there are %d connections, %v", len(list.Items), err)
	}
	if err := b.RemoveConnection(t.Context(), b.conn); err != nil {
		t.Fatal(err)
	}
	if err := add("other", "there"); err != nil {
		t.Errorf("after the first was removed: %v", err)
	}
}

func TestAHostAtTwoAddressesAtOnce(t *testing.T) {
	b := newBench(t)
	if err := b.RemoveConnection(t.Context(), b.conn); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 2)
	for _, name := range []string{"one", "two"} {
		go func() {
			_, err := b.AddConnection(t.Context(), httpapi.NewConnection{Name: name, Platform: memplatform.PlatformName, Address: name})
			errs <- err
		}()
	}
	if one, two := kindOf(<-errs), kindOf(<-errs); one+two != "nilexists" && one+two != "existsnil" {
		t.Errorf("outcomes: %s, %s", one, two)
	}
}
