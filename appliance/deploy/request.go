package deploy

import (
	"cmp"
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/datamover/guest"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Spec is what is wanted of a deployment; it is the Spec of its task.
type Spec struct {
	Name         string   `json:"name"`
	ConnectionID string   `json:"connection_id"`
	Manager      string   `json:"manager"` // host, or host:port, by which the mover reaches the appliance
	Datastore    string   `json:"datastore,omitempty"`
	Network      string   `json:"network,omitempty"`
	Address      string   `json:"address,omitempty"` // with prefix length; "" is DHCP
	Gateway      string   `json:"gateway,omitempty"`
	DNS          []string `json:"dns,omitempty"`
	Storage      []string `json:"storage,omitempty"` // as guest.Config has it
	Sessions     []string `json:"-"`                 // as guest.Config has it, with their secrets
	Sealed       []byte   `json:"sessions,omitempty"`
	Image        string   `json:"image,omitempty"` // path; "" is that of the directory of images
	CPUs         int      `json:"cpus,omitempty"`
	MemoryBytes  int64    `json:"memory_bytes,omitempty"`
	User         string   `json:"user,omitempty"` // who asked for it
}

// order is a checked request with all it needs.
type order struct {
	spec   Spec
	conn   catalog.Connection
	driver hypervisors.Driver
	image  string
	config guest.Config // without the token
	req    hypervisors.MoverRequest
}

// RequestDeploy checks a request and makes the task for it, which it does not store.
func (d *Deployer) RequestDeploy(ctx context.Context, spec Spec) (*catalog.Task, error) {
	o, err := d.order(ctx, spec, "plan")
	if err != nil {
		return nil, err
	}
	o.spec.Datastore, o.spec.Network = o.req.Datastore, o.req.Network
	o.spec.Sealed = d.Catalog.Seal(sessionsOf(spec), catalog.Secret(strings.Join(spec.Sessions, " ")))
	raw, err := json.Marshal(o.spec)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "deploy mover", spec.Name, err)
	}
	return &catalog.Task{VMName: spec.Name, ConnectionID: o.conn.ID, Subject: "mover/" + spec.Name, Spec: raw}, nil
}

// order finds everything a deployment needs, and asks the platform whether it could be done now. It changes nothing.
func (d *Deployer) order(ctx context.Context, spec Spec, tag string) (*order, error) {
	if len(spec.Sealed) > 0 {
		sessions, err := d.Catalog.Unseal(sessionsOf(spec), spec.Sealed)
		if err != nil {
			return nil, err
		}
		spec.Sessions = strings.Fields(string(sessions))
	}
	o := &order{spec: spec}
	var err error
	if o.config, err = d.config(spec); err != nil {
		return nil, err
	}
	if err := d.nameIsFree(ctx, spec.Name); err != nil {
		return nil, err
	}
	if o.conn, err = d.Catalog.Connection(ctx, spec.ConnectionID); err != nil {
		return nil, err
	}
	if o.driver, err = d.Drivers(ctx, o.conn.ID); err != nil {
		return nil, err
	}
	if !o.driver.Capabilities().DeployMover {
		return nil, fault.New(fault.Unsupported, "deploy mover on connection", o.conn.Name, "it cannot make mover VMs").Explain(
			"The driver of this platform does not make VMs by itself.", "Make a VM of the mover image yourself, with a token of `cairn mover token`.")
	}
	size, err := o.findImage(d.Images)
	if err != nil {
		return nil, err
	}
	o.req = hypervisors.MoverRequest{
		Tag: tag, Name: spec.Name, ImageBytes: size, Seed: []byte("as long as it will be"),
		Network: spec.Network, CPUs: spec.CPUs, MemoryBytes: spec.MemoryBytes,
	}
	if err := o.findNetwork(ctx); err != nil {
		return nil, err
	}
	return o, o.findDatastore(ctx)
}

