"""Bytes cut in pieces that are addressed by their content, so that what is equal is stored once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from wflo_nb.errors import ChunkCorruptedError
from wflo_nb.store.records import Chunk

#: Arrays change in place, so fixed cuts find what stayed.
CHUNK = 1 << 20
_PROBE = 64 << 10
_BATCH = 16 << 20
#: Shorter pieces do not shrink by anything that matters.
_WORTH = 256


class ChunkStore(Protocol):
    """What this module needs of a store."""

    def missing_chunks(self, digests: Any) -> set[bytes]:
        """Those that are not stored."""

    def put_chunks(self, chunks: list[Chunk]) -> None:
        """Durable on return."""

    def get_chunks(self, digests: Any) -> dict[bytes, Chunk]:
        """All of them, or ChunkCorruptedError."""


class ChangedWhileSavingError(Exception):
    """Memory was written by another thread between its hash and its copy."""


@dataclass(frozen=True, slots=True)
class Cut:
    """One stretch of bytes as a manifest names it: its length and the digests of its pieces."""

    size: int
    digests: tuple[bytes, ...]

    def to_json(self) -> dict[str, Any]:
        """For a manifest."""
        return {"size": self.size, "chunks": [d.hex() for d in self.digests]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Cut:
        """From a manifest."""
        return cls(int(data["size"]), tuple(bytes.fromhex(d) for d in data["chunks"]))


def pieces(view: memoryview) -> Iterator[memoryview]:
    """The fixed pieces of a flat view."""
    for start in range(0, view.nbytes, CHUNK):
        yield view[start : start + CHUNK]


def cut(data: Any) -> tuple[Cut, dict[bytes, memoryview]]:
    """Hash a buffer piece by piece; returns how a manifest names it and the pieces by digest."""
    from blake3 import blake3

    view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
    found: dict[bytes, memoryview] = {}
    order = []
    for piece in pieces(view):
        digest = blake3(piece).digest()
        order.append(digest)
        found.setdefault(digest, piece)
    return Cut(view.nbytes, tuple(order)), found


@dataclass(slots=True)
class ChunkWriter:
    """Collects pieces and writes those that the store does not have, in batches.

    Attributes:
        written: encoded bytes that were added to the store.
    """

    store: ChunkStore
    written: int = 0
    _pending: dict[bytes, memoryview] = field(default_factory=dict)
    _size: int = 0

    def add(self, found: dict[bytes, memoryview]) -> None:
        """Take pieces; may write."""
        for digest, piece in found.items():
            if digest not in self._pending:
                self._pending[digest] = piece
                self._size += piece.nbytes
                if self._size >= _BATCH:
                    self.flush()

    def flush(self) -> None:
        """Write what is pending and missing.

        Raises:
            ChangedWhileSavingError: a piece is not what was hashed any more.
        """
        if not self._pending:
            return
        from blake3 import blake3

        pending, self._pending, self._size = self._pending, {}, 0
        compress = compressor()
        missing = self.store.missing_chunks(list(pending))
        batch = []
        for digest in pending:
            if digest in missing:
                raw = bytes(pending[digest])
                if blake3(raw).digest() != digest:
                    raise ChangedWhileSavingError
                batch.append(encode(digest, raw, compress))
        if batch:
            self.store.put_chunks(batch)
            self.written += sum(len(c.data) for c in batch)


def compressor() -> Callable[[bytes], bytes]:
    """The fastest level of zstd. Not to be shared between threads."""
    import zstandard

    compress: Callable[[bytes], bytes] = zstandard.ZstdCompressor(level=1).compress
    return compress


def encode(digest: bytes, raw: bytes, compress: Callable[[bytes], bytes]) -> Chunk:
    """Compressed when a probe shrinks by a tenth, raw otherwise."""
    if len(raw) >= _WORTH:
        probe = compress(raw[:_PROBE])
        if len(probe) < 0.9 * min(len(raw), _PROBE):
            return Chunk(digest, len(raw), "zstd", probe if len(raw) <= _PROBE else compress(raw))
    return Chunk(digest, len(raw), "raw", raw)


def decode(chunk: Chunk, digest: bytes) -> bytes:
    """The raw bytes, proved to be those of `digest`.

    Raises:
        ChunkCorruptedError: they are not.
    """
    from blake3 import blake3

    raw: bytes
    if chunk.codec == "zstd":
        import zstandard

        try:
            if zstandard.frame_content_size(chunk.data) > CHUNK:
                raise ChunkCorruptedError(f"Chunk {digest.hex()[:12]} claims to be larger than a chunk can be.")
            raw = zstandard.ZstdDecompressor().decompress(chunk.data, max_output_size=CHUNK)
        except zstandard.ZstdError as error:
            raise ChunkCorruptedError(f"Chunk {digest.hex()[:12]} cannot be decompressed: {error}.") from error
    elif chunk.codec == "raw":
        raw = chunk.data
    else:
        raise ChunkCorruptedError(f"Chunk {digest.hex()[:12]} is encoded as {chunk.codec!r}, which this version does not know.")
    if blake3(raw).digest() != digest:
        raise ChunkCorruptedError(f"Chunk {digest.hex()[:12]} is not what was written: its content has another digest.")
    return raw


def read(store: ChunkStore, cuts: Iterable[Cut]) -> list[bytearray]:
    """The bytes of several stretches, every piece verified.

    Raises:
        ChunkCorruptedError: a piece is missing or not what was written.
    """
    wanted = list(cuts)
    result = [bytearray(c.size) for c in wanted]
    places: dict[bytes, list[tuple[int, int]]] = {}
    for which, c in enumerate(wanted):
        if len(c.digests) != (c.size + CHUNK - 1) // CHUNK:
            raise ChunkCorruptedError(f"{c.size} bytes cannot be made of {len(c.digests)} chunks.")
        for number, digest in enumerate(c.digests):
            places.setdefault(digest, []).append((which, number * CHUNK))
    digests = list(places)
    for start in range(0, len(digests), _BATCH // CHUNK):
        some = digests[start : start + _BATCH // CHUNK]
        got = store.get_chunks(some)
        for digest in some:
            if digest not in got:
                raise ChunkCorruptedError(f"Chunk {digest.hex()[:12]} is missing from the store.")
            raw = decode(got[digest], digest)
            for which, offset in places[digest]:
                if len(raw) != min(CHUNK, wanted[which].size - offset):
                    raise ChunkCorruptedError(f"Chunk {digest.hex()[:12]} has {len(raw)} bytes, not as many as its place.")
                result[which][offset : offset + len(raw)] = raw
    return result
