package command

import (
	"encoding/csv"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// optionPairs is a flag of KEY=VALUE pairs, several with commas between them or the flag several times. A value with commas stands alone, or
// in quotes as in CSV. A key that is given twice is refused.
type optionPairs map[string]string

// Set implements pflag.Value.
func (o *optionPairs) Set(text string) error {
	pairs := []string{strings.Trim(text, `"`)}
	if strings.Count(text, "=") > 1 {
		var err error
		if pairs, err = csv.NewReader(strings.NewReader(text)).Read(); err != nil {
			return err
		}
	}
	for _, pair := range pairs {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return errors.New("it is not KEY=VALUE")
		}
		if _, twice := (*o)[key]; twice {
			return fmt.Errorf("%s is there twice", key)
		}
		if *o == nil {
			*o = optionPairs{}
		}
		(*o)[key] = value
	}
	return nil
}

// Type implements pflag.Value.
func (o *optionPairs) Type() string { return "KEY=VALUE" }

// String implements pflag.Value.
func (o *optionPairs) String() string {
	var pairs []string
	for _, key := range slices.Sorted(maps.Keys(*o)) {
		pairs = append(pairs, key+"="+(*o)[key])
	}
	return strings.Join(pairs, ",")
}
