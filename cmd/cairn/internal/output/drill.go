package output

// Drill is what a drill with a key has proven, for the page that "cairn key drill" and "cairn rescue drill" show.
type Drill struct {
	Key, Label, Repository, Identity, PublicKey string

	RestorePoint string // "": there is none
	Of           Field  // whose it is: its VM or its series
	Published    string
	Pack         string // a part of it was read; "": every disk is zeros
	Bytes        int64
}

// Fields returns the page.
func (d Drill) Fields() []Field {
	read := "none: every disk in it is zeros"
	switch {
	case d.RestorePoint == "":
		read = "none: there is no restore point"
	case d.Pack != "":
		read = Size(d.Bytes) + " of " + d.Pack
	}
	return []Field{
		{Name: "Result", Value: "ok", State: true},
		{Name: "Key", Value: d.Key},
		{Name: "Label", Value: d.Label},
		{Name: "Repository", Value: d.Repository},
		{Name: "Identity", Value: d.Identity},
		{Name: "Public key", Value: d.PublicKey},
		{Name: "Restore point", Value: d.RestorePoint},
		d.Of,
		{Name: "Published", Value: d.Published},
		{Name: "Data read", Value: read},
	}
}
