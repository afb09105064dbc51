// Package erasure keeps objects on several disks or servers so that some of them may be lost.
//
// It is a blob.Store over k+m others, its members: an object is cut into k data shards, m parity shards are computed
// (Reed-Solomon), and every member of a group keeps one of them. It is not a file system and does not place objects by
// hand. Its invariant: an object is there, whole and as written, or an error says why not; never other bytes, and never
// an object that was deleted. FORMAT.md has the layout of what lies on members.
//
// # Making a set
//
// Six disks, 4+2: two thirds of the space hold data, any two disks may be lost. The disks are mounted under /srv/cairn,
// two in each of three enclosures:
//
//	members := []erasure.Member{
//		{Path: "/srv/cairn/disk1", Domain: "enclosure-a"}, {Path: "/srv/cairn/disk2", Domain: "enclosure-a"},
//		{Path: "/srv/cairn/disk3", Domain: "enclosure-b"}, {Path: "/srv/cairn/disk4", Domain: "enclosure-b"},
//		{Path: "/srv/cairn/disk5", Domain: "enclosure-c"}, {Path: "/srv/cairn/disk6", Domain: "enclosure-c"},
//	}
//	plan, err := erasure.Create(ctx, members, erasure.Layout{Data: 4, Parity: 2}, erasure.CreateOptions{})
//	fmt.Println(plan) // what it survives; a layout that one enclosure can take down is refused unless forced
//
// From then on paths are enough, in any order; who is who is written on the disks:
//
//	s, err := erasure.OpenPaths(ctx, erasure.Options{}, "/srv/cairn/disk3", "/srv/cairn/disk1", ...)
//	store.Create(ctx, s, key, store.CreateOptions{Name: "main"})
//
// A disk has died: Health names it, everything goes on. A new, empty one is mounted, put in and filled:
//
//	id, err := s.Replace(ctx, "3f9a01c2", erasure.Member{Path: "/srv/cairn/disk7"})
//	err = s.Rebuild(ctx, id, func(p erasure.Progress) { ... p.Bytes, p.BytesTotal, p.ETA })
//
// Scrub, once a month, reads everything and heals what has rotted. Grow adds a further group of six.
//
// # What counts
//
// The n = k+m members of a group see everything or were away. A write or delete counts when need members of the group
// have it durably (k, more with Options.Spare). What members say is believed by what the set's description says of each:
//
//   - behind: it may not know of deletes and renames. Its marks and names do not count, its shards do: they are proven by
//     their hashes. It catches up at an Acquire or Scrub, if somebody is there who is not behind.
//   - incomplete: writes went on without it, because it was away or failed. That it has not got something says nothing.
//   - filling: the same, and shards that were once written to its place may be gone, too: it is new, or an older copy of
//     itself that was put back. What only older copies have, and a complete member has not, was deleted.
//   - complete: none of these.
//
// Settling, at each Acquire and at the end of a Scrub or Rebuild, lists all members and counts: who has a shard of
// everything is complete again, who has not is incomplete. Before an owner acknowledges a write that a complete member
// has not got (or a rename of which it has not the name), it records that the member is incomplete; where k <= m, before
// it acknowledges a delete or rename of which a member does not know, that it is behind. Members that are not there when
// an owner begins are recorded as both before anything else happens.
//
// Theorem. Of members that are there, one of which was told of the last change:
//
//  1. if one is not behind, nothing is shown that was deleted, and no name that was given up;
//  2. if one is complete, or more than m are not filling and no rename is half-known, every object that was acknowledged
//     is shown.
//
// For: (1) after settling, who is not behind knows of all deletes, since marks stay until everybody does. Of a later one
// need members know, and where k > m any k that are there have one of them among them; where k <= m those that do not
// are behind. A new member is behind until it is settled, and Replace settles before and after. (2) A complete member has
// a shard of everything by what is recorded. And a write that was acknowledged had k shards, of which only those in the
// slots of filling members can be gone, so at most m of the others lack one. TestCampaignEveryOrderOfEvents tries it out.
//
// Where (1) does not hold every answer is Transient, where (2) does not that nothing is there: NotFound becomes Transient,
// List fails, Acquire and Replace refuse, in words. The way out is to bring back who knows, or Trust, an admin's
// word. Told are all members that were there; where k > m or need > m, any k that are there have one of the last change
// among them. A mirror's half that is alone, after the other was used alone, has no way to know, nor have older copies of
// all members. Options.Remember and Known are a memory apart from the set, with which they are refused: then the theorem
// holds of any members. Without it they show what they have, and two histories are found out when they meet (Trust).
//
// Sessions of owners are numbered, and every member has the number of the last it took part in: who has an older one
// than the description says is an older copy of itself, and is behind and filling.
//
// Other processes than the owner may write as long as nobody fails; where k <= m they may not go on without a member
// that is not recorded as incomplete.
//
//   - write: shards become durable under pending names on at least need members, then the first gets its final name:
//     now the object is there. The others follow; with need of them it is acknowledged. A crash before the first name
//     leaves nothing; after it, the next owner gives the other pending shards their names. Every write has an id in the
//     names and hashes of its shards: shards of two writes never mix.
//   - small objects (at most 64 KiB: config, keys, leases, epochs, most manifests) are kept whole on every member. Cut
//     into parts they would cost as many files, more reads, and be lost sooner; they are what everything else needs.
//   - delete: an empty mark in dead/ on at least need members; then shards go, then marks. One mark is enough for the
//     object to be gone, so a delete that was cut short is completed, not undone. While a member is away or did not
//     answer, marks stay, so what it still has is not taken for an object when it comes back.
//   - rename: shard by shard; names carry a count of moves, the highest is the object's name.
//   - the set's description has versions; one counts when need members have it. What a crash cut short does not.
//   - list: the union of what members show, less what is marked. Fewer than k members answering is an error, and so is that
//     there may be more.
//   - lock: all members that are there, in one order, at least need of each group.
//
// Damage: each 64 KiB unit of a shard has a hash keyed with set, write, shard and position. A read proves the units it
// touches and computes those that are not good from others; more damage than parity is a Corrupt error that names
// members and object, or Transient if members that are away could help.
//
// # Who may do what at the same time
//
//	                  what makes it safe
//	read beside all   Reads lock nothing. Where shards are may be out of date: a read that fails looks again. Units are
//	                  proven, so a shard that is taken away or exchanged meanwhile is an error of that shard, no more.
//	write, rename,    gate shared, and a stripe of locks by name: look-up and change of a name are one step. Between
//	  delete          processes a second look after the commit makes at least one of two writers of a name give way.
//	repair, rebuild,  The new shard is written as pending (flying keeps others off it) and proven; it takes the old
//	  scrub           one's place under gate and name, after a look whether the object is still there. The old one is
//	                  put aside and goes last: something with the object's name is there at all times.
//	settle, replace,  gate exclusively, by the owner only. A member that was replaced is read from, by this process, until its
//	  grow            successor is whole (donor.go).
package erasure
