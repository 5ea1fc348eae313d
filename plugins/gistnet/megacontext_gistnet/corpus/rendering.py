"""Drafts to token ids: `<bos> text <eos>`, or messages in the model's own chat template.

Content is always encoded without special tokens, so no text can imitate the chat format: the
template is rendered around placeholders, and contents take their places as ids.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import numpy as np

from megacontext_sdk.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megacontext_gistnet.corpus.draft import Draft, Turn
    from megacontext_sdk.contracts.arrays import Ids
    from megacontext_sdk.contracts.model import ModelInfo, Tokenizer

__all__ = ["Renderer"]

_PLACE: Final = "mcPlace{}mc"
_PLACES: Final = re.compile(r"(\s*)mcPlace(\d+)mc(\s*)")
_END_MARKERS: Final = ("<|eos|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")


class Renderer:
    """Turns drafts into ids of one model.

    Args:
        tokenizer: the model's.
        info: the model's; `bos_id` opens a text.

    Attributes:
        end_id: token that ends a text: a marker such as `<|eos|>` or `</s>` where the tokenizer
            has one, else the first token that ends a reply, else None.
    """

    def __init__(self, tokenizer: Tokenizer, info: ModelInfo) -> None:
        self._tokenizer = tokenizer
        self._bos = _ids([] if info.bos_id is None else [info.bos_id])
        self.end_id = _end_of_text(tokenizer, info)
        self._eos = _ids([] if self.end_id is None else [self.end_id])
        self._literals: dict[str, Ids] = {}

    def render(self, draft: Draft) -> Ids:
        """Return the ids of a document, int32[n]."""
        if isinstance(draft.content, str):
            return self._text(draft.content)
        return self.chat(draft.content)

    def chat(self, turns: Sequence[Turn], *, reply_next: bool = False) -> Ids:
        """Return messages in the chat template, int32[n]; plain lines where it has no place.

        Args:
            turns: the messages.
            reply_next: end with the template's prompt for a reply.
        """
        rendered = self._template(turns, reply_next=reply_next)
        if rendered is None:
            lines = [f"{turn.role}: {turn.text}" for turn in turns]
            return self._text("\n".join(lines), is_open=reply_next)
        pieces, end = [], 0
        for match in _PLACES.finditer(rendered):
            pieces.append(self._literal(rendered[end : match.start()]))
            text = turns[int(match[2])].text
            pieces.append(self._tokenizer.encode(f"{match[1]}{text}{match[3]}"))
            end = match.end()
        return np.concatenate([*pieces, self._literal(rendered[end:])])

    def _template(self, turns: Sequence[Turn], *, reply_next: bool) -> str | None:
        """Return the template's text with a place for each content, None if it refuses them."""
        messages = [
            {"role": turn.role, "content": _PLACE.format(at)} for at, turn in enumerate(turns)
        ]
        try:
            text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=reply_next)
        except ModelError:
            return None
        found = [int(match[2]) for match in _PLACES.finditer(text or "")]
        return text if found == list(range(len(turns))) else None

    def _text(self, text: str, *, is_open: bool = False) -> Ids:
        ids = self._tokenizer.encode(text)
        return np.concatenate([self._bos, ids, self._eos[: 0 if is_open else None]])

    def _literal(self, text: str) -> Ids:
        """Encode a piece of the template once; special tokens count."""
        if text not in self._literals:
            ids = self._tokenizer.encode(text, special=True) if text else _ids([])
            self._literals[text] = np.asarray(ids, np.int32)
        return self._literals[text]


def _end_of_text(tokenizer: Tokenizer, info: ModelInfo) -> int | None:
    for marker in _END_MARKERS:
        literal = tokenizer.encode(marker, special=True)
        if len(literal) == 1 and len(tokenizer.encode(marker)) > 1:
            return int(literal[0])
    return info.eos_ids[0] if info.eos_ids else None


def _ids(values: Sequence[int]) -> Ids:
    return np.asarray(values, np.int32)
