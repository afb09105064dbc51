package support

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const redacted = "[redacted]"

const (
	// shortest is how long a secret must be to be looked for: shorter ones would be found in every other word.
	shortest = 4
	// shortestLine is the same for one line of a secret that has several.
	shortestLine = 16
)

// Redactor takes secrets out of texts. It may be used from several goroutines.
type Redactor struct{ known *strings.Replacer }

// secretName is what names of secret values end in; those of values that say where a secret lies (key_file, token_id) do not.
const secretName = `(?:password|passwd|passphrase|secret|token|private_?key|api_?key|chap)`

// shape is what a secret looks like, whoever knows it, and what stays of it.
type shape struct {
	is    *regexp.Regexp
	with  string
	hints []string // in lower case: a line without any of them has no such secret, and is not searched
}

// blocks are the shapes that go over several lines.
var blocks = []shape{
	{is: regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)`), with: redacted},
	{is: regexp.MustCompile(`(?i)(<(?:[a-z_]*` + secretName + `|custom_script|authorized_ssh_keys)>)[^<]*`), with: "${1}" + redacted},
}

// selves are secrets by themselves, whatever stands around them.
var selves = []shape{
	{regexp.MustCompile(`(cairn-key-1:)[0-9a-fA-F:]+`), "${1}" + redacted, []string{"cairn-key-1:"}},
	{regexp.MustCompile(`(CAIRN-PAPER-1:)\S+`), "${1}" + redacted, []string{"cairn-paper-1:"}},
	{regexp.MustCompile(`(AGE-SECRET-KEY-)[0-9A-Z-]+`), "${1}" + redacted, []string{"age-secret-key-"}},
	{regexp.MustCompile(`(cairn_|cairnjoin_|setup_|ticket_)[A-Za-z0-9_-]{20,}`), "${1}" + redacted, []string{"cairn_", "cairnjoin_", "setup_", "ticket_"}},
}

// placed are secrets by where they stand.
var placed = []shape{
	{regexp.MustCompile(`(?i)\b(bearer\s+|basic\s+)[A-Za-z0-9+/_.=-]{8,}`), "${1}" + redacted, []string{"bearer", "basic"}},
	{regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://[^\s/:@"']*:)[^\s/@"']+@`), "${1}" + redacted + "@", []string{"://"}},
	{
		regexp.MustCompile(`(?i)(` + secretName + `\\*["']?\s*[:=]\s*)(\\*"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s,;&}"'\[][^\s,;&}"']*)`), "${1}" + redacted,
		[]string{"passw", "passphrase", "secret", "token", "key", "chap"},
	},
}

// shortestRun is how long something is that is looked into as hexadecimal or base64.
const shortestRun = 24

// secretMember is the name of a member of which the value is never shown.
var secretMember = regexp.MustCompile(`(?i)` + secretName + `$`)

// NewRedactor makes a redactor of secrets that are known, in every form in which they may be written.
func NewRedactor(secrets ...string) *Redactor {
	seen := map[string]bool{}
	var forms []string
	add := func(form string) {
		if len(form) >= shortest && !seen[form] {
			seen[form] = true
			forms = append(forms, form)
		}
	}
	for _, s := range secrets {
		for _, part := range parts(s) {
			written(part, add)
		}
	}
	slices.SortStableFunc(forms, func(a, b string) int { return len(b) - len(a) }) // of two that begin at one place the longer one counts
	var pairs []string
	for _, f := range forms {
		pairs = append(pairs, f, redacted)
	}
	return &Redactor{strings.NewReplacer(pairs...)}
}

// parts are a secret as it is, without white space around it, and each of its lines that is no frame.
func parts(s string) []string {
	out := []string{s, strings.TrimSpace(s)}
	if lines := strings.Split(s, "\n"); len(lines) > 1 {
		for _, line := range lines {
			if line = strings.TrimSpace(line); len(line) >= shortestLine && !strings.HasPrefix(line, "-----") {
				out = append(out, line)
			}
		}
	}
	return out
}

