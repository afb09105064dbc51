package imageiotransport

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
)

// imagesPath is what every image's path begins with; the ticket follows.
const imagesPath = "/images/"

// connectTimeout bounds connecting to one place, its TLS included.
const connectTimeout = 10 * time.Second

// place is where the image can be had.
type place struct {
	network, address string
	host             string      // as the URL has it
	tls              *tls.Config // nil on the host itself
}

// dialError is a place that nobody can be reached at.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// places reads the URLs. Errors do not hold them.
func places(i hypervisors.Imageio) (out []place, path string, err error) {
	roots, err := authority(i.CA)
	if err != nil {
		return nil, "", err
	}
	for n, raw := range []hypervisors.TicketURL{i.TransferURL, i.ProxyURL} {
		if raw == "" && n > 0 {
			continue
		}
		u, err := url.Parse(string(raw))
		if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return nil, "", errors.New("its URL is none of an image transfer's")
		}
		ticket, ok := strings.CutPrefix(u.Path, imagesPath)
		if !ok || !goodTicket(ticket) || path != "" && path != u.Path {
			return nil, "", errors.New("its URL names no ticket, or its two URLs name different ones")
		}
		path = u.Path
		out = append(out, place{
			network: "tcp", address: address(i, u), host: u.Host,
			tls: &tls.Config{ServerName: u.Hostname(), RootCAs: roots, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}},
		})
	}
	return out, path, nil
}

// goodTicket holds a ticket to what can stand in a request line as it is.
func goodTicket(s string) bool {
	return s != "" && len(s) <= 256 && strings.IndexFunc(s, func(r rune) bool {
		return r != '-' && r != '_' && r != '.' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) < 0
}

func authority(pem string) (*x509.CertPool, error) {
	if pem == "" {
		return nil, nil //nolint:nilnil // the system's
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(pem)) {
		return nil, errors.New("the certificate authority that came with it has no certificate in it")
	}
	return pool, nil
}

// address is where to connect to for a URL.
func address(i hypervisors.Imageio, u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "443"
	}
	host := u.Hostname()
	if other := i.Address(host); other != "" {
		if _, _, err := net.SplitHostPort(other); err == nil {
			return other
		}
		host = strings.Trim(other, "[]")
	}
	return net.JoinHostPort(host, port)
}

// connect opens a connection at the place that worked last, else at the others in turn, and looks whether the ticket is good there:
// a daemon that refuses it says so better to a small request than in the middle of a large one.
func (l *link) connect(ctx context.Context) (*conn, error) {
	var errs []error
	first := int(l.at.Load())
	for n := range l.places {
		i := (first + n) % len(l.places)
		c, err := l.dial(ctx, l.places[i])
		if err == nil && l.opened {
			_, err = l.options(ctx, c)
			if err != nil || c.broken {
				c.close()
				return nil, cmp.Or(err, error(&lostError{errHungUp}))
			}
		}
		if err == nil {
			l.at.Store(int64(i))
			if first != i {
				l.log.Info("an image transfer goes by way of another address", "disk", l.name, "address", l.places[i].address)
			}
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if _, unreachable := errors.AsType[*dialError](err); !unreachable {
			return nil, err
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

var errHungUp = errors.New("the daemon hung up after its answer")

// goLocal goes by way of the daemon's Unix socket if this is its host: that is so where a socket at the path that the daemon has named
// answers to the ticket. Only the host's own daemon is asked, whose certificate has been verified; what is below /run is root's.
func (l *link) goLocal(ctx context.Context) {
	if l.has.socket == "" || l.at.Load() != 0 {
		return
	}
	if st, err := os.Stat(l.has.socket); err != nil || st.Mode()&os.ModeSocket == 0 {
		return
	}
	c, err := l.dial(ctx, place{network: "unix", address: l.has.socket, host: "localhost"})
	if err != nil {
		return
	}
	has, err := l.options(ctx, c)
	if err != nil || c.broken {
		c.close()
		return
	}
	l.log.Debug("an image transfer goes by way of the host's own socket", "disk", l.name)
	for old := l.take(false); old != nil; old = l.take(false) {
		old.close()
	}
	l.places = append([]place{{network: "unix", address: l.has.socket, host: "localhost"}}, l.places...)
	l.has = has
	l.put(c)
}

func (l *link) dial(ctx context.Context, p place) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	nc, err := (&net.Dialer{}).DialContext(ctx, p.network, p.address)
	if err != nil {
		return nil, &dialError{fmt.Errorf("connect to %s: %w", p.address, err)}
	}
	if p.tls == nil {
		return newConn(nc, p.host, l.clock.Add(1)), nil
	}
	t := tls.Client(nc, p.tls)
	if err := t.HandshakeContext(ctx); err != nil {
		_ = nc.Close()
		if _, bad := errors.AsType[*tls.CertificateVerificationError](err); bad {
			return nil, fmt.Errorf("connect to %s: %w", p.address, err)
		}
		return nil, &dialError{fmt.Errorf("speak TLS with %s: %w", p.address, err)}
	}
	return newConn(t, p.host, l.clock.Add(1)), nil
}
