"""The chat format of a model as cached pieces of token ids, derived once from its template.

Appending must not render the whole history again, so the template is asked about short legal
conversations of sentinels, and what stands around them becomes a header and a footer per role.
A template is never executed on user content, and content is encoded without special tokens: it
can never imitate the format.

Rules where a template says less than we need:

- A role it refuses, moves or folds into another is rendered as `user`.
- One that cannot be cut into pieces at all, or none: plain text. No headers, a newline behind each
  message, and the prompt of a reply stays open-ended so that the model continues it.
- White space beside the content is encoded together with it, as the template as a whole would be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.errors import ConfigError, ModelError, shown
from megacontext_sdk.messages.roles import ROLES

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Ids
    from megacontext_sdk.contracts.model import Tokenizer

__all__ = ["ChatFormat"]

_USER, _ASSISTANT, _NEXT, _OTHER = (f"mcSentinel{letter}mc" for letter in "QWXZ")


@attrs.frozen
class _Pieces:
    """The literal text around the messages of a chat; `opening` and the rest by role."""

    opening: dict[str, str]
    header: dict[str, str]
    footer: dict[str, str]
    reply_header: str


class ChatFormat:
    """How messages of one model become token ids.

    Args:
        tokenizer: the model's.
        bos_id: token that opens a history where there is no template to say so.
    """

    def __init__(self, tokenizer: Tokenizer, bos_id: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._bos = [] if bos_id is None else [bos_id]
        pieces = _derive(tokenizer, tokenizer.decode(_ids(self._bos)) if self._bos else "")
        self.is_plain = pieces is None
        self._pieces = pieces or _plain()
        self._cache: dict[str, Ids] = {}

    @property
    def opening_ids(self) -> Ids:
        """Ids that open an empty history, int32[n]: BOS, a default system prompt."""
        return self.opening_for("user")

    def opening_for(self, role: str) -> Ids:
        """Ids that open an empty history whose first message has this role, int32[n].

        A first system message takes the place of the template's default system prompt.
        """
        if self.is_plain:
            return _ids(self._bos)
        return self._literal(self._pieces.opening[_known(role)])

    def header_ids(self, role: str) -> Ids:
        """Ids in front of a message, int32[n], white space that belongs to the content apart."""
        return self._literal(_split_end(self._pieces.header[_known(role)])[0])

    def footer_ids(self, role: str) -> Ids:
        """Ids behind a message, int32[n], white space that belongs to the content apart."""
        return self._literal(_split_start(self._pieces.footer[_known(role)])[1])

    def reply_header_ids(self) -> Ids:
        """Ids that open a reply of the model, int32[n]: the template's generation prompt."""
        return self._literal(self._pieces.reply_header)

    def reply_footer_ids(self) -> Ids:
        """Ids that close a reply, int32[n], the end-of-turn token included."""
        return self._literal(self._pieces.footer["assistant"])

    def render(self, role: str, text: str, *, open_ended: bool = False) -> Ids:
        """Return the ids of one message, int32[n].

        Args:
            role: one of "user", "assistant", "system", "tool".
            text: content; special tokens in it stay plain text.
            open_ended: leave the footer off where there is no chat format, so that the model
                continues the text. With a chat format the reply header follows instead.

        Raises:
            ConfigError: an unknown role.
        """
        role = _known(role)
        before = _split_end(self._pieces.header[role])[1]
        is_open = open_ended and self.is_plain
        after = "" if is_open else _split_start(self._pieces.footer[role])[0]
        body = self._tokenizer.encode(before + text + after)
        footer = _ids([]) if is_open else self.footer_ids(role)
        return np.concatenate([self.header_ids(role), body, footer])

    def _literal(self, text: str) -> Ids:
        """Encode a piece of the format once; special tokens count."""
        if text not in self._cache:
            ids = np.array(self._tokenizer.encode(text, special=True) if text else [], np.int32)
            ids.flags.writeable = False
            self._cache[text] = ids
        return self._cache[text]


