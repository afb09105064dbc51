package fault

// CarrierPoints names the places at which a repository takes what a mover in another process has written.
var CarrierPoints = []string{
	"store.carrier.pack-durable", // a mover's pack is durable and found to be what was asked for, not indexed
	"store.carrier.pack-indexed", // it can be found

	"store.journal.record-written", // a session that another owner may resume has recorded what of an image is durable
}
