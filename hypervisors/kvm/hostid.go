package kvm

import (
	"fmt"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// hostID returns the UUID of a host, which is the same through every URI.
func hostID(lv *libvirt.Connect) (string, error) {
	raw, err := lv.GetCapabilities()
	if err != nil {
		return "", err
	}
	return hostUUID(raw)
}

func hostUUID(capabilities string) (string, error) {
	var c libvirtxml.Caps
	if err := c.Unmarshal(capabilities); err != nil {
		return "", fmt.Errorf("read capabilities of host: %w", err)
	}
	return c.Host.UUID, nil
}
