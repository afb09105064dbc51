package engine

import (
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/internal/fault"
)

func TestRefused(t *testing.T) {
	fault400 := func(detail string) string {
		return "<fault><reason>Operation Failed</reason><detail>[" + detail + "]</detail></fault>"
	}
	for name, tt := range map[string]struct {
		status int
		body   string
		want   fault.Kind
		words  string
	}{
		"locked":                 {409, fault400("Cannot create Snapshot. The following disks are locked: x."), fault.Conflict, "disks are locked"},
		"a conflict of another":  {409, fault400("Cannot do it."), fault.Conflict, "Cannot do it"},
		"no such thing":          {404, "<fault><reason>Operation Failed</reason><detail>Entity not found: x</detail></fault>", fault.NotFound, "Entity not found"},
		"no rights":              {403, "", fault.Denied, "Forbidden"},
		"no rights, in words":    {400, fault400("User is not authorized to perform this action."), fault.Denied, "not authorized"},
		"a page":                 {503, "<html><body>Service Unavailable</body></html>", fault.Transient, "Service Unavailable"},
		"an engine's own bug":    {500, fault400("Internal Engine Error"), fault.Transient, "Internal Engine Error"},
		"no space":               {409, fault400("Cannot add Virtual Disk. Low disk space on Storage Domain nfs."), fault.Conflict, "Low disk space"},
		"a name that is in use":  {409, fault400("Cannot add VM. The VM name is already in use, name already in use."), fault.Exists, "in use"},
		"elsewhere":              {302, "", fault.Invalid, "Found"},
		"nonsense":               {400, "<fault><detail>" + strings.Repeat("x", 5000) + "</detail></fault>", fault.Invalid, "xxx"},
		"an action that failed":  {409, "<action><fault><detail>[Cannot finalize]</detail></fault><status>failed</status></action>", fault.Conflict, "Cannot finalize"},
		"a document with no end": {400, "<fault><detail>", fault.Invalid, "Bad Request"},
	} {
		err := refused(Request{Op: "do", Subject: "it"}, tt.status, []byte(tt.body))
		meaning, advice := fault.Explanation(err)
		if fault.KindOf(err) != tt.want || !strings.Contains(err.Error(), tt.words) || meaning == "" || advice == "" || len(err.Error()) > 700 {
			t.Errorf("%s: %v (%v; %q, %q), want %v with %q", name, err, fault.KindOf(err), meaning, advice, tt.want, tt.words)
		}
	}
}

// FuzzRefused reads the bodies of refusals: the engine's words are shown, so they must be short and plain.
func FuzzRefused(f *testing.F) {
	for _, doc := range []string{
		"<fault><reason>Operation Failed</reason><detail>[Cannot remove VM. 1 disk is locked.]</detail></fault>",
		"<action><status>failed</status><fault><detail>[no]</detail></fault></action>", "<html><body>Bad Gateway</body></html>", "",
	} {
		for _, status := range []int{301, 400, 401, 404, 409, 503} {
			f.Add([]byte(doc), status)
		}
		for seed := range boundary.Text([]byte(doc)) {
			f.Add(seed, 409)
		}
	}
	f.Fuzz(func(t *testing.T, doc []byte, status int) {
		err := refused(Request{Op: "do", Subject: "it"}, status, doc)
		if err == nil || fault.KindOf(err) == fault.Internal {
			t.Errorf("%d: %v", status, err)
		}
		if text := err.Error(); len(text) > 2000 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' }) {
			t.Errorf("%d: %q", status, text)
		}
	})
}
