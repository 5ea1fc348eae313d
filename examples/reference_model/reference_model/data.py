"""What the reference model reads: every text as it is, chats in the template too, made-up facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacontext_gistnet.corpus import FactSource, Source, open_store
from reference_model.tokenizer import describe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from megacontext_gistnet.corpus import TokenStore
    from megacontext_gistnet.corpus.store import Progress
    from megacontext_hf.tokenizer import HfTokenizer
    from reference_model.presets import Preset

__all__ = ["open_tokens", "sources_of", "texts_of"]


def texts_of(data: Sequence[Path]) -> list[Source]:
    """Return the texts as they are."""
    return [Source(path) for path in data]


def sources_of(data: Sequence[Path], preset: Preset) -> list[Source | FactSource]:
    """Return everything that is read.

    Dialogues come twice, as plain lines and in the chat template, under the same id and so on the
    same side of the split. The facts take all texts for filler, chats as messages and the rest page
    by page.
    """
    texts = texts_of(data)
    chats = [Source(path, style="chat-only") for path in data]
    filler = tuple(Source(path, style="chat") for path in data)
    facts = FactSource(preset.fact_documents, filler=filler, max_characters=preset.fact_characters)
    return [*texts, *chats, facts]


def open_tokens(
    data: Sequence[Path],
    preset: Preset,
    tokenizer: HfTokenizer,
    cache: Path,
    progress: Progress | None = None,
) -> TokenStore:
    """Open the tokens of all of it, made now if they are not there yet.

    Raises:
        ConfigError: there is no data, or a row is not what it should be.
    """
    info = describe(tokenizer, preset)
    sources = sources_of(data, preset)
    return open_store(sources, tokenizer, info, cache, progress, min_tokens=preset.window)
