package store

import (
	"unicode/utf8"

	"github.com/cairn-backup/cairn/internal/fault"
)

// How long texts may be that are written, in bytes; FORMAT.md says it of all writers. What is read may be longer.
const (
	maxSeries = 1 << 10 // also the name of a repository, the label of a key and who writes
	maxName   = 255     // of an image, of a document and its media type, and of a label
	maxLabel  = 4 << 10 // what a label says
)

// checkText refuses text that is too long, and text that a manifest could not say: JSON holds UTF-8 only, and puts the
// same sign in the place of everything else, so that after the next open two names would be one.
func checkText(op, what, text string, most int) error {
	if len(text) > most {
		return fault.New(fault.Invalid, op, "", "%s of %d bytes; at most %d are possible", what, len(text), most)
	}
	if !utf8.ValidString(text) {
		return fault.New(fault.Invalid, op, "", "%s %q is not UTF-8", what, text)
	}
	return nil
}

func checkTexts(m *Manifest) error {
	const op = "check manifest"
	var errs []error
	for key, val := range m.Labels {
		errs = append(errs, checkText(op, "name of a label", key, maxName), checkText(op, "label", val, maxLabel))
	}
	for _, im := range m.Images {
		errs = append(errs, checkText(op, "name of an image", im.Name, maxName))
	}
	for _, d := range m.Documents {
		errs = append(errs, checkText(op, "name of a document", d.Name, maxName), checkText(op, "media type", d.MediaType, maxName))
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
