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

// Confirm has the engine confirmed once more, within a session. The session at another one is ended at once, and the next one begins with
// its identity.
func (c *Conn) Confirm(ctx context.Context) error {
	if c.confirm == nil {
		return nil
	}
	x, err := One(ctx, c, whoAreYou, "api", sdk.XMLApiReadOne)
	if err != nil {
		return err
	}
	if err := c.confirm(ctx, c.base.Hostname(), Instance(x)); err != nil {
		if token, _ := c.current(); token != "" {
			c.forget(token)
			c.end(ctx, token)
		}
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
		c.end(ctx, token)
		return err
	}
	return nil
}

// end ends the session of a token that is not used any more, as far as the engine lets it.
func (c *Conn) end(ctx context.Context, token string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := c.logout(ctx, token); err != nil {
		c.log.DebugContext(ctx, "session was not ended", "err", err)
	}
}

// Instance is the id that an engine was given when it was set up, from the document of the API's root; "" when it says none.
func Instance(x *sdk.Api) string {
	if p, ok := x.ProductInfo(); ok {
		id, _ := p.InstanceId()
		return id
	}
	return ""
}
