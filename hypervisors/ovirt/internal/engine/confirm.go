package engine

import (
	"context"
	"net/http"
	"time"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/apixml"
	"github.com/cairn-backup/cairn/internal/fault"
)

var whoAreYou = Request{Op: "ask engine for its identity", Method: http.MethodGet}

// Confirm has the engine confirmed once more, within a session; another one is asked for nothing but its identity from then on.
func (c *Conn) Confirm(ctx context.Context) error {
	if c.confirm == nil {
		return nil
	}
	x, err := One(ctx, c, whoAreYou, "api", sdk.XMLApiReadOne)
	if err != nil {
		return err
	}
	if err := c.confirm(ctx, c.base.Hostname(), Instance(x)); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.token = ""
		return err
	}
	return nil
}

// confirmed has the engine behind a new token confirmed. The session at another one is ended at once.
func (c *Conn) confirmed(ctx context.Context, token string) error {
	if c.confirm == nil {
		return nil
	}
	status, body, err := c.send(ctx, whoAreYou, token)
	switch {
	case err != nil:
		return c.unreachable(ctx, whoAreYou.Op, c.base.Host, err)
	case status >= 300:
		return refused(whoAreYou, status, body)
	}
	x, err := apixml.DecodeOne(body, "api", sdk.XMLApiReadOne)
	if err != nil {
		return fault.Context(whoAreYou.Op, c.base.Host, err)
	}
	if err := c.confirm(ctx, c.base.Hostname(), Instance(x)); err != nil {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if lost := c.logout(ending, token); lost != nil {
			c.log.DebugContext(ctx, "session was not ended", "err", lost)
		}
		return err
	}
	return nil
}

// Instance is the id that an engine was given when it was set up, from the document of the API's root; "" when it says none.
func Instance(x *sdk.Api) string {
	if p, ok := x.ProductInfo(); ok {
		id, _ := p.InstanceId()
		return id
	}
	return ""
}
