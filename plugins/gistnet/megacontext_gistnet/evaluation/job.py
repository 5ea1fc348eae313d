"""One evaluation as somebody orders it: which base, which encoders, which data.

It opens and closes everything, refuses what would not be honest, and hands the tables on as they
are ready.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from megacontext_gistnet.corpus.source import Source
from megacontext_gistnet.evaluation.arms import asked, facts_of, open_arms
from megacontext_gistnet.evaluation.heldout import (
    check_not_trained_on,
    held_out_sources,
    packaged_sources,
    read_held_out,
    source_facts,
    texts_of,
)
from megacontext_gistnet.evaluation.lab import Lab, Silent
from megacontext_gistnet.evaluation.reader import Reader, frozen_base
from megacontext_gistnet.evaluation.report import Report
from megacontext_gistnet.evaluation.run import Settings, evaluate
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.plugins import default_plugins
from megacontext_sdk.providers import open_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from megacontext_gistnet.corpus.documents import AnySource, Document
    from megacontext_gistnet.evaluation.arms import Asked
    from megacontext_gistnet.evaluation.lab import Progress
    from megacontext_gistnet.evaluation.run import Item
    from megacontext_sdk.contracts.model import ModelAdapter, ModelInfo
    from megacontext_sdk.plugins import Plugins

__all__ = ["SINKS", "Job", "work"]

SINKS = ("none", "bos")
"""What may stand raw in front of every layout."""


def _texts(given: Sequence[str]) -> tuple[str, ...]:
    return tuple(given)


def _paths(given: Sequence[Path | str]) -> tuple[Path, ...]:
    return tuple(Path(one) for one in given)


@attrs.frozen(kw_only=True)
class Job:
    """What is to be evaluated.

    Attributes:
        model: the base, as a session takes it.
        gists: encoders by name, or weight files; `mean` is measured in any case.
        data: folders and files, the held-out side of which is read.
        whole: folders and files of which everything is held out.
        apart_from: folders and files of training; texts that stand there word for word, too, are
            not measured on.
        sink: "none", or "bos" for a BOS row in front of every layout.
        settings: how much is measured.
        command: what was typed, for the record.
    """

    model: str = "reference"
    gists: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    data: tuple[Path, ...] = attrs.field(default=(), converter=_paths)
    whole: tuple[Path, ...] = attrs.field(default=(), converter=_paths)
    apart_from: tuple[Path, ...] = attrs.field(default=(), converter=_paths)
    sink: str = "none"
    settings: Settings = attrs.field(factory=Settings)
    command: str = ""

    def __attrs_post_init__(self) -> None:
        if self.sink not in SINKS:
            message = f"sink={self.sink!r}; give one of {', '.join(SINKS)}"
            raise ConfigError(message, field="sink", value=self.sink)


def work(
    job: Job, *, plugins: Plugins | None = None, progress: Progress | None = None
) -> Iterator[tuple[Report, Item]]:
    """Yield every table as it is ready, with the report that holds all of them so far.

    Args:
        job: what to evaluate.
        plugins: by default the installed ones.
        progress: who is told how far it is.

    Raises:
        ConfigError: no data, data an encoder was trained on, or an option that is none.
        ModelError: the base cannot be opened, or an encoder cannot be measured.
        ModelMismatchError: an encoder of another base.
        UnknownProviderError: nobody offers a name.
    """
    catalogue = default_plugins() if plugins is None else plugins
    encoders = asked(job.gists)
    sources = held_out_sources(job.data, job.whole) if job.data or job.whole else None
    read = packaged_sources() if sources is None else sources
    lease = open_model(catalogue, job.model)
    try:
        teller = progress or Silent()
        lab = _lab(job, catalogue, encoders, lease.adapter, teller)
        facts = {arm.name: facts_of(arm.encoder) for arm in lab.smallest()}
        for name, told in facts.items():
            check_not_trained_on(name, told, read)
        seen = _seen(job.apart_from, teller)
        documents = _documents(read, lease.adapter, teller, seen)
        report = Report(
            command=job.command,
            info=lease.adapter.info,
            settings=job.settings,
            sink=job.sink,
            encoders=facts,
            sources=source_facts(read),
            is_small=sources is None,
        )
        for item in evaluate(lab, documents, job.settings):
            report.add(item)
            yield report, item
    finally:
        lease.release()


def _lab(
    job: Job,
    plugins: Plugins,
    encoders: Sequence[Asked],
    adapter: ModelAdapter,
    progress: Progress,
) -> Lab:
    return Lab(
        adapter=adapter,
        reader=Reader(frozen_base(adapter), sink=_sink(job.sink, adapter.info)),
        arms=open_arms(plugins, encoders, job.settings.slots, adapter.info),
        progress=progress,
    )


def _documents(
    sources: Sequence[AnySource], adapter: ModelAdapter, progress: Progress, seen: frozenset[bytes]
) -> list[Document]:
    with progress.stage("read and tokenise held-out texts", len(sources)) as advance:
        return list(read_held_out(sources, adapter.tokenizer, adapter.info, advance, without=seen))


def _seen(paths: Sequence[Path], progress: Progress) -> frozenset[bytes]:
    if not paths:
        return frozenset()
    with progress.stage("read texts of training", len(paths)) as advance:
        return texts_of([Source(path) for path in paths], advance)


def _sink(sink: str, info: ModelInfo) -> int | None:
    if sink == "none":
        return None
    if info.bos_id is None:
        message = f"sink='bos', but {info.name} has no BOS token; give sink='none'"
        raise ConfigError(message, field="sink", value=sink)
    return info.bos_id
