package store

import (
	"unicode/utf8"

	"github.com/cairn-backup/cairn/internal/fault"
)

// checkText refuses text that a manifest could not say: JSON holds UTF-8 only, and puts the same sign in the place of
// everything else, so that after the next open two names would be one.
func checkText(op, what, text string) error {
	if !utf8.ValidString(text) {
		return fault.New(fault.Invalid, op, "", "%s %q is not UTF-8", what, text)
	}
	return nil
}

func checkTexts(m *Manifest) error {
	const op = "check manifest"
	for key, val := range m.Labels {
		if err := checkText(op, "label", key+"="+val); err != nil {
			return err
		}
	}
	for _, im := range m.Images {
		if err := checkText(op, "image", im.Name); err != nil {
			return err
		}
	}
	for _, d := range m.Documents {
		if err := checkText(op, "document", d.Name+d.MediaType); err != nil {
			return err
		}
	}
	return nil
}
