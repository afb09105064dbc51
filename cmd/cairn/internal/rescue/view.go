package rescue

import (
	"encoding/json"
	"time"

	"github.com/cairn-backup/cairn/store"
)

// view is a restore point as it is shown and as -o json prints it.
type view struct {
	ID          string            `json:"id"`
	VM          string            `json:"vm"`
	Time        time.Time         `json:"time"`
	Published   time.Time         `json:"published"`
	Consistency string            `json:"consistency,omitempty"`
	Series      string            `json:"series"`
	Previous    string            `json:"previous,omitempty"`
	SizeBytes   int64             `json:"size_bytes"`
	Disks       []diskView        `json:"disks"`
	Documents   []documentView    `json:"documents"`
	Labels      map[string]string `json:"labels,omitempty"`
	Description json.RawMessage   `json:"description,omitempty"` // show only

	hardware hardware
}

type diskView struct {
	Name      string `json:"name"`
	SizeBytes int64  `json:"size_bytes"`
	Root      string `json:"root"`
}

type documentView struct {
	Name      string `json:"name"`
	MediaType string `json:"media_type,omitempty"`
	SizeBytes int64  `json:"size_bytes"`
}

// hardware is what rescue understands of the saved description of a VM; the description itself is printed by show
// in full, so what is not listed here is not lost.
type hardware struct {
	Name        string `json:"name"`
	Firmware    string `json:"firmware"`
	SecureBoot  bool   `json:"secure_boot"`
	Arch        string `json:"arch"`
	Machine     string `json:"machine"`
	CPUs        int    `json:"cpus"`
	MemoryBytes int64  `json:"memory_bytes"`
	TPM         string `json:"tpm"`
	Disks       []disk `json:"disks"`
	NICs        []nic  `json:"nics"`
}

type disk struct {
	ID     string `json:"id"`
	Bus    string `json:"bus"`
	Format string `json:"format"`
}

type nic struct {
	MAC     string `json:"mac"`
	Model   string `json:"model"`
	Network string `json:"network"`
}

// describe reads what the appliance wrote into a restore point. Nothing of it is needed to export disks, so a
// description that is not understood is no error.
func describe(p store.RestorePoint) view {
	v := view{
		ID: p.ID, Time: p.Time, Published: p.Published, Series: p.Series, Previous: p.Previous, Description: p.Description, Labels: p.Labels,
		Disks: []diskView{}, Documents: []documentView{},
	}
	_ = json.Unmarshal(p.Description, &v.hardware)
	var meta struct {
		Consistency string `json:"consistency"`
	}
	_ = json.Unmarshal(p.Meta, &meta)
	v.Consistency = meta.Consistency
	for _, name := range []string{v.hardware.Name, p.Labels["vm_name"], p.Series} {
		if name != "" {
			v.VM = name
			break
		}
	}
	for _, image := range p.Images {
		v.Disks = append(v.Disks, diskView{Name: image.Name, SizeBytes: image.Ref.SizeBytes, Root: image.Ref.Root.String()})
		v.SizeBytes += image.Ref.SizeBytes
	}
	for _, d := range p.Documents {
		v.Documents = append(v.Documents, documentView{Name: d.Name, MediaType: d.MediaType, SizeBytes: d.SizeBytes})
	}
	return v
}
