package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

// healthTime bounds the question, which whoever asks it repeats.
const healthTime = 8 * time.Second

// health is `cairnd health`: it asks the cairnd of this machine, as it is configured here, whether it is ready. Containers have nothing
// else to ask with.
func health(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	c, err := configure("cairnd health", args, getenv, stderr)
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(c.listen)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, healthTime)
	defer cancel()
	if err := askReady(ctx, filepath.Join(c.dir, "tls", "ca.crt"), net.JoinHostPort(host, port)); err != nil {
		return fault.Context("ask whether it is ready", c.listen, err).Explain(
			"The appliance of this data directory does not answer, or it is not ready.", "Look at its log. After a start it first settles what an earlier process has left.")
	}
	_, err = fmt.Fprintln(stdout, "ready")
	return err
}

func askReady(ctx context.Context, authority, address string) error {
	p, err := os.ReadFile(authority)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(p) {
		return fault.New(fault.Corrupt, "read certificate", authority, "there is none in it")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/api/v1/readyz", nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS13}}}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return fault.Wrap(fault.Transient, "", "", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	var problem struct{ Detail string }
	_ = json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&problem) // the status says enough
	return fault.New(fault.Transient, "", "", "it answers %d %s", resp.StatusCode, problem.Detail)
}
