package hypervisors

// SAN says where a disk lies on the platform's LUNs, for a mover that is attached to them. It can be sent over the wire.
type SAN struct {
	// LUNs are all that the volume group lies on, or those that are layers themselves.
	LUNs []LUN `json:"luns"`
	// GroupUUID names the LVM volume group that the layers are volumes of; Group is its name, compared if both are set.
	// Both are empty where the layers are whole LUNs.
	GroupUUID string `json:"group_uuid,omitempty"`
	Group     string `json:"group,omitempty"`
	// Layers are the disk's, the top first: one for a raw disk, the chain of images for qcow2. None of them may be
	// written while it is read: a running VM's active layer is not among them.
	Layers []SANLayer `json:"layers"`
}

// Grouped says whether the layers are volumes of a group, not whole LUNs.
func (s *SAN) Grouped() bool { return s.GroupUUID != "" || s.Group != "" }

// LUN is a LUN of the platform's storage.
type LUN struct {
	WWN       string `json:"wwn"`                  // "naa.6001…", as the platform writes it
	SizeBytes int64  `json:"size_bytes,omitempty"` // 0 where the platform does not say
}

// SANLayer is one layer of a disk.
type SANLayer struct {
	Volume     string     `json:"volume,omitempty"`      // the logical volume's UUID; "" where the platform knows only its name
	VolumeName string     `json:"volume_name,omitempty"` // its name, compared if set
	LUN        string     `json:"lun,omitempty"`         // instead of a volume: the WWN of the LUN that is the layer
	Name       string     `json:"name,omitempty"`        // what the layer above calls this one, with or without a directory; compared if set
	Format     DiskFormat `json:"format"`
	// Tags are LVM tags that the volume must have, NotTags some that it must not have.
	Tags    []string `json:"tags,omitempty"`
	NotTags []string `json:"not_tags,omitempty"`
	// FrozenBy is an LVM tag that another volume of the group has as long as it lies on top of this one: nobody writes this one then.
	FrozenBy string `json:"frozen_by,omitempty"`
}
