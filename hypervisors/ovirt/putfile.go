package ovirt

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// putFile sends a whole file to an open upload: the image of a mover, before there is a mover to do it.
func (d *Driver) putFile(ctx context.Context, e hypervisors.Export, from io.Reader, size int64) error {
	const op = "upload image"
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(e.Imageio.CA)) {
		return fault.New(fault.Invalid, op, e.Name, "imageio's CA is no certificate")
	}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}, DisableKeepAlives: true, ResponseHeaderTimeout: 10 * time.Minute,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			if to := d.addresses[strings.ToLower(host)]; to != "" {
				if _, _, err := net.SplitHostPort(to); err == nil {
					address = to
				} else {
					address = net.JoinHostPort(to, port)
				}
			}
			return (&net.Dialer{Timeout: 20 * time.Second}).DialContext(ctx, network, address)
		},
	}
	counted := &counter{r: from}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, string(e.Imageio.TransferURL)+"?flush=y&close=y", counted)
	if err != nil {
		return fault.New(fault.Transient, op, e.Name, "the address of the transfer cannot be used")
	}
	req.ContentLength = size
	req.Header.Set("Content-Range", fmt.Sprintf("bytes 0-%d/*", size-1))
	resp, err := (&http.Client{Transport: transport}).Do(req)
	switch {
	case ctx.Err() != nil:
		return fault.Wrap(fault.KindOf(ctx.Err()), op, e.Name, ctx.Err())
	case counted.end && counted.n < size:
		return badImage(e.Name, fmt.Errorf("it ended after %d of %d bytes", counted.n, size))
	case err != nil:
		var cause error = errors.New("the connection failed")
		if op, ok := errors.AsType[*net.OpError](err); ok {
			cause = op // the URL, which is a key, is not in it
		}
		return fault.Wrap(fault.Transient, op, e.Name, cause).
			Explain("The image could not be uploaded to the host.", "Check that the appliance reaches port 54322 of the hosts, or set the option "+OptTransferVia+".")
	}
	defer resp.Body.Close()
	words, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
	if resp.StatusCode/100 != 2 {
		return fault.New(fault.Transient, op, e.Name, "imageio answers %d: %s", resp.StatusCode, cmp.Or(engine.Clip(string(words)), http.StatusText(resp.StatusCode)))
	}
	return nil
}

// counter tells where a reader has ended.
type counter struct {
	r   io.Reader
	n   int64
	end bool
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.end = c.end || err != nil
	return n, err
}
