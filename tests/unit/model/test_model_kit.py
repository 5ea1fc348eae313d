"""Each standard test of the model kit catches the adapter it exists for."""

from __future__ import annotations

import inspect
import subprocess
import sys

import attrs
import numpy as np
import pytest

from megacontext_sdk.builtin.byte_tokenizer import ByteTokenizer
from megacontext_sdk.builtin.echo import EchoModel, EchoWindow
from megacontext_sdk.contracts.model import RowBatch
from megacontext_sdk.testing.model import ModelAdapterConformance


class BrokenTokenizer(ByteTokenizer):
    pass


class BrokenWindow(EchoWindow):
    pass


def model_with(*, window=None, tokenizer=None, **methods):
    """Return an echo model class with some methods of model, window or tokenizer replaced."""
    window_class = type("W", (BrokenWindow,), window or {})
    tokenizer_class = type("T", (BrokenTokenizer,), tokenizer or {})

    class Broken(EchoModel):
        def __init__(self):
            super().__init__()
            self._tokenizer = tokenizer_class()

        def open_window(self, capacity):
            return window_class(self._weights, capacity, self._info.trained_window)

    for name, method in methods.items():
        setattr(Broken, name, method)
    return Broken


def with_info(**changes):
    info = property(lambda self: attrs.evolve(self._info, **changes))
    return model_with(info=info)


def ever_new_info():
    def info(self):
        return attrs.evolve(self._info, fingerprint=f"{id(self):032x}")

    return model_with(info=property(info))


def forget_vectors(self, rows, positions, slots, want="nothing"):
    rows = RowBatch(np.maximum(rows.token_ids, 0), np.empty((0, 32), np.float32))
    return EchoWindow.write(self, rows, positions, slots, want)


def see_slots(self, rows, positions, slots, want="nothing"):
    return EchoWindow.write(self, rows, np.sort(positions), slots, want)


def place_by_slot(self, rows, positions, slots, want="nothing"):
    return EchoWindow.write(self, rows, np.array(slots), slots, want)


def restart(self, rows, positions, slots, want="nothing"):
    self._slots.release(np.arange(self.capacity))
    return EchoWindow.write(self, rows, positions, slots, want)


def last_row(self, rows, positions, slots, want="nothing"):
    output = EchoWindow.write(self, rows, positions, slots, "all" if want == "last" else want)
    if want == "last":
        output._array = output._array[-1]
    return output


def talkative(self, rows, positions, slots, want="nothing"):
    return EchoWindow.write(self, rows, positions, slots, "last" if want == "nothing" else want)


def keep_old(self, rows, positions, slots, want="nothing"):
    keys = self._keys.copy()
    output = EchoWindow.write(self, rows, positions, slots, want)
    if want == "nothing":
        self._keys[keys != 0] = keys[keys != 0]
    return output


def step_another(self, token_id, position, slot):
    return EchoWindow.step(self, (token_id + 1) % 260, position, slot)


def release_nothing(self, slots):
    self._slots.check_live(slots)


def hide_by_zero(self):
    return np.arange(self._slots.n_live)


def relocate_names_only(self, source, target):
    self._slots.relocate(source, target)


def move_names_only(self, slots, positions):
    self._slots.move(slots, positions)


def move_on(self, slots, positions):
    before = self._slots.positions[slots].copy()
    self._slots.move(slots, positions)
    from megacontext_sdk.builtin.echo import _rotate

    turned = _rotate(self._keys[:, :, slots], positions - before)
    self._keys[:, :, slots] = turned.astype(np.float16)


def export_raw(self, slots):
    block = EchoWindow.export(self, slots)
    return attrs.evolve(block, payload=(self._keys[:, :, slots].copy(), block.payload[1]))


def export_views(self, slots):
    block = EchoWindow.export(self, slots)
    first, last = int(slots[0]), int(slots[-1]) + 1
    return attrs.evolve(block, payload=(block.payload[0], self._values[:, :, first:last]))


def write_anywhere(self, rows, positions, slots, want="nothing"):
    places = np.clip(positions, 0, 1023)
    return EchoWindow.write(self, rows, places, np.clip(slots, 0, self.capacity - 1), want)


def lossy(self, text, *, special=False):
    return ByteTokenizer.encode(self, text.strip(), special=special)


def trusting(self, text, *, special=False):
    return ByteTokenizer().encode(text, special=True)


class Halves:
    """A detokenizer that shows what it has."""

    def push(self, token_id):
        return bytes([token_id]).decode(errors="replace") if token_id < 256 else ""

    def flush(self):
        return ""


