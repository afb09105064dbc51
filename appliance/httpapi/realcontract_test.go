package httpapi_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/cairn-backup/cairn/api"
	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/appliance/httpapi"
)

// seeds of TestContract; CAIRN_SEED is another one, and CAIRN_SOAK asks for many.
func seeds(t *testing.T) []uint64 {
	t.Helper()
	if text := os.Getenv("CAIRN_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		check(t, err)
		return []uint64{n}
	}
	out := []uint64{1}
	if os.Getenv("CAIRN_SOAK") != "" {
		for n := range uint64(20) {
			out = append(out, n+2)
		}
	}
	return out
}

// refusals are the statuses of what the document does not allow.
var refusals = []int{http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity}

// TestContract asks a real appliance what is generated from the document, valid, at the bounds and beyond them. No answer
// is a 500, each is one of the document, and what the document does not allow is refused.
func TestContract(t *testing.T) {
	for _, seed := range seeds(t) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r, ids := populated(t)
			requests, err := httpapi.Generate(seed, t.TempDir(), ids)
			check(t, err)
			count := map[int]int{}
			for _, g := range requests {
				status := r.tryOut(g)
				count[status]++
			}
			t.Logf("seed %d: %d requests, by status %v", seed, len(requests), count)
			if count[200] < 50 || count[201] == 0 || count[202] == 0 || count[204] == 0 || count[422] < 500 {
				t.Errorf("too few of some: %v", count)
			}
		})
	}
}

// tryOut sends a request and judges the answer; the transport compares it with the document.
func (r *real) tryOut(g httpapi.Generated) int {
	r.t.Helper()
	what := fmt.Sprintf("%s %s (%s, %s) %.300s", g.Method, g.Path, g.Operation, g.Why, g.Body)
	req, err := http.NewRequestWithContext(r.ctx, g.Method, r.url+api.BasePath+g.Path, bytes.NewReader(g.Body))
	if err != nil {
		r.t.Fatalf("%s: %v", what, err)
	}
	for name, value := range g.Header {
		req.Header.Set(name, value)
	}
	check(r.t, r.authorize(r.ctx, req))
	resp, err := r.checked.Do(req)
	if err != nil {
		r.t.Fatalf("%s: %v", what, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK && g.Streams {
		return resp.StatusCode
	}
	answer, err := io.ReadAll(resp.Body)
	check(r.t, err)
	switch {
	case resp.StatusCode == http.StatusInternalServerError:
		r.t.Errorf("%s: %s", what, answer)
	case g.Invalid && !slices.Contains(refusals, resp.StatusCode):
		r.t.Errorf("%s: not refused, %s %.300s", what, resp.Status, answer)
	}
	return resp.StatusCode
}

// populated is an appliance that has one of everything, and the ids of that.
func populated(t *testing.T) (*real, map[string]string) {
	t.Helper()
	r := newReal(t)
	vm, repo := r.lab()
	point := r.backup(vm, repo)
	vms, err := r.GetVMWithResponse(r.ctx, vm)
	check(t, err)
	keys, err := r.ListKeysWithResponse(r.ctx, repo)
	check(t, err)
	token, err := r.CreateTokenWithResponse(r.ctx, nil, client.CreateTokenRequest{Name: "robot"})
	check(t, err)
	limit, err := r.AddMoverLimitWithResponse(r.ctx, nil, client.MoverLimitRequest{Kind: client.LimitOfMover, Name: "*", Slots: 2})
	check(t, err)
	task, err := r.GetTaskWithResponse(r.ctx, point.TaskID)
	check(t, err)
	return r, map[string]string{
		"vm_id": vm, "repository_id": repo, "restore_point_id": point.ID, "task_id": point.TaskID, "mover_id": "built-in", "member_id": "nothing",
		"connection_id": got(t, vms.JSON200, vms.HTTPResponse, vms.ApplicationProblemJSONDefault).ConnectionID,
		"key_id":        got(t, keys.JSON200, keys.HTTPResponse, keys.ApplicationProblemJSONDefault).Items[0].ID,
		"token_id":      got(t, token.JSON201, token.HTTPResponse, token.ApplicationProblemJSONDefault).Token.ID,
		"limit_id":      got(t, limit.JSON201, limit.HTTPResponse, limit.ApplicationProblemJSONDefault).ID,
		"run_id":        got(t, task.JSON200, task.HTTPResponse, task.ApplicationProblemJSONDefault).RunID,
	}
}
