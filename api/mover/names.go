package mover

// ManagerName is in the manager's certificate, so that a mover knows it behind any address.
const ManagerName = "manager.cairn.internal"

// IdentityPrefix begins the URI in a mover's certificate; the mover's id follows.
const IdentityPrefix = "urn:cairn:mover:"

// MaxTask bounds a task or a result in bytes.
const MaxTask = 6 << 20
