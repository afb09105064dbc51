package metrics

import (
	"context"
	"errors"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// fixed is a source that always tells the same.
type fixed struct {
	sample Sample
	errs   []error
}

func (f fixed) Measure(_ context.Context, vms bool) (Sample, []error) {
	if !vms {
		f.sample.VMs, f.sample.Coverage = nil, nil
	}
	return f.sample, f.errs
}

func read(t *testing.T, s Source, vms bool) string {
	t.Helper()
	m := New(Build{Version: "1.2.3"}, slog.New(slog.DiscardHandler))
	m.Watch(s, vms, slog.New(slog.DiscardHandler))
	m.JobEnded(Job{Kind: "backup", Result: "failed", Read: 5, Stored: -1})
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestWhatIsNotKnownIsAbsent(t *testing.T) {
	yes, at, ratio := true, time.UnixMilli(1_700_000_000_500), 1.5
	text := read(t, fixed{sample: Sample{
		VMs: []VM{
			{ID: "vm_1", Name: "web", Connection: "lab", LastSuccess: &at, LastOK: &yes}, {ID: "vm_2", Name: "web", Connection: "lab"},
			{ID: "vm_3", Name: "b\xffd\"\n", Connection: "lab", LastOK: &yes},
		},
		Coverage:     []Coverage{{ID: "vm_1", Name: "web", Connection: "lab", Policy: "gold", RPO: &ratio}, {ID: "vm_2", Name: "web", Unprotected: true}},
		Protections:  map[string]int{"late": 1},
		Connections:  []Connection{{Name: "lab", Platform: "kvm"}},
		Repositories: []Repository{{Name: "main"}},
	}, errs: []error{errors.New("planted")}}, true)
	for line, want := range map[string]bool{
		`cairn_vm_last_success_timestamp_seconds{connection="lab",id="vm_1",vm="web"} 1.7000000005e+09`: true,
		`cairn_vm_last_status{connection="lab",id="vm_1",vm="web"} 1`:                                   true,
		`cairn_vm_last_status{connection="lab",id="vm_3",vm="b` + "\ufffd" + `d\"\n"} 1`:                true,
		`cairn_vm_last_status{connection="",id="vm_2"`:                                                  false,
		`cairn_vm_rpo_ratio{connection="lab",id="vm_1",policy="gold",vm="web"} 1.5`:                     true,
		`cairn_vm_rpo_ratio{connection="",id="vm_2"`:                                                    false,
		`cairn_vm_unprotected{connection="",id="vm_2",vm="web"} 1`:                                      true,
		`cairn_vms{protection="late"} 1`:                                                                true,
		`cairn_hypervisor_up`:                                                                           false,
		`cairn_hypervisor_vms{`:                                                                         true,
		`cairn_store_up{`:                                                                               true,
		`cairn_store_used_bytes{`:                                                                       false,
		`cairn_store_last_gc`:                                                                           false,
		`cairn_snapshots_left`:                                                                          false,
		`cairn_sample_errors 1`:                                                                         true,
		`cairn_job_runs_total{kind="backup",result="failed"} 1`:                                         true,
		`cairn_bytes_total{kind="backup",stage="read"} 5`:                                               true,
		`cairn_job_duration_seconds_count`:                                                              false,
	} {
		if got := strings.Contains(text, line); got != want {
			t.Errorf("%s is there: %v\n%s", line, got, text)
		}
	}
}

func TestSeriesOfVMsCanBeLeftOut(t *testing.T) {
	yes := true
	s := fixed{sample: Sample{VMs: []VM{{ID: "vm_1", Name: "web", LastOK: &yes}}}}
	if text := read(t, s, true); !strings.Contains(text, `id="vm_1"`) {
		t.Error("the VM is not there")
	}
	if text := read(t, s, false); strings.Contains(text, `id="vm_1"`) {
		t.Error("the VM is there")
	}
}
