package identity

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

// The errors a caller tells apart.
var (
	ErrCredentials = errors.New("the credentials are not right") // wrong or unknown, it is not said which
	ErrSetUpDone   = errors.New("the appliance is set up already")
)

const (
	// TokenPrefix makes tokens recognisable to secret scanners.
	TokenPrefix = "cairn_"

	loginLifetime   = 12 * time.Hour
	firstLifetime   = 90 * 24 * time.Hour
	defaultLifetime = 90 * 24 * time.Hour
	// usedGranularity bounds how often the catalog is written because a token is used.
	usedGranularity = time.Minute
	// parallelHashes bounds memory (19 MiB each) and CPU spent on passwords.
	parallelHashes = 2
)

// Service answers who is asking. Its methods may be called from several goroutines.
type Service struct {
	store     Store
	setUpFile string
	log       *slog.Logger
	hasher    *hasher
	throttle  *throttle
	now       func() time.Time // of logins
	audit     func(context.Context, catalog.AuditEntry)

	mu   sync.Mutex
	used map[string]time.Time // when the use of a token was last written, by its id
}

// Options of New.
type Options struct {
	Store     Store
	SetUpFile string // keeps the hash of the set-up token until it is used
	Log       *slog.Logger
	Now       func() time.Time // nil is time.Now; for tests of how logins are slowed down
	// Audit is told of log-ins and the set-up, of refused ones too; it bounds what it writes of these. nil is nobody.
	Audit func(context.Context, catalog.AuditEntry)
}

// New makes a service.
func New(o Options) *Service {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Service{
		store: o.Store, setUpFile: o.SetUpFile, log: o.Log, hasher: newHasher(parallelHashes), throttle: newThrottle(), now: o.Now, audit: o.Audit,
		used: map[string]time.Time{},
	}
}

// Caller is who asks.
type Caller struct {
	UserID, User string
	TokenID      string
	TokenHash    string
	Scope        string // of the token; "" or ScopeMetrics
	ExpiresAt    time.Time
}

// Issued is a new token. Secret is known only now.
type Issued struct {
	Token  catalog.Token
	User   string
	Secret string
}

// SetUp creates the first user. It works once: afterwards the error is Exists and matches ErrSetUpDone.
func (s *Service) SetUp(ctx context.Context, source, setUpToken, name, password string) (Issued, error) {
	issued, err := s.setUp(ctx, source, setUpToken, name, password)
	if !errors.Is(err, ErrSetUpDone) {
		s.said(ctx, "setup", source, issued.User, err)
	}
	return issued, err
}

func (s *Service) setUp(ctx context.Context, source, setUpToken, name, password string) (Issued, error) {
	n, err := s.store.CountUsers(ctx)
	if err != nil {
		return Issued{}, err
	}
	if n > 0 {
		return Issued{}, setUpDone()
	}
	if err := s.throttle.try(source, "", s.now()); err != nil {
		return Issued{}, err
	}
	if err := s.checkSetUp(setUpToken); err != nil {
		return Issued{}, err
	}
	s.throttle.succeeded(source, "")
	hash, err := s.hasher.hash(ctx, password)
	if err != nil {
		return Issued{}, err
	}
	user := catalog.User{Name: name, PasswordHash: hash}
	if err := s.store.CreateFirstUser(ctx, &user); err != nil {
		if fault.KindOf(err) == fault.Exists {
			return Issued{}, setUpDone()
		}
		return Issued{}, err
	}
	if err := s.forgetSetUp(); err != nil {
		s.log.WarnContext(ctx, "set-up token not removed, it is void", "err", err)
	}
	s.log.InfoContext(ctx, "appliance set up", "user", name)
	return s.issue(ctx, user, "first token", "", firstLifetime)
}

func setUpDone() error {
	return fault.Wrap(fault.Exists, "", "", ErrSetUpDone).Explain(
		"There is an administrator already; the set-up token works only once.", "Log in instead.")
}

// Login exchanges name and password for a token that expires after some hours.
func (s *Service) Login(ctx context.Context, source, name, password string) (Issued, error) {
	issued, err := s.login(ctx, source, name, password)
	s.said(ctx, "login", source, s.knownName(ctx, name), err)
	return issued, err
}

func (s *Service) login(ctx context.Context, source, name, password string) (Issued, error) {
	now := s.now()
	if err := s.throttle.try(source, name, now); err != nil {
		return Issued{}, err
	}
	user, err := s.store.UserByName(ctx, name)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return Issued{}, err
	}
	ok, err := s.hasher.verify(ctx, user.PasswordHash, password)
	if err != nil {
		return Issued{}, err
	}
	if !ok {
		s.log.WarnContext(ctx, "login refused", "source", source)
		return Issued{}, fault.Wrap(fault.Denied, "", "", ErrCredentials).Explain(
			"There is no such user, or the password is another one.", "Check both and try again.")
	}
	s.throttle.succeeded(source, name)
	at := now.UTC()
	user.LastLogin = &at
	if err := s.store.UpdateUser(ctx, user); err != nil {
		return Issued{}, err
	}
	return s.issue(ctx, user, "login", "", loginLifetime)
}
