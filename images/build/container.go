package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cairn-backup/cairn/images/bom"
	"github.com/cairn-backup/cairn/images/oci"
	"github.com/cairn-backup/cairn/images/system"
)

// containerUser is who the appliance is in a container: a number of its own, since a volume outlives the images.
const containerUser = 8440

// containerPackages are what cairnd asks a system for: libvirt's client library, ssh for qemu+ssh://, and the roots of TLS.
var containerPackages = []string{"libvirt0", "openssh-client", "ca-certificates"}

// container makes the appliance as a container image: Debian's essential packages, cairnd and cairn.
func (b *builder) container(ctx context.Context) (image, error) {
	img := image{name: "cairn-container", product: "Cairn appliance"}
	daemon, client, err := b.manager(ctx)
	if err != nil {
		return img, err
	}
	whole := filepath.Join(b.work, img.name+".system.tar")
	if err := system.Bare(ctx, whole, b.cache.Dir(), b.time, containerPackages...); err != nil {
		return img, err
	}
	base, top, out := filepath.Join(b.work, "base.tar"), filepath.Join(b.work, "top.tar"), filepath.Join(b.work, img.name+".tar")
	found, err := oci.System(whole, base, b.time, "etc/passwd", "etc/group", "var/lib/dpkg/status")
	if err := errors.Join(err, os.Remove(whole)); err != nil {
		return img, err
	}
	if err := writeTop(top, b.time, found, daemon, client); err != nil {
		return img, err
	}
	tags := []string{"latest"}
	if b.version != "" {
		tags = append(tags, b.version)
	}
	err = oci.Image{Name: "cairn", Tags: tags, Layers: []string{base, top}, Config: b.containerConfig(), Time: b.time}.Write(out, b.work)
	if err != nil {
		return img, err
	}
	img.extra = map[string]string{".tar": out}
	packages := bom.DebianStatus(found["var/lib/dpkg/status"])
	img.bom = packages
	return img, errors.Join(b.addProgram(&img, daemon), b.addProgram(&img, client), b.listPackages(&img, packages))
}

// writeTop writes the layer with what is ours: programs, the user, and the directories that volumes take their owner from.
func writeTop(name string, at time.Time, found map[string][]byte, programs ...string) error {
	l, err := oci.NewLayer(name, at)
	if err != nil {
		return err
	}
	u := strconv.Itoa(containerUser)
	errs := []error{
		l.File("etc/passwd", 0o644, fmt.Appendf(found["etc/passwd"], "cairn:x:%s:%s:Cairn backup appliance:/var/lib/cairn:/usr/sbin/nologin\n", u, u)),
		l.File("etc/group", 0o644, fmt.Appendf(found["etc/group"], "cairn:x:%s:\n", u)),
		l.Dir("var/lib/cairn", 0o700, containerUser), l.Dir("srv/cairn", 0o700, containerUser),
	}
	for _, p := range programs {
		data, err := os.ReadFile(p)
		errs = append(errs, err, l.File("usr/bin/"+filepath.Base(p), 0o755, data))
	}
	return errors.Join(append(errs, l.Close())...)
}

func (b *builder) containerConfig() oci.Config {
	u := strconv.Itoa(containerUser)
	return oci.Config{
		User:         u + ":" + u,
		ExposedPorts: map[string]struct{}{"8440/tcp": {}, "8441/tcp": {}},
		Env:          []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/var/lib/cairn", "CAIRN_DATA=/var/lib/cairn"},
		Entrypoint:   []string{"/usr/bin/cairnd"},
		Volumes:      map[string]struct{}{"/var/lib/cairn": {}, "/srv/cairn": {}},
		WorkingDir:   "/",
		StopSignal:   "SIGTERM",
		Labels: map[string]string{
			"org.opencontainers.image.title": "Cairn backup appliance", "org.opencontainers.image.version": b.version,
			"org.opencontainers.image.licenses": "Apache-2.0",
		},
	}
}