// config is what the mover is told.
func (d *Deployer) config(spec Spec) (guest.Config, error) {
	invalid := func(what string, err error) error {
		return fault.New(fault.Invalid, "deploy mover", spec.Name, "%s: %w", what, err)
	}
	port := d.Port()
	if port == 0 {
		return guest.Config{}, fault.New(fault.Unsupported, "deploy mover", spec.Name, "the appliance does not listen for movers").Explain(
			"cairnd was started with --movers none, so no mover could enrol.", "Start it with an address for movers, for example --movers :8441.")
	}
	c := guest.Config{Name: spec.Name, Fingerprint: d.Fingerprint, Manager: spec.Manager, Storage: spec.Storage, Sessions: spec.Sessions}
	if _, _, err := net.SplitHostPort(spec.Manager); err != nil {
		c.Manager = net.JoinHostPort(strings.Trim(spec.Manager, "[]"), strconv.Itoa(port))
	}
	var err error
	if spec.Address != "" {
		if c.Network.Address, err = netip.ParsePrefix(spec.Address); err != nil {
			return c, invalid("address", err)
		}
	}
	if spec.Gateway != "" {
		if c.Network.Gateway, err = netip.ParseAddr(spec.Gateway); err != nil {
			return c, invalid("gateway", err)
		}
	}
	for _, s := range spec.DNS {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return c, invalid("name server", err)
		}
		c.Network.DNS = append(c.Network.DNS, a)
	}
	document, err := c.Document()
	if err == nil {
		_, err = guest.ParseDocument(document) // it refuses what the mover would
	}
	if err != nil {
		return c, invalid("the mover could not use these settings", err)
	}
	return c, nil
}

// sessionsOf is whose the sessions are that are sealed in a Spec.
func sessionsOf(spec Spec) string {
	return "sessions of mover " + spec.Name + " on " + spec.ConnectionID
}

func (d *Deployer) nameIsFree(ctx context.Context, name string) error {
	all, err := d.Fleet.List(ctx)
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.Name == name {
			return fault.New(fault.Exists, "deploy mover", name, "there is a mover of this name").Explain(
				"Each mover has a name of its own.", "Choose another name, or remove that mover first.")
		}
	}
	return nil
}

// findImage looks for the mover image and returns its length.
func (o *order) findImage(dir string) (int64, error) {
	if o.image = o.spec.Image; o.image == "" {
		o.image = filepath.Join(dir, imageOf[o.conn.Platform])
	}
	st, err := os.Stat(o.image)
	if err != nil || !st.Mode().IsRegular() || !filepath.IsAbs(o.image) {
		if err == nil {
			err = fault.New(fault.Invalid, "", "", "it is no file with an absolute path")
		}
		return 0, fault.New(fault.Invalid, "find mover image", o.image, "%w", err).Explain(
			"The appliance does not have the image that the mover's VM is made of.",
			"Make it with `IMAGES=mover make images`, put "+imageOf[o.conn.Platform]+" into "+dir+" on the appliance, or name its path there with --image.")
	}
	return st.Size(), nil
}

// findNetwork takes the connection's only network where none was named.
func (o *order) findNetwork(ctx context.Context) error {
	if o.req.Network != "" {
		return nil
	}
	all, err := o.driver.Networks(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, n := range all {
		if n.Active {
			names = append(names, n.Name)
		}
	}
	if len(names) != 1 {
		return fault.New(fault.Invalid, "deploy mover", o.spec.Name, "it is not said which network it is for").Explain(
			"The connection has none, or several.", "Name one with --network: "+strings.Join(names, ", ")+".")
	}
	o.req.Network = names[0]
	return nil
}

// findDatastore asks the platform whether it would do: with the datastore that was named, or with the roomiest that does.
func (o *order) findDatastore(ctx context.Context) error {
	if o.spec.Datastore != "" {
		o.req.Datastore = o.spec.Datastore
		return o.driver.CheckMover(ctx, o.req)
	}
	all, err := o.driver.Datastores(ctx)
	if err != nil {
		return err
	}
	slices.SortStableFunc(all, func(a, b hypervisors.Datastore) int { return cmp.Compare(b.FreeBytes, a.FreeBytes) })
	err = fault.New(fault.Conflict, "deploy mover", o.spec.Name, "the connection has no datastore").Explain(
		"A mover's VM needs a small disk.", "Make a datastore on the platform and start it.")
	for i, s := range all {
		o.req.Datastore = s.Name
		checkErr := o.driver.CheckMover(ctx, o.req)
		if checkErr == nil {
			return nil
		}
		if i == 0 {
			err = checkErr
		}
	}
	return err
}

// tagOf is what everything carries that a task makes.
func tagOf(t *jobs.Task) string { return jobs.Tag(t.ID) }
