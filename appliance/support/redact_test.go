package support

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRedactShapes(t *testing.T) {
	r := NewRedactor()
	for _, text := range []string{
		"-----BEGIN EC PRIVATE KEY-----\nCANARY\n-----END EC PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----\nCANARY and no end", "cairn-key-1:0CAFE0:0a", "CAIRN-PAPER-1:CANARY",
		"AGE-SECRET-KEY-1CANARY", "AGE-SECRET-KEY-PQ-1CANARY", "cairn_CANARYCANARYCANARYCANARY", "setup_CANARYCANARYCANARYCANARY", "cairnjoin_CANARYCANARYCANARYCANARY", "ticket_CANARYCANARYCANARYCANARY",
		"Authorization: Bearer CANARYCANARY", "postgres://cairn:CANARY@db/cairn?sslmode=verify-full", "qemu+ssh://root:CANARY@h1/system", "iscsi://u:CANARY@san:3260/iqn.x",
		"host=db password=CANARY dbname=cairn", `{"password":"CANARY","x":1}`, `{"password": "CAN\"CANARY"}`, "secret: 'CANARY x'", "token=CANARY&x=1", "<password>CANARY</password>",
		"<custom_script>#cloud-config\nCANARY</custom_script>", `level=INFO msg="x" err="connect: password=CANARY refused"`, `msg="{\"password\":\"CANARY\"}"`, "PASSWORD = CANARY",
		"chap_password: CANARY", `"root_password":"CANARY"`, "CAIRN_TOKEN=CANARY", "ssh.private_key=CANARY", `session.auth.chap=CANARY`,
	} {
		if got := r.Redact(text); strings.Contains(got, "CANARY") || strings.Contains(got, "0CAFE0") || !strings.Contains(got, redacted) {
			t.Errorf("%q becomes %q", text, got)
		}
	}
	for _, text := range []string{
		"qemu+ssh://root@h1/system", "https://engine:443/x", "the token was used already", "tokens: 3", "key_file=/var/lib/cairn/keys/repo_01.key", "2026-11-22T12:00:00Z",
		"token_id=tok_1", "password=[redacted]", "a basic idea, well understood", "fingerprint sha256:0123", "setup-token 0600 65 bytes",
	} {
		if got := r.Redact(text); got != text {
			t.Errorf("%q becomes %q", text, got)
		}
	}
}

// A token is found in what was encoded, too, although nobody knows it any more.
func TestRedactEncodedShapes(t *testing.T) {
	const token = "cairn_CANARYCANARYCANARYCANARY"
	for _, before := range []string{"", "u", "u:", "u:v"} {
		for form, text := range map[string]string{
			"base64": base64.StdEncoding.EncodeToString([]byte(before + token)), "base64url": base64.RawURLEncoding.EncodeToString([]byte(before + token + "\xff")), "hex": fmt.Sprintf("%x", before+token), "HEX": fmt.Sprintf("%X", before+token),
		} {
			if got := NewRedactor().Redact("x " + text + " y"); canary(got, "CANARY") != "" || !strings.Contains(got, redacted) {
				t.Errorf("%s of %q becomes %q", form, before+token, got)
			}
		}
	}
	const sum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
	if got := NewRedactor().Redact(sum); got != sum {
		t.Errorf("hashes become %q", got)
	}
}

// canary finds a secret in whatever form it was written, and is not made of the redactor's own forms.
func canary(text, secret string) string {
	if strings.Contains(text, secret) {
		return "clear"
	}
	for _, unescape := range []func(string) (string, error){url.QueryUnescape, url.PathUnescape, func(s string) (string, error) { return strconv.Unquote(`"` + s + `"`) }} {
		if plain, err := unescape(text); err == nil && strings.Contains(plain, secret) {
			return "escaped"
		}
	}
	for from := range len(text) {
		if p, _ := hex.DecodeString(text[from:]); strings.Contains(string(p), secret) { // with what comes before the error
			return "hex"
		}
		for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding, base64.RawURLEncoding} {
			p, _ := encoding.DecodeString(text[from:])
			if strings.Contains(string(p), secret) {
				return "base64"
			}
		}
	}
	return ""
}

