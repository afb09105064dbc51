package server

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob"
)

func TestOpenRepositoryIsTakenAway(t *testing.T) {
	move := func(b *bench, from, to string) {
		if err := os.Rename(filepath.Join(b.root, from), filepath.Join(b.root, to)); err != nil {
			b.t.Fatal(err)
		}
	}
	key := func(b *bench) string { return filepath.Join("data", "keys", b.repo+".key") }
	tests := map[string]struct {
		take, bring func(b *bench)
		want        string
	}{
		"directory gone": {
			take:  func(b *bench) { move(b, "repo", "away") },
			bring: func(b *bench) { move(b, "away", "repo") },
			want:  "transient",
		},
		"directory empty": {
			take: func(b *bench) {
				move(b, "repo", "away")
				if err := os.Mkdir(filepath.Join(b.root, "repo"), 0o700); err != nil {
					b.t.Fatal(err)
				}
			},
			bring: func(b *bench) { move(b, "repo", "empty"); move(b, "away", "repo") },
			want:  "transient",
		},
		"another repository": {
			take: func(b *bench) {
				_, err := b.AddRepository(b.t.Context(), httpapi.NewRepository{Name: "other", Path: filepath.Join(b.root, "other")})
				if err != nil {
					b.t.Fatal(err)
				}
				move(b, "repo", "away")
				copyTree(b.t, filepath.Join(b.root, "other"), filepath.Join(b.root, "repo"))
			},
			bring: func(b *bench) { move(b, "repo", "wrong"); move(b, "away", "repo") },
			want:  "transient",
		},
		"key file gone": {
			take:  func(b *bench) { move(b, key(b), "key") },
			bring: func(b *bench) { move(b, "key", key(b)) },
			want:  "transient",
		},
		"key file of another": {
			take: func(b *bench) {
				move(b, key(b), "key")
				if _, err := store.NewKeyFile(filepath.Join(b.root, key(b))); err != nil {
					b.t.Fatal(err)
				}
			},
			bring: func(b *bench) { move(b, "key", key(b)) },
			want:  "denied",
		},
		"key file that is none": {
			take: func(b *bench) {
				move(b, key(b), "key")
				if err := os.WriteFile(filepath.Join(b.root, key(b)), []byte("x"), 0o400); err != nil {
					b.t.Fatal(err)
				}
			},
			bring: func(b *bench) { move(b, "key", key(b)) },
			want:  "invalid",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.backup()
			tt.take(b)
			info, err := b.GetRepository(t.Context(), b.repo)
			if err != nil {
				t.Fatal(err)
			}
			if e := info.LastError; info.Status != catalog.HealthProblem || e == nil || e.Kind != tt.want || e.Meaning == "" || e.Advice == "" || info.Usage != nil {
				t.Errorf("repository = %s, %+v, usage %v, want a problem, %s", info.Status, e, info.Usage, tt.want)
			}
			tt.bring(b)
			info, err = b.GetRepository(t.Context(), b.repo)
			if err != nil || info.Status != catalog.HealthOK || info.Usage == nil || info.Usage.RestorePoints != 1 {
				t.Errorf("after it came back: %+v, %v", info, err)
			}
			b.backup()
		})
	}
}

// TestDroppedRepositoryIsOpenedAnew: who had looked a repository up before it was closed does not get what was closed.
func TestDroppedRepositoryIsOpenedAnew(t *testing.T) {
	b := stillBench(t)
	waiting, err := b.repositories.hold(b.repo)
	if err != nil {
		t.Fatal(err)
	}
	waiting.mu.Unlock()
	if err := b.repositories.drop(b.repo); err != nil {
		t.Fatal(err)
	}
	if waiting.lock() {
		waiting.mu.Unlock()
		t.Error("what was closed is used")
	}
	repo, err := b.repository(t.Context(), b.repo)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := repo.RestorePoints(t.Context()); err != nil {
		t.Errorf("opened anew: %v", err)
	}
}

// seenClosing is a backend that says when it is closed.
type seenClosing struct {
	blob.Store
	closing func()
}

func (s seenClosing) Close() error {
	s.closing()
	return s.Store.Close()
}

// TestAClosingRepositoryIsInTheTable: who opens it meanwhile waits for that entry, and does not get another one.
func TestAClosingRepositoryIsInTheTable(t *testing.T) {
	b := stillBench(t)
	entry, err := b.repositories.hold(b.repo)
	if err != nil {
		t.Fatal(err)
	}
	seen := false
	entry.backend = seenClosing{entry.backend, func() {
		seen = true
		if got, err := b.repositories.entry(b.repo); err != nil || got != entry {
			t.Errorf("while it is closed another entry is there, %v", err)
		}
	}}
	entry.mu.Unlock()
	if err := b.repositories.drop(b.repo); err != nil || !seen {
		t.Fatalf("closed %v, %v", seen, err)
	}
	if got, err := b.repositories.entry(b.repo); err != nil || got == entry {
		t.Errorf("it stays in the table after it was closed, %v", err)
	}
}
