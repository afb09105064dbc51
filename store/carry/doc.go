// Package carry is the half of writing an image that needs no index: it finds zeros, hashes chunks, asks what of them is
// to be stored, and puts that into frames.
//
// It decides nothing. What is known already, which blocks are to be stored and where everything is recorded says a
// Decider: the owner of the repository, in this process or another. It compresses, seals and writes nothing either: that
// does whoever takes the frames. Its invariants: only content that the Decider asked for comes into a frame, once; and
// its memory is one frame for each Write under way.
package carry
