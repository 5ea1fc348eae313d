"""A memory in a dozen lines: told once, closed, opened again, asked. Needs nothing but the SDK."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from megacontext_sdk import MemorySession


def main(path: Path) -> str:
    """Tell a memory at `path` two things, open it again, ask, and return the answer."""
    with MemorySession.open(path) as session:
        session.append("Anna has a parrot called Coco.")
        session.append("The birthday of Anna is in May.")
    with MemorySession.open(path) as session:
        reply = session.generate("What is the name of the parrot of Anna?", max_new_tokens=8)
    for citation in reply.citations:
        print(f"saw tokens {citation.span.start} to {citation.span.end} in full")
    print(reply.text)
    return reply.text


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        main(Path(folder) / "anna.mc")
