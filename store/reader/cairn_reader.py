#!/usr/bin/python3
"""Reads a Cairn repository in a directory without Cairn: lists, verifies and extracts restore points.

It was written from FORMAT.md (which lies beside it in every repository), not from Cairn's own code, and shares none
with it. It needs Python 3.9, python3-cryptography and python3-zstandard, and only ever reads the repository.

    cairn_reader.py --key FILE REPOSITORY list
    cairn_reader.py --key FILE REPOSITORY verify [RESTORE-POINT ...]
    cairn_reader.py --key FILE REPOSITORY extract RESTORE-POINT DIRECTORY

FILE is a key file, a typed paper key, or an age identity (AGE-SECRET-KEY-1...). BLAKE3 is written out in Python
here; if the module "blake3" can be imported it is used, and everything is several times faster.
"""
import argparse, base64, collections, hashlib, hmac, json, os, re, struct, sys, zlib  # noqa: E401

import zstandard
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

try:
    import blake3 as fast_blake3
except ImportError:
    fast_blake3 = None

ZERO, BLOCK = bytes(32), 4096

class Damaged(Exception):
    """Something is not what was written, or no key opens it."""

def need(condition, *what):
    if not condition:
        raise Damaged(" ".join(str(w) for w in what))

# ---- BLAKE3. Many inputs are hashed side by side: one big integer holds a 32-bit word of each, 64 bits apart.
IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
CHUNK_START, CHUNK_END, PARENT, ROOT, KEYED, CONTEXT, MATERIAL = 1, 2, 4, 8, 16, 32, 64
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
MIX = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15), (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))

def pack_lanes(values):
    return int.from_bytes(struct.pack("<%dQ" % len(values), *values), "little")

def unpack_lanes(word, n):
    return struct.unpack("<%dQ" % n, word.to_bytes(8 * n, "little"))

def compress(cv, m, counter, length, flags, ones):
    """The first half of BLAKE3's compression of every lane; ones has a 1 in each."""
    mask = ones * 0xFFFFFFFF
    v = list(cv) + [ones * x for x in IV[:4]] + [counter, 0, ones * length, ones * flags]
    m = list(m)
    for r in range(7):
        for i, (a, b, c, d) in enumerate(MIX):
            va, vb, vc, vd = v[a], v[b], v[c], v[d]
            for word, r, q in ((m[2 * i], 16, 12), (m[2 * i + 1], 8, 7)):
                va = (va + vb + word) & mask
                vd ^= va
                vd = (vd >> r | vd << 32 - r) & mask
                vc = (vc + vd) & mask
                vb ^= vc
                vb = (vb >> q | vb << 32 - q) & mask
            v[a], v[b], v[c], v[d] = va, vb, vc, vd
        m = [m[p] for p in PERMUTATION]
    return [v[i] ^ v[i + 8] for i in range(8)]

def leaf_values(data, n, key, flags, counters):
    """The chaining values of n full kilobytes of data: 8 words of n lanes."""
    words, ones = struct.unpack("<%dI" % (256 * n), data), pack_lanes([1] * n)
    cv, counter = [ones * k for k in key], pack_lanes(counters)
    for j in range(16):
        edge = (CHUNK_START if j == 0 else 0) | (CHUNK_END if j == 15 else 0)
        m = [pack_lanes(words[16 * j + w::256]) for w in range(16)]
        cv = compress(cv, m, counter, 64, flags | edge, ones)
    return cv

def parents(lanes, key, flags):
    """Pairs up chaining values: lanes is 8 lists of an even number of words."""
    n = len(lanes[0]) // 2
    m = [pack_lanes(w[0::2]) for w in lanes] + [pack_lanes(w[1::2]) for w in lanes]
    ones = pack_lanes([1] * n)
    cv = compress([ones * k for k in key], m, 0, 64, flags | PARENT, ones)
    return [list(unpack_lanes(w, n)) for w in cv]