def half_template(self, messages, *, add_generation_prompt):
    return "<|assistant|>" if add_generation_prompt else None


class Worst:
    def __init__(self, options):
        self.random = np.random.default_rng()

    def sample(self, output):
        return int(np.argmin(output.numpy()))


class Unseeded(Worst):
    def sample(self, output):
        return int(self.random.integers(0, 260))


class Lent:
    """A model on loan that is another one each time."""


BROKEN = {
    "test_info_names_model_and_sizes": with_info(trained_window=0),
    "test_fingerprints_survive_a_second_opening": ever_new_info(),
    "test_embeddings_are_rows_of_the_read_only_table": model_with(
        embedding_table=lambda self: self._weights.table
    ),
    "test_hidden_states_are_those_of_the_window": model_with(
        hidden_states=lambda self, ids, left: EchoModel.hidden_states(self, ids, left[:0])
    ),
    "test_the_torch_module_is_frozen_or_refused": model_with(torch_module=lambda self: Lent()),
    "test_vectors_in_equal_tokens_in": model_with(window={"write": forget_vectors}),
    "test_many_writes_equal_one": model_with(window={"write": restart}),
    "test_last_is_the_row_with_the_largest_position": model_with(window={"write": last_row}),
    "test_wanting_nothing_returns_nothing_and_still_writes": model_with(
        window={"write": talkative}
    ),
    "test_step_equals_write": model_with(window={"step": step_another}),
    "test_positions_decide_what_a_row_sees_not_slots": model_with(window={"write": place_by_slot}),
    "test_slot_order_means_nothing": model_with(window={"write": place_by_slot}),
    "test_overwriting_a_live_slot_replaces_its_row": model_with(window={"write": keep_old}),
    "test_released_slots_are_unreachable": model_with(window={"release": release_nothing}),
    "test_relocated_rows_are_the_same_rows": model_with(window={"relocate": relocate_names_only}),
    "test_moved_rows_equal_rows_written_there": model_with(window={"move": move_names_only}),
    "test_rotation_does_not_drift": model_with(window={"move": move_on}),
    "test_exported_rows_come_back_at_any_place": model_with(window={"export": export_raw}),
    "test_export_copies_and_survives_the_window": model_with(window={"export": export_views}),
    "test_places_outside_the_window_are_refused": model_with(window={"write": write_anywhere}),
    "test_text_survives_encoding": model_with(tokenizer={"encode": lossy}),
    "test_content_cannot_imitate_the_chat_format": model_with(tokenizer={"encode": trusting}),
    "test_detokenizer_equals_decode": model_with(tokenizer={"detokenizer": lambda self: Halves()}),
    "test_chat_template_is_text_or_none": model_with(
        tokenizer={"apply_chat_template": half_template}
    ),
    "test_greedy_sampling_is_argmax": model_with(sampler=lambda self, options: Worst(options)),
    "test_seeded_sampling_is_reproducible": model_with(
        sampler=lambda self, options: Unseeded(options)
    ),
}


def standard_tests():
    return [name for name in vars(ModelAdapterConformance) if name.startswith("test_")]


def test_every_standard_test_has_a_broken_double():
    assert sorted(BROKEN) == sorted(standard_tests())


@pytest.mark.parametrize("name", list(BROKEN))
def test_standard_test_catches_its_broken_double(name):
    function = getattr(ModelAdapterConformance, name)
    kit = type("Kit", (ModelAdapterConformance,), {"make": staticmethod(BROKEN[name])})()
    wanted = inspect.signature(function).parameters
    texts = ["  two leading spaces\n", "Zwölf 🙂"] if "text" in wanted else [None]
    caught = 0
    for text in texts:
        with type(kit).make() as adapter:
            values = {"adapter": adapter, "text": text}
            if "window" in wanted:
                values["window"] = adapter.open_window(64)
            try:
                function(kit, **{key: values[key] for key in wanted if key != "self"})
            except (AssertionError, pytest.fail.Exception):
                caught += 1
    assert caught > 0, f"{name} passed although the adapter is broken"


def test_an_adapter_without_slots_skips_its_window_tests(tmp_path):
    (tmp_path / "test_no_slots.py").write_text(
        "from megacontext_sdk.builtin.echo import EchoModel\n"
        "from megacontext_sdk.testing.model import ModelAdapterConformance\n\n"
        "class TestNoSlots(ModelAdapterConformance):\n"
        "    make = staticmethod(EchoModel)\n"
        "    supports_slots = False\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert 0 == found.returncode
    assert "14 passed, 18 skipped" in found.stdout
