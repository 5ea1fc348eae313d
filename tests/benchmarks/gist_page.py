"""Puts the figures of `megacontext eval gists` into the documentation, as they were measured.

Run as `python -m tests.benchmarks.gist_page build/eval_gists.json`, with the records of one or
several runs; the picture is taken from beside the first.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.page import replaced

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["figures_block", "main"]

_ROOT = Path(__file__).resolve().parents[2]
_PAGE = _ROOT / "docs" / "explanation" / "gist-quality.md"
_IMAGE = _ROOT / "docs" / "images" / "gists.png"
_MARKS = {True: "met", False: "missed", None: "-"}

Json = dict[str, Any]


def figures_block(record: Mapping[str, Any]) -> str:
    """Return all tables of a record as Markdown.

    Raises:
        ValueError: the packaged texts were measured, which say nothing about dialogue and code.
    """
    if record["packaged_data_only"]:
        raise ValueError("give --held-out-folder: figures in the documentation cover all domains")
    lines = [
        f"Base: `{record['model']['name']}`. torch {record['versions']['torch']}. Command:",
        "",
        f"    {_public(record['command'])}",
        "",
        "Brackets are 95 % intervals over documents.",
        "",
        *_encoders(record),
    ]
    for section in record["sections"]:
        lines += [f"### {section['title']}", "", " ".join(_sentences(section)), ""]
        lines += [*_main(section), "", *_domains(section), *_differences(section)]
    lines += [*_shapes(record), *_gates(record)]
    return "\n".join(lines).rstrip()


def _public(command: str) -> str:
    """Return a command without folders of the machine it was typed on."""
    return " ".join(
        word if not word.startswith("/") else f"../shared/{word.partition('/shared/')[2]}"
        for word in command.split()
    )


def _encoders(record: Mapping[str, Any]) -> Iterator[str]:
    for name, facts in record["encoders"].items():
        if "steps" in facts:
            yield (
                f"- `{name}`: {int(facts['steps']):,} steps, {float(facts['minutes']):.0f} minutes "
                f"on {facts['device']}, weights `{facts['weights_sha256'][:12]}`"
            )
    yield ""


def _sentences(section: Json) -> Iterator[str]:
    for sentence in section["about"]:
        yield f"{sentence[:1].upper()}{sentence[1:].rstrip('.')}."
    whole = section["lines"][0]["recovery"]
    yield (
        f"{whole['n_windows']} windows of {whole['n_documents']} documents, {whole['n_tokens']:,} "
        f"tokens counted, {whole['n_recall_tokens']:,} of them recall tokens."
    )


def _main(section: Json) -> Iterator[str]:
    yield "| | S | rows | NLL | ΔNLL | R, all tokens | R, recall tokens | R>0 | not worse |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for line in section["lines"]:
        if line["domain"] != "all":
            continue
        condition, found = line["condition"], line["recovery"]
        yield _row(
            condition["name"],
            condition["slots"] or "",
            f"{condition['rows']:,.0f}",
            _number(found["nll"]["value"]),
            _number(found["delta_nll"]["value"], "+.3f"),
            _interval(found["all"]),
            _interval(found["recall"]),
            _share(found["share_positive"]),
            _share(found["share_not_worse"]),
        )


def _domains(section: Json) -> Iterator[str]:
    found = {
        (one["condition"]["name"], one["condition"]["slots"], one["domain"]): one["recovery"]
        for one in section["lines"]
    }
    domains = [one for one in dict.fromkeys(domain for _, _, domain in found) if one != "all"]
    if len(domains) < 2:
        return
    yield _row("R all / recall", "S", *domains)
    yield "|---" * (2 + len(domains)) + "|"
    for name, slots in dict.fromkeys((name, slots) for name, slots, _ in found):
        if slots:
            cells = (found.get((name, slots, domain)) for domain in domains)
            yield _row(name, slots, *("-" if one is None else _pair(one) for one in cells))
    yield ""


def _differences(section: Json) -> Iterator[str]:
    for one in section["differences"]:
        yield f"- {one['what']}: {_interval(one['all'])} all, {_interval(one['recall'])} recall"
    yield ""


def _shapes(record: Mapping[str, Any]) -> Iterator[str]:
    if not record["shapes"]:
        return
    yield "### What the gists look like"
    yield ""
    yield "| | S | diversity | of their own | norm ratio (1 %, 99 %) | twins apart | edge/inside |"
    yield "|---|---|---|---|---|---|---|"
    edges = {(one["encoder"], one["slots"]): one["ratio"] for one in record["boundaries"]}
    for one in record["shapes"]:
        edge = edges.get((one["encoder"], one["slots"]))
        yield _row(
            one["encoder"],
            one["slots"],
            _number(one["diversity"]),
            _number(one["own_diversity"]),
            f"{one['norm_ratio']:.2f} ({one['norm_low']:.2f}, {one['norm_high']:.2f})",
            _number(one["twin_distance"]),
            "-" if edge is None else _interval(edge),
        )
    yield ""


def _gates(record: Mapping[str, Any]) -> Iterator[str]:
    if not record["gates"]:
        return
    yield "### Gates"
    yield ""
    yield "| | figure | value | wanted | |"
    yield "|---|---|---|---|---|"
    for one in record["gates"]:
        value = _number(one["value"])
        yield _row(one["encoder"], one["what"], value, one["wanted"], _MARKS[one["passed"]])


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(one).replace("|", "/") for one in cells) + " |"


def _pair(found: Json) -> str:
    return f"{_number(found['all']['value'])} / {_number(found['recall']['value'])}"


def _interval(found: Json) -> str:
    if found["value"] is None or found["low"] is None:
        return _number(found["value"])
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def main(*paths: Path) -> int:
    """Rewrite the page and its picture."""
    first, *_ = chosen = paths or (_ROOT / "build" / "eval_gists.json",)
    blocks = [figures_block(json.loads(path.read_text(encoding="utf-8"))) for path in chosen]
    page = replaced(_PAGE.read_text(encoding="utf-8"), "\n\n".join(blocks))
    _PAGE.write_text(page, encoding="utf-8")
    shutil.copyfile(first.with_suffix(".png"), _IMAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main(*(Path(one) for one in sys.argv[1:])))