// Every known secret is found in every form, alone and amid others.
func TestRedactKnown(t *testing.T) {
	const seed = 11
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, seed))
	letters := []rune("abcXYZ0189 \"\\/+&=%<>:@é\t#?'")
	for range 60 {
		var b strings.Builder
		for range 10 + random.IntN(30) {
			b.WriteRune(letters[random.IntN(len(letters))])
		}
		secret := strings.TrimSpace("q" + b.String() + "q")
		object, err := json.Marshal(map[string]string{"v": secret})
		if err != nil {
			t.Fatal(err)
		}
		before := strings.Repeat("u", random.IntN(4)) + ":"
		for form, text := range map[string]string{
			"clear": secret, "json": string(object), "log": fmt.Sprintf("v=%q", secret), "json in a log": fmt.Sprintf("v=%q", object),
			"query": "?v=" + url.QueryEscape(secret), "path": "/" + url.PathEscape(secret) + "/x", "user": (&url.URL{Scheme: "http", User: url.UserPassword("u", secret), Host: "h"}).String(),
			"hex": hex.EncodeToString([]byte(before + secret + ":x")), "HEX": fmt.Sprintf("%X", secret), "base64": base64.StdEncoding.EncodeToString([]byte(before + secret + ":x")),
			"base64url": base64.RawURLEncoding.EncodeToString([]byte(before + secret)), "alone": base64.StdEncoding.EncodeToString([]byte(secret)),
		} {
			if got := NewRedactor("another", secret).Redact(text); canary(got, secret) != "" || strings.Contains(got, secret) {
				t.Errorf("%s: %q of %q becomes %q (%s)", form, text, secret, got, canary(got, secret))
			}
		}
	}
}

// The canary sees what is there: a redactor that knows nothing lets each form through.
func TestCanarySings(t *testing.T) {
	const secret = "Tr0ub4dor & 3/x+y"
	for form, text := range map[string]string{
		"clear": "x " + secret, "escaped": "?v=" + url.QueryEscape(secret), "hex": "00" + hex.EncodeToString([]byte("u"+secret)),
		"base64": "x " + base64.StdEncoding.EncodeToString([]byte("user:"+secret)),
	} {
		if got := canary(NewRedactor("another").Redact(text), secret); got != form {
			t.Errorf("%s: found as %q in %q", form, got, text)
		}
	}
}

func TestRedactJSON(t *testing.T) {
	r := NewRedactor("hunter2-hunter2", "424242424242", "-----BEGIN X-----\nlong enough for a line\n-----END X-----\n")
	tests := []struct{ in, want string }{
		{`{"a":"x hunter2-hunter2 y","n":18446744073709551615,"l":[null,true,"hunter2-hunter2"]}`, `{"a":"x [redacted] y","l":[null,true,"[redacted]"],"n":18446744073709551615}`},
		{`{"password":"abc","Password":"","secret":{"x":"y"},"tokens":3,"join_token":"a b","token_id":"t1"}`,
			`{"Password":"","join_token":"[redacted]","password":"[redacted]","secret":{"x":"y"},"token_id":"t1","tokens":3}`},
		{`{"hunter2-hunter2":424242424242}`, `{"[redacted]":"[redacted]"}`},
		{`{"url":"iscsi://u:s3cret@h/iqn","html":"<>&","pem":"long enough for a line"}`, `{"html":"<>&","pem":"[redacted]","url":"iscsi://u:[redacted]@h/iqn"}`},
		{`"-----BEGIN X-----"`, `"-----BEGIN X-----"`},
	}
	for _, tt := range tests {
		got, err := r.JSON([]byte(tt.in))
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		var v, want any
		if err := json.Unmarshal(got, &v); err != nil {
			t.Errorf("%s becomes no JSON: %s", tt.in, got)
		}
		if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(v, want); diff != "" {
			t.Errorf("%s: -got +want:\n%s", tt.in, diff)
		}
	}
	if got, err := r.JSON([]byte(`{} {}`)); err == nil {
		t.Errorf("two documents become %s", got)
	}
}
