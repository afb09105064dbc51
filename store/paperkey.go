package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"rsc.io/qr"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/seal"
)

// PaperKey is a key made to be printed: its Text holds the secret, nothing else of it does. It opens the repository it
// was made for.
type PaperKey struct {
	key        Key
	repository string
	name       string
	created    time.Time
	label      string
}

const (
	paperLines  = 4
	paperLine   = 16 // characters: 8 bytes of the key, 2 of a checksum
	paperPrefix = "CAIRN-PAPER-1:"
)

// paperCode is Crockford's alphabet: no letter in it is taken for a digit or for another letter.
var paperCode = base32.NewEncoding("0123456789ABCDEFGHJKMNPQRSTVWXYZ").WithPadding(base32.NoPadding)

// AddPaperKey makes a new key that opens the repository. It is nowhere but in the returned value: print its Text, now.
func AddPaperKey(ctx context.Context, b blob.Store, by Opener, label string) (PaperKey, Wrapping, error) {
	g, err := openRing(ctx, b, by)
	if err != nil {
		return PaperKey{}, Wrapping{}, err
	}
	defer g.wipe()
	p := PaperKey{repository: g.config.Repository, name: g.config.Name, label: label}
	_, _ = rand.Read(p.key.secret[:]) // never fails
	w, err := g.addKey(ctx, p.key, wrapByPaper, label)
	p.created = w.Created
	return p, w, err
}

// String names the key by its fingerprint.
func (p PaperKey) String() string { return "paper key " + p.key.Fingerprint() }

// GoString keeps the secret out of %#v.
func (p PaperKey) GoString() string { return p.String() }

// Format keeps the secret out of every other verb, %d for one.
func (p PaperKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, p.String()) }

// LogValue keeps the secret out of logs.
func (p PaperKey) LogValue() slog.Value { return slog.StringValue(p.String()) }

func (p PaperKey) mine(w *wrapping) bool { return p.key.mine(w) }

func (p PaperKey) unwrap(w *wrapping, repository seal.ID) (*seal.KeySet, error) {
	return p.key.unwrap(w, repository)
}

// paperSum is the checksum of a line, which also holds its place.
func paperSum(line int, data []byte) []byte {
	sum := sha256.Sum256(append(fmt.Appendf(nil, "cairn paper key line %d:", line), data...))
	return sum[:2]
}

// lines returns the secret as it is printed, without spaces.
func (p PaperKey) lines() []string {
	var out []string
	for i := range paperLines {
		data := bytes.Clone(p.key.secret[i*8 : i*8+8])
		out = append(out, paperCode.EncodeToString(append(data, paperSum(i+1, data)...)))
	}
	return out
}

// Text returns the page to be printed: plain text in UTF-8, 72 columns, with a QR code of block characters.
func (p PaperKey) Text() (string, error) {
	lines := p.lines()
	code, err := qr.Encode(paperPrefix+strings.Join(lines, ""), qr.M)
	if err != nil {
		return "", fault.Wrap(fault.Internal, "print paper key", p.String(), err)
	}
	var out strings.Builder
	fmt.Fprintf(&out, `CAIRN PAPER KEY

Repository   %s
Its id       %s
Made on      %s
Label        %s
Fingerprint  %s

This key opens the backup repository named above: whoever has this page
and the repository can read every backup in it. Keep it like the deed of
a house: in a safe, away from the repository. It is of use when the key
file of the server is lost.

The key, four lines of sixteen characters. Capitals and small letters,
spaces and dashes do not matter. There is no letter I, L, O or U in it:
what looks like O is a zero, what looks like I or L is a one.

`, p.name, p.repository, p.created.Format("2006-01-02"), p.label, p.key.Fingerprint())
	for i, line := range lines {
		fmt.Fprintf(&out, "    %d:  %s %s %s %s\n", i+1, line[:4], line[4:8], line[8:12], line[12:])
	}
	out.WriteString(`
Each line ends in a checksum of its own, so a slip of the pen is told
with the number of its line.

To use it: type the four lines (or scan the code) into a text file, and
give that file to Cairn as the repository's key. Without Cairn: the file
cairn_reader.py, which is in the repository, reads backups with it:

    python3 cairn_reader.py --key THIS.txt /path/of/repository list

`)
	out.WriteString(drawQR(code))
	return out.String(), nil
}

