"""Evidence at LOD0: does focus show the turns that answer a question, everything paid?

Long two-person conversations (LoCoMo, read only) with questions whose answering turns are known.
Each conversation is a history of messages "Speaker: text". For each question: the initial layout of
the whole history, the question appended as the newest message, one refocus with it as the turn.
A turn counts if every block it touches is then shown raw. The budget pays for all of it: gists of
everything else, the gists left standing on the paths to revealed blocks, sinks, recent tokens, the
question and the headroom.

The pieces are the product's own: lexical index, mean gists, heuristic policy, refocus loop, greedy
allocator, working context in strict mode. Only the storage below the tree is left out.

Floors and ceilings of the table: `recency` (newest text raw), `cosine` and `bm25` (one feature
alone), `bm25 on blocks` (the same over 32-token blocks, unsmoothed), and plain retrieval: whole
turns without gists, paths, sinks or headroom, beside the same recent tokens, with the ranking of
the index (`retrieval`) or the same unsmoothed.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np
from tokenizers import Tokenizer

from megacontext_sdk.builtin.baselines import Bm25Focus, CosineFocus
from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.builtin.heuristic import HeuristicFocus
from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.builtin.recency import RecencyFocus
from megacontext_sdk.contracts.focus import Budget, FocusQuery
from megacontext_sdk.contracts.gist import Blocks
from megacontext_sdk.focus.refocus import Refocuser
from megacontext_sdk.focus.view import ViewBuilder
from megacontext_sdk.focus.working_context import WorkingContext
from megacontext_sdk.memory.lexical import LexicalIndex, LexicalRow
from megacontext_sdk.memory.lod import BLOCK_SIZE, Span
from megacontext_sdk.memory.precision import PrecisionTable
from megacontext_sdk.memory.terms import piece_bounds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from megacontext_sdk.contracts.focus import FocusPolicy, LexicalHits

__all__ = ["EvidenceSettings", "evidence_table", "measure_evidence"]

SHARED = Path(__file__).resolve().parents[3] / "shared"
DATA = SHARED / "data" / "eval-dev" / "locomo"
MODEL = SHARED / "models" / "lab-base"

OVERLAP = 32
"""Tokens beyond a block, on each side, that its row of the block index takes in."""

_NO_IDS = np.empty(0, np.int32)


@attrs.frozen(kw_only=True)
class EvidenceSettings:
    """What is chosen for the benchmark; everything else is the product's default.

    Attributes:
        recent_tokens, sink_blocks, headroom, n_diff, max_iterations: as in the configuration.
        adversarial: also ask the questions whose premise is wrong; their evidence is known too.
        stride: ask every n-th question only.
    """

    recent_tokens: int = 64
    sink_blocks: int = 1
    headroom: int = 32
    n_diff: int = 4
    max_iterations: int = 16
    adversarial: bool = False
    stride: int = 1

    def budget(self, w_max: int) -> Budget:
        """Return the budget of a row count."""
        return Budget(
            w_max=w_max,
            headroom=self.headroom,
            recent_tokens=self.recent_tokens,
            sink_blocks=self.sink_blocks,
            n_diff=self.n_diff,
        )


@attrs.frozen(eq=False)
class Question:
    """A question and the spans of the turns that answer it."""

    text: str
    ids: np.ndarray
    evidence: tuple[Span, ...]


class BlockFocus(Bm25Focus):
    """BM25 focus that is given blocks for hits."""

    name = "bm25-blocks"


class _Info:
    fingerprint = "benchmark"
    tokenizer_fingerprint = "benchmark"


class Base:
    """The parts of the reference model the benchmark needs: tokenizer and embedding table."""

    info = _Info()

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._table = read_table(folder / "model.safetensors")

    def encode(self, text: str) -> np.ndarray:
        """Return token ids, int32[n]."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, token_ids: np.ndarray) -> str:
        """Return the text of token ids."""
        return self._tokenizer.decode(token_ids.tolist(), skip_special_tokens=False)

    def embedding_table(self) -> np.ndarray:
        """Return float32[vocab, d]."""
        return self._table

    def embed(self, token_ids: np.ndarray) -> np.ndarray:
        """Return float32[n, d]."""
        return self._table[token_ids]