// written adds every form in which a secret may be written.
func written(s string, add func(string)) {
	if len(s) < shortest {
		return
	}
	add(s)
	add(url.QueryEscape(s))
	add(url.PathEscape(s))
	add(url.UserPassword("", s).String()[1:])
	add(hex.EncodeToString([]byte(s)))
	add(strings.ToUpper(hex.EncodeToString([]byte(s))))
	for quoted, i := s, 0; i < 2; i++ { // JSON in a line of the log is quoted twice
		slog := strconv.Quote(quoted)
		add(slog[1 : len(slog)-1])
		for _, html := range []bool{false, true} {
			var b bytes.Buffer
			e := json.NewEncoder(&b)
			e.SetEscapeHTML(html)
			if e.Encode(quoted) == nil {
				text := strings.TrimSpace(b.String())
				add(text[1 : len(text)-1])
			}
		}
		quoted = slog[1 : len(slog)-1]
	}
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for before := range 3 {
			add(within(encoding, s, before))
		}
	}
}

// within is what is the same of a secret in base64 wherever it stands in what was encoded, so many bytes after a group's begin.
func within(encoding *base64.Encoding, s string, before int) string {
	text := encoding.EncodeToString([]byte(strings.Repeat("\x00", before) + s))
	first := (before*8 + 5) / 6
	last := (before + len(s)) * 8 / 6
	if last-first < 2*shortest { // a few letters are in every other word
		return ""
	}
	return text[first:last]
}

// Redact returns a text without the secrets in it.
func (r *Redactor) Redact(text string) string {
	text = r.known.Replace(text)
	for _, b := range blocks {
		text = b.is.ReplaceAllString(text, b.with)
	}
	var out strings.Builder
	for line := range strings.Lines(text) {
		lower := strings.ToLower(line)
		for _, list := range [][]shape{selves, placed} {
			for _, s := range list {
				if slices.ContainsFunc(s.hints, func(hint string) bool { return strings.Contains(lower, hint) }) {
					line = s.is.ReplaceAllString(line, s.with)
				}
			}
		}
		reveal(&out, line)
	}
	return out.String()
}

// reveal writes a line without what conceals a secret.
func reveal(out *strings.Builder, line string) {
	for line != "" {
		n := 0
		for n < len(line) && encoding(line[n]) == encoding(line[0]) {
			n++
		}
		if n >= shortestRun && encoding(line[0]) && conceals(line[:n]) {
			out.WriteString(redacted)
		} else {
			out.WriteString(line[:n])
		}
		line = line[n:]
	}
}

// encoding reports whether a byte may be one of hexadecimal or base64.
func encoding(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '+' || b == '/' || b == '-' || b == '_'
}

// conceals reports whether something is encoded that has a secret in it by its shape: of tokens only hashes are known.
func conceals(run string) bool {
	is := func(p []byte) bool {
		return slices.ContainsFunc(selves, func(s shape) bool { return s.is.Match(p) })
	}
	std := strings.NewReplacer("-", "+", "_", "/").Replace(run)
	for from := range 4 {
		plain, _ := base64.RawStdEncoding.DecodeString(std[from:]) // what comes before an error
		if is(plain) {
			return true
		}
		if plain, _ = hex.DecodeString(run[from:]); is(plain) {
			return true
		}
	}
	return false
}

// JSON returns a document without the secrets in it; it stays one.
func (r *Redactor) JSON(document []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(document))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("read what is to be redacted: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("read what is to be redacted: more than one document")
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(r.value(v)); err != nil {
		return nil, fmt.Errorf("write what was redacted: %w", err)
	}
	return []byte(r.known.Replace(b.String())), nil
}

func (r *Redactor) value(v any) any {
	switch v := v.(type) {
	case string:
		return r.Redact(v)
	case json.Number:
		if text := r.known.Replace(v.String()); text != v.String() {
			return text
		}
	case []any:
		for i := range v {
			v[i] = r.value(v[i])
		}
	case map[string]any:
		out := make(map[string]any, len(v))
		for name, member := range v {
			if text, ok := member.(string); ok && text != "" && secretMember.MatchString(name) {
				member = redacted
			}
			out[r.Redact(name)] = r.value(member)
		}
		return out
	}
	return v
}