def blake3(data, key=None, flags=0):
    """BLAKE3 with 32 bytes of output; keyed if key is given."""
    if fast_blake3 and flags == 0:
        return fast_blake3.blake3(data, key=key).digest() if key else fast_blake3.blake3(data).digest()
    words = struct.unpack("<8I", key) if key else IV
    flags |= KEYED if key and not flags else 0
    full = len(data) // 1024 if len(data) > 1024 else 0  # the rest, or all that there is, goes by itself
    lanes = [[] for _ in range(8)]
    for at in range(0, full, 1024):
        n = min(1024, full - at)
        cv = leaf_values(data[at * 1024:(at + n) * 1024], n, words, flags, range(at, at + n))
        for i in range(8):
            lanes[i] += unpack_lanes(cv[i], n)
    tail, cv = data[full * 1024:], list(words)
    for j in range(0, len(tail) or (0 if full else 1), 64):
        block, last = tail[j:j + 64], j + 64 >= len(tail)
        edge = (CHUNK_START if j == 0 else 0) | (CHUNK_END if last else 0) | (ROOT if last and full == 0 else 0)
        cv = compress(cv, struct.unpack("<16I", block.ljust(64, b"\0")), full, len(block), flags | edge, 1)
    for i in range(8 if tail or not full else 0):
        lanes[i].append(cv[i])
    while len(lanes[0]) > 1:  # level by level; one without a partner moves up
        count = len(lanes[0])
        odd = [w.pop() for w in lanes] if count % 2 else None
        lanes = parents(lanes, words, flags | (ROOT if count == 2 else 0))
        if odd:
            for i in range(8):
                lanes[i].append(odd[i])
    return struct.pack("<8I", *(w[0] for w in lanes))

def derive_key(context, material):
    if fast_blake3:
        return fast_blake3.blake3(material, derive_key_context=context).digest()
    return blake3(material, blake3(context.encode(), None, CONTEXT), MATERIAL)

# ---- Seals
def hkdf(secret, salt, info, length=32):
    return HKDF(hashes.SHA256(), length, salt, info).derive(secret)

def hchacha20(key, nonce):
    s = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *struct.unpack("<8I", key), *struct.unpack("<4I", nonce)]
    for _ in range(10):
        for a, b, c, d in MIX:
            for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                s[x] = (s[x] + s[y]) & 0xFFFFFFFF
                s[z] ^= s[x]
                s[z] = (s[z] << turn | s[z] >> (32 - turn)) & 0xFFFFFFFF
    return struct.pack("<8I", *s[:4], *s[12:])

class Box:
    """Opens the sealed texts of one object (FORMAT.md, section 3)."""

    def __init__(self, secret, cipher, key_set, repository, obj, salt):
        info = b"cairn box" + (b"" if cipher == 1 else bytes([cipher]))
        self.key = hkdf(secret, salt, info + repository + obj + struct.pack("<IH", key_set, 1))
        self.aad = b"cairn" + struct.pack("<HI", 1, key_set) + repository + obj
        self.cipher = cipher
        need(cipher in (1, 2), "unknown cipher", cipher)
    def open(self, kind, number, detail, sealed, what):
        nonce = bytes([kind, 0, 0, 0]) + struct.pack(">Q", number)
        aad = self.aad + struct.pack("<BQQ", kind, number, detail)
        try:
            if self.cipher == 1:
                return AESGCM(self.key).decrypt(nonce, sealed, aad)
            subkey = hchacha20(self.key, nonce + bytes(4))
            return ChaCha20Poly1305(subkey).decrypt(bytes(12), sealed, aad)
        except InvalidTag:
            raise Damaged(what + " does not authenticate: damaged, forged, or sealed with another key") from None