def read_table(path: Path) -> np.ndarray:
    """Return the embedding table of a bfloat16 safetensors file, float32[vocab, d]."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        entry = header["model.embed_tokens.weight"]
        begin, end = entry["data_offsets"]
        file.seek(8 + size + begin)
        raw = np.frombuffer(file.read(end - begin), np.uint16)
    return (raw.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


class BlockIndex:
    """BM25 over blocks instead of messages, without smoothing: the plain floor.

    A row's text reaches over the edges of its block, or no block without a cue of its own is found.
    """

    def __init__(self, base: Base, ids: np.ndarray) -> None:
        self._index = LexicalIndex(None)
        starts = range(0, len(ids) - BLOCK_SIZE + 1, BLOCK_SIZE)
        self._index.add(
            [
                LexicalRow(
                    at,
                    at + BLOCK_SIZE,
                    base.decode(ids[max(at - OVERLAP, 0) : at + BLOCK_SIZE + OVERLAP]),
                )
                for at in starts
            ]
        )

    def query(
        self,
        turn_text: str,
        recent_text: str,
        n_blocks: int,
        limit: int = 64,
        *,
        before: int | None = None,
    ) -> LexicalHits:
        """Return the best blocks."""
        return self._index.search(turn_text, 2 * limit)  # a message has two blocks


class History:
    """One conversation as tokens, gists of every level and a lexical index; lends tree reads."""

    def __init__(self, base: Base, turns: Sequence[Mapping[str, str]]) -> None:
        self._base = base
        self._encoder = MeanGistEncoder(1)
        self._precision = PrecisionTable(base, len(base.embedding_table()))
        self.index = LexicalIndex(None)
        self.index.open()
        self.spans: dict[str, Span] = {}
        ids, rows, at = [], [], 0
        for turn in turns:
            text = f"{turn['speaker']}: {turn['text']}\n"
            ids.append(base.encode(text))
            span = Span(at, at + len(ids[-1]))
            at = span.end
            self.spans[turn["id"]] = span
            rows += _rows(base, span, ids[-1], text)
        self.index.add(rows)
        self.blocks = BlockIndex(base, np.concatenate(ids))
        self._history = np.concatenate(ids)
        self._levels = self._gists_of(self._history)
        self.ask(_NO_IDS)

    def ask(self, question_ids: np.ndarray) -> None:
        """Append a question in place of the one before."""
        self._ids = np.concatenate([self._history, question_ids])
        self.n_tokens = len(self._ids)
        self.n_blocks = self.n_tokens // BLOCK_SIZE
        self._asked: dict[int, np.ndarray] | None = None

    @property
    def n_history(self) -> int:
        """Tokens before the question."""
        return len(self._history)

    def _gists_of(self, ids: np.ndarray) -> dict[int, np.ndarray]:
        full = ids[: len(ids) // BLOCK_SIZE * BLOCK_SIZE].reshape(-1, BLOCK_SIZE)
        gists = self._encoder.encode_blocks(Blocks(full, 0, _NO_IDS), self._base)
        levels = {1: gists.rows}
        while len(gists.rows) >= BLOCK_SIZE:
            keep = len(gists.rows) // BLOCK_SIZE * BLOCK_SIZE
            children = type(gists)(rows=gists.rows[:keep], aux=gists.aux[:keep])
            gists = self._encoder.encode_gists(max(levels) + 1, children, self._base)
            levels[max(levels) + 1] = gists.rows
        return levels

    def gists(self, lod: int, indices: np.ndarray) -> np.ndarray:
        """Return float32[n, 1, d]; what the question completed is encoded on the spot."""
        known = self._levels.get(lod, np.empty((0, 1, 1), np.float32))
        if not len(indices) or indices.max() < len(known):
            return known[indices]
        if self._asked is None:
            self._asked = self._gists_of(self._ids)
        return self._asked[lod][indices]

    def token_ids_of_blocks(self, blocks: np.ndarray) -> np.ndarray:
        """Return int32[n, 32]."""
        return self._ids[blocks[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)]

    def precision(self, blocks: np.ndarray) -> np.ndarray:
        """Return float32[n]."""
        return self._precision.count(self.token_ids_of_blocks(blocks))

    def serving(self, lods: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return version 0 for every node: nothing stands in."""
        del lods
        return np.zeros(len(indices), np.int16), np.zeros(len(indices), np.bool_)

    def tail_gists(self) -> np.ndarray:
        """Return nothing known: the policies compared here do not use them."""
        return np.full((6, self._base.embedding_table().shape[1]), np.nan, np.float32)

    def note_moves(self, moves: Sequence[object]) -> None:
        """Count nothing."""


