package server

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/file"
)

func (b *bench) addKey(k httpapi.NewKey) (httpapi.KeyInfo, string) {
	b.t.Helper()
	key, page, err := b.AddKey(b.t.Context(), b.repo, k)
	if err != nil {
		b.t.Fatal(err)
	}
	return key, string(page)
}

func (b *bench) keys() []httpapi.KeyInfo {
	b.t.Helper()
	keys, err := b.ListKeys(b.t.Context(), b.repo)
	if err != nil {
		b.t.Fatal(err)
	}
	return keys
}

// opens reports whether a key opens the repository as it lies on the disk, without the appliance.
func (b *bench) opens(by store.Opener) error {
	b.t.Helper()
	backend, err := file.Open(filepath.Join(b.root, "repo"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer backend.Close()
	repo, err := store.Open(b.t.Context(), backend, by, store.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	return repo.Close()
}

func TestKeysOfARepository(t *testing.T) {
	b := newBench(t)
	point := b.backup()
	extra := filepath.Join(b.root, "second.key")
	second, _ := b.addKey(httpapi.NewKey{Kind: "key-file", KeyFile: extra, Label: "safe"})
	paper, page := b.addKey(httpapi.NewKey{Kind: "paper", Label: "deed"})
	typed, err := store.ParsePaperKey(page)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.opens(typed); err != nil {
		t.Errorf("the paper key does not open the repository: %v", err)
	}
	keys := b.keys()
	var own []string
	for _, k := range keys {
		if k.InUse {
			own = append(own, k.ID)
		}
	}
	if len(keys) != 3 || len(own) != 1 || own[0] == second.ID || own[0] == paper.ID {
		t.Fatalf("keys = %+v", keys)
	}
	drill, err := b.DrillKey(t.Context(), b.repo, httpapi.GivenKey{Paper: catalog.Secret(page)})
	if err != nil || drill.RestorePoint != point.ID || drill.VMName != "web" || drill.Wrapping.ID != paper.ID || drill.FrameBytes == 0 || drill.InUse {
		t.Errorf("drill = %+v, %v", drill, err)
	}
	text, err := os.ReadFile(extra)
	if err != nil {
		t.Fatal(err)
	}
	if drill, err = b.DrillKey(t.Context(), b.repo, httpapi.GivenKey{Key: catalog.Secret(text)}); err != nil || drill.Wrapping.ID != second.ID {
		t.Errorf("drill with the key file's content = %+v, %v", drill, err)
	}
	other := filepath.Join(b.root, "other.key")
	if _, err := store.NewKeyFile(other); err != nil {
		t.Fatal(err)
	}
	if _, err := b.DrillKey(t.Context(), b.repo, httpapi.GivenKey{Source: other}); kindOf(err) != "denied" {
		t.Errorf("drill with a wrong key: %v, want denied", err)
	}
	if err := b.RemoveKey(t.Context(), b.repo, own[0]); kindOf(err) != "conflict" {
		t.Errorf("removing the appliance's own key: %v, want conflict", err)
	}
	if err := b.RemoveKey(t.Context(), b.repo, paper.ID); err != nil {
		t.Error(err)
	}
	if err := b.opens(typed); kindOf(err) != "denied" {
		t.Errorf("opened with the paper key that was removed: %v, want denied", err)
	}
}

// The key file is lost together with its copies; what was printed opens the repository again.
func TestLostKeyFileIsMadeAgainByThePaperKey(t *testing.T) {
	b := newBench(t)
	point := b.backup()
	paper, page := b.addKey(httpapi.NewKey{Kind: "paper"})
	row, err := b.catalog.Repository(t.Context(), b.repo)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(row.KeyFile); err != nil {
		t.Fatal(err)
	}
	b.start()
	if info := b.info(); info.Status != catalog.HealthProblem || info.LastError.Kind != "transient" {
		t.Errorf("without its key: %s, %+v", info.Status, info.LastError)
	}
	if keys := b.keys(); len(keys) != 2 || keys[0].InUse || keys[1].InUse {
		t.Errorf("keys = %+v", keys)
	}
	given := httpapi.GivenKey{Paper: catalog.Secret(page)}
	if drill, err := b.DrillKey(t.Context(), b.repo, given); err != nil || drill.Wrapping.ID != paper.ID {
		t.Errorf("drill = %+v, %v", drill, err)
	}
	if _, _, err := b.AddKey(t.Context(), b.repo, httpapi.NewKey{Kind: "key-file"}); kindOf(err) != "transient" {
		t.Errorf("adding a key by the lost one: %v, want transient", err)
	}
	if key, _ := b.addKey(httpapi.NewKey{Kind: "key-file", By: given}); !key.InUse {
		t.Errorf("the new key is not the appliance's: %+v", key)
	}
	if info := b.info(); info.Status != catalog.HealthOK {
		t.Errorf("with its new key: %s, %+v", info.Status, info.LastError)
	}
	b.restoresTo(point.ID, "copy", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))
}

func TestRotatedKey(t *testing.T) {
	// The last step of a rotation that came to its end, per case.
	tests := map[string]func(b *bench, row catalog.Repository){
		"at once": func(b *bench, row catalog.Repository) {
			old, err := store.LoadKeyFile(row.KeyFile)
			if err != nil {
				b.t.Fatal(err)
			}
			key, err := b.RotateKey(b.t.Context(), b.repo)
			if err != nil || key.Key == old.Fingerprint() || !key.InUse {
				b.t.Fatalf("rotated = %+v, %v", key, err)
			}
			if err := b.opens(old); kindOf(err) != "denied" {
				b.t.Errorf("opened with the old key: %v, want denied", err)
			}
		},
		"killed before the store knew": func(b *bench, row catalog.Repository) {
			if _, err := store.NewKeyFile(rotated(row.KeyFile)); err != nil {
				b.t.Fatal(err)
			}
		},
		"killed before the file was in place": func(b *bench, row catalog.Repository) {
			fresh, err := store.NewKeyFile(rotated(row.KeyFile))
			if err == nil {
				var old store.Key
				old, err = store.LoadKeyFile(row.KeyFile)
				if err == nil {
					err = b.onBackend(b.t.Context(), b.repo, func(_ catalog.Repository, backend blob.Store) error {
						return store.RotateKey(b.t.Context(), backend, old, fresh)
					})
				}
			}
			if err != nil {
				b.t.Fatal(err)
			}
		},
	}
	for name, rotate := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			first := b.backup()
			row, err := b.catalog.Repository(t.Context(), b.repo)
			if err != nil {
				t.Fatal(err)
			}
			old, err := store.LoadKeyFile(row.KeyFile)
			if err != nil {
				t.Fatal(err)
			}
			rotate(b, row)
			if err := b.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.start()
			now, err := store.LoadKeyFile(row.KeyFile)
			if err != nil || now == old {
				t.Fatalf("key file = %v, %v; it was %v", now, err, old)
			}
			if err := b.opens(old); kindOf(err) != "denied" {
				t.Errorf("opened with the old key: %v, want denied", err)
			}
			if _, err := os.Stat(rotated(row.KeyFile)); !os.IsNotExist(err) {
				t.Errorf("the new file is still beside it: %v", err)
			}
			if keys := b.keys(); len(keys) != 1 || keys[0].Key != now.Fingerprint() || !keys[0].InUse {
				t.Errorf("keys = %+v", keys)
			}
			b.restoresTo(first.ID, "copy", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))
		})
	}
}

