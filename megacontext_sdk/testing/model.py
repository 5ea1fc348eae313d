"""The conformance kit of model adapters: subclass `ModelAdapterConformance` and give it a `make`.

Everything is checked through the contract alone, so the kit works for any framework. It needs an
adapter with a trained window of at least 64 rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from megacontext_sdk.contracts.model import RowBatch, SamplingOptions
from megacontext_sdk.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from megacontext_sdk.contracts.arrays import Floats, Ids, Indices
    from megacontext_sdk.contracts.model import ModelAdapter, Window, WindowOutput

__all__ = ["TOLERANCES", "ModelAdapterConformance"]

TOLERANCES = {"float64": 1e-9, "float32": 1e-5, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference by the adapter's dtype, relative to the larger of 1 and the largest value."""

_TEXTS = (
    "Plain words, and 42 numbers.",
    "Zwölf Boxkämpfer jagen\nViktor — 千字文 🙂👩‍🚀 \t tabs",
    "  two leading spaces and a trailing newline\n",
    "a\u0301 combining, \u202e direction, \x07 bell",
)
_N = 24


class ModelAdapterConformance:
    """What every model adapter promises.

    Attributes:
        make: returns an opened adapter.
        supports_slots: declare False for a model without rotary positions; its window tests skip.

    Example::

        class TestAcme(ModelAdapterConformance):
            make = staticmethod(lambda: AcmeModel("small"))
    """

    make: ClassVar[Callable[[], ModelAdapter]]
    supports_slots: ClassVar[bool] = True

    @pytest.fixture
    def adapter(self) -> Iterator[ModelAdapter]:
        """The adapter under test, closed afterwards."""
        with type(self).make() as adapter:
            yield adapter

    @pytest.fixture
    def window(self, adapter: ModelAdapter) -> Iterator[Window]:
        """An empty window of 64 slots."""
        if not self.supports_slots:
            pytest.skip("this adapter declares supports_slots = False")
        window = adapter.open_window(64)
        yield window
        window.close()

    # ------------------------------------------------------------- what the model says of itself

    def test_info_names_model_and_sizes(self, adapter: ModelAdapter) -> None:
        """Sizes are positive, fingerprints stay the same, ids lie in the vocabulary."""
        info = adapter.info
        assert len(info.fingerprint) >= 16
        assert info.fingerprint == adapter.info.fingerprint
        assert min(info.hidden_size, info.vocab_size, info.n_layers, info.trained_window) > 0
        assert all(0 <= token < info.vocab_size for token in info.eos_ids)
        assert info.bos_id is None or 0 <= info.bos_id < info.vocab_size
        assert info.rotary_dim % 2 == 0

    def test_fingerprints_survive_a_second_opening(self, adapter: ModelAdapter) -> None:
        """Fingerprints depend on the weights and the definition, not on the process."""
        with type(self).make() as again:
            assert adapter.info.fingerprint == again.info.fingerprint
            assert adapter.info.tokenizer_fingerprint == again.info.tokenizer_fingerprint

    def test_embeddings_are_rows_of_the_read_only_table(self, adapter: ModelAdapter) -> None:
        """`embed` and `embedding_table` agree."""
        table, ids = adapter.embedding_table(), _ids(adapter)
        assert (adapter.info.vocab_size, adapter.info.hidden_size) == table.shape
        assert np.float32 == table.dtype
        assert not table.flags.writeable
        np.testing.assert_array_equal(adapter.embed(ids), table[ids])

    def test_hidden_states_are_those_of_the_window(
        self, adapter: ModelAdapter, window: Window
    ) -> None:
        """`hidden_states` after a left context equals a write of both that wants "hidden"."""
        ids = _ids(adapter)
        hidden = _numpy(_write(window, adapter, ids, want="hidden"))
        assert (_N, adapter.info.hidden_size) == hidden.shape
        _close(adapter, hidden[8:], adapter.hidden_states(ids[8:], ids[:8]))
        _close(adapter, hidden, adapter.hidden_states(ids, ids[:0]))

    def test_the_torch_module_is_frozen_or_refused(self, adapter: ModelAdapter) -> None:
        """A model on loan asks for no gradients; an adapter without one says so."""
        try:
            module: Any = adapter.torch_module()
        except ModelError:
            return  # it is the contract's own refusal
        assert id(module) == id(adapter.torch_module()), "the model itself is lent, not a copy"
        assert callable(getattr(module, "get_decoder", None)), "it must have a decoder"
        assert not module.training, "it must be in evaluation mode"
        asking = [name for name, one in module.named_parameters() if one.requires_grad]
        assert not asking, f"parameters ask for gradients: {asking[:3]}"

    # ----------------------------------------------------------------------- writing and reading

    def test_vectors_in_equal_tokens_in(self, adapter: ModelAdapter, window: Window) -> None:
        """Embedding rows fed as vectors give what their token ids give, mixed or not."""
        ids = _ids(adapter)
        expected = _numpy(_write(window, adapter, ids, want="all"))
        for hidden_ids in (np.arange(_N), np.arange(3, _N, 2)):
            mixed = ids.copy()
            mixed[hidden_ids] = -1
            rows = RowBatch(token_ids=mixed, vectors=adapter.embed(ids[hidden_ids]))
            places = np.arange(_N)
            output = adapter.open_window(64).write(rows, places, places, "all")
            _close(adapter, expected, _numpy(output))

    def test_many_writes_equal_one(self, adapter: ModelAdapter, window: Window) -> None:
        """Rows written in pieces see what they see when written at once."""
        ids = _ids(adapter)
        expected = _numpy(_write(window, adapter, ids, want="all"))
        pieces = adapter.open_window(64)
        found = []
        for start, stop in ((0, 1), (1, 2), (2, 15), (15, _N)):
            places = np.arange(start, stop)
            found.append(_numpy(pieces.write(_rows(adapter, ids[places]), places, places, "all")))
        _close(adapter, expected, np.concatenate(found))

    def test_last_is_the_row_with_the_largest_position(
        self, adapter: ModelAdapter, window: Window
    ) -> None:
        """`last` equals that row of `all`, whatever the order of the rows."""
        ids, order = _ids(adapter), np.random.default_rng(3).permutation(_N)
        places = np.arange(_N)
        everything = _numpy(window.write(_rows(adapter, ids[order]), order, places, "all"))
        last = _numpy(
            adapter.open_window(64).write(_rows(adapter, ids[order]), order, places, "last")
        )
        assert (adapter.info.vocab_size,) == last.shape
        _close(adapter, everything[np.argmax(order)], last)

    def test_wanting_nothing_returns_nothing_and_still_writes(
        self, adapter: ModelAdapter, window: Window
    ) -> None:
        """The default returns None."""
        assert window.write(_rows(adapter, _ids(adapter)), np.arange(_N), np.arange(_N)) is None
        assert window.n_live == _N

    def test_step_equals_write(self, adapter: ModelAdapter, window: Window) -> None:
        """Decoding token by token gives the logits of one write."""
        ids = _ids(adapter)
        expected = _numpy(_write(window, adapter, ids, want="all"))
        stepped = adapter.open_window(64)
        found = [_numpy(stepped.step(int(token), at, at)) for at, token in enumerate(ids)]
        _close(adapter, expected, np.stack(found))

    def test_positions_decide_what_a_row_sees_not_slots(
        self, adapter: ModelAdapter, window: Window
    ) -> None:
        """A row written last at the smallest position sees only itself."""
        ids = _ids(adapter)
        _write(window, adapter, ids[1:], positions=np.arange(1, _N))
        found = window.write(_rows(adapter, ids[:1]), np.array([0]), np.array([_N - 1]), "last")
        alone = adapter.open_window(4)
        expected = alone.write(_rows(adapter, ids[:1]), np.array([0]), np.array([0]), "last")
        _close(adapter, _numpy(expected), _numpy(found))

    def test_slot_order_means_nothing(self, adapter: ModelAdapter, window: Window) -> None:
        """Shuffled slots, also in pieces, give the same logits, and the same next step."""
        ids, order = _ids(adapter), np.random.default_rng(5).permutation(_N)
        expected = _numpy(_write(window, adapter, ids, want="all"))
        shuffled = adapter.open_window(64)
        found = shuffled.write(_rows(adapter, ids), np.arange(_N), order, "all")
        _close(adapter, expected, _numpy(found))
        _close(adapter, _next(window, adapter), _next(shuffled, adapter))

    def test_overwriting_a_live_slot_replaces_its_row(
        self, adapter: ModelAdapter, window: Window
    ) -> None:
        """A repaired row leaves no trace of what was there."""
        ids = _ids(adapter)
        wrong = (ids + 1) % adapter.info.vocab_size
        _write(window, adapter, wrong)
        _write(window, adapter, ids)
        assert window.n_live == _N
        fresh = adapter.open_window(64)
        _write(fresh, adapter, ids)
        _close(adapter, _next(fresh, adapter), _next(window, adapter))

    # -------------------------------------------------------------------- slots that come and go

    def test_released_slots_are_unreachable(self, adapter: ModelAdapter, window: Window) -> None:
        """NaN rows leave nothing behind once released and their places packed or rewritten."""
        ids = _ids(adapter)
        _write(window, adapter, ids[:14], positions=np.r_[0:8, 50:56])
        window.write(_rows(adapter, ids[8:12]), np.arange(8, 12), np.arange(14, 18))
        poison = np.full((6, adapter.info.hidden_size), np.nan, np.float32)
        rows = RowBatch(token_ids=np.full(6, -1, np.int32), vectors=poison)
        window.write(rows, np.arange(50, 56), np.arange(8, 14))
        window.release(np.arange(8, 14))
        assert window.n_live == 12
        window.relocate(np.arange(14, 18), np.arange(8, 12))
        clean = adapter.open_window(64)
        _write(clean, adapter, ids[:12])
        _close(adapter, _next(clean, adapter, 12), _next(window, adapter, 12))
        places = np.arange(13, _N)
        expected = clean.write(_rows(adapter, ids[13:]), places, places, "all")
        found = window.write(_rows(adapter, ids[13:]), places, places, "all")
        _close(adapter, _numpy(expected), _numpy(found))

    def test_relocated_rows_are_the_same_rows(self, adapter: ModelAdapter, window: Window) -> None:
        """Relocation changes no logit and does not change the number of rows."""
        ids = _ids(adapter)
        _write(window, adapter, ids)
        window.release(np.arange(4, 8))
        window.relocate(np.arange(_N - 4, _N), np.arange(4, 8))
        assert window.n_live == _N - 4
        other = adapter.open_window(64)
        places = np.r_[0:4, _N - 4 : _N, 8 : _N - 4, 4:8]
        other.write(_rows(adapter, ids), np.arange(_N), places)
        other.release(np.arange(_N - 4, _N))
        _close(adapter, _next(window, adapter), _next(other, adapter))

    def test_moved_rows_equal_rows_written_there(
        self, adapter: ModelAdapter, window: Window
    ) -> None:
        """Moving everything by a constant equals writing everything there."""
        ids = _ids(adapter)
        _write(window, adapter, ids)
        window.move(np.arange(_N), np.arange(_N) + 13)
        fresh = adapter.open_window(64)
        _write(fresh, adapter, ids, positions=np.arange(_N) + 13)
        _close(adapter, _next(fresh, adapter, _N + 13), _next(window, adapter, _N + 13))

    def test_rotation_does_not_drift(self, adapter: ModelAdapter, window: Window) -> None:
        """A thousand moves there and back end where one write begins."""
        ids, random = _ids(adapter), np.random.default_rng(9)
        _write(window, adapter, ids)
        expected = _next(window, adapter)
        window.release(np.array([_N]))
        slots = np.arange(_N)
        for _ in range(1_000):
            window.move(slots, random.permutation(60)[:_N])
        window.move(slots, slots)
        _close(adapter, expected, _next(window, adapter))

    def test_exported_rows_come_back_at_any_place(
        self, adapter: ModelAdapter, window: Window
    ) -> None:
        """Rows written alone at one position and restored at another equal rows written there."""
        ids, targets = _ids(adapter)[:6], np.array([9, 2, 7, 4, 11, 0])
        restored, written = window, adapter.open_window(64)
        for slot, (token, target) in enumerate(zip(ids, targets, strict=True)):
            for receiver, position in ((restored, 30 - target), (written, target)):
                alone = adapter.open_window(2)
                alone.step(int(token), int(position), 0)
                block = alone.export(np.array([0]))
                assert (block.n_rows, block.n_bytes > 0) == (1, True)
                receiver.restore(block, np.array([slot]), np.array([target]))
        assert restored.n_live == 6
        _close(adapter, _next(written, adapter, 12), _next(restored, adapter, 12))

    def test_export_copies_and_survives_the_window(
        self, adapter: ModelAdapter, window: Window
    ) -> None:
        """An exported block is no view: overwriting, moving and closing leave it as it was."""
        ids = _ids(adapter)
        _write(window, adapter, ids)
        expected = _next(window, adapter)
        window.release(np.array([_N]))
        block = window.export(np.arange(_N))
        _write(window, adapter, (ids + 1) % adapter.info.vocab_size)
        window.close()
        other = adapter.open_window(64)
        other.restore(block, np.arange(_N)[::-1].copy(), np.arange(_N))
        _close(adapter, expected, _next(other, adapter))

    def test_places_outside_the_window_are_refused(
        self, adapter: ModelAdapter, window: Window
    ) -> None:
        """Slots beyond the capacity and positions beyond the trained window raise `ModelError`."""
        row, zero = _rows(adapter, _ids(adapter)[:1]), np.array([0])
        beyond = np.array([adapter.info.trained_window])
        for positions, slots in ((zero, np.array([64])), (beyond, zero), (np.array([-1]), zero)):
            with pytest.raises(ModelError):
                window.write(row, positions, slots)
        assert window.n_live == 0

    # -------------------------------------------------------------------------------------- text

    @pytest.mark.parametrize("text", _TEXTS)
    def test_text_survives_encoding(self, adapter: ModelAdapter, text: str) -> None:
        """Decoding what was encoded gives the text back, and ids are int32."""
        ids = adapter.tokenizer.encode(text)
        assert np.int32 == ids.dtype
        assert text == adapter.tokenizer.decode(ids)
        assert len(adapter.tokenizer.encode("")) == 0

    def test_content_cannot_imitate_the_chat_format(self, adapter: ModelAdapter) -> None:
        """Markers in content stay text; with `special` they are the tokens they name."""
        markers = _markers(adapter)
        content = " ".join(["so", *markers.values(), "end"])
        ids = adapter.tokenizer.encode(content)
        assert not set(markers) & set(ids.tolist())
        assert content == adapter.tokenizer.decode(ids)
        for token, marker in markers.items():
            assert token in adapter.tokenizer.encode(marker, special=True)

    @pytest.mark.parametrize("text", _TEXTS)
    def test_detokenizer_equals_decode(self, adapter: ModelAdapter, text: str) -> None:
        """Text pushed token by token is the decoded text, cut characters held back."""
        ids = adapter.tokenizer.encode(text)
        ids = np.concatenate([ids, [*_markers(adapter)], ids[:-1]]).astype(np.int32)
        detokenizer = adapter.tokenizer.detokenizer()
        pushed = [detokenizer.push(int(token)) for token in ids]
        assert not any("\ufffd" in piece for piece in pushed)
        found = "".join(pushed) + detokenizer.flush()
        assert adapter.tokenizer.decode(ids, special=False) == found

    def test_chat_template_is_text_or_none(self, adapter: ModelAdapter) -> None:
        """The template contains the content; the generation prompt only adds to its end."""
        messages = [{"role": "user", "content": "sentinel words"}]
        short = adapter.tokenizer.apply_chat_template(messages, add_generation_prompt=False)
        long = adapter.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        assert (short is None) == (long is None)
        assert short is None or "sentinel words" in short
        assert short is None or (long or "").startswith(short)

    # ---------------------------------------------------------------------------------- sampling

    def test_greedy_sampling_is_argmax(self, adapter: ModelAdapter, window: Window) -> None:
        """Temperature 0 chooses the largest logit."""
        output = _write(window, adapter, _ids(adapter), want="last")
        assert output is not None
        sampler = adapter.sampler(SamplingOptions())
        assert int(np.argmax(output.numpy())) == sampler.sample(output)

    def test_seeded_sampling_is_reproducible(self, adapter: ModelAdapter, window: Window) -> None:
        """The same seed gives the same tokens, others differ, top_k=1 is greedy."""
        output = _write(window, adapter, _ids(adapter), want="last")
        assert output is not None

        def draw(**options: float) -> list[int]:
            sampler = adapter.sampler(SamplingOptions(**options))  # type: ignore[arg-type]
            return [sampler.sample(output) for _ in range(32)]

        assert draw(temperature=5.0, seed=1) == draw(temperature=5.0, seed=1)
        assert draw(temperature=5.0, seed=1) != draw(temperature=5.0, seed=2)
        greedy = [int(np.argmax(output.numpy()))] * 32
        assert greedy == draw(temperature=5.0, seed=1, top_k=1)
        assert greedy == draw(temperature=5.0, seed=1, top_p=1e-6)