def _rows(base: Base, span: Span, ids: np.ndarray, text: str) -> list[LexicalRow]:
    pieces = piece_bounds(span.start, span.end)
    if len(pieces) == 1:
        return [LexicalRow(span.start, span.end, text)]
    return [
        LexicalRow(p.start, p.end, base.decode(ids[p.start - span.start : p.end - span.start]))
        for p in pieces
    ]


def _read(path: Path) -> list[dict]:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def load(
    data_dir: Path, base: Base, settings: EvidenceSettings
) -> list[tuple[History, list[Question]]]:
    """Return the conversations with the questions that have evidence."""
    asked: dict[str, list[dict]] = {}
    for question in _read(data_dir / "questions.jsonl.xz"):
        if question["evidence"] and (settings.adversarial or question["type"] != "adversarial"):
            asked.setdefault(question["conv_id"], []).append(question)
    loaded = []
    for conversation in _read(data_dir / "conversations.jsonl.xz"):
        turns = [turn for session in conversation["sessions"] for turn in session["turns"]]
        history = History(base, turns)
        questions = []
        for question in asked.get(conversation["conv_id"], [])[:: settings.stride]:
            spans = tuple(history.spans[t] for t in question["evidence"] if t in history.spans)
            if spans:
                text = question["question"]
                questions.append(Question(text, base.encode(f"User: {text}\n"), spans))
        loaded.append((history, questions))
    return loaded


