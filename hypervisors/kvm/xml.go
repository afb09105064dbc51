package kvm

import (
	"encoding/xml"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// backupXML is libvirt's <domainbackup>.
type backupXML struct {
	XMLName xml.Name     `xml:"domainbackup"`
	Mode    string       `xml:"mode,attr"`
	Server  backupServer `xml:"server"`
	Disks   []backupDisk `xml:"disks>disk"`
}

type backupServer struct {
	Transport string `xml:"transport,attr"`
	Socket    string `xml:"socket,attr,omitempty"`
	Name      string `xml:"name,attr,omitempty"`
	Port      int    `xml:"port,attr,omitempty"`
	TLS       string `xml:"tls,attr,omitempty"`
}

type backupDisk struct {
	Name        string         `xml:"name,attr"`
	Backup      string         `xml:"backup,attr"`
	Type        string         `xml:"type,attr,omitempty"`
	Mode        string         `xml:"backupmode,attr,omitempty"`
	Incremental string         `xml:"incremental,attr,omitempty"`
	Export      string         `xml:"exportname,attr,omitempty"`
	Bitmap      string         `xml:"exportbitmap,attr,omitempty"`
	Scratch     *backupScratch `xml:"scratch"`
}

type backupScratch struct {
	File string `xml:"file,attr"`
}

// ours returns the tag of a job of ours, read from the names of its socket and scratch files.
func (b backupXML) ours() (tag string, ok bool) {
	if tag, ok := strings.CutPrefix(baseName(b.Server.Socket), marker); ok {
		return strings.TrimSuffix(tag, ".sock"), true
	}
	for _, disk := range b.Disks {
		if disk.Scratch == nil {
			continue
		}
		if tag, ok := strings.CutPrefix(baseName(disk.Scratch.File), marker); ok {
			return strings.TrimSuffix(tag, "-"+disk.Name+".scratch"), true
		}
	}
	return "", false
}

// uses reports whether the job has a file as its socket or scratch file.
func (b backupXML) uses(path string) bool {
	return b.Server.Socket == path || slices.ContainsFunc(b.Disks, func(d backupDisk) bool { return d.Scratch != nil && d.Scratch.File == path })
}

func baseName(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// checkpointXML is libvirt's <domaincheckpoint>.
type checkpointXML struct {
	XMLName      xml.Name         `xml:"domaincheckpoint"`
	Name         string           `xml:"name"`
	Description  string           `xml:"description,omitempty"`
	Parent       *checkpointName  `xml:"parent"`
	CreationTime int64            `xml:"creationTime,omitempty"`
	Disks        []checkpointDisk `xml:"disks>disk"`
}

type checkpointName struct {
	Name string `xml:"name"`
}

type checkpointDisk struct {
	Name       string `xml:"name,attr"`
	Checkpoint string `xml:"checkpoint,attr"`
	Bitmap     string `xml:"bitmap,attr,omitempty"`
}

const sizesPrefix = "cairn sizes:"

// describeSizes keeps the disks' sizes in a checkpoint's description: a disk that was resized since is read whole.
func describeSizes(sizes map[string]int64) string {
	var b strings.Builder
	b.WriteString(sizesPrefix)
	for _, disk := range slices.Sorted(maps.Keys(sizes)) {
		fmt.Fprintf(&b, " %s=%d", disk, sizes[disk])
	}
	return b.String()
}

// sizes reads what describeSizes wrote; disks it cannot read are missing.
func (c checkpointXML) sizes() map[string]int64 {
	out := map[string]int64{}
	rest, ok := strings.CutPrefix(c.Description, sizesPrefix)
	if !ok {
		return out
	}
	for f := range strings.FieldsSeq(rest) {
		name, val, _ := strings.Cut(f, "=")
		if n, err := strconv.ParseInt(val, 10, 64); err == nil {
			out[name] = n
		}
	}
	return out
}

// has reports whether the checkpoint tracks a disk.
func (c checkpointXML) has(disk string) bool {
	return slices.ContainsFunc(c.Disks, func(d checkpointDisk) bool { return d.Name == disk && d.Checkpoint == "bitmap" })
}

func (c checkpointXML) tracked() []string {
	var out []string
	for _, d := range c.Disks {
		if d.Checkpoint == "bitmap" {
			out = append(out, d.Name)
		}
	}
	return out
}

// metadataNS is the XML namespace of our own elements in a domain's <metadata>.
const metadataNS = "https://cairn-backup.dev/xmlns/domain/1"

// metadata is what we read of a domain's <metadata>.
type metadata struct {
	Helper   string // tag of the helper domain this is
	Restored string // tag of the restore that made this VM
	Mover    string // tag of the deployment that made this mover
	Ready    bool   // that deployment was completed
	Tags     []string
	OS       string // libosinfo's id
}

// readMetadata reads the inner XML of <metadata>; what it cannot read, it leaves out.
func readMetadata(inner string) metadata {
	var m metadata
	dec := xml.NewDecoder(strings.NewReader("<metadata>" + inner + "</metadata>"))
	for {
		tok, err := dec.Token()
		if err != nil {
			return m
		}
		el, ok := tok.(xml.StartElement)
		if !ok {
			continue
		}
		switch {
		case el.Name.Space == metadataNS && el.Name.Local == "helper":
			m.Helper = attr(el, "tag")
		case el.Name.Space == metadataNS && el.Name.Local == "restored":
			m.Restored = attr(el, "tag")
		case el.Name.Space == metadataNS && el.Name.Local == "mover":
			m.Mover, m.Ready = attr(el, "tag"), attr(el, "ready") == "true"
		case el.Name.Space == metadataNS && el.Name.Local == "tag":
			var v string
			if dec.DecodeElement(&v, &el) == nil && strings.TrimSpace(v) != "" {
				m.Tags = append(m.Tags, strings.TrimSpace(v))
			}
		case el.Name.Local == "os" && strings.Contains(el.Name.Space, "libosinfo.org"):
			m.OS = attr(el, "id")
		}
	}
}

func attr(el xml.StartElement, name string) string {
	for _, a := range el.Attr {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// helperMetadata marks a helper domain as ours.
func helperMetadata(tag string) string {
	return fmt.Sprintf(`<cairn:helper xmlns:cairn=%q tag=%q/>`, metadataNS, tag)
}

// restoredMetadata marks a VM with the restore that made it.
func restoredMetadata(tag string) string {
	return fmt.Sprintf(`<cairn:restored xmlns:cairn=%q tag=%q/>`, metadataNS, tag)
}

// withoutRestored drops the mark of an earlier restore from the inner XML of <metadata>.
func withoutRestored(inner string) string {
	for {
		from := strings.Index(inner, "<cairn:restored ")
		if from < 0 {
			return inner
		}
		to := strings.Index(inner[from:], ">")
		if to < 0 {
			return inner
		}
		rest := inner[from+to+1:]
		if inner[from+to-1] != '/' {
			rest = strings.TrimPrefix(rest, "</cairn:restored>")
		}
		inner = inner[:from] + rest
	}
}
