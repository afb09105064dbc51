// Package oci writes container images: an archive that holds an OCI image layout and, beside it, the list that `docker load`
// of engines before 25 looks for, so that every engine takes the same file.
//
// It runs nothing and knows no registry. Its invariant: the same layers, configuration and time give the same bytes.
package oci

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// The media types of what is in an archive.
const (
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// Config is what an engine needs to know to start the image, in the words of the OCI image specification.
type Config struct {
	User         string              `json:"User,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   []string            `json:"Entrypoint,omitempty"`
	Cmd          []string            `json:"Cmd,omitempty"`
	Volumes      map[string]struct{} `json:"Volumes,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	Labels       map[string]string   `json:"Labels,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
}

// Image is one image before it is an archive.
type Image struct {
	Name   string   // as in `docker run NAME:TAG`
	Tags   []string // at least one
	Layers []string // files with uncompressed tar archives, the lowest first
	Config Config
	Time   time.Time
}

// descriptor names a blob.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// blob is a part of an archive: data, or a file.
type blob struct {
	sum  string // SHA-256, hexadecimal
	data []byte
	file string
	size int64
}

func (b blob) path() string { return "blobs/sha256/" + b.sum }

func (b blob) describe(mediaType string) descriptor {
	return descriptor{MediaType: mediaType, Digest: "sha256:" + b.sum, Size: b.size}
}

func dataBlob(v any) (blob, error) {
	p, err := json.Marshal(v)
	sum := sha256.Sum256(p)
	return blob{sum: hex.EncodeToString(sum[:]), data: p, size: int64(len(p))}, err
}

// Write writes the archive. work is a directory for compressed layers, which are left there.
func (m Image) Write(out, work string) (err error) {
	if len(m.Tags) == 0 || len(m.Layers) == 0 {
		return errors.New("an image has at least one tag and one layer")
	}
	layers, diffs, err := m.compress(work)
	if err != nil {
		return err
	}
	config, err := dataBlob(map[string]any{
		"created": m.Time.UTC().Format(time.RFC3339), "architecture": "amd64", "os": "linux", "config": m.Config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	if err != nil {
		return err
	}
	var described []descriptor
	for _, l := range layers {
		described = append(described, l.describe(typeLayer))
	}
	manifest, err := dataBlob(map[string]any{
		"schemaVersion": 2, "mediaType": typeManifest, "config": config.describe(typeConfig), "layers": described,
	})
	if err != nil {
		return err
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	a := archive{tar.NewWriter(f), m.Time}
	return a.write(m, append(layers, config, manifest), manifest, config, layers)
}

// compress makes blobs of the layers. diffs are the names of what is in them, uncompressed.
func (m Image) compress(work string) (layers []blob, diffs []string, err error) {
	for i, name := range m.Layers {
		to := filepath.Join(work, fmt.Sprintf("layer%d.tar.gz", i))
		b, diff, err := compressLayer(name, to)
		if err != nil {
			return nil, nil, err
		}
		layers, diffs = append(layers, b), append(diffs, "sha256:"+diff)
	}
	return layers, diffs, nil
}

func compressLayer(from, to string) (b blob, diff string, err error) {
	in, err := os.Open(from)
	if err != nil {
		return b, "", err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return b, "", err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	packed, plain := sha256.New(), sha256.New()
	count := new(counter)
	gz, err := gzip.NewWriterLevel(io.MultiWriter(out, packed, count), gzip.DefaultCompression) // its header has no name and no time
	if err != nil {
		return b, "", err
	}
	if _, err := io.Copy(io.MultiWriter(gz, plain), bufio.NewReaderSize(in, 1<<20)); err != nil {
		return b, "", err
	}
	if err := gz.Close(); err != nil {
		return b, "", err
	}
	return blob{sum: hex.EncodeToString(packed.Sum(nil)), file: to, size: int64(*count)}, hex.EncodeToString(plain.Sum(nil)), nil
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// archive is the file around everything.
type archive struct {
	*tar.Writer
	time time.Time
}

func (a archive) write(m Image, blobs []blob, manifest, config blob, layers []blob) error {
	index := map[string]any{"schemaVersion": 2}
	var manifests []descriptor
	names := []string{}
	for _, tag := range m.Tags {
		d := manifest.describe(typeManifest)
		d.Annotations = map[string]string{"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": m.Name + ":" + tag}
		manifests, names = append(manifests, d), append(names, m.Name+":"+tag)
	}
	index["manifests"] = manifests
	paths := []string{}
	for _, l := range layers {
		paths = append(paths, l.path())
	}
	older := []map[string]any{{"Config": config.path(), "RepoTags": names, "Layers": paths}}
	errs := []error{a.json("oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}), a.json("index.json", index), a.json("manifest.json", older)}
	written := map[string]bool{}
	for _, b := range blobs {
		if written[b.sum] { // two layers may be the same
			continue
		}
		written[b.sum] = true
		errs = append(errs, a.blob(b))
	}
	return errors.Join(append(errs, a.Close())...)
}

func (a archive) header(name string, size int64) error {
	return a.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: a.time, Format: tar.FormatUSTAR})
}

func (a archive) json(name string, v any) error {
	p, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := a.header(name, int64(len(p))); err != nil {
		return err
	}
	_, err = a.Write(p)
	return err
}

func (a archive) blob(b blob) error {
	if err := a.header(b.path(), b.size); err != nil {
		return err
	}
	if b.file == "" {
		_, err := a.Write(b.data)
		return err
	}
	f, err := os.Open(b.file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(a, f)
	return err
}
