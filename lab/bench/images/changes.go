package images

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"
)

// populate makes what a machine has beside its packages.
func (w *world) populate(ctx context.Context) error {
	c := w.content
	return errors.Join(
		w.makeDatabase(c.DatabaseMiB),
		w.makeMetrics(c.Metrics),
		w.sqlite(ctx, c.SQLiteRows, 0),
		w.addMedia(c.MediaMiB),
		w.deliver(c.Messages),
		w.makeSources(c.Sources),
		w.log(c.LogMiB*mib),
	)
}

// live does one day's changes. Every third day is a day of upgrades.
func (w *world) live(ctx context.Context, d Day) error {
	if w.day%3 != 0 {
		d.UpgradeMiB, d.ListsMiB = 0, 0
	}
	steps := []func() error{
		func() error { return w.updatePages(d.PageShare, d.Uniform) },
		func() error { return w.updateMetrics(w.content.Metrics) },
		func() error { return w.writeWALs(d.WALs) },
		func() error { return w.sqlite(ctx, d.SQLiteRows/2, d.SQLiteRows/2) },
		func() error { return w.upgrade(d.UpgradeMiB * mib) },
		func() error { return w.fetchLists(d.ListsMiB * mib) },
		func() error { return w.addMedia(d.MediaMiB) },
		func() error { return w.dropMedia() },
		func() error { return w.readMail(d.Messages) },
		func() error { return w.deliver(d.Messages) },
		func() error { return w.edit(d.Edits) },
		func() error { return w.rotate() },
		func() error { return w.log(d.LogMiB * mib) },
		func() error { return w.touch(d.Touched) },
	}
	for _, step := range steps {
		if err := errors.Join(ctx.Err(), step()); err != nil {
			return err
		}
	}
	return nil
}

// log appends lines to the machine's logs.
func (w *world) log(n int) error {
	logs := []string{"syslog", "auth.log", "daemon.log", "nginx/access.log"}
	for n > 0 {
		var b bytes.Buffer
		name := logs[w.rng.IntN(len(logs))]
		for b.Len() < min(n, 256<<10) {
			b.Write(w.line(strings.TrimSuffix(path.Base(name), ".log")))
		}
		if err := w.appendTo("var/log/"+name, b.Bytes()); err != nil {
			return err
		}
		n -= b.Len()
	}
	return nil
}

// rotate compresses one log that has grown and begins it anew, as logrotate does.
func (w *world) rotate() error {
	name := []string{"var/log/syslog", "var/log/auth.log", "var/log/nginx/access.log", "var/log/daemon.log"}[w.day%4]
	data, err := w.root.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	if err := w.write(fmt.Sprintf("%s.%d.gz", name, w.day), b.Bytes()); err != nil {
		return err
	}
	return w.root.Remove(name)
}

// addMedia adds files that do not compress, such as pictures.
func (w *world) addMedia(n int) error {
	for i, left := 0, n*mib; left > 0; i++ {
		size := min(left, w.between(64<<10, 4*mib))
		if err := w.write(fmt.Sprintf("home/user/media/%03d/%04d.jpg", w.day, i), w.noise(size)); err != nil {
			return err
		}
		left -= size
	}
	return nil
}

// dropMedia removes some media of one earlier day.
func (w *world) dropMedia() error {
	list, err := w.names(fmt.Sprintf("home/user/media/%03d", w.rng.IntN(w.day)))
	for _, name := range w.pick(list, len(list)/12) {
		err = errors.Join(err, w.root.Remove(name))
	}
	return err
}

