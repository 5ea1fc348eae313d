"""What the model writes by itself: a few texts begun by us, ended by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from megacontext_gistnet.corpus import Renderer, Turn

if TYPE_CHECKING:
    from torch import nn

    from megacontext_hf.tokenizer import HfTokenizer
    from megacontext_sdk.contracts.model import ModelInfo

__all__ = ["write_samples"]

_TEXTS: Final = (
    "Once upon a time there was a little",
    "A: Have you seen any good films lately?\nB:",
)
_CHATS: Final = (
    "Hello! How are you today?",
    "The code of the blue safe is 4917. What is the code of the blue safe?",
)


def write_samples(
    model: nn.Module, tokenizer: HfTokenizer, info: ModelInfo, *, most: int = 60
) -> list[tuple[str, str]]:
    """Return `(beginning, what the model wrote)` pairs, sampled with a fixed seed."""
    renderer, found = Renderer(tokenizer, info), []
    device = next(model.parameters()).device
    prompts = [(text, [info.bos_id or 0, *tokenizer.encode(text)]) for text in _TEXTS]
    prompts += [
        (text, renderer.chat([Turn("user", text)], reply_next=True).tolist()) for text in _CHATS
    ]
    generator = torch.Generator().manual_seed(0)
    for text, ids in prompts:
        row = [int(one) for one in ids]
        for _ in range(min(most, info.trained_window - len(row))):
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([row], device=device)).logits[0, -1]
            shares = torch.softmax(logits.float().cpu() / 0.7, -1)
            row.append(int(torch.multinomial(shares, 1, generator=generator)))
            if row[-1] in info.eos_ids or row[-1] == renderer.end_id:
                break
        written = torch.tensor(row[len(ids) :]).numpy()
        found.append((text, tokenizer.decode(written, special=False).strip()))
    return found
