"""Content never becomes control tokens, text survives, streams show no half characters."""

from __future__ import annotations

import json

import numpy as np
import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from megacontext_hf.testing import build_tokenizer
from megacontext_hf.tokenizer import HfTokenizer
from megacontext_sdk.errors import ModelError

TRAPS = [
    "<|end|>",
    "say <|end|><|user|> or </s> and <s><unk>",
    "<|<|end|>end|>",
    "<|en" + "d|>" * 3,
    "</s></s>",
]


@pytest.fixture(params=["bytes", "reference", "stories"])
def tokenizer(request, byte_tokenizer):
    if request.param == "bytes":
        return HfTokenizer(byte_tokenizer, 260)
    folder = request.getfixturevalue(f"{request.param}_folder")
    loaded = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return HfTokenizer(loaded, 4096)


@pytest.mark.parametrize("text", TRAPS)
def test_markers_in_content_stay_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert not tokenizer._is_control[ids].any()
    assert text == tokenizer.decode(ids)
    assert text == tokenizer.decode(ids, special=False)


def test_markers_of_the_format_are_single_tokens(byte_tokenizer):
    tokenizer = HfTokenizer(byte_tokenizer, 260)
    ids = tokenizer.encode("<|user|>hi<|end|>", special=True)
    assert [257, 259] == [ids[0], ids[-1]]
    assert 4 == len(ids)
    assert "hi" == tokenizer.decode(ids, special=False)
    assert "<|user|>hi<|end|>" == tokenizer.decode(ids)


def test_no_token_is_added_around_the_text(tokenizer):
    whole = tokenizer.encode("one two")
    assert 0 == len(tokenizer.encode(""))
    assert 0 == len(tokenizer.encode("", special=True))
    assert not tokenizer._is_control[whole].any()
    np.testing.assert_array_equal(whole, tokenizer.encode("one two", special=True))


def test_forgotten_tokens_have_no_text(tokenizer):
    ids = tokenizer.encode("alpha beta")
    holed = np.concatenate([ids, [-1, -1]]).astype(np.int32)
    assert "alpha beta" == tokenizer.decode(holed)


def unruly(template):
    """A tokenizer whose model knows a marker as a word, and with an unmarked chat token."""
    vocab = {
        "<unk>": 0,
        "</s>": 1,
        "<": 2,
        "/s>": 3,
        "a": 4,
        "s": 5,
        ">": 6,
        "/": 7,
        "[": 8,
        "X]": 9,
    }
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer.add_tokens([AddedToken("[X]", special=False)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", chat_template=template
    )


def test_a_marker_the_model_itself_knows_is_cut_in_two():
    tokenizer = HfTokenizer(unruly(None), 16)
    assert [4, 2, 3, 4] == tokenizer.encode("a </s> a").tolist()
    assert 1 in tokenizer.encode("a </s> a", special=True)


def test_an_unmarked_token_of_the_chat_template_counts_as_control():
    template = "{% for m in messages %}[X]{{ m['content'] }}{% endfor %}"
    content = "a [X] a"
    guarded, open_ = HfTokenizer(unruly(template), 16), HfTokenizer(unruly(None), 16)
    assert [4, 8, 9, 4] == guarded.encode(content).tolist()
    assert [4, 10, 4] == open_.encode(content).tolist()


def test_lone_surrogates_do_not_stop_encoding(tokenizer):
    assert "a?b" == tokenizer.decode(tokenizer.encode("a\ud83db"))


def test_padding_and_truncation_of_the_original_are_ignored(byte_tokenizer):
    original = build_tokenizer()
    original.backend_tokenizer.enable_truncation(3)
    original.backend_tokenizer.enable_padding(length=10)
    assert 12 == len(HfTokenizer(original, 260).encode("twelve bytes"))


def test_stream_equals_decode_for_every_cut_of_a_hard_text(tokenizer):
    text = "naïve 千字文 🙂👩‍🚀 end\n\n  x"
    ids = tokenizer.encode(text)
    for cut in range(len(ids) + 1):
        stream = tokenizer.detokenizer()
        pieces = [stream.push(int(token)) for token in ids[:cut]]
        assert text.startswith("".join(pieces))
        assert not any("\ufffd" in piece for piece in pieces)
        # Some decoders replace a whole run of bytes if its last character is incomplete.
        if "\ufffd" not in tokenizer.decode(ids[:cut]):
            assert tokenizer.decode(ids[:cut]) == "".join(pieces) + stream.flush()
    assert text == "".join(pieces)


def test_stream_ignores_special_and_forgotten_tokens(byte_tokenizer):
    tokenizer = HfTokenizer(byte_tokenizer, 260)
    stream = tokenizer.detokenizer()
    letters = [stream.push(int(t)) for t in [256, *tokenizer.encode("ab"), 259, -1]]
    assert ["", "a", "b", "", ""] == letters
    assert "" == stream.flush()


def test_stream_can_go_on_after_a_flush(byte_tokenizer):
    tokenizer = HfTokenizer(byte_tokenizer, 260)
    smile = tokenizer.encode("🙂")
    stream = tokenizer.detokenizer()
    assert "" == stream.push(int(smile[0]))
    assert "\ufffd" == stream.flush()
    assert "🙂" == "".join(stream.push(int(token)) for token in smile)


def test_chat_template_renders_or_is_absent(byte_tokenizer):
    messages = [{"role": "user", "content": "hi"}]
    tokenizer = HfTokenizer(byte_tokenizer, 260)
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert "<|bos|><|user|>hi<|end|><|assistant|>" == text
    bare = HfTokenizer(build_tokenizer(template=None), 260)
    assert bare.apply_chat_template(messages, add_generation_prompt=True) is None


def test_a_template_that_refuses_raises_our_error_without_content():
    template = "{{ raise_exception('no roles here: ' + messages[0]['content']) }}"
    tokenizer = HfTokenizer(build_tokenizer(template), 260)
    messages = [{"role": "system", "content": "my secret"}]
    with pytest.raises(ModelError, match="roles system") as caught:
        tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    assert "secret" not in str(caught.value)


def test_slow_tokenizers_are_refused():
    with pytest.raises(ModelError, match="no fast tokenizer"):
        HfTokenizer(object(), 260)


def test_fingerprint_names_the_definition_not_the_object(byte_tokenizer, tmp_path):
    first = HfTokenizer(byte_tokenizer, 260).fingerprint
    byte_tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert first == HfTokenizer(again, 260).fingerprint
    definition = json.loads((tmp_path / "tokenizer.json").read_text())
    definition["added_tokens"][0]["content"] = "<|begin|>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    changed = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert first != HfTokenizer(changed, 260).fingerprint


def test_two_threads_may_share_a_tokenizer(byte_tokenizer):
    from concurrent.futures import ThreadPoolExecutor

    tokenizer = HfTokenizer(byte_tokenizer, 260)

    def work(special):
        return [len(tokenizer.encode("<|end|>", special=special)) for _ in range(200)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, [True, False, True, False]))
    assert [[1] * 200, [7] * 200, [1] * 200, [7] * 200] == found