def _derive(tokenizer: Tokenizer, bos: str) -> _Pieces | None:
    """Cut the template's text for short conversations into pieces; None if it cannot be.

    A template may end a conversation in a way of its own; a footer is then what a message in the
    middle and the prompt of a reply share.
    """
    user, reply, later = ("user", _USER), ("assistant", _ASSISTANT), ("user", _NEXT)
    prompt = _around(tokenizer, [user], reply_next=True)
    answered = _around(tokenizer, [user, reply])
    full = _around(tokenizer, [user, reply, later])
    if prompt is None or answered is None or full is None:
        return None
    asked, given, last = full[1], full[2], full[3]
    footer = last if asked.startswith(last) else _shared(asked, prompt[1])
    closing = answered[2]
    if not given.startswith(closing):
        closing = given[: len(given) - len(_shared(given[::-1], full[0][::-1]))]
    head = given.removeprefix(closing)
    if not prompt[1].startswith(footer) or not full[0].endswith(head):
        return None
    opening = full[0].removesuffix(head)
    pieces = _Pieces(
        opening=dict.fromkeys(ROLES, opening),
        header=dict.fromkeys(ROLES, head) | {"assistant": asked.removeprefix(footer)},
        footer=dict.fromkeys(ROLES, footer) | {"assistant": closing},
        reply_header=prompt[1].removeprefix(footer),
    )
    _add_system(tokenizer, pieces, bos)
    _add_tool(tokenizer, pieces)
    return pieces


def _add_system(tokenizer: Tokenizer, pieces: _Pieces, bos: str) -> None:
    """Learn the system role, unless the template refuses or folds it."""
    opened = _around(tokenizer, [("system", _OTHER), ("user", _USER)])
    head, foot = pieces.header["user"], pieces.footer["user"]
    if opened is None or not opened[1].endswith(head) or opened[2] != foot:
        return
    turns = [("user", _USER), ("assistant", _ASSISTANT), ("system", _OTHER), ("user", _NEXT)]
    middle, closing = _around(tokenizer, turns), pieces.footer["assistant"]
    header = opened[0].removeprefix(bos)
    if middle is not None and opened[0].endswith(middle[2].removeprefix(closing)):
        header = middle[2].removeprefix(closing)
    pieces.header["system"] = header
    pieces.footer["system"] = opened[1].removesuffix(head)
    pieces.opening["system"] = opened[0].removesuffix(header)


def _add_tool(tokenizer: Tokenizer, pieces: _Pieces) -> None:
    """Learn the tool role, unless the template refuses or folds it."""
    turns = [("user", _USER), ("assistant", _ASSISTANT), ("tool", _OTHER)]
    ended = _around(tokenizer, turns)
    closing = pieces.footer["assistant"]
    if ended is None or not ended[2].startswith(closing):
        return
    pieces.header["tool"] = ended[2].removeprefix(closing)
    pieces.footer["tool"] = ended[3]


def _around(
    tokenizer: Tokenizer, turns: list[tuple[str, str]], *, reply_next: bool = False
) -> list[str] | None:
    """Return the text before, between and behind the turns; None if the template refuses them."""
    messages = [{"role": role, "content": text} for role, text in turns]
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=reply_next)
    except ModelError:
        return None
    pieces = []
    for _, content in turns:
        before, found, text = (text or "").partition(content)
        if not found or content in text:
            return None
        pieces.append(before)
    return [*pieces, text or ""]


def _shared(left: str, right: str) -> str:
    """Return the longest text both begin with."""
    pairs = zip(left, right, strict=False)
    length = next((at for at, (one, two) in enumerate(pairs) if one != two), None)
    return left[: min(len(left), len(right)) if length is None else length]


def _plain() -> _Pieces:
    empty = dict.fromkeys(ROLES, "")
    return _Pieces(opening=empty, header=empty, footer=dict.fromkeys(ROLES, "\n"), reply_header="")


def _split_end(text: str) -> tuple[str, str]:
    """Split trailing white space off."""
    body = text.rstrip()
    return body, text[len(body) :]


def _split_start(text: str) -> tuple[str, str]:
    """Split leading white space off: `(white space, rest)`."""
    body = text.lstrip()
    return text[: len(text) - len(body)], body


def _known(role: str) -> str:
    if role in ROLES:
        return role
    message = f"unknown role {shown(role)}; use one of {', '.join(ROLES)}"
    raise ConfigError(message, field="role", value=role)


def _ids(values: list[int]) -> Ids:
    return np.asarray(values, np.int32)
