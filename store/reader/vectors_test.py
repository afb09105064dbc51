#!/usr/bin/python3
"""Computes or opens every test vector of FORMAT.md with cairn_reader.py; argument: the path of FORMAT.md."""
import json
import os
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import cairn_reader as cairn  # noqa: E402
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: E402
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # noqa: E402


def count(start, n):
    return bytes((start + i) & 255 for i in range(n))


ID_KEY, DATA_KEY, SEED, KEY = count(0, 32), count(0x20, 32), count(0x80, 32), count(0xA0, 32)
REPOSITORY, OBJECT, SALT = count(0x40, 16), count(0x50, 16), count(0x60, 32)
BLOCK = count(0, 4096)
SIGNER = Ed25519PrivateKey.from_private_bytes(SEED)
TEXT = bytearray(b"a frame of text that is compressed: "[i % 36] for i in range(4096))
TEXT[1000:1100] = bytes(i * i & 255 for i in range(1000, 1100))


def derived(purpose):
    return cairn.derive_key("cairn-backup 2026-11 " + purpose, ID_KEY)


def keyed(purpose, data):
    return cairn.blake3(data, derived(purpose))


def fingerprint(block):
    tag = cairn.AESGCM(derived("fingerprint")).encrypt(bytes(12), b"", block)
    mask = Cipher(algorithms.AES(derived("fingerprint mask")), modes.ECB()).encryptor()
    return mask.update(tag) + mask.finalize()


def box(cipher=1, secret=DATA_KEY):
    return cairn.Box(secret, cipher, 1, REPOSITORY, OBJECT, SALT)


def signed(text, member, domain):
    value, raw = cairn.signed_value(text, member)
    SIGNER.public_key().verify(bytes.fromhex(json.loads(text)["signature"]), domain + b"\0" + raw)
    return value


def check(got, want):
    assert got == want, "%r, not %r" % (got, want)


def check_wrapping(text, key):
    signed(text, "wrapping", b"cairn wrapping")
    check(cairn.unwrap(text, REPOSITORY, key), (1, DATA_KEY, ID_KEY, SEED))


def check_directory(v, lines):
    plain = bytes.fromhex(v)
    blocks, frames, entries = cairn.parse_directory(plain)
    other = keyed("chunk", BLOCK * 4)
    check((blocks, frames), (4, [(128, 4112, 4096, 0)]))
    check(entries, [(keyed("chunk", BLOCK * 3 + bytes(4096)), cairn.Entry(None, 1, 0, 0, 4096, 1, 8, {1: (other, 1), 2: (other, 0)}))])
    check(box().open(2, 0, 1 << 32 | len(plain), bytes.fromhex(lines["the same, sealed"]), "directory"), plain)


def check_trailer(v, lines):
    directory, prints = (bytes.fromhex(lines[n]) for n in ("the same, sealed", "its fingerprints, sealed"))
    b = box()
    aad = b.aad + struct.pack("<BQQ", 1, 0, 4096)
    frame = cairn.AESGCM(b.key).encrypt(bytes([1]) + bytes(11), BLOCK, aad)
    end = struct.pack("<QII16s", 128 + len(frame), len(directory), len(prints), OBJECT)
    whole = bytes.fromhex(lines["pack header, kind 1"]) + frame + directory + prints + end
    check(v, (end + cairn.blake3(whole) + b"\1" + bytes(7) + b"CAIRNEND").hex())


def check_frame(v, codec, cipher):
    plain = b"abc" if codec == 0 else bytes(TEXT)
    coded = box(cipher).open(1, codec, codec << 32 | len(plain), bytes.fromhex(v), "frame")
    check(cairn.decode(codec, coded, len(plain)), plain)


def check_manifest(v, cipher):
    p = bytes.fromhex(v)
    head = struct.pack("<8sHHB3x16s16sI4x32sI", b"CAIRNMAN", 1, 128, cipher, REPOSITORY, OBJECT, 1, SALT, len(p) - 144)
    check(p[:128], head + cairn.blake3(head + p[124:]) + bytes(4))
    plain = box(cipher).open(4, 0, len(p) - 144, p[128:], "manifest")
    SIGNER.public_key().verify(plain[:64], b"cairn manifest\0" + REPOSITORY + OBJECT + struct.pack("<I", 1) + plain[64:])
    check(json.loads(plain[64:])["point"]["id"], "rp_" + cairn.ulid(OBJECT))


def check_small(v, **members):
    check({k: json.loads(v)[k] for k in members}, members)


def check_pruned(v):
    body = signed(v, "pruned", b"cairn pruned")
    check((body["series"], body["ranges"]), (keyed("manifest", b"cairn series\0vm").hex(), [[1, 3], [5, 5]]))


