package apixml

import (
	"strings"
	"testing"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/internal/fault"
)

func TestDecodeRefuses(t *testing.T) {
	deep := strings.Repeat("<a>", maxDepth+1) + strings.Repeat("</a>", maxDepth+1)
	for name, doc := range map[string]string{
		"nothing":            "",
		"a page":             "<html><body>Please log in</body></html>",
		"another entity":     "<disk/>",
		"a document cut off": "<vm><name>x",
		"nesting":            "<vm>" + deep + "</vm>",
		"nesting of parts":   "<vm>" + strings.Repeat("<cluster>", 200000),
		"a bad number":       "<vm><memory>lots</memory></vm>",
		"two documents":      "<vm/></vm>",
	} {
		if vm, err := DecodeOne([]byte(doc), "vm", sdk.XMLVmReadOne); vm != nil || fault.KindOf(err) != fault.Transient {
			t.Errorf("%s: %v, %v; want a Transient error", name, vm, err)
		}
	}
	vm, err := DecodeOne([]byte("<?xml version=\"1.0\"?>\n<vm id=\"1\"><unknown><name>no</name></unknown><name>a &lt; b</name></vm>\n"), "vm", sdk.XMLVmReadOne)
	if err != nil {
		t.Fatalf("a good document: %v", err)
	}
	if name, id := vm.MustName(), vm.MustId(); name != "a < b" || id != "1" {
		t.Errorf("a good document has the name %q and the id %q", name, id)
	}
}
