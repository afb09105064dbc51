package e2e

import (
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

// crowd counts at the engine how many VMs are frozen at once, in all and by host.
type crowd struct {
	mu     sync.Mutex
	host   map[string]string // by VM
	frozen map[string]bool
	most   map[string]int // by host; "" is in all
}

var (
	freezes = regexp.MustCompile(`^POST /vms/([^/]+)/(?:snapshots|backups)$`)
	thaws   = regexp.MustCompile(`^(?:DELETE /vms/([^/]+)/snapshots/[^/]+|POST /vms/([^/]+)/backups/[^/]+/finalize)$`)
)

func (c *crowd) see(request string, status int) {
	if status >= 300 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := thaws.FindStringSubmatch(request); m != nil {
		delete(c.frozen, m[1]+m[2])
		return
	}
	m := freezes.FindStringSubmatch(request)
	if m == nil {
		return
	}
	c.frozen[m[1]] = true
	now := map[string]int{"": len(c.frozen)}
	for vm := range c.frozen {
		if h := c.host[vm]; h != "" {
			now[h]++
		}
	}
	for h, n := range now {
		c.most[h] = max(c.most[h], n)
	}
}

// TestOVirtCluster backs up two clusters of many VMs (200 with CAIRN_SOAK=1) by one policy: every VM has its restore point, never more are frozen at once
// than the policy allows, and nothing is left on the engine.
func TestOVirtCluster(t *testing.T) {
	const perConnection, perHost = 20, 4
	n := soak(40, 200)
	s := newSite(t, ovirtsim.Config{Site: ovirtsim.LargeSite(n), Pace: 20 * time.Millisecond}, "CAIRN_WORKERS=30")
	vms := s.inventory()
	if len(vms) != n {
		t.Fatalf("the inventory has %d VMs, want %d", len(vms), n)
	}
	c := &crowd{host: map[string]string{}, frozen: map[string]bool{}, most: map[string]int{}}
	for _, vm := range vms {
		c.host[vm.PlatformID] = vm.Host
	}
	s.watch.onDone(c.see)
	var policy client.Policy
	s.must("POST", "/policies", map[string]any{
		"name": "all", "filter": "cluster in (cluster1, cluster2)", "schedule": "*-01-01 03:00", "repository": s.repo.ID,
		"limits": map[string]int{"connection": perConnection, "host": perHost}, "retries": 0,
	}, &policy)
	for round, mode := range []string{"full", "incremental"}[:soak(1, 2)] {
		var began client.PolicyRun
		s.must("POST", "/policies/"+policy.ID+"/run", nil, &began)
		if began.VMs != n {
			t.Fatalf("it is the turn of %d VMs, want %d", began.VMs, n)
		}
		s.wait("all turns to end", func() bool {
			s.must("GET", "/policies/"+policy.ID, nil, &policy)
			return policy.Waiting == 0 && policy.Running == 0
		})
		s.wholeCluster(vms, round, mode)
	}
	for h, most := range c.most {
		limit := perHost
		if h == "" {
			limit = perConnection
		}
		if most > limit {
			t.Errorf("host %q had %d VMs frozen at once, the limit is %d", h, most, limit)
		}
	}
	if len(c.most) != 1+6 || c.most[""] < 2 {
		t.Errorf("%d VMs of %d hosts were frozen at once, want some of 6: the test would prove nothing", c.most[""], len(c.most)-1)
	}
	t.Logf("frozen at once: %v", c.most)
}

// inventory is all VMs of the connection.
func (s *site) inventory() (out []client.VM) {
	s.t.Helper()
	next := ""
	for {
		var list client.VMList
		s.must("GET", "/vms?limit=500&connection="+s.connection.ID+next, nil, &list)
		if out = append(out, list.Items...); list.Next == "" {
			return out
		}
		next = "&page_token=" + list.Next
	}
}

// wholeCluster looks that each VM has got one more restore point, made in a mode, and that the engine is clean.
func (s *site) wholeCluster(vms []client.VM, round int, mode string) {
	s.t.Helper()
	of := map[string][]client.RestorePoint{}
	for _, p := range s.points() {
		of[p.VMID] = append(of[p.VMID], p)
	}
	var list client.RunList
	s.must("GET", "/runs?state=failed&limit=1000", nil, &list)
	for _, run := range list.Items {
		s.t.Errorf("VM %s: %+v", run.Tasks[0].VMName, run.Tasks[0].Error)
	}
	for _, vm := range vms {
		if len(of[vm.ID]) != round+1 {
			s.t.Errorf("VM %s has %d restore points, want %d", vm.Name, len(of[vm.ID]), round+1)
			continue
		}
		var p client.RestorePoint
		s.must("GET", "/restore-points/"+of[vm.ID][0].ID, nil, &p) // the newest
		for _, d := range p.Disks {
			if string(d.Mode) != mode {
				s.t.Errorf("VM %s was read as %s (%s), want %s", vm.Name, d.Mode, d.FullReason, mode)
			}
		}
		if n := s.checkpointsOf(vm.PlatformID); n != 1 {
			s.t.Errorf("VM %s has %d checkpoints, want 1", vm.Name, n)
		}
	}
	if left := s.leftovers(""); len(left) > 0 {
		s.t.Errorf("left on the engine:\n%s", strings.Join(left, "\n"))
	}
}
