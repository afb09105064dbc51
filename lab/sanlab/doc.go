// Package sanlab makes what movers meet on storage networks, of real parts: volume groups by lvm2, LUNs by tgt, and guests
// whose kernels attach them over iSCSI, or serve and attach disks over NVMe/TCP.
//
// It is no part of any program and knows nothing of backups. Its invariant: what it attaches, starts or writes lies in
// its test's directory and is gone when the test is over.
package sanlab
