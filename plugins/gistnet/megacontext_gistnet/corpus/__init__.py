"""Text as tokens: sources, documents, a store on disk, windows at random, made-up facts.

It knows tokenizers and files; models and training are other rooms.
"""

from __future__ import annotations

from megacontext_gistnet.corpus.documents import Document, read_documents
from megacontext_gistnet.corpus.draft import Draft, Turn
from megacontext_gistnet.corpus.facts import FactSource, ToldFact, fact_dialogues, tell_facts
from megacontext_gistnet.corpus.rendering import Renderer
from megacontext_gistnet.corpus.sampler import WindowSampler
from megacontext_gistnet.corpus.source import DOMAINS, Source, domain_of, is_held_out
from megacontext_gistnet.corpus.store import TokenStore, open_store

__all__ = [
    "DOMAINS",
    "Document",
    "Draft",
    "FactSource",
    "Renderer",
    "Source",
    "TokenStore",
    "ToldFact",
    "Turn",
    "WindowSampler",
    "domain_of",
    "fact_dialogues",
    "is_held_out",
    "open_store",
    "read_documents",
    "tell_facts",
]
