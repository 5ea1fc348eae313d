"""A fast tokenizer of transformers behind our contract: content can never become control tokens.

Slow tokenizers are refused: they are deprecated, and too slow for long histories.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final

import numpy as np
from tokenizers import Tokenizer as RustTokenizer

from megacontext_hf.detokenizer import StreamDetokenizer
from megacontext_sdk.contracts.model import Tokenizer
from megacontext_sdk.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from megacontext_hf.foreign import HfTextTokenizer
    from megacontext_sdk.contracts.arrays import Bools, Ids
    from megacontext_sdk.contracts.model import Detokenizer

__all__ = ["HfTokenizer"]

_DEFINITION: Final = ("added_tokens", "normalizer", "pre_tokenizer", "model")
"""Parts of tokenizer.json that decide which ids a text has."""


class HfTokenizer(Tokenizer):
    """A transformers tokenizer. May be shared between threads.

    Args:
        tokenizer: a loaded transformers tokenizer.
        vocab_size: of the model; ids lie below it.

    Raises:
        ModelError: it is not a fast tokenizer.
    """

    def __init__(self, tokenizer: HfTextTokenizer, vocab_size: int) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"{type(tokenizer).__name__} is no fast tokenizer; save the model with one that "
                "has a tokenizer.json",
                tokenizer=type(tokenizer).__name__,
            )
        self._hf = tokenizer
        definition: str = backend.to_str()
        self._literal = _bare(definition)  # reads markers as the tokens they name
        self._plain = _bare(definition)  # reads them as text
        self._plain.encode_special_tokens = True
        added = self._literal.get_added_tokens_decoder()
        self._special = frozenset(number for number, token in added.items() if token.special)
        template = _template_text(tokenizer)
        control = {number for number, token in added.items() if token.content in template}
        size = 1 + max(vocab_size, self._literal.get_vocab_size(), *added, 0)
        self._is_control: Bools = np.zeros(size, np.bool_)
        self._is_control[[*self._special, *control]] = True
        self.fingerprint = _fingerprint(definition)

    def __repr__(self) -> str:
        return f"HfTokenizer({type(self._hf).__name__})"

    @property
    def bos_id(self) -> int | None:
        """The token that opens a text, if the tokenizer names one."""
        number: int | None = self._hf.bos_token_id
        return number

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, if the tokenizer names one."""
        number: int | None = self._hf.eos_token_id
        return number

    def encode(self, text: str, *, special: bool = False) -> Ids:
        """Return int32[n] without BOS or EOS added.

        Without `special` no control token can come out, neither one marked special nor one the
        chat template uses; a tokenizer that would still produce one sees its marker cut in two.
        """
        if special:
            return _ids(self._literal, text)
        ids = _ids(self._plain, text)
        return self._without_control(text) if self._is_control[ids].any() else ids

    def _without_control(self, text: str) -> Ids:
        """Encode text whose plain encoding holds control tokens, by cutting their markers."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, np.int32)
        found = np.flatnonzero(self._is_control[ids])
        if not len(found):
            return ids
        start, stop = encoding.offsets[int(found[0])]
        if stop - start < 2:  # a marker of one character cannot be cut; it is left out
            halves = text[:start], text[max(stop, start + 1) :]
        else:
            halves = text[: start + 1], text[start + 1 :]
        return np.concatenate([self._without_control(half) for half in halves])

    def decode(self, token_ids: Ids, *, special: bool = True) -> str:
        """Return the text of the ids; forgotten ones (-1) give none."""
        ids = np.asarray(token_ids)
        text: str = self._literal.decode(ids[ids >= 0].tolist(), skip_special_tokens=not special)
        return text

    def detokenizer(self) -> Detokenizer:
        """Return a fresh incremental detokenizer."""
        return StreamDetokenizer(self._literal, self._special)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
    ) -> str | None:
        """Render messages with the model's template, or return None if it has none.

        Raises:
            ModelError: the template refuses them.
        """
        if not getattr(self._hf, "chat_template", None):
            return None
        try:
            text: str = self._hf.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # templates are programs and may raise anything
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise ModelError(
                f"the chat template refuses messages with the roles {roles}; use roles it knows",
                roles=roles,
            ) from error
        return text


def _bare(definition: str) -> RustTokenizer:
    """Return a tokenizer of our own: transformers changes padding and truncation of its."""
    tokenizer = RustTokenizer.from_str(definition)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _ids(tokenizer: RustTokenizer, text: str) -> Ids:
    """Encode without offsets, which takes two thirds of the time."""
    encoding = tokenizer.encode_batch_fast([_clean(text)], add_special_tokens=False)[0]
    return np.array(encoding.ids, np.int32)


def _clean(text: str) -> str:
    """Replace lone surrogates, which Rust cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def _template_text(tokenizer: HfTextTokenizer) -> str:
    template = getattr(tokenizer, "chat_template", None) or ""
    return template if isinstance(template, str) else json.dumps(template)


def _fingerprint(definition: str) -> str:
    parts = json.loads(definition)
    kept = {name: parts.get(name) for name in _DEFINITION}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
