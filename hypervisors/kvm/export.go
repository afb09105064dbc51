package kvm

import (
	"context"
	"fmt"
	"hash/fnv"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// nbdAddress is where an NBD server on the host listens: on a unix socket, or on one port of a range.
type nbdAddress struct {
	network     string // "unix" or "tcp"
	path        string
	host        string
	port        int
	first, last int
	certDir     string // of the server, for helpers; libvirt has its own setting for backups
}

func (a nbdAddress) ports() int { return a.last - a.first + 1 }

// next goes to the next port of the range.
func (a *nbdAddress) next() {
	if a.port++; a.port > a.last {
		a.port = a.first
	}
}

func (a nbdAddress) noPort(err error) error {
	return fault.Wrap(fault.Transient, "open NBD port on", a.host, err).
		Explain(fmt.Sprintf("All ports from %d to %d are in use on the host.", a.first, a.last),
			"Run fewer backups at a time, or give the connection more ports with the option "+OptNBDPorts+".")
}

func portTaken(err error) bool {
	return err != nil && strings.Contains(err.Error(), "Address already in use")
}

// listenAt says where the host's NBD server for a tag listens: on a unix socket, or over TLS where the host can
// only be reached by TCP. It never listens on plain TCP.
func (d *Driver) listenAt(tag string) (nbdAddress, error) {
	if d.access != accessTLS {
		path := d.socketPath(tag)
		if len(path) > 107 {
			return nbdAddress{}, fault.New(fault.Invalid, "place socket", path, "the path is longer than 107 bytes").
				Explain("Paths of sockets cannot be longer than 107 bytes.", "Set the option "+OptSocketDir+" to a shorter directory.")
		}
		return nbdAddress{network: "unix", path: path}, nil
	}
	first, last, err := d.portRange()
	if err != nil {
		return nbdAddress{}, err
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(tag))
	return nbdAddress{
		network: "tcp", host: d.nbdHost(), first: first, last: last, port: first + int(h.Sum32()%uint32(last-first+1)),
		certDir: d.option(OptTLSCertDir, "/etc/pki/qemu"),
	}, nil
}

func (d *Driver) nbdHost() string { return d.option(OptNBDHost, d.host) }

func (d *Driver) option(name, otherwise string) string {
	if v := d.cfg.Options[name]; v != "" {
		return v
	}
	return otherwise
}

func (d *Driver) portRange() (first, last int, err error) {
	text := d.option(OptNBDPorts, "10809-10872")
	a, b, found := strings.Cut(text, "-")
	if !found {
		b = a
	}
	first, err1 := strconv.Atoi(strings.TrimSpace(a))
	last, err2 := strconv.Atoi(strings.TrimSpace(b))
	if err1 != nil || err2 != nil || first < 1 || last > 65535 || last < first {
		return 0, 0, fault.New(fault.Invalid, "read option", OptNBDPorts, "%q is not a range of ports", text)
	}
	return first, last, nil
}

// exportBase turns the host's address into one that movers can open, and returns the forward that carries it.
func (d *Driver) exportBase(ctx context.Context, tag string, at nbdAddress) (hypervisors.Export, *forward, error) {
	e := hypervisors.Export{Transport: hypervisors.TransportNBD, Network: at.network, Address: at.path}
	switch d.access {
	case accessSSH:
		fwd, err := d.forwardSocket(ctx, tag, at.path)
		if err != nil {
			return e, nil, err
		}
		e.Address = fwd.local
		return e, fwd, nil
	case accessTLS:
		e.Address = net.JoinHostPort(at.host, strconv.Itoa(at.port))
		e.TLS = d.clientTLS()
	}
	return e, nil, nil
}

// clientTLS is where libvirt's own client keeps its certificates.
func (d *Driver) clientTLS() *hypervisors.TLS {
	if p := d.pkiPath; p != "" {
		return &hypervisors.TLS{
			CAFile: filepath.Join(p, "cacert.pem"), CertFile: filepath.Join(p, "clientcert.pem"),
			KeyFile: filepath.Join(p, "clientkey.pem"), ServerName: d.nbdHost(),
		}
	}
	return &hypervisors.TLS{
		CAFile: "/etc/pki/CA/cacert.pem", CertFile: "/etc/pki/libvirt/clientcert.pem",
		KeyFile: "/etc/pki/libvirt/private/clientkey.pem", ServerName: d.nbdHost(),
	}
}