# ---- Keys
PAPER = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
def paper_key(text):
    """The secret of a paper key as it was typed or scanned."""
    text = text.upper()
    if "CAIRN-PAPER-1:" in text:
        lines = re.findall(".{16}", text.split("CAIRN-PAPER-1:")[1].strip())
    else:
        found = dict(re.findall(r"(?m)^[ \t>*]*([1-4])[ \t]*[:.)][ \t]*(.*)$", text))
        lines = [found[n] for n in sorted(found)] or [line for line in text.splitlines() if line.strip()]
    need(len(lines) == 4, "the paper key has four lines, not", len(lines))
    secret = b""
    for number, line in enumerate(lines, 1):
        line = re.sub(r"[\s\-.,_]", "", line).translate(str.maketrans("OILU", "011V"))
        need(len(line) == 16 and not set(line) - set(PAPER), "line", number, "of the paper key has not its 16 characters")
        raw = sum(PAPER.index(c) << 5 * (15 - i) for i, c in enumerate(line)).to_bytes(10, "big")
        sum2 = hashlib.sha256(b"cairn paper key line %d:" % number + raw[:8]).digest()[:2]
        need(raw[8:] == sum2, "line", number, "of the paper key does not agree with its checksum")
        secret += raw[:8]
    return secret

def bech32_secret(text):
    """The 32 bytes of an AGE-SECRET-KEY-1..."""
    hrp, data = text.lower().rsplit("1", 1)
    values, check = [BECH32.index(c) for c in data], 1
    for v in [ord(c) >> 5 for c in hrp] + [0] + [ord(c) & 31 for c in hrp] + values:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ v
        for i, g in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= g if top >> i & 1 else 0
    need(check == 1 and len(values) == 58, "the age identity has a slip in it")
    n = 0
    for v in values[:-6]:
        n = n << 5 | v
    return (n >> 4).to_bytes(32, "big")

def read_key(path):
    """('cairn', secret) of a key file or paper key, or ('age', secret)."""
    with open(path, encoding="utf-8") as f:
        text = f.read().strip()
    found = re.search(r"^AGE-SECRET-KEY-1[0-9A-Z]+$", text, re.M)
    if found:
        return "age", bech32_secret(found.group())
    found = re.fullmatch(r"cairn-key-1:([0-9a-f]{64}):([0-9a-f]{8})", text)
    if found:
        secret = bytes.fromhex(found.group(1))
        need(zlib.crc32(secret) == int(found.group(2), 16), "the key file does not agree with its checksum")
        return "cairn", secret
    return "cairn", paper_key(text)

def age_decrypt(data, secret):
    """The plaintext of a small age file for an X25519 identity; None if it is for somebody else."""
    end = data.index(b"\n---") + 4
    header, rest = data[:end], data[end:]
    mac, payload = rest.split(b"\n", 1)

    def unbase64(s):
        return base64.b64decode(s + b"=" * (-len(s) % 4))
    private = X25519PrivateKey.from_private_bytes(secret)
    mine = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    for share, body in re.findall(rb"-> X25519 (\S+)\n(\S+)\n", header):
        share = unbase64(share)
        wrap = hkdf(private.exchange(X25519PublicKey.from_public_bytes(share)), share + mine, b"age-encryption.org/v1/X25519")
        try:
            file_key = ChaCha20Poly1305(wrap).decrypt(bytes(12), unbase64(body), None)
        except InvalidTag:
            continue
        want = hmac.new(hkdf(file_key, None, b"header"), header, hashlib.sha256).digest()
        need(hmac.compare_digest(want, unbase64(mac.strip())), "age header was altered")
        return ChaCha20Poly1305(hkdf(file_key, payload[:16], b"payload")).decrypt(bytes(11) + b"\1", payload[16:], None)
    return None

def signed_value(text, member):
    """The value of the first member of a JSON object, and its bytes exactly as they stand."""
    start = text.index(":", text.index('"' + member + '"')) + 1
    start += len(text[start:]) - len(text[start:].lstrip())
    value, end = json.JSONDecoder().raw_decode(text, start)
    return value, text[start:end].encode()

