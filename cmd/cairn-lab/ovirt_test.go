package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
)

func TestServesAnEngine(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	out, in := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := Run(ctx, []string{"ovirt", "--vms=5", "--dir=" + t.TempDir()}, in)
		done <- err
		_ = in.CloseWithError(io.EOF)
	}()
	said := map[string]string{}
	for s := bufio.NewScanner(out); len(said) < 4 && s.Scan(); {
		key, value, _ := strings.Cut(s.Text(), " ")
		said[key] = value
	}
	pem, err := os.ReadFile(said["ca"])
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, "GET", said["engine"]+"/vms", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(said["user"], said["password"])
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || strings.Count(string(body), "<vm ") != 5+2 {
		t.Errorf("%v, %d VMs", err, strings.Count(string(body), "<vm "))
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("it ended with %v", err)
	}
}
