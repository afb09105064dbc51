package server

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

// BenchmarkMovers backs four VMs up at once, in full, through 1, 2 and 4 movers in processes of their own: with a limit
// of the network for each mover, which stands for its own line, and without one, where the cores are the limit.
func BenchmarkMovers(b *testing.B) {
	const vms, disk, line = 4, 24 << 20, 4 << 20
	for _, limit := range []int64{line, 0} {
		for _, movers := range []int{1, 2, 4} {
			name := fmt.Sprintf("line=none/movers=%d", movers)
			if limit > 0 {
				name = fmt.Sprintf("line=%dMiB/movers=%d", limit>>20, movers)
			}
			b.Run(name, func(b *testing.B) {
				s := makeBench(b)
				if limit > 0 {
					if _, err := s.fleet.AddLimit(b.Context(), fleet.Who{User: "bench"}, catalog.MoverLimit{Kind: catalog.LimitMover, Name: "*", Network: limit}); err != nil {
						b.Fatal(err)
					}
				}
				ids := map[string]string{}
				for n := range vms {
					vm := s.platform.AddVM(memplatform.VMSpec{Name: fmt.Sprint("vm", n), Disks: []int64{disk}})
					ids[vm.ID] = ""
				}
				if _, err := s.RefreshConnection(b.Context(), s.conn); err != nil {
					b.Fatal(err)
				}
				list, err := s.ListVMs(b.Context(), catalog.VMFilter{}, catalog.Page{})
				if err != nil {
					b.Fatal(err)
				}
				address := s.listen()
				for n := range movers {
					s.outside(address, fmt.Sprint("m", n))
				}
				random := rand.NewChaCha8([32]byte{1})
				data := make([]byte, disk)
				var spent time.Duration
				for b.Loop() {
					var work []string
					for _, vm := range list.Items {
						if _, ours := ids[vm.PlatformID]; !ours {
							continue
						}
						_, _ = random.Read(data)
						if err := s.platform.Write(vm.PlatformID, "disk0", data, 0); err != nil {
							b.Fatal(err)
						}
						work = append(work, vm.ID)
					}
					begin := time.Now()
					var started []httpapi.Started
					for n, vm := range work {
						run, err := s.StartBackup(b.Context(), httpapi.Start{User: "ann"}, httpapi.BackupRequest{
							VMID: vm, RepositoryID: s.repo, Full: true, Mover: fmt.Sprint("m", n%movers),
						})
						if err != nil {
							b.Fatal(err)
						}
						started = append(started, run)
					}
					for _, run := range started {
						if task := s.ended(run, nil); task.State != catalog.Succeeded {
							b.Fatalf("backup = %s, %+v", task.State, task.Error)
						}
					}
					spent += time.Since(begin)
				}
				b.ReportMetric(float64(b.N)*vms*disk/(1<<20)/spent.Seconds(), "MiB/s")
			})
		}
	}
}
