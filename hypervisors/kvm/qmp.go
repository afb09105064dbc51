package kvm

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/digitalocean/go-qemu/qmp"
	"github.com/digitalocean/go-qemu/qmp/raw"
	"libvirt.org/go/libvirt"
)

// monitor is go-qemu's monitor of a domain, spoken through libvirt: QEMU has one QMP socket and libvirt owns it.
type monitor struct{ dom *libvirt.Domain }

var _ qmp.Monitor = monitor{}

func (monitor) Connect() error    { return nil }
func (monitor) Disconnect() error { return nil }

func (monitor) Events(context.Context) (<-chan qmp.Event, error) {
	return nil, qmp.ErrEventsNotSupported
}

// Run sends one command and returns QEMU's answer. go-qemu looks for QEMU's errors in the answer itself.
func (m monitor) Run(command []byte) ([]byte, error) {
	out, err := m.dom.QemuMonitorCommand(string(command), libvirt.DOMAIN_QEMU_MONITOR_COMMAND_DEFAULT)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Error *struct{ Class, Desc string }
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return nil, fmt.Errorf("read QEMU's answer: %w", err)
	}
	if e := answer.Error; e != nil {
		return nil, fault.New(fault.Conflict, "run QMP command", "", "QEMU: %s", e.Desc)
	}
	return []byte(out), nil
}

// qmpRun sends one command and decodes its result, for commands newer than go-qemu's typed ones.
func qmpRun(m qmp.Monitor, command string, args, result any) error {
	req, err := json.Marshal(qmp.Command{Execute: command, Args: args})
	if err != nil {
		return err
	}
	out, err := m.Run(req)
	if err != nil {
		return fault.Context("QMP", command, err)
	}
	if result == nil {
		return nil
	}
	answer := struct{ Return any }{result}
	if err := json.Unmarshal(out, &answer); err != nil {
		return fmt.Errorf("read answer to %s: %w", command, err)
	}
	return nil
}

// blockNode is what query-named-block-nodes says of a node.
type blockNode struct {
	Name    string        `json:"node-name"`
	Driver  string        `json:"drv"`
	File    string        `json:"file"`
	Bitmaps []dirtyBitmap `json:"dirty-bitmaps"`
	Image   struct {
		VirtualSize int64 `json:"virtual-size"`
	} `json:"image"`
}

// dirtyBitmap is a bitmap of a node; Count is the number of dirty bytes.
type dirtyBitmap struct {
	Name         string `json:"name"`
	Count        int64  `json:"count"`
	Granularity  int64  `json:"granularity"`
	Persistent   bool   `json:"persistent"`
	Inconsistent bool   `json:"inconsistent"`
}

func (n blockNode) bitmap(name string) (dirtyBitmap, bool) {
	for _, b := range n.Bitmaps {
		if b.Name == name {
			return b, true
		}
	}
	return dirtyBitmap{}, false
}

func blockNodes(m qmp.Monitor) ([]blockNode, error) {
	var nodes []blockNode
	err := qmpRun(m, "query-named-block-nodes", map[string]any{"flat": true}, &nodes)
	return nodes, err
}

// formatNodes maps the alias or QOM path of a device to the name of the node its guest sees.
func formatNodes(m qmp.Monitor) (map[string]string, error) {
	var devices []struct {
		QDev     string `json:"qdev"`
		Inserted *struct {
			Node string `json:"node-name"`
		} `json:"inserted"`
	}
	if err := qmpRun(m, "query-block", nil, &devices); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, dev := range devices {
		if dev.Inserted != nil {
			out[dev.QDev] = dev.Inserted.Node
		}
	}
	return out, nil
}

// startNBD starts QEMU's NBD server.
func startNBD(m qmp.Monitor, at *nbdAddress) error {
	if at.network == "unix" {
		err := raw.NewMonitor(m).NBDServerStart(raw.SocketAddressLegacyUnix{Path: at.path}, nil)
		if err != nil {
			return fault.Context("start NBD server at", at.path, err)
		}
		return nil
	}
	return startNBDOverTLS(m, at)
}

// startNBDOverTLS does so on the first port of the range that is free, for clients with a certificate only.
func startNBDOverTLS(m qmp.Monitor, at *nbdAddress) error {
	const creds = "cairn-tls"
	if err := qmpRun(m, "object-add", map[string]any{
		"qom-type": "tls-creds-x509", "id": creds, "dir": at.certDir, "endpoint": "server", "verify-peer": true,
	}, nil); err != nil {
		if isNoServerCertificate(err.Error()) {
			return fault.Wrap(fault.Conflict, "use certificates in", at.certDir, err).Explain(noServerCertificate())
		}
		return err
	}
	for tried := 1; ; tried++ {
		err := qmpRun(m, "nbd-server-start", map[string]any{
			"addr":      map[string]any{"type": "inet", "data": map[string]any{"host": at.host, "port": fmt.Sprint(at.port)}},
			"tls-creds": creds,
		}, nil)
		if !portTaken(err) {
			return err
		}
		if tried == at.ports() {
			return at.noPort(err)
		}
		at.next()
	}
}

// verifiesClients reports whether the NBD server of a backup refuses clients without a certificate: that is a
// setting of the host's.
func verifiesClients(m qmp.Monitor) (bool, error) {
	verify := false
	err := qmpRun(m, "qom-get", map[string]any{"path": "/objects/objlibvirt_backup_tls0", "property": "verify-peer"}, &verify)
	return verify, err
}

// addExport serves a node over NBD.
func addExport(m qmp.Monitor, node, name string, writable bool, bitmap string) error {
	args := map[string]any{"type": "nbd", "id": "cairn-" + name, "node-name": node, "name": name, "writable": writable}
	if bitmap != "" {
		args["bitmaps"] = []string{bitmap}
	}
	return qmpRun(m, "block-export-add", args, nil)
}
