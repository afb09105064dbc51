// Package guest is what a mover does because it is a virtual machine of its own: it learns its configuration (NoCloud
// seed, fw_cfg, kernel command line), and in the small image, where the mover is the only process, it does the duties of
// process 1: mounts, drivers, network, clock, orphans, console, shutdown.
//
// It is not the mover: it opens no disk of a source VM and speaks to no manager. Linux only. Its invariants: it never
// writes to a block device but the partition made for the mover's own state, it mounts nothing else but the seed it was
// given (read-only, for the moment of reading), it starts no other program, and it listens on nothing.
//
// A mover's own program looks like this:
//
//	if os.Getpid() == 1 {
//		guest.Run(ctx, mover) // returns never: the machine is switched off
//	}
//	cfg, err := guest.ReadConfig(ctx)
//	err = mover(ctx, log, cfg)
package guest
