package identity

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"

	"github.com/cairn-backup/cairn/internal/fault"
)

// The limits of a password's length, in characters.
const (
	minPassword = 12
	maxPassword = 256
)

// argonParams are stored with each hash, so that they can be raised without locking anybody out.
type argonParams struct {
	memoryKiB, rounds uint32
	lanes             uint8
}

// present takes about 0.2 s of one core and 19 MiB: the lower of the two settings OWASP recommends, because the
// appliance verifies few passwords and shares its memory with backups.
var present = argonParams{memoryKiB: 19 << 10, rounds: 2, lanes: 1}

// The bounds of what a stored hash may ask for: a catalog that was tampered with must not exhaust the memory.
const (
	maxArgonMemoryKiB = 1 << 20
	maxArgonRounds    = 64
	saltBytes         = 16
	hashBytes         = 32
	queuePerSlot      = 8
)

// hasher makes and verifies password hashes, few at a time.
type hasher struct{ slots, queue chan struct{} }

// newHasher bounds the concurrent verifications, and with them memory and CPU that strangers can make us use.
func newHasher(slots int) *hasher {
	return &hasher{slots: make(chan struct{}, slots), queue: make(chan struct{}, slots*queuePerSlot)}
}

func (h *hasher) enter(ctx context.Context) error {
	select {
	case h.queue <- struct{}{}:
	default:
		return fault.New(fault.Transient, "verify password", "", "too many logins at once")
	}
	select {
	case h.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		<-h.queue
		return fault.Wrap(fault.Transient, "verify password", "", ctx.Err())
	}
}

func (h *hasher) leave() {
	<-h.slots
	<-h.queue
}

// hash returns "$argon2id$v=19$m=…,t=…,p=…$salt$hash".
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	if n := utf8.RuneCountInString(password); n < minPassword || n > maxPassword {
		return "", fault.New(fault.Invalid, "set password", "", "it has %d characters, %d to %d are allowed", n, minPassword, maxPassword)
	}
	if err := h.enter(ctx); err != nil {
		return "", err
	}
	defer h.leave()
	salt := make([]byte, saltBytes)
	_, _ = rand.Read(salt) // never fails since Go 1.24
	sum := argon2.IDKey([]byte(password), salt, present.rounds, present.memoryKiB, present.lanes, hashBytes)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, present.memoryKiB, present.rounds,
		present.lanes, b64.EncodeToString(salt), b64.EncodeToString(sum)), nil
}

// verify reports whether the password is the one that was hashed. With stored == "" it does the same work and
// answers no, so that the time does not tell whether a user exists.
func (h *hasher) verify(ctx context.Context, stored, password string) (bool, error) {
	p, salt, want := present, make([]byte, saltBytes), []byte(nil)
	if stored != "" {
		var err error
		if p, salt, want, err = parseHash(stored); err != nil {
			return false, err
		}
	}
	if len(password) > 4*maxPassword {
		return false, nil
	}
	if err := h.enter(ctx); err != nil {
		return false, err
	}
	defer h.leave()
	got := argon2.IDKey([]byte(password), salt, p.rounds, p.memoryKiB, p.lanes, hashBytes)
	return subtle.ConstantTimeCompare(got, want) == 1, nil
}

func parseHash(stored string) (p argonParams, salt, sum []byte, err error) {
	bad := fault.New(fault.Corrupt, "read password hash", "", "unknown form")
	parts := strings.Split(stored, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return p, nil, nil, bad
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &p.memoryKiB, &p.rounds, &p.lanes); err != nil {
		return p, nil, nil, bad
	}
	salt, errSalt := base64.RawStdEncoding.DecodeString(parts[4])
	sum, errSum := base64.RawStdEncoding.DecodeString(parts[5])
	if errSalt != nil || errSum != nil || len(salt) < 8 || len(sum) != hashBytes || p.lanes == 0 ||
		p.rounds == 0 || p.rounds > maxArgonRounds || p.memoryKiB < 8 || p.memoryKiB > maxArgonMemoryKiB {
		return p, nil, nil, bad
	}
	return p, salt, sum, nil
}