func TestKeyFromElsewhere(t *testing.T) {
	const name = "CAIRN_TEST_KEY_FROM_ELSEWHERE"
	key := filepath.Join(t.TempDir(), "k")
	if _, err := store.NewKeyFile(key); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t)
	_, err = b.AddRepository(t.Context(), httpapi.NewRepository{Name: "env", Path: filepath.Join(b.root, "env"), KeySource: "env:" + name})
	if kindOf(err) != "invalid" {
		t.Errorf("variable that is not set: %v, want invalid", err)
	}
	if _, err := os.Stat(filepath.Join(b.root, "env")); !os.IsNotExist(err) {
		t.Errorf("something was left: %v", err)
	}
	if err := os.Setenv(name, string(text)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Unsetenv(name) })
	repo, err := b.AddRepository(t.Context(), httpapi.NewRepository{Name: "env", Path: filepath.Join(b.root, "env"), KeySource: "env:" + name})
	if err != nil || repo.Status != catalog.HealthOK || repo.KeyFile != "env:"+name {
		t.Fatalf("repository = %+v, %v", repo, err)
	}
	if _, err := b.RotateKey(t.Context(), repo.ID); kindOf(err) != "conflict" {
		t.Errorf("rotating a key from outside: %v, want conflict", err)
	}
	if _, err := b.DetachRepository(t.Context(), repo.ID); err != nil {
		t.Fatal(err)
	}
	again := httpapi.NewRepository{Name: "file", Path: filepath.Join(b.root, "env"), Attach: true, KeySource: "file:" + key}
	if repo, err = b.AddRepository(t.Context(), again); err != nil || repo.KeyFile != key {
		t.Errorf("attached = %+v, %v", repo, err)
	}
	_, err = b.DetachRepository(t.Context(), "repo_x")
	if kind := fault.KindOf(err); kind != fault.NotFound {
		t.Errorf("detaching nothing: %v", kind)
	}
}
