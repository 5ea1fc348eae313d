"""Training and validation windows of a run, from the folders a user names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import attrs

from megacontext_gistnet.corpus import FactSource, Source, WindowSampler, open_store
from megacontext_gistnet.evaluation.windows import sample_windows
from megacontext_gistnet.training.validation import window_of
from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from megacontext_gistnet.corpus import TokenStore
    from megacontext_gistnet.evaluation.windows import Windows
    from megacontext_gistnet.training.recipe import Recipe
    from megacontext_sdk.contracts.model import ModelAdapter

__all__ = ["Data", "open_data"]


@attrs.frozen(eq=False)
class Data:
    """What a run reads.

    Attributes:
        store: the tokens.
        sources: where they are from.
        recipe: whose windows and mix they are drawn by.
    """

    store: TokenStore
    sources: tuple[Source | FactSource, ...]
    recipe: Recipe

    def sampler(self, seed: int, rank: int) -> WindowSampler:
        """Return what draws training windows; another one for each process."""
        mix = cast("Any", dict(self.recipe.mix)) or None
        return WindowSampler(
            self.store, mix, seed=1_000 * seed + rank, at_start=self.recipe.at_start
        )

    def held_out(self, n_tokens: int) -> Windows:
        """Return validation windows of a length; the same whatever the seed of training.

        Raises:
            ConfigError: no held-out document is long enough.
        """
        documents = list(self.store.documents("held-out"))
        return sample_windows(documents, self.recipe.validation_windows, length=n_tokens)


def open_data(
    paths: Sequence[Path],
    adapter: ModelAdapter,
    recipe: Recipe,
    cache: Path,
    progress: Callable[[str, int], None] | None = None,
) -> Data:
    """Tokenise what was named, once, and check that every stage finds its windows in it.

    Args:
        paths: folders or files.
        adapter: whose tokenizer is used.
        recipe: whose windows must be found, and how many made-up fact conversations are added.
        cache: where tokens are kept.
        progress: told the name of a source and its tokens so far.

    Raises:
        ConfigError: no data, or no document as long as a window.
    """
    sources: list[Source | FactSource] = [Source(path) for path in paths]
    if recipe.made_up_facts:
        filler = tuple(one for one in sources if isinstance(one, Source))
        sources.append(FactSource(recipe.made_up_facts, filler=filler))
    lengths = {recipe.window_of(stage) for stage in recipe.stages}
    store = open_store(
        sources, adapter.tokenizer, adapter.info, cache, progress, min_tokens=max(lengths)
    )
    if not store.counts("train"):
        raise ConfigError(
            "all of the data is held out: a folder named eval… or test… is never trained on; name "
            "another one, or rename it",
            field="data",
            value=[str(path) for path in paths],
        )
    data = Data(store, tuple(sources), recipe)
    for stage in recipe.stages:
        needed = max(recipe.window_of(stage), window_of(stage.lod, recipe.window_tokens))
        _require_windows(data, needed, stage.name)
    return data


def _require_windows(data: Data, n_tokens: int, stage: str) -> None:
    try:
        data.sampler(0, 0).next(1, n_tokens)
        data.held_out(n_tokens)
    except ConfigError as error:
        raise ConfigError(
            f"stage {stage!r} finds no window of {n_tokens} tokens: {error}. Give longer texts, "
            "or leave the stage out of the recipe",
            field="data",
            value=n_tokens,
        ) from error
