"""Sizes of model and training that fit a machine: `laptop`, `gpu`, and `smoke` for tests.

Numbers only. What they mean is said beside each field, why they are so beside each preset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from megacontext_gistnet.corpus.source import Domain

__all__ = ["PRESETS", "Preset", "preset_named"]


@attrs.frozen(kw_only=True)
class Preset:
    """Everything that is decided before training starts.

    Attributes:
        name: as the command line spells it.
        vocab_size: entries of the tokenizer, special tokens and the 256 bytes included.
        hidden_size, n_layers, n_heads, n_kv_heads, mlp_size: the Llama model.
        window: tokens it is trained on at once, and so the longest it may ever see.
        batch_windows: windows of one forward pass, per process.
        accumulation: forward passes of one step.
        learning_rate: at the end of the warm-up; a cosine leads from there to a fiftieth of it.
        warmup_steps: steps of the linear warm-up.
        weight_decay, betas, clip: of AdamW; matrices decay, vectors do not.
        mix: weight of each domain among the windows.
        at_start: share of windows that begin where a document begins.
        fact_documents: made-up conversations to write.
        fact_characters: length at which one of them stops taking filler.
        minutes: how long it trains where nobody says.
        checkpoint_minutes: between two checkpoints.
        evaluations: how often it is measured on held-out text on the way.
        is_compiled: whether torch.compile is worth its minute.
    """

    name: str
    vocab_size: int
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    mlp_size: int
    window: int
    batch_windows: int
    accumulation: int = 1
    learning_rate: float
    warmup_steps: int
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    mix: Mapping[Domain, float]
    at_start: float = 0.3
    fact_documents: int
    fact_characters: int
    minutes: float
    checkpoint_minutes: float
    evaluations: int = 10
    is_compiled: bool = False


PRESETS: Final[dict[str, Preset]] = {
    preset.name: preset
    for preset in (
        # 5.8 M parameters, the size of the first reference model: a laptop reads with it as fast
        # as people do. Small steps, because an hour has few tokens and many small ones learn more
        # from them than a few large ones. Little code and factual prose: it could not hold them.
        Preset(
            name="laptop",
            vocab_size=4096,
            hidden_size=256,
            n_layers=6,
            n_heads=4,
            n_kv_heads=2,
            mlp_size=768,
            window=1024,
            batch_windows=4,
            learning_rate=1.5e-3,
            warmup_steps=100,
            mix={"story": 0.34, "dialogue": 0.30, "facts": 0.30, "text": 0.03, "code": 0.03},
            fact_documents=16_000,
            fact_characters=3_400,
            minutes=60.0,
            checkpoint_minutes=5.0,
        ),
        # 18.9 M parameters, 38 MB in bfloat16: about the largest a file of 40 MB holds. 131,072
        # tokens a step keep one large GPU busy; a window of 2,048 leaves a memory room to focus.
        Preset(
            name="gpu",
            vocab_size=8192,
            hidden_size=384,
            n_layers=10,
            n_heads=6,
            n_kv_heads=2,
            mlp_size=1024,
            window=2048,
            batch_windows=64,
            learning_rate=2.5e-3,
            warmup_steps=200,
            mix={"story": 0.32, "dialogue": 0.26, "facts": 0.25, "text": 0.10, "code": 0.07},
            fact_documents=24_000,
            fact_characters=6_000,
            minutes=10.0,
            checkpoint_minutes=2.0,
            is_compiled=True,
        ),
        # Seconds on one CPU core; it learns nothing but that everything works.
        Preset(
            name="smoke",
            vocab_size=512,
            hidden_size=64,
            n_layers=2,
            n_heads=2,
            n_kv_heads=1,
            mlp_size=128,
            window=256,
            batch_windows=2,
            learning_rate=3e-3,
            warmup_steps=5,
            mix={"story": 0.5, "dialogue": 0.25, "facts": 0.25},
            fact_documents=60,
            fact_characters=300,
            minutes=0.2,
            checkpoint_minutes=5.0,
            evaluations=2,
        ),
    )
}
"""Every preset by its name."""


def preset_named(name: str) -> Preset:
    """Return a preset.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in PRESETS:
        message = f"there is no preset {name!r}; use one of {', '.join(PRESETS)}"
        raise ConfigError(message, field="preset", value=name)
    return PRESETS[name]