def unwrap(text, repository, key):
    """The key set (id, data key, id key, seed) in a wrapping, or None if it is for another key or repository."""
    w = json.loads(text)["wrapping"]
    if w["repository"] != repository.hex():
        return None
    kind, secret = key
    wid = bytes.fromhex(w["id"])
    if kind == "cairn" and w["kind"] in ("key-file", "paper") and w["key"] == hkdf(secret, None, b"cairn key fingerprint", 8).hex():
        box = Box(secret, 1, w["key_set"], repository, wid, bytes.fromhex(w["salt"]))
        plain = box.open(5, 0, 1 if w["kind"] == "paper" else 0, bytes.fromhex(w["sealed"]), "wrapping " + w["id"])
    elif kind == "age" and w["kind"] == "age":
        plain = age_decrypt(bytes.fromhex(w["sealed"]), secret)
        if plain is None:
            return None
        head = b"cairn key set\0" + repository + wid + struct.pack("<I", w["key_set"])
        need(plain[:len(head)] == head, "wrapping", w["id"], "was made for another place")
        plain = plain[len(head):]
    else:
        return None
    need(len(plain) == 96, "key set of", len(plain), "bytes")
    return w["key_set"], plain[:32], plain[32:64], plain[64:]

# ---- Frames
def s2_decode(src, length):
    """A block of S2 (FORMAT.md, section 13)."""
    at = next(i for i, b in enumerate(src) if b < 128) + 1
    size = sum((b & 127) << 7 * i for i, b in enumerate(src[:at]))
    need(size == length, "S2 block is for", size, "bytes, not", length)
    out, offset = bytearray(), 0
    while at < len(src):
        tag = src[at]
        kind, n = tag & 3, tag >> 2
        at += 1
        if kind == 0:
            if n >= 60:
                extra = n - 59
                n, at = int.from_bytes(src[at:at + extra], "little"), at + extra
            out += src[at:at + n + 1]
            at += n + 1
            continue
        if kind == 1:
            n, far = n & 7, (tag >> 5) << 8 | src[at]
            at += 1
            if far:
                offset = far
            elif n >= 5:
                extra = n - 4
                n = int.from_bytes(src[at:at + extra], "little") + (4, 256, 65536)[extra - 1]
                at += extra
            n += 4
        else:
            width = 2 if kind == 2 else 4
            n, offset, at = n + 1, int.from_bytes(src[at:at + width], "little"), at + width
        need(0 < offset <= len(out) and len(out) + n <= length, "S2 block copies from nowhere")
        for start in range(0, n, offset):  # a copy may overlap what it makes
            out += out[len(out) - offset:len(out) - offset + min(offset, n - start)]
    need(len(out) == length, "S2 block has", len(out), "bytes, not", length)
    return bytes(out)

def decode(codec, coded, length):
    try:
        if codec == 1:
            coded = zstandard.ZstdDecompressor().decompress(coded, max_output_size=length)
        elif codec == 2:
            coded = s2_decode(coded, length)
    except (zstandard.ZstdError, IndexError, StopIteration) as err:
        raise Damaged("frame cannot be decompressed: %s" % err) from None
    need(codec <= 2 and len(coded) == length, "frame of an unknown codec or another length")
    return coded

# ---- Packs
Entry = collections.namedtuple("Entry", "pack type frame offset length present zeros refs")

def parse_directory(p):
    """(blocks per chunk, frames, [(id, Entry)]) of a directory's plaintext."""
    frames, entries, blocks = struct.unpack_from("<IIB7x", p)
    at, table, found = 16, [], []
    for _ in range(frames):
        table.append(struct.unpack_from("<IIIB3x", p, at))
        at += 16
    for _ in range(entries):
        kind, oid, frame, offset, length = struct.unpack_from("<B3x32sIII", p, at)
        at += 48
        present = zeros = 0
        refs = {}
        if kind == 1:
            present, zeros, targets = struct.unpack_from("<QQBx", p, at)
            names = [p[at + 18 + 32 * i:at + 50 + 32 * i] for i in range(targets)]
            at += 18 + 32 * targets
            for block in range(blocks):
                if not (present | zeros) >> block & 1:
                    refs[block] = (names[p[at]], p[at + 1])
                    at += 2
        need(frame < frames and offset + length <= table[frame][2], "directory names bytes that are not there")
        found.append((oid, Entry(None, kind, frame, offset, length, present, zeros, refs)))
    need(at == len(p), "directory of another length")
    return blocks, table, found
