package nbd

import (
	"crypto/tls"
	"time"
)

// Config says where an export is and how to speak with its server.
type Config struct {
	Network string // "unix" or "tcp"
	Address string
	Export  string
	// TLS makes the connection speak TLS before anything is asked; a server that cannot is an error. ServerName must be
	// set in it, and at least TLS 1.2 is used. Nil speaks plain.
	TLS *tls.Config
	// Contexts are the metadata contexts wanted; see Info.Contexts for what the server has.
	Contexts []string
	// Connections is how many connections to open if the server allows several; 0 means 4.
	Connections int
	// InFlight is how many requests each connection may have in flight; 0 means 16.
	InFlight int
	// StallTimeout ends a connection on which requests wait and nothing arrives; 0 means 2 minutes.
	StallTimeout time.Duration
}

func (c Config) connections() int     { return orDefault(c.Connections, 4) }
func (c Config) inFlight() int        { return orDefault(c.InFlight, 16) }
func (c Config) stall() time.Duration { return orDefault(c.StallTimeout, 2*time.Minute) }
func (c Config) subject() string      { return c.Export + " at " + c.Address }
func orDefault[T int | time.Duration](v, d T) T {
	if v <= 0 {
		return d
	}
	return v
}

// Info is what a server says about an export.
type Info struct {
	Size        int64
	Description string
	// MinBlock, PreferredBlock and MaxBlock are the server's block size constraints; Client keeps to them. MaxBlock
	// bounds requests with payload and is at most 32 MiB.
	MinBlock, PreferredBlock, MaxBlock int
	// Structured: the server sends structured replies.
	Structured bool
	// Contexts holds those of Config.Contexts that the server has.
	Contexts []string
	ReadOnly bool
	// MultiConn: what is written and flushed on one connection is seen on all.
	MultiConn                              bool
	CanFlush, CanFUA, CanZero, CanFastZero bool
}

func (i *Info) setFlags(f uint16) {
	i.ReadOnly = f&flagReadOnly != 0
	i.MultiConn = f&flagCanMultiConn != 0
	i.CanFlush = f&flagSendFlush != 0
	i.CanFUA = f&flagSendFUA != 0
	i.CanZero = f&flagSendWriteZero != 0
	i.CanFastZero = f&flagSendFastZeroes != 0
}

// setBlockSizes takes the server's constraints if they follow the specification's rules.
func (i *Info) setBlockSizes(minimum, preferred, maximum uint32) error {
	switch {
	case minimum == 0 || minimum&(minimum-1) != 0 || minimum > 64<<10:
		return protocolError("minimum block size %d", minimum)
	case preferred < minimum || preferred&(preferred-1) != 0:
		return protocolError("preferred block size %d", preferred)
	case maximum < minimum || maximum != 1<<32-1 && maximum%minimum != 0:
		return protocolError("maximum block size %d with minimum %d", maximum, minimum)
	}
	i.MinBlock, i.PreferredBlock = int(minimum), int(preferred)
	i.MaxBlock = int(min(maximum, maxPayload))
	return nil
}
