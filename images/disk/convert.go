package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Format is a disk format of a platform.
type Format string

// The formats.
const (
	QCOW2 Format = "qcow2" // KVM, oVirt; compressed
	VMDK  Format = "vmdk"  // VMware; streamOptimized
	VHDX  Format = "vhdx"  // Hyper-V; dynamic
)

// Convert writes a raw image in another format by qemu-img, and puts what qemu-img draws at random right: id stands in
// its places.
func Convert(ctx context.Context, raw, out string, to Format, id GUID) error {
	args := map[Format][]string{
		QCOW2: {"-c", "-o", "compat=1.1"},
		VMDK:  {"-o", "subformat=streamOptimized,adapter_type=lsilogic,hwversion=13"},
		VHDX:  {"-o", "subformat=dynamic,block_size=1M"},
	}[to]
	if args == nil {
		return fmt.Errorf("there is no format %q", to)
	}
	args = append([]string{"convert", "-f", "raw", "-O", string(to), "-m", "4"}, append(args, raw, out)...)
	if err := runIn(ctx, nil, "qemu-img", args...); err != nil {
		return err
	}
	switch to {
	case VMDK:
		return fixVMDK(out, id)
	case VHDX:
		return fixVHDX(out, id)
	}
	return nil
}

// contentID is written by QEMU without zeros in front: one in sixteen has fewer than eight digits.
var contentID = regexp.MustCompile(`(?m)^CID=[0-9a-f]{1,8}$`)

// fixVMDK sets the content id in the text descriptor, which lies behind the first sector and has zeros behind it.
func fixVMDK(name string, id GUID) error {
	const from, size = 512, 20 * 512
	return edit(name, from, size, func(p []byte) error {
		at := contentID.FindIndex(p)
		if at == nil {
			return errors.New("the descriptor has no content id")
		}
		text := slices.Concat(p[:at[0]], fmt.Appendf(nil, "CID=%x", id[:4]), bytes.TrimRight(p[at[1]:], "\x00"))
		if len(text) > size {
			return errors.New("the descriptor has no room for its content id")
		}
		clear(p[copy(p, text):])
		return nil
	})
}

// edit changes bytes of a file in place.
func edit(name string, at int64, size int, change func([]byte) error) (err error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	p := make([]byte, size)
	if _, err := f.ReadAt(p, at); err != nil {
		return err
	}
	if err := change(p); err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	_, err = f.WriteAt(p, at)
	return err
}

// command is a program of administrators or of everybody.
func command(ctx context.Context, env []string, name string, args ...string) *exec.Cmd {
	path := searchPath()
	if !strings.Contains(name, "/") {
		for _, dir := range filepath.SplitList(path) {
			if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Mode()&0o111 != 0 {
				name = filepath.Join(dir, name)
				break
			}
		}
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(append(os.Environ(), "PATH="+path), env...)
	return cmd
}

func runIn(ctx context.Context, env []string, name string, args ...string) error {
	cmd := command(ctx, env, name, args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return nil
}
