package catalog

import "github.com/cairn-backup/cairn/internal/fault"

// Failure is an error as it is kept and shown: what happened, what it means, what to do.
type Failure struct {
	Kind    string `json:"kind"` // fault.Kind's name
	What    string `json:"what"`
	Meaning string `json:"meaning"`
	Advice  string `json:"advice"`
}

// FailureOf keeps an error; nil for nil. An error that does not explain itself is explained by its kind.
func FailureOf(err error) *Failure {
	if err == nil {
		return nil
	}
	kind := fault.KindOf(err)
	f := &Failure{Kind: kind.String(), What: err.Error()}
	f.Meaning, f.Advice = fault.Explanation(err)
	words := kindWords[kind]
	if f.Meaning == "" {
		f.Meaning = words[0]
	}
	if f.Advice == "" {
		f.Advice = words[1]
	}
	return f
}

// kindWords say what an error of a kind means and what to do, when nobody nearer to the cause has said it.
var kindWords = map[fault.Kind][2]string{
	fault.Internal: {
		"Something happened that Cairn does not know how to explain.",
		"Try again. If it comes back, look for the id of the task in the log of cairnd and report it.",
	},
	fault.Invalid:  {"What was asked for cannot be done as it was asked for.", "Change the request."},
	fault.NotFound: {"Something that is needed is not there, or not there any more.", "Look whether it was removed or renamed."},
	fault.Exists:   {"Something of that name is there already.", "Choose another name, or remove what is there."},
	fault.Conflict: {"Something is in a state that does not allow this now.", "Look at what the message names, and try again."},
	fault.Denied: {
		"The credentials or keys do not allow this.", "Look at the credentials of the connection or the key of the repository.",
	},
	fault.Unsupported: {"This platform or this version of Cairn cannot do that.", "Look at what the connection can do."},
	fault.Transient: {
		"Something could not be reached, broke off or was full; this can pass by itself.",
		"Look at what the message names, then run it again.",
	},
	fault.Corrupt: {
		"Stored data is not what was written.",
		"Verify the restore points of this repository and look for the cause in its storage.",
	},
	fault.Canceled: {"It was stopped before it was done.", "Run it again."},
}