def _raw_share(wc: WorkingContext, evidence: Sequence[Span]) -> float:
    raw = np.repeat(wc.entries.lod == 0, -(-wc.entries.n_tokens // BLOCK_SIZE))
    return float(np.mean([all(raw[block] for block in span.blocks()) for span in evidence]))


def focus_share(
    history: History,
    question: Question,
    budget: Budget,
    policy: FocusPolicy,
    base: Base,
    max_iterations: int,
) -> float:
    """Return the share of the evidence turns at LOD0 after the question's refocus."""
    history.ask(_NO_IDS)
    wc = WorkingContext(budget, allocator=GreedyAllocator(), strict=True)
    wc.lay_out(history.n_tokens)
    history.ask(question.ids)
    wc.extend(history.n_tokens)
    index = history.blocks if isinstance(policy, BlockFocus) else history.index
    views = ViewBuilder(history, history, index, base.embed, base.embedding_table().shape[1])
    loop = Refocuser(wc, policy, RecencyFocus(), GreedyAllocator(), views, history)
    query = FocusQuery(
        turn_ids=question.ids,
        turn_text=question.text,
        recent_ids=_NO_IDS,
        recent_text="",
        turn_start=history.n_history,
    )
    record = loop.run(query, max_iterations=max_iterations, trigger="turn")
    if record.fallbacks or record.violations:
        raise RuntimeError(f"{policy.name} failed: {record.fallbacks} {record.violations}")
    wc.make_room()
    if wc.cost > budget.target:
        raise RuntimeError(f"{wc.cost} rows are above {budget.target}")
    return _raw_share(wc, question.evidence)


def retrieval_share(
    history: History, question: Question, w_max: int, recent_tokens: int, *, is_smoothed: bool
) -> float:
    """Return the share of evidence turns in a prompt of the best turns, without gists or paths."""
    n_blocks = history.n_history // BLOCK_SIZE + 1
    if is_smoothed:
        hits = history.index.query(question.text, "", n_blocks, limit=512)
    else:
        hits = history.index.search(question.text, 512)
    left = w_max - recent_tokens
    shown = [Span(history.n_history - recent_tokens, history.n_history)]
    for start, end in zip(hits.start.tolist(), hits.end.tolist(), strict=True):
        if end - start <= left:
            shown.append(Span(start, end))
            left -= end - start
    return float(
        np.mean(
            [any(s.start <= e.start and e.end <= s.end for s in shown) for e in question.evidence]
        )
    )


def measure_evidence(
    rows: Sequence[int],
    data_dir: Path = DATA,
    *,
    model_dir: Path = MODEL,
    settings: EvidenceSettings | None = None,
    policy: Callable[[], FocusPolicy] = HeuristicFocus,
) -> dict[int, float]:
    """Return, per row count, the mean over questions of the share of evidence turns at LOD0.

    Args:
        rows: values of `w_max`.
        data_dir: folder with `conversations.jsonl.xz` and `questions.jsonl.xz`.
        model_dir: folder of the reference model: its tokenizer and embedding table are used.
        settings: what is chosen; see there.
        policy: makes a fresh policy.
    """
    settings = settings or EvidenceSettings()
    base = Base(model_dir)
    loaded = load(data_dir, base, settings)
    return {w_max: _mean_focus_share(loaded, w_max, base, settings, policy) for w_max in rows}


def _mean_focus_share(
    loaded: Sequence[tuple[History, Sequence[Question]]],
    w_max: int,
    base: Base,
    settings: EvidenceSettings,
    policy: Callable[[], FocusPolicy],
) -> float:
    shares = [
        focus_share(
            history, question, settings.budget(w_max), policy(), base, settings.max_iterations
        )
        for history, questions in loaded
        for question in questions
    ]
    return float(np.mean(shares))


def evidence_table(
    rows: Sequence[int],
    data_dir: Path = DATA,
    *,
    model_dir: Path = MODEL,
    settings: EvidenceSettings | None = None,
) -> dict[str, dict[int, float]]:
    """Return `measure_evidence` of every policy, with plain retrieval as the ceiling."""
    settings = settings or EvidenceSettings()
    base = Base(model_dir)
    loaded = load(data_dir, base, settings)
    pairs = [(history, question) for history, questions in loaded for question in questions]
    table = {
        name: {w: _mean_focus_share(loaded, w, base, settings, kind) for w in rows}
        for name, kind in (
            ("recency", RecencyFocus),
            ("cosine", CosineFocus),
            ("bm25 on blocks", BlockFocus),
            ("bm25", Bm25Focus),
            ("heuristic", HeuristicFocus),
        )
    }
    for name, is_smoothed in (("retrieval, plain", False), ("retrieval", True)):
        table[name] = {
            w: float(
                np.mean(
                    [
                        retrieval_share(h, q, w, settings.recent_tokens, is_smoothed=is_smoothed)
                        for h, q in pairs
                    ]
                )
            )
            for w in rows
        }
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--adversarial", action="store_true", help="ask these questions too")
    parser.add_argument("--only-heuristic", action="store_true")
    for field in attrs.fields(EvidenceSettings):
        if field.name != "adversarial":
            flag = "--" + field.name.replace("_", "-")
            parser.add_argument(flag, type=int, default=field.default)
    given = vars(parser.parse_args(arguments))
    names = {field.name for field in attrs.fields(EvidenceSettings)}
    settings = EvidenceSettings(**{name: given[name] for name in names})
    if given["only_heuristic"]:
        table = {"heuristic": measure_evidence(given["rows"], given["data"], settings=settings)}
    else:
        table = evidence_table(given["rows"], given["data"], settings=settings)
    for name, shares in table.items():
        figures = "  ".join(f"{w}: {share:.3f}" for w, share in shares.items())
        sys.stdout.write(f"{name:18}{figures}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
