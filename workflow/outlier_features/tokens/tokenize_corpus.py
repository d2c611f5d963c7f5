"""Rule tokenize_corpus: the token sequences of a run, and the text of each."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from outlier_features.errors import InputError
from outlier_features.files.artifacts import PROVENANCE, Provenance, read_json
from outlier_features.files.model_source import record_of, source_of
from outlier_features.files.sealed_parquet import metadata_of, open_parquet
from outlier_features.model.loading import Part
from outlier_features.progress import item_bar
from outlier_features.tokens.tokens import Tokens

Array = np.ndarray[Any, Any]
SEPARATOR = "\n\n"


def tokenize_corpus(
    model: str,
    corpus: str,
    model_source: Path,
    documents: Path,
    corpus_source: Path,
    tokens: Path,
    texts: Path,
    *,
    sample: Mapping[str, Any],
    part: Part | None = None,
) -> None:
    """Make the sequences of a run.

    sample   `sequences` (N), `tokens` (T), `pack` (windows or documents), `bos` (auto, always, never)
    part     the half of an encoder-decoder model; its decoder reads the text behind its start token

    Writes `tokens` with tokens int32, special and mask bool (N, T), offsets int32 (N, T, 2): the UTF-8 bytes of each
    token in its sequence's text (an empty span for a special token, overlapping ones where tokens share a character);
    and `texts` with a row (sequence, text) each. A corpus that is too short makes fewer sequences, one that does not
    fill a window makes a padded one, and `notes` in the provenance say so. Raises `InputError` where there is no token
    or the tokenizer cannot be used.
    """
    source = source_of(model_source, weights=False)
    wrapped = Wrapped.load(Path(source["location"]), sample["bos"])
    if part == "decoder":
        wrapped = replace(wrapped, prefix=(decoder_start(Path(source["location"])), *wrapped.prefix))
    room = sample["tokens"] - len(wrapped.prefix) - len(wrapped.suffix)
    if room < 1:
        raise InputError(f"sample.tokens: {sample['tokens']} leaves no room beside the tokenizer's special tokens")
    read = _windows if sample["pack"] == "windows" else _documents
    record = record_of(corpus_source, "sha256", "documents")
    corpus_sha256 = record["sha256"]
    _require_documents(documents, corpus_sha256)
    made = read(wrapped.tokenizer, documents, sample["sequences"], room)
    pieces = list(item_bar(made, "tokenize", "seq", sample["sequences"]))
    if not pieces:
        raise InputError(f"corpus {corpus!r} has no token, expected text")
    notes = [*wrapped.notes, *_shortfall(corpus, sample, len(pieces), room - len(pieces[0].ids), record)]
    for note in notes:
        print(note, file=sys.stderr)
    arrays = _arrays([wrapped.around(piece) for piece in pieces], sample["tokens"])
    provenance = {
        "model": model,
        "model_revision": source["revision"],
        "corpus": corpus,
        "corpus_sha256": corpus_sha256,
        "sample": dict(sample),
        "special_tokens": wrapped.names(),
        "notes": notes,
    }
    Tokens(**arrays, provenance=provenance).write(tokens, texts, [piece.text for piece in pieces])


def _shortfall(
    corpus: str, sample: Mapping[str, Any], found: int, missing: int, record: Mapping[str, Any]
) -> Iterator[str]:
    """What a corpus lacks of the sample, and what would give more; `missing`: tokens that the first sequence lacks."""
    if found == sample["sequences"] and not (sample["pack"] == "windows" and missing):
        return
    kind = "full windows" if sample["pack"] == "windows" else "documents"
    made = f"{found} of the {sample['sequences']} sequences asked for ({kind} of {sample['tokens']} tokens)"
    if sample["pack"] == "windows" and missing:
        made = f"no full window of {sample['tokens']} tokens, so its one sequence is padded"
    more = "more documents, or sample.pack: windows" if sample["pack"] == "documents" else "a longer text"
    if limit := record.get("limit"):
        more = f"a larger {limit}, where its reading stopped"
    fewer = ", or fewer sample.tokens" if sample["pack"] == "windows" else ""
    yield f"corpus {corpus!r} makes {made}; {more}{fewer}, would give more"


@dataclass(frozen=True)
class Piece:
    """A sequence: ids and byte offsets (T', 2) into `text`, special tokens among them marked."""

    ids: Array
    offsets: Array
    special: Array
    text: str


@dataclass(frozen=True)
class Wrapped:
    """A tokenizer and the special tokens that it puts around a sequence."""

    tokenizer: Tokenizer
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def load(cls, directory: Path, bos: str) -> "Wrapped":
        tokenizer = load_tokenizer(directory)
        template = tokenizer.encode("a")
        text = [i for i, special in enumerate(template.special_tokens_mask) if not special]
        prefix = tuple(template.ids[: text[0]]) if text else ()
        suffix = tuple(template.ids[text[-1] + 1 :]) if text else ()
        notes = tuple(_disagreements(directory, bool(prefix), bool(suffix))) if bos == "auto" else ()
        if bos == "never":
            prefix = suffix = ()
        elif bos == "always" and not prefix:
            start = special_id(directory, tokenizer, "bos")
            if start is None:
                raise InputError(
                    f"sample.bos: found 'always', but the tokenizer in {directory} has no beginning-of-sequence token"
                )
            prefix = (start,)
        # Text is data: a special token's name in it is text too.
        tokenizer.encode_special_tokens = True
        return cls(tokenizer, prefix, suffix, notes)

    def names(self) -> dict[str, str]:
        """What the vocabulary calls the special tokens that are added, by id (as text, for JSON)."""
        return {str(i): self.tokenizer.id_to_token(i) or "" for i in (*self.prefix, *self.suffix)}

    def around(self, piece: Piece) -> Piece:
        before, after = len(self.prefix), len(self.suffix)
        end = piece.offsets[-1, 1] if len(piece.offsets) else 0
        return Piece(
            np.concatenate([self.prefix, piece.ids, self.suffix]).astype(np.int32),
            np.concatenate([np.zeros((before, 2)), piece.offsets, np.full((after, 2), end)]).astype(np.int32),
            np.concatenate([np.ones(before), piece.special, np.ones(after)]).astype(bool),
            piece.text,
        )


def load_tokenizer(directory: Path) -> Tokenizer:
    """The fast tokenizer of a model directory, without truncation and padding.

    `tokenizer.json` is read as it is; only a model without one costs the import of transformers, which converts it.
    """
    path = directory / "tokenizer.json"
    try:
        if path.exists():
            tokenizer = Tokenizer.from_file(str(path))
        else:
            from transformers import AutoTokenizer

            # Not False but nothing said, transformers would ask on the terminal whether to run a model's own code.
            auto = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
            tokenizer = auto.backend_tokenizer
    except Exception as error:  # the Rust library raises bare Exception
        found = str(error).strip().partition("\n")[0].removesuffix(":")
        raise InputError(
            f"{directory}: expected a tokenizer (tokenizer.json), found none that loads: {found}"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def decoder_start(directory: Path) -> int:
    """The token with which the decoder of an encoder-decoder model begins, as transformers' generation looks for it."""
    configs = [
        read_json(path) for name in ("config", "generation_config") if (path := directory / f"{name}.json").exists()
    ]
    for key in ("decoder_start_token_id", "bos_token_id"):
        for config in configs:
            for place in (config, config.get("decoder") or {}):
                if isinstance(start := place.get(key), int):
                    return start
    raise InputError(f"{directory}: found no decoder_start_token_id and no bos_token_id in config.json, expected one")


def _disagreements(directory: Path, before: bool, after: bool) -> Iterator[str]:
    """Where flags of tokenizer_config.json differ from what the tokenizer's template adds; the template is followed."""
    path = directory / "tokenizer_config.json"
    flags = read_json(path) if path.exists() else {}
    for key, adds, place in (("add_bos_token", before, "before"), ("add_eos_token", after, "after")):
        if isinstance(flags.get(key), bool) and flags[key] != adds:
            what = "special tokens" if adds else "no special token"
            hint = f"; sample.bos: {'never' if adds else 'always'} does otherwise" if place == "before" else ""
            yield (
                f"sample.bos: auto adds {what} {place} each sequence, as the tokenizer's own template does, though "
                f"tokenizer_config.json says {key}: {str(flags[key]).lower()}{hint}"
            )


def special_id(directory: Path, tokenizer: Tokenizer, kind: Literal["bos", "eos"]) -> int | None:
    """The token with which a model in a directory begins (ends) a sequence, as its own files name it, if they do."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (directory / name).exists():
            token: Any = read_json(directory / name).get(f"{kind}_token")
            content = token["content"] if isinstance(token, dict) else token
            number = tokenizer.token_to_id(content) if content else None
            if number is not None:
                return int(number)
    found = read_json(directory / "config.json").get(f"{kind}_token_id")
    return found if isinstance(found, int) else None


def _require_documents(documents: Path, sha256: str) -> None:
    """Raise `InputError` where the file is not the one that was fetched along with the corpus's record."""
    with _damage_named(documents), open_parquet(documents) as file:
        found = Provenance(documents, metadata_of(file)[PROVENANCE])["sha256"]
        if found != sha256:
            raise ValueError(f"documents with the SHA-256 {found}, where the record has {sha256}")


def _texts(documents: Path) -> Iterator[str]:
    with _damage_named(documents), open_parquet(documents) as file:
        for batch in file.iter_batches(256, columns=["text"]):
            yield from batch.column("text").to_pylist()


@contextmanager
def _damage_named(documents: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, KeyError, InputError) as error:
        raise InputError(
            f"{documents}: expected the Parquet table of documents, found {error}; delete it to have it fetched again"
        ) from error


def _encode(tokenizer: Tokenizer, text: str) -> tuple[Array, Array]:
    """Ids and byte offsets (T', 2) of `text`, without special tokens."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    bytes_before = np.zeros(len(text) + 1, np.int64)
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    np.cumsum(1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000), out=bytes_before[1:])
    return np.asarray(encoding.ids, np.int32), bytes_before[np.asarray(encoding.offsets, np.int64).reshape(-1, 2)]


def _windows(tokenizer: Tokenizer, documents: Path, sequences: int, room: int) -> Iterator[Piece]:
    """Full windows of `room` tokens from the documents, joined by a blank line; or all of a text that fills none.

    The text is tokenized in stretches of whole documents, long enough for some windows; what is left over at the end of
    a stretch begins the next one. Where stretches end depends on the documents alone, not on how many are wanted.
    """
    made = 0
    rest = text = ""
    for stretch in _stretches(_texts(documents), 64 * room):  # some 16 windows
        text = rest + stretch
        ids, offsets = _encode(tokenizer, text)
        encoded = text.encode()
        end = 0
        for start in range(0, len(ids) - room + 1, room):
            span = offsets[start : start + room]
            first, end = int(span[:, 0].min()), int(span[:, 1].max())
            yield Piece(ids[start : start + room], span - first, np.zeros(room, bool), encoded[first:end].decode())
            made += 1
            if made == sequences:
                return
        rest = encoded[end:].decode()
    if not made:
        text = text.removesuffix(SEPARATOR)
        ids, offsets = _encode(tokenizer, text)
        if len(ids):
            yield Piece(ids[:room], offsets[:room], np.zeros(len(ids[:room]), bool), text)


def _stretches(texts: Iterator[str], characters: int) -> Iterator[str]:
    """Texts, each followed by a separator, joined to pieces of at least so many characters; the last may be shorter."""
    stretch: list[str] = []
    for text in texts:
        stretch += [text, SEPARATOR]
        if sum(map(len, stretch)) >= characters:
            yield "".join(stretch)
            stretch = []
    if stretch:
        yield "".join(stretch)


def _documents(tokenizer: Tokenizer, documents: Path, sequences: int, room: int) -> Iterator[Piece]:
    """The beginning of each document, at most `room` tokens."""
    made = 0
    for text in _texts(documents):
        ids, offsets = _encode(tokenizer, text)
        ids, offsets = ids[:room], offsets[:room]
        if len(ids) and made < sequences:
            made += 1
            end = int(offsets[:, 1].max())
            yield Piece(ids, offsets, np.zeros(len(ids), bool), text.encode()[:end].decode())
        if made == sequences:
            return


def _arrays(pieces: list[Piece], length: int) -> dict[str, Array]:
    n = len(pieces)
    arrays = {
        "tokens": np.zeros((n, length), np.int32),
        "special": np.zeros((n, length), bool),
        "mask": np.zeros((n, length), bool),
        "offsets": np.zeros((n, length, 2), np.int32),
    }
    for i, piece in enumerate(pieces):
        size = len(piece.ids)
        arrays["tokens"][i, :size] = piece.ids
        arrays["special"][i, :size] = piece.special
        arrays["mask"][i, :size] = True
        arrays["offsets"][i, :size] = piece.offsets
        arrays["offsets"][i, size:] = piece.offsets[-1, 1] if size else 0
    return arrays