// deliver puts messages into maildirs, a few of them with attachments.
func (w *world) deliver(n int) error {
	for i := range n {
		var b bytes.Buffer
		fmt.Fprintf(&b, "From: %s@example.org\r\nTo: user%d@example.net\r\nMessage-ID: <%x@example.org>\r\nSubject: %s\r\n\r\n",
			w.words[w.rng.IntN(800)], w.rng.IntN(8), w.rng.Uint64(), w.text(40))
		b.Write(w.text(w.between(500, 12000)))
		if w.rng.IntN(6) == 0 {
			b.WriteString("\r\n--part\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.StdEncoding.EncodeToString(w.noise(w.between(8<<10, 300<<10))))
		}
		name := fmt.Sprintf("var/mail/user%d/new/%03d.%06d.%s", w.rng.IntN(8), w.day, i, w.machine)
		if err := w.write(name, b.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// readMail moves new messages to those that were read, and deletes some of these.
func (w *world) readMail(n int) error {
	for user := range 8 {
		dir := fmt.Sprintf("var/mail/user%d/", user)
		fresh, err := w.names(dir + "new")
		if err != nil || len(fresh) == 0 {
			return err
		}
		if err := w.root.MkdirAll(dir+"cur", 0o755); err != nil {
			return err
		}
		for _, name := range w.pick(fresh, n) {
			if err := w.root.Rename(name, dir+"cur/"+path.Base(name)+":2,S"); err != nil {
				return err
			}
		}
		read, err := w.names(dir + "cur")
		for _, name := range w.pick(read, n/32) {
			err = errors.Join(err, w.root.Remove(name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func sourceName(i int) string {
	return fmt.Sprintf("home/user/src/m%02d/p%02d/f%04d.c", i%20, i/20%16, i)
}

// makeSources makes trees of small text files.
func (w *world) makeSources(n int) error {
	for i := range n {
		if err := w.write(sourceName(i), w.text(w.between(200, 14000))); err != nil {
			return err
		}
	}
	return nil
}

// edit changes source files and writes what is built of them.
func (w *world) edit(n int) error {
	if w.content.Sources == 0 {
		return nil
	}
	for range n {
		name := sourceName(w.rng.IntN(w.content.Sources))
		data, err := w.root.ReadFile(name)
		if err != nil {
			return err
		}
		at := w.rng.IntN(len(data))
		data = append(append(append([]byte{}, data[:at]...), w.text(w.between(10, 400))...), data[at:]...)
		if err := w.replace(name, data, 0o644); err != nil {
			return err
		}
		if w.rng.IntN(4) == 0 {
			object := append(w.noise(len(data)/3), data[:len(data)/2]...)
			if err := w.write("home/user/build/"+path.Base(name)+".o", object); err != nil {
				return err
			}
		}
	}
	return nil
}

// fetchLists writes the package lists anew, each day with some other entries.
func (w *world) fetchLists(n int) error {
	if n == 0 {
		return nil
	}
	const name = "var/lib/apt/lists/debian_dists_stable_main_binary-amd64_Packages"
	old, err := w.root.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return w.write(name, w.text(n))
	}
	if err != nil {
		return err
	}
	var b bytes.Buffer
	for at := 0; at < len(old); {
		size := min(len(old)-at, w.between(50<<10, 1<<20))
		b.Write(old[at : at+size])
		b.Write(w.text(w.between(20, 2000)))
		at += size
	}
	return w.replace(name, b.Bytes(), 0o644)
}

// touch changes access times of files all over the system: on a real machine that is most of what its inode tables see.
func (w *world) touch(n int) error {
	files, err := w.packageFiles("")
	if err != nil {
		return err
	}
	for _, name := range w.pick(files, n) {
		info, err := w.root.Stat(name)
		if err != nil {
			continue // a link to what is not in the image
		}
		at := time.Date(2026, 2, w.day, w.rng.IntN(24), w.rng.IntN(60), w.rng.IntN(60), 0, time.UTC)
		if err := w.root.Chtimes(name, at, info.ModTime()); err != nil {
			return err
		}
	}
	return nil
}

// packageFiles returns the files of a package that are there, or of all.
func (w *world) packageFiles(list string) ([]string, error) {
	lists := []string{list}
	if list == "" {
		var err error
		if lists, err = w.packageLists(); err != nil {
			return nil, err
		}
	}
	var out []string
	for _, l := range lists {
		data, err := w.root.ReadFile(l)
		if err != nil {
			return nil, err
		}
		for name := range strings.Lines(string(data)) {
			name = strings.TrimPrefix(strings.TrimSpace(name), "/")
			if info, err := w.root.Lstat(name); err == nil && info.Mode().IsRegular() && info.Size() > 0 {
				out = append(out, name)
			}
		}
	}
	return out, nil
}

func (w *world) packageLists() ([]string, error) {
	all, err := w.names("var/lib/dpkg/info")
	var lists []string
	for _, name := range all {
		if strings.HasSuffix(name, ".list") {
			lists = append(lists, name)
		}
	}
	return lists, err
}

// upgrade replaces the files of packages, about n bytes of them, and writes dpkg's status anew.
func (w *world) upgrade(n int) error {
	if n == 0 {
		return nil
	}
	lists, err := w.packageLists()
	if err != nil || len(lists) == 0 {
		return err
	}
	for _, list := range w.pick(lists, len(lists)) {
		files, err := w.packageFiles(list)
		if err != nil {
			return err
		}
		for _, name := range files {
			size, err := w.upgradeFile(name)
			if err != nil {
				return err
			}
			n -= size
		}
		if n <= 0 {
			break
		}
	}
	status, err := w.root.ReadFile("var/lib/dpkg/status")
	if err != nil {
		return err
	}
	return w.replace("var/lib/dpkg/status", bytes.ReplaceAll(status, []byte("Priority: optional\n"), fmt.Appendf(nil, "Priority: optional\nX-Day: %d\n", w.day)), 0o644)
}

// upgradeFile writes a file anew. Of a new version most texts are the same; programs have code put in somewhere, so
// that what follows is shifted, and addresses that differ here and there.
func (w *world) upgradeFile(name string) (int, error) {
	info, err := w.root.Lstat(name)
	if err != nil || info.Size() > 64*mib {
		return 0, err
	}
	data, err := w.root.ReadFile(name)
	if err != nil {
		return 0, err
	}
	switch {
	case bytes.HasPrefix(data, []byte("\x7fELF")) && len(data) > 8192:
		at := w.between(4096, len(data))
		data = append(append(append([]byte{}, data[:at]...), w.noise(16*w.between(1, 64))...), data[at:]...)
		for at := w.rng.IntN(8192); at < len(data); at += w.between(1, 16384) {
			data[at]++
		}
	case w.rng.IntN(4) == 0:
		at := w.rng.IntN(len(data))
		data = append(append(append([]byte{}, data[:at]...), w.text(w.between(1, 100))...), data[at:]...)
	}
	return len(data), w.replace(name, data, info.Mode().Perm())
}