class Pack:
    def __init__(self, path, repository, keys, blocks):
        self.path, name = path, bytes.fromhex(os.path.basename(path)[:32])
        size = os.path.getsize(path)
        need(size >= 128 + 32 + 80, path, "is cut short")
        head, end = self.read(0, 128), self.read(size - 80, 80)
        magic, version, length, cipher, kind, rid, pid, key_set, salt, rest = struct.unpack("<8sHHBB2x16s16sI4x32s40s", head)
        need(magic == b"CAIRNPAK" and version == 1 and length == 128 and rest == bytes(40), path, "has no pack header that is known")
        need(rid == repository and pid == name and key_set == keys[0], path, "belongs to another repository, name or key set")
        at, dir_len, prints_len, pid, _, version, magic = struct.unpack("<QII16s32sH6x8s", end)
        need(magic == b"CAIRNEND" and version == 1 and pid == name and at + dir_len + prints_len + 80 == size, path, "has no whole trailer")
        self.box = Box(keys[1], cipher, key_set, repository, name, salt)
        plain = self.box.open(2, 0, kind << 32 | dir_len - 16, self.read(at, dir_len), path + ": directory")
        count, self.frames, self.entries = parse_directory(plain)
        need(count == blocks, path, "has chunks of another size")
    def read(self, at, n):
        with open(self.path, "rb") as f:
            f.seek(at)
            p = f.read(n)
        need(len(p) == n, self.path, "is cut short")
        return p
    def frame(self, number):
        at, stored, plain, codec = self.frames[number]
        coded = self.box.open(1, number, codec << 32 | plain, self.read(at, stored), "%s: frame %d" % (self.path, number))
        return decode(codec, coded, plain)

