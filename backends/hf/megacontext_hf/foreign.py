"""Names for what comes from transformers, which is not typed: no code, no checks."""

from __future__ import annotations

from typing import Any, TypeAlias

__all__ = ["HfConfig", "HfModel", "HfTextTokenizer"]

HfModel: TypeAlias = Any
"""A causal language model of transformers."""

HfConfig: TypeAlias = Any
"""Its text config."""

HfTextTokenizer: TypeAlias = Any
"""A tokenizer of transformers."""