// drawQR draws a code with the quiet border of four modules it needs, two rows of modules in a line of text.
func drawQR(code *qr.Code) string {
	const border = 4
	var out strings.Builder
	for y := -border; y < code.Size+border; y += 2 {
		var line strings.Builder
		for x := -border; x < code.Size+border; x++ {
			switch up, down := code.Black(x, y), code.Black(x, y+1); {
			case up && down:
				line.WriteRune('█')
			case up:
				line.WriteRune('▀')
			case down:
				line.WriteRune('▄')
			default:
				line.WriteByte(' ')
			}
		}
		out.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return out.String()
}

var numberedLine = regexp.MustCompile(`(?m)^[ \t>*]*([1-4lI])[ \t]*[:.)][ \t]*(.*)$`)

// ParsePaperKey reads a paper key back: the whole page, the four lines with or without their numbers, or what the QR
// code says. A slip of the pen is told with the number of its line.
func ParsePaperKey(text string) (Opener, error) {
	lines, err := paperText(text)
	if err != nil {
		return nil, err
	}
	var p PaperKey
	for i, line := range lines {
		raw, err := paperCode.DecodeString(line)
		if err != nil || len(line) != paperLine {
			return nil, badPaper("line %d has %d characters of the key, not %d", i+1, len(line), paperLine)
		}
		if data := raw[:8]; !bytes.Equal(raw[8:], paperSum(i+1, data)) {
			return nil, badPaper("line %d does not agree with its checksum: a character is wrong, or it is another line", i+1)
		} else {
			copy(p.key.secret[i*8:], data)
		}
		clear(raw)
	}
	return p, nil
}

func badPaper(format string, args ...any) error {
	return fault.New(fault.Invalid, "read paper key", "", format, args...).Explain(
		"What was typed is not the whole paper key: "+fmt.Sprintf(format, args...)+".",
		"Compare that line with the page, character by character.")
}

// paperText finds the four lines in what was typed.
func paperText(text string) ([]string, error) {
	if _, after, ok := strings.Cut(strings.ToUpper(text), paperPrefix); ok {
		word, _, _ := strings.Cut(strings.TrimSpace(after), "\n")
		return cutPaper(cleanPaper(word))
	}
	if found := numberedLine.FindAllStringSubmatch(text, -1); len(found) > 0 {
		lines := make([]string, paperLines)
		for _, m := range found {
			n := strings.Index("1234", strings.NewReplacer("l", "1", "I", "1").Replace(m[1]))
			if lines[n] != "" {
				return nil, badPaper("there are two lines %d", n+1)
			}
			lines[n] = cleanPaper(m[2])
		}
		for i, line := range lines {
			if line == "" {
				return nil, badPaper("line %d is missing", i+1)
			}
		}
		return lines, nil
	}
	var lines []string
	for line := range strings.Lines(text) {
		if c := cleanPaper(line); c != "" {
			lines = append(lines, c)
		}
	}
	if len(lines) == paperLines {
		return lines, nil
	}
	return cutPaper(strings.Join(lines, ""))
}

func cutPaper(all string) (lines []string, err error) {
	if len(all) != paperLines*paperLine {
		return nil, badPaper("there are %d characters of the key, not %d", len(all), paperLines*paperLine)
	}
	for at := 0; at < len(all); at += paperLine {
		lines = append(lines, all[at:at+paperLine])
	}
	return lines, nil
}

// cleanPaper drops what does not matter and reads letters that look like others as those. What is none of the
// alphabet stays, so that it is told.
func cleanPaper(s string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case 'O':
			return '0'
		case 'I', 'L':
			return '1'
		case 'U':
			return 'V'
		case ' ', '\t', '\r', '\n', '-', '.', ',', '_', '–', '\u00a0':
			return -1
		}
		return r
	}, strings.ToUpper(s))
}