def checks(lines):
    """A function for every vector that FORMAT.md has."""
    chunk = keyed("chunk", BLOCK + bytes(15 * 4096))
    node = struct.pack("<BB6x", 1, 0) + bytes([1, 2]) + bytes(30) + chunk * 2
    head = struct.pack("<8sBB2xIQ8x32s", b"CAIRNIMG", 1, 1, 65536, 655360, keyed("node", node))
    cairn_key = ("cairn", KEY)
    identity = ("age", cairn.bech32_secret(lines["age identity"]))
    out = {
        "chunk id, block 0 = 00 01 .. ff repeated, rest zeros": lambda v: check(v, chunk.hex()),
        "its fingerprint of block 0": lambda v: check(v, fingerprint(BLOCK).hex()),
        "node, level 0, children 0 and 9 that chunk": lambda v: check(v, node.hex()),
        "its id": lambda v: check(v, keyed("node", node).hex()),
        "image head over it, 655,360 bytes": lambda v: check(v, head.hex()),
        "its root": lambda v: check(v, keyed("image", head).hex()),
        'piece id of "abc"': lambda v: check(v, keyed("document", b"abc").hex()),
        'manifest hash of "abc"': lambda v: check(v, keyed("manifest", b"abc").hex()),
        '"abc" sealed as type 1, number 2, detail 3': lambda v: check(box().open(1, 2, 3, bytes.fromhex(v), "text"), b"abc"),
        "pack header, kind 1": lambda v: check(v, struct.pack(
            "<8sHHBB2x16s16sI4x32s40x", b"CAIRNPAK", 1, 128, 1, 1, REPOSITORY, OBJECT, 1, SALT).hex()),
        "fingerprint of the key 00 01 .. 1f": lambda v: check(v, cairn.hkdf(ID_KEY, None, b"cairn key fingerprint", 8).hex()),
        "key file of the key a0 .. bf": lambda v: check(v, "cairn-key-1:%s:%08x" % (KEY.hex(), cairn.zlib.crc32(KEY))),
        "config": lambda v: check(signed(v, "config", b"cairn config")["chunk_bytes"], 65536),
        "wrapping for the key-file a0 .. bf": lambda v: check_wrapping(v, cairn_key),
        "wrapping for the paper a0 .. bf": lambda v: check_wrapping(v, cairn_key),
        "age identity": lambda v: check(len(identity[1]), 32),
        "wrapping for its recipient": lambda v: check_wrapping(v, identity),
        "paper key a0 .. bf, its lines joined by dashes": lambda v: check(cairn.paper_key(v.replace("-", "\n")), KEY),
        "directory of a pack": lambda v: check_directory(v, lines),
        "the same, sealed": lambda v: check_directory(lines["directory of a pack"], lines),
        "its fingerprints, sealed": lambda v: check(box().open(3, 0, 64, bytes.fromhex(v), "fingerprints"),
                                                    fingerprint(BLOCK) * 3 + bytes(16)),
        "its trailer": lambda v: check_trailer(v, lines),
        "epoch": lambda v: check_small(v, format=1, epoch=3, process=123, host="host"),
        "lease": lambda v: check_small(v, format=1, epoch=3, series="vm", writer="mover", session=cairn.ulid(OBJECT)),
        "pruned, of the series vm": check_pruned,
    }
    for cipher in (1, 2):
        out["manifest, cipher %d" % cipher] = lambda v, c=cipher: check_manifest(v, c)
        for codec in (0, 1, 2):
            out["frame %d of codec %d, cipher %d" % (codec, codec, cipher)] = lambda v, a=codec, c=cipher: check_frame(v, a, c)
    return out


def main():
    with open(sys.argv[1], encoding="utf-8") as f:
        text = f.read().split("<!-- vectors -->")[1]
    lines = dict((line.strip().rsplit(None, 1)[0].strip(), line.split()[-1]) for line in text.splitlines() if line.strip())
    # A known answer from outside: the test vectors of BLAKE3 have bytes 0 .. 250 repeated as their input.
    for n, want in ((0, "af1349b9f5f9a1a6"), (1, "2d3adedff11b61f1"), (1024, "42214739f095a406"), (1025, "d00278ae47eb27b3"),
                    (31744, "62b6960e1a44bcc1"), (102400, "bc3e3d41a1146b06")):
        check(cairn.blake3(bytes(i % 251 for i in range(n)))[:8].hex(), want)
    todo, bad = checks(lines), 0
    for name in sorted(set(todo) | set(lines)):
        try:
            todo[name](lines[name])
        except Exception as err:  # whatever is wrong with it, it is wrong
            bad += 1
            print("WRONG %s: %s %s" % (name, type(err).__name__, err))
    print("%d vectors, %d wrong" % (len(lines), bad) if bad else "all %d vectors are right" % len(lines))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