def _ids(adapter: ModelAdapter) -> Ids:
    random = np.random.default_rng(1)
    return random.integers(0, adapter.info.vocab_size, _N).astype(np.int32)


def _rows(adapter: ModelAdapter, ids: Ids) -> RowBatch:
    return RowBatch(token_ids=ids, vectors=np.empty((0, adapter.info.hidden_size), np.float32))


def _write(
    window: Window,
    adapter: ModelAdapter,
    ids: Ids,
    *,
    positions: Indices | None = None,
    want: str = "nothing",
) -> WindowOutput | None:
    """Write ids into slots 0 to n."""
    slots = np.arange(len(ids))
    places = slots if positions is None else positions
    return window.write(_rows(adapter, ids), places, slots, want)  # type: ignore[arg-type]


def _next(window: Window, adapter: ModelAdapter, position: int = _N) -> Floats:
    """Return the logits after one more token at `position`."""
    return window.step(int(_ids(adapter)[0]), position, window.n_live).numpy()


def _numpy(output: WindowOutput | None) -> Floats:
    assert output is not None, "write returned None although something was wanted"
    array = output.numpy()
    assert np.float32 == array.dtype
    return array


def _close(adapter: ModelAdapter, expected: Floats, found: Floats) -> None:
    tolerance = TOLERANCES[adapter.info.dtype]
    assert expected.shape == found.shape
    scale = max(1.0, float(np.abs(expected).max()))
    worst = float(np.abs(expected - found).max()) / scale
    assert worst <= tolerance, f"differs by {worst:.2e} of the largest value, above {tolerance:.0e}"


def _markers(adapter: ModelAdapter) -> dict[int, str]:
    """Ids that `special=False` leaves out, with the text that names them."""
    tokenizer, info = adapter.tokenizer, adapter.info
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True) or ""
    candidates = {*info.eos_ids, *([] if info.bos_id is None else [info.bos_id])}
    candidates.update(tokenizer.encode(rendered, special=True).tolist())
    texts = {token: tokenizer.decode(np.array([token], np.int32)) for token in sorted(candidates)}
    return {
        token: text
        for token, text in texts.items()
        if text and not tokenizer.decode(np.array([token], np.int32), special=False)
    }