# ---- The repository
class Repository:
    def __init__(self, root, key):
        self.root = root
        with open(os.path.join(root, "config"), encoding="utf-8") as f:
            text = f.read()
        self.config, signed = signed_value(text, "config")
        need(self.config["format"] == 1, "the repository has format", self.config["format"])
        self.id, config = bytes.fromhex(self.config["repository"]), json.loads(text)
        self.blocks = self.config["chunk_bytes"] // BLOCK
        self.keys, problem = None, "no wrapping of this repository's keys is for this key"
        for name in sorted(os.listdir(os.path.join(root, "keys"))):
            try:
                with open(os.path.join(root, "keys", name), encoding="utf-8") as f:
                    keys = unwrap(f.read(), self.id, key)
                if keys:
                    self.public = Ed25519PrivateKey.from_private_bytes(keys[3]).public_key()
                    raw = self.public.public_bytes(Encoding.Raw, PublicFormat.Raw)
                    need(raw.hex() == config["public_key"], "config is of another key set")
                    self.public.verify(bytes.fromhex(config["signature"]), b"cairn config\0" + signed)
                    self.keys = keys
                    break
            except (Damaged, InvalidSignature, InvalidTag, ValueError, KeyError) as err:
                problem = "keys/%s or config: %s" % (name, err or "forged")
        need(self.keys, problem)
        self.hash_keys = {p: derive_key("cairn-backup 2026-11 " + p, self.keys[2])
                          for p in ("chunk", "node", "image", "document", "manifest")}
        self.places, self.cache, self.problems = None, collections.OrderedDict(), []
    def hash(self, purpose, data):
        return blake3(data, self.hash_keys[purpose])
    def index(self):
        """Where every id lies, from the directories of all packs."""
        if self.places is not None:
            return
        self.places = collections.defaultdict(list)
        folder = os.path.join(self.root, "packs")
        for path in sorted(os.path.join(d, n) for d, _, names in os.walk(folder) for n in names if n.endswith(".pack")):
            try:
                pack = Pack(path, self.id, self.keys, self.blocks)
                for oid, entry in pack.entries:
                    self.places[oid].append(entry._replace(pack=pack))
            except (Damaged, struct.error, IndexError) as err:
                self.problems.append(str(err))
    def copies(self, oid, *kinds):
        self.index()
        found = [e for e in self.places.get(oid, ()) if e.type in kinds]
        need(found, oid.hex(), "is in no pack that can be read")
        return found
    def frame(self, entry):
        where = (entry.pack.path, entry.frame)
        if where not in self.cache:
            self.cache[where] = entry.pack.frame(entry.frame)
            if len(self.cache) > 64:
                self.cache.popitem(last=False)
        self.cache.move_to_end(where)
        return self.cache[where]
    def first_good(self, oid, kinds, make, proof):
        """Tries every copy of an object until one is what its id says."""
        problem = None
        for entry in self.copies(oid, *kinds):
            try:
                data = make(entry)
                need(proof(data) == oid, oid.hex(), "in", entry.pack.path, "is not what its id says")
                return data
            except Damaged as err:
                problem = err
        raise problem
    def object(self, oid, kind, purpose):
        return self.first_good(oid, (kind,), lambda e: self.frame(e)[e.offset:e.offset + e.length], lambda p: self.hash(purpose, p))
    def present(self, entry, block):
        at = entry.offset + BLOCK * bin(entry.present & (1 << block) - 1).count("1")
        return self.frame(entry)[at:at + BLOCK]
    def chunk(self, oid):
        def make(entry):
            out = []
            for i in range(self.blocks):
                if entry.present >> i & 1:
                    out.append(self.present(entry, i))
                elif entry.zeros >> i & 1:
                    out.append(bytes(BLOCK))
                else:
                    target, block = entry.refs[i]
                    out.append(next((self.present(e, block) for e in self.copies(target, 1) if e.present >> block & 1), b""))
            return b"".join(out)
        return self.first_good(oid, (1,), make, lambda p: self.hash("chunk", p))
    def leaves(self, oid, level):
        """Yields (index, chunk id) of every chunk under a node that is not all zeros."""
        p = self.object(oid, 2, "node")
        need(len(p) >= 40 and p[0] == 1 and p[1] == level, "node", oid.hex(), "is of another version or level")
        children = [i for i in range(256) if p[8 + i // 8] >> i % 8 & 1]
        need(children and len(p) == 40 + 32 * len(children), "node", oid.hex(), "has another length")
        for n, i in enumerate(children):
            child = p[40 + 32 * n:72 + 32 * n]
            if level == 0:
                yield i, child
            else:
                for at, chunk in self.leaves(child, level - 1):
                    yield i * 256 ** level + at, chunk
    def image(self, ref):
        """Yields (offset, bytes) of every part of a disk that is not all zeros."""
        p = self.object(bytes.fromhex(ref["root"]), 3, "image")
        magic, version, height, chunk, size, top = struct.unpack("<8sBB2xIQ8x32s", p)
        need(magic == b"CAIRNIMG" and version == 1 and chunk == self.blocks * BLOCK, "image head is of another kind")
        need(size == ref["size_bytes"], "image head is for a disk of another size")
        if top != ZERO:
            for i, oid in self.leaves(top, height - 1):
                need(i * chunk < size, "a chunk lies beyond the end of the disk")
                yield i * chunk, self.chunk(oid)[:size - i * chunk]
    def points(self):
        """Yields (name, record or the Damaged that it is)."""
        folder = os.path.join(self.root, "manifests")
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            try:
                yield name, self.point(name)
            except (Damaged, ValueError, KeyError, struct.error) as err:
                yield name, Damaged("%s: %s" % (name, err))
    def point(self, name):
        with open(os.path.join(self.root, "manifests", name), "rb") as f:
            p = f.read()
        need(len(p) >= 128 + 64 + 16, "it is cut short")
        magic, version, length, cipher, rid, pid, key_set, salt, n = struct.unpack_from("<8sHHB3x16s16sI4x32sI", p)
        need(magic == b"CAIRNMAN" and version == 1 and length == 128 and n + 144 == len(p), "it is no manifest that is known")
        need(rid == self.id and key_set == self.keys[0] and name == "rp_" + ulid(pid), "it belongs to another repository, name or key set")
        need(blake3(p[:92] + p[124:]) == p[92:124], "its bytes are not those that were written")
        plain = Box(self.keys[1], cipher, key_set, rid, pid, salt).open(4, 0, n, p[128:], "manifest")
        signature, body = plain[:64], plain[64:]
        try:
            self.public.verify(signature, b"cairn manifest\0" + rid + pid + struct.pack("<I", key_set) + body)
        except InvalidSignature:
            raise Damaged("it was not signed by this repository's key") from None
        record = json.loads(body)
        need(record["format"] == 1 and record["point"]["id"] == name, "its record is of another format or name")
        record["hash"] = self.hash("manifest", body).hex()
        return record
    def documents(self, record):
        for doc, pieces in zip(record["point"].get("documents") or [], record["pieces"] or []):
            data = b"".join(self.object(bytes.fromhex(p), 4, "document") for p in pieces)
            need(len(data) == doc["size_bytes"], "document", doc["name"], "has another length")
            yield doc["name"], data
    def chain(self, records):
        """What is odd about which restore point follows which."""
        known = {r["point"]["id"]: r for r in records}
        for r in records:
            before = known.get(r["point"].get("previous"))
            if before and before["hash"] != r.get("previous_hash"):
                yield "%s does not follow the %s that is here: that was replaced" % (r["point"]["id"], before["point"]["id"])

def ulid(raw):
    n = int.from_bytes(raw, "big")
    return "".join(PAPER[n >> 5 * i & 31] for i in range(25, -1, -1)).lower()

def do_list(repo, _):
    bad, records = [], []
    for name, record in repo.points():
        if isinstance(record, Damaged):
            bad.append(record)
            continue
        records.append(record)
        p = record["point"]
        disks = ", ".join("%s (%d bytes)" % (i["name"], i["ref"]["size_bytes"]) for i in p["images"] or [])
        print(name, p["series"], "#%d" % p["sequence"], p["time"], disks)
    odd = list(repo.chain(records))
    for problem in bad + odd:
        print("DAMAGED", problem)
    return len(bad) + len(odd)

def do_verify(repo, args):
    bad, todo = 0, set(args)
    for name, record in repo.points():
        if args and name not in args:
            continue
        todo.discard(name)
        try:
            if isinstance(record, Damaged):
                raise record
            proven = sum(len(data) for _, data in repo.documents(record))
            proven += sum(len(data) for image in record["point"]["images"] or [] for _, data in repo.image(image["ref"]))
            print(name, "is whole:", proven, "bytes other than zeros are proven")
        except Damaged as err:
            bad += 1
            print(name, "DAMAGED:", err)
    for problem in repo.problems:
        print("note:", problem)
    need(not todo, "there is no restore point", *todo)
    return bad

def do_extract(repo, args):
    """Writes every document and, sparse, every disk. What could not be read whole does not get its name."""
    need(len(args) == 2, "extract takes a restore point and a directory")
    record = repo.point(args[0])
    parts = [("document-" + name, len(data), [(0, data)]) for name, data in repo.documents(record)]
    parts += [("disk-%s.raw" % i["name"], i["ref"]["size_bytes"], repo.image(i["ref"])) for i in record["point"]["images"] or []]
    os.makedirs(args[1], exist_ok=True)
    for name, size, pieces in parts:
        path = os.path.join(args[1], re.sub(r"[^\w.\-]", "_", name))
        need(not os.path.exists(path), path, "is there already")
        with open(path + ".part", "xb") as f:
            f.truncate(size)
            for offset, data in pieces:
                f.seek(offset)
                f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.rename(path + ".part", path)
        print(path)
    return 0

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--key", required=True, help="key file, paper key or age identity")
    parser.add_argument("repository")
    parser.add_argument("command", choices=["list", "verify", "extract"])
    parser.add_argument("args", nargs="*")
    o = parser.parse_args()
    try:
        repo = Repository(o.repository, read_key(o.key))
        return min(1, {"list": do_list, "verify": do_verify, "extract": do_extract}[o.command](repo, o.args))
    except (Damaged, OSError, ValueError) as err:
        print("cairn_reader:", err, file=sys.stderr)
        return 1

if __name__ == "__main__":
    sys.exit(main())
