"""`megacontext eval gists` from the command line, over a small model and small texts."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from megacontext_gistnet.evaluation import Job, Settings, trained_on, work
from megacontext_gistnet.nets.model import new_model, save_weights
from megacontext_sdk._cli.app import build_app
from megacontext_sdk.errors import ConfigError


@pytest.fixture(scope="module")
def app():
    return build_app()


@pytest.fixture
def invoke(app, tiny_folder, texts, tmp_path):
    def run(*options, data=True):
        out, plot = tmp_path / "eval.json", tmp_path / "eval.png"
        base = ["eval", "gists", "--model", f"hf:{tiny_folder}", "--out", str(out)]
        sources = ["--data", str(texts)] if data else []
        done = CliRunner().invoke(app, [*base, "--plot", str(plot), *sources, *options])
        record = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else None
        return done, record, plot

    return run


QUICK = ("--windows", "2", "--seeds", "1", "--slots", "1", "--books", "1", "--histories", "1")


@pytest.fixture
def weights(tiny_folder, tmp_path):
    """Untrained weights for the tiny model: the residual is zero, so they are `mean`."""
    from megacontext_hf.adapter import open_hf

    def make(**facts):
        with open_hf(str(tiny_folder)) as adapter:
            base = adapter.torch_module().requires_grad_(requires_grad=False)
            model = new_model("gistnet", base)
            told = {
                "base_fingerprint": adapter.info.fingerprint,
                "tokenizer_fingerprint": adapter.info.tokenizer_fingerprint,
                **facts,
            }
            path = tmp_path / "untrained" / "gistnet.safetensors"
            save_weights(model, path, told)
        return path

    return make


@pytest.mark.slow
def test_every_table_from_the_command_line(invoke, weights):
    done, record, plot = invoke(
        *QUICK,
        "--gist",
        str(weights()),
        "--ceiling",
        "13",
        "--ceiling-steps",
        "3",
        "--w-max",
        "384",
    )
    assert done.exit_code == 0, done.output
    keys = [one["key"] for one in record["sections"]]
    assert ["lod1", "adjacent", "near", "far", "lod2", "books"] == keys[:6]
    assert keys[6].startswith("system-")
    assert keys[-1] == "ceiling"
    assert len(record["shapes"]) == len(record["boundaries"]) == 4
    assert plot.read_bytes().startswith(b"\x89PNG")
    for part in ("Gates", "Whole books", "A session of 384 rows", "gistnet (untrained)"):
        assert part in done.output
    # Untrained is mean: every figure of the two is the same.
    lines = {
        (one["condition"]["name"], one["domain"]): one["recovery"]["nll"]["value"]
        for one in record["sections"][0]["lines"]
    }
    for domain in ("all", "story", "dialogue", "code"):
        mean, mine = lines["mean", domain], lines["gistnet (untrained)", domain]
        assert mine == pytest.approx(mean, abs=1e-3)


def test_one_table_is_enough(invoke):
    done, record, plot = invoke(*QUICK, "--tables", "lod1", "--sink", "bos")
    assert done.exit_code == 0, done.output
    assert ["lod1"] == [one["key"] for one in record["sections"]]
    assert (record["sink"], record["gates"]) == ("bos", [])
    assert record["model"]["name"]
    assert plot.is_file()


def test_without_data_the_packaged_texts_are_read(invoke):
    done, record, _ = invoke(*QUICK, "--tables", "lod1", data=False)
    assert done.exit_code == 0, done.output
    assert record["packaged_data_only"]
    assert "says nothing about dialogue and code" in " ".join(done.output.split())
    assert {"story", "facts", "all"} == {one["domain"] for one in record["sections"][0]["lines"]}


def test_an_encoder_trained_on_the_data_is_refused(invoke, weights, texts):
    path = weights(sources=trained_on([texts]))
    done, record, _ = invoke(*QUICK, "--tables", "lod1", "--gist", str(path))
    assert done.exit_code == 1
    assert "was trained on" in done.output
    assert record is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--slots", "1,3"), "give some of 1, 2 and 4"),
        (("--slots", "one"), "give numbers with commas"),
        (("--tables", "lod7"), "there is no table 'lod7'"),
        (("--sink", "eos"), "sink='eos'"),
        (("--gist", "nobody"), "nobody"),
        (("--data", "/nowhere/at/all"), "there is no data"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(invoke, options, said):
    done, _, _ = invoke("--windows", "1", "--seeds", "1", *options)
    assert done.exit_code == 1
    assert said in " ".join(done.output.split())


def test_the_same_job_gives_the_same_figures(tiny_folder, texts):
    settings = Settings(windows=2, seeds=1, slots=(1,), tables=("lod1",))
    job = Job(model=f"hf:{tiny_folder}", data=[texts], settings=settings)
    one, two = ([report.to_dict() for report, _ in work(job)][-1] for _ in range(2))
    assert one == two


def test_a_model_is_closed_even_if_nobody_reads_on(tiny_folder, texts, monkeypatch):
    closed = []
    monkeypatch.setattr(
        "megacontext_hf.adapter.HfAdapter.close", lambda self: closed.append(self.info.name)
    )
    settings = Settings(windows=1, seeds=1, slots=(1,), tables=("lod1", "lod2"))
    tables = work(Job(model=f"hf:{tiny_folder}", data=[texts], settings=settings))
    next(tables)
    tables.close()
    assert len(closed) == 1


def test_a_sink_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="give one of none, bos"):
        Job(sink="eos")
