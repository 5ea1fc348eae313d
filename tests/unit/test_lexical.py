"""The lexical index: ranking, literal queries, rebuilding, damage, bounded work."""

from __future__ import annotations

import math
import random
import sqlite3
import threading

import numpy as np
import pytest

from megacontext_sdk.memory import lexical
from megacontext_sdk.memory.lexical import LexicalIndex, LexicalRow
from megacontext_sdk.memory.lod import BLOCK_SIZE

ROW_TOKENS = 40


def opened(path=None, **kwargs):
    index = LexicalIndex(path, **kwargs)
    index.open()
    return index


def rows_of(texts, first=0):
    return [
        LexicalRow((first + i) * ROW_TOKENS, (first + i + 1) * ROW_TOKENS, text)
        for i, text in enumerate(texts)
    ]


def indexed(texts, path=None):
    index = opened(path)
    index.add(rows_of(texts))
    return index


def found(hits):
    """Return row numbers from 0, best first."""
    return (hits.start // ROW_TOKENS).tolist()


def n_blocks_of(texts):
    return len(texts) * ROW_TOKENS // BLOCK_SIZE + 1


def random_corpus(seed, n_rows=300, n_words=400):
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(n_words)]
    weights = [1 / (i + 1) for i in range(n_words)]
    return [
        list(dict.fromkeys(rng.choices(words, weights, k=rng.randint(3, 25))))
        for _ in range(n_rows)
    ], words


def brute_force(corpus, query, *, is_smoothed):
    """Spec section 6: `2.2 * tf / (tf + 1.2)`, every tf 1; BM25's length division last."""
    n = len(corpus)
    own = np.zeros(n)
    for word in query:
        tf = np.array([text.count(word) for text in corpus])
        df = int((tf > 0).sum())
        if df <= max(0.2 * n, 16):
            own += math.log(1 + (n - df + 0.5) / (df + 0.5)) * 2.2 * tf / (tf + 1.2)
    long = 1 - 0.25 + 0.25 * ROW_TOKENS / 64
    if not is_smoothed:
        return own / long
    total = own.copy()
    for distance, weight in ((1, 0.5), (2, 0.25)):
        total[distance:] += weight * own[:-distance]
        total[:-distance] += weight * own[distance:]
    return total / long


def test_row41_a_short_message_passes_a_long_piece_that_matches_by_chance():
    index = opened()
    rows = [LexicalRow(i * 40, i * 40 + 40, f"filler{i} talk") for i in range(40)]
    rows += [
        LexicalRow(1600, 1728, "anna speaks danish " + "other words " * 40),
        LexicalRow(1728, 1740, "anna speaks danish"),
    ]
    index.add(rows)

    hits = index.search("Does Anna speak Danish?", 2)

    assert [1728, 1600] == hits.start.tolist()


def test_row41_a_name_inside_the_sentence_weighs_more_than_what_is_asked_about_it():
    index = opened()
    rows = rows_of([f"filler{i} talk" for i in range(60)])
    rows += rows_of(["zara loves sushi"], 60)
    rows += rows_of([f"unrelated{i}" for i in range(8)], 61)
    rows += rows_of(["favorite food of someone"], 69)
    index.add(rows)

    hits = index.query("What is the favorite food of Zara?", "", 10_000, 2)

    assert [60, 69] == [start // ROW_TOKENS for start in hits.start.tolist()]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("is_smoothed", [False, True])
def test_row41_ranking_agrees_with_brute_force_bm25(seed, is_smoothed):
    corpus, words = random_corpus(seed)
    index = indexed([" ".join(text) for text in corpus])
    rng = random.Random(seed + 100)
    for _ in range(10):
        query = rng.sample(words, 4)
        expected = brute_force(corpus, query, is_smoothed=is_smoothed)
        if is_smoothed:
            hits = index.query(" ".join(query), "", n_blocks_of(corpus), limit=40)
        else:
            hits = index.search(" ".join(query), 40)
        scores = hits.score.astype(float)
        np.testing.assert_allclose(np.sort(expected)[::-1][: len(hits)], scores, rtol=1e-6)
        np.testing.assert_allclose(expected[found(hits)], scores, rtol=1e-6)
        assert min(40, int((expected > 0).sum())) == len(hits)


def test_row41_equal_scores_put_the_newest_first():
    index = indexed(["zebra", "zebra", "other", "zebra"])
    assert [3, 1, 0] == found(index.search("zebra", 3))


@pytest.mark.parametrize("sizes", [[1] * 60, [60], [7, 1, 30, 22]])
def test_row41_incremental_index_equals_rebuilt_index(tmp_path, sizes):
    corpus, words = random_corpus(3, n_rows=60)
    texts = [" ".join(text) for text in corpus]
    grown = opened(tmp_path / "grown.sqlite")
    at = 0
    for size in sizes:
        grown.add(rows_of(texts[at : at + size], first=at))
        grown.close()
        grown.open()
        at += size
    rebuilt = indexed(texts)
    assert (rebuilt.n_rows, rebuilt.end) == (grown.n_rows, grown.end)
    for word in words[:80]:
        expected = rebuilt.query(word, "", n_blocks_of(texts))
        actual = grown.query(word, "", n_blocks_of(texts))
        assert expected.start.tolist() == actual.start.tolist()
        assert expected.score.tolist() == actual.score.tolist()


@pytest.mark.parametrize(
    "query",
    [
        'zebra"',
        '"zebra OR nothing"',
        "zebra*",
        "(zebra",
        "text:zebra",
        "^zebra",
        "zebra -cat",
        "{a b}:zebra + x",
        "' ; DROP TABLE terms; -- zebra",
        "NEAR(zebra cat, 2)",
        "zebra\x00cat",
        "ze\u00adbra zebra \ud83e\udd93",
    ],
)
def test_row41_operators_and_quotes_in_a_query_are_literals(query):
    index = indexed(["nothing here", "a zebra stood", "plain words", "DROP the table"])
    assert 1 in found(index.search(query, 4))
    assert 1 in found(index.query(query, query, 10))
    assert not index.was_reset
    assert 4 == index.n_rows


def test_row41_operator_words_search_for_themselves():
    index = indexed(["alpha beta", "alpha near beta", "alpha or beta", "gamma"])
    assert [1] == found(index.search("NEAR", 4))


@pytest.mark.parametrize("query", ["", "   ", '"', "*", "()", "--", "\u00ad"])
def test_a_query_without_words_finds_nothing(query):
    index = indexed(["one", "two"])
    assert 0 == len(index.search(query, 5))
    assert 0 == len(index.query(query, "", 10))


def test_row41_forgotten_text_leaves_no_trace(tmp_path):
    path = tmp_path / "lexical.sqlite"
    index = indexed(["the canary zyxwvu sings", "other words"], path)
    index.close()
    assert b"zyxwvu" in path.read_bytes()
    index.open()
    index.clear()
    index.add(rows_of(["other words"]))
    index.close()
    assert [] == [p.name for p in tmp_path.iterdir() if b"zyxwvu" in p.read_bytes()]


def test_text_is_not_stored(tmp_path):
    path = tmp_path / "lexical.sqlite"
    indexed(["Meeting moved to Thursday"], path).close()
    assert b"Meeting moved" not in path.read_bytes()


def test_case_accents_and_endings_are_folded():
    index = indexed(["She ADOPTED a cat", "Der Caf\u00e9-Besitzer", "filler"])
    assert [0] == found(index.search("adopting", 3))
    assert [1] == found(index.search("cafe", 3))
    assert [1] == found(index.search("CAFE\u0301", 3))


def test_irregular_forms_find_each_other():
    index = indexed(["we went to Rome", "filler", "she bought bread"])
    assert [0] == found(index.search("go", 3))
    assert [2] == found(index.search("buying buy", 3))


def test_rare_words_weigh_more_than_frequent_ones():
    texts = ["dog"] * 30 + ["okapi"] + ["dog"] * 30 + ["cat"] * 400
    assert 30 == found(indexed(texts).search("dog okapi", 1))[0]


def test_words_in_more_than_a_fifth_of_the_messages_are_ignored():
    texts = [f"Anna says word{i}" for i in range(100)]
    index = indexed(texts)
    assert 0 == len(index.query("Anna", "", n_blocks_of(texts)))
    assert [7] == found(index.search("Anna word7", 5))


def test_a_short_history_keeps_its_frequent_words():
    index = indexed(["Anna lives in Oslo", "Anna has a cat", "Bob"])
    assert [1, 0] == found(index.search("Anna", 3))


def test_neighbours_share_a_hit():
    texts = ["filler"] * 20
    texts[10] = "What is the password?"
    hits = indexed(texts).query("password", "", n_blocks_of(texts))
    assert {8, 9, 10, 11, 12} == set(found(hits))
    scores = dict(zip(found(hits), hits.score.tolist(), strict=True))
    assert scores[10] == pytest.approx(2 * scores[11])
    assert scores[10] == pytest.approx(4 * scores[12])


def test_recent_text_counts_half_and_the_turn_once():
    texts = ["alpha", "x", "x", "x", "x", "omega", "x", "x"]
    index = indexed(texts)
    hits = index.query("alpha", "omega alpha", n_blocks_of(texts))
    scores = dict(zip(found(hits), hits.score.tolist(), strict=True))
    assert scores[0] == pytest.approx(2 * scores[5])


def test_the_pending_turn_does_not_match_itself():
    texts = ["the key is under the mat", "filler", "filler", "filler", "where is the key"]
    index = indexed(texts)
    hits = index.query("where is the key", "", n_blocks_of(texts), before=4 * ROW_TOKENS)
    assert 0 == found(hits)[0]
    assert 4 not in found(hits)
    assert 4 == found(index.query("where is the key", "", n_blocks_of(texts)))[0]


def test_rows_added_later_change_nothing_before_them():
    texts = [f"word{i % 7} filler" for i in range(50)]
    index = indexed(texts)
    before = index.query("word3", "", n_blocks_of(texts), before=50 * ROW_TOKENS)
    index.add(rows_of(["word3 word3"] * 30, first=50))
    after = index.query("word3", "", 10**6, before=50 * ROW_TOKENS)
    assert before.start.tolist() == after.start.tolist()
    assert before.score.tolist() == after.score.tolist()


def test_search_takes_weighted_words():
    index = indexed(["alpha", "beta", "gamma"])
    assert [1, 0] == found(index.search({"alpha": 1.0, "beta": 3.0}, 5))


@pytest.mark.parametrize("k", [0, -1])
def test_no_hits_are_returned_when_none_are_wanted(k):
    index = indexed(["alpha"])
    assert 0 == len(index.search("alpha", k))
    assert 0 == len(index.query("alpha", "", 10, limit=k))


def test_an_empty_index_finds_nothing():
    index = opened()
    assert 0 == len(index.search("alpha", 5))
    assert 0 == len(index.query("alpha", "beta", 0))
    assert (0, 0) == (index.n_rows, index.end)


def test_hits_have_their_documented_types():
    hits = indexed(["alpha beta"]).search("alpha", 5)
    assert [np.int64, np.int64, np.float32] == [hits.start.dtype, hits.end.dtype, hits.score.dtype]


# -- files ------------------------------------------------------------------------------------


def test_an_index_survives_closing(tmp_path):
    path = tmp_path / "lexical.sqlite"
    index = indexed(["alpha", "beta"], path)
    index.close()
    index.close()
    again = opened(path)
    assert (2, 2 * ROW_TOKENS, False) == (again.n_rows, again.end, again.was_reset)
    assert [1] == found(again.search("beta", 5))


def test_a_closed_index_has_no_empty_pages_and_is_for_its_owner_alone(tmp_path):
    path = tmp_path / "lexical.sqlite"
    index = opened(path)
    texts = [" ".join(f"word{i * j % 30_000}" for j in range(1, 40)) for i in range(3000)]
    for at in range(0, len(texts), 64):
        index.add(rows_of(texts[at : at + 64], at))
    before = index.n_bytes
    index.close()
    with sqlite3.connect(path) as db:
        assert (0,) == db.execute("PRAGMA freelist_count").fetchone()
    db.close()
    assert before > 1.2 * path.stat().st_size
    assert 0o600 == path.stat().st_mode & 0o777
    again = opened(path)
    assert [2999] == found(again.search("word2999", 1))
    assert 3000 == again.n_rows
    content = path.read_bytes()
    again.close()
    assert content == path.read_bytes()


def test_an_index_of_the_tables_before_is_built_again(tmp_path):
    path = tmp_path / "lexical.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE VIRTUAL TABLE terms USING fts5(text, content='', detail='none')")
        db.execute('CREATE TABLE spans (id INTEGER PRIMARY KEY, message, start, "end")')
        db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID")
        db.execute("INSERT INTO meta VALUES ('format', 1), ('identity', x'')")
    db.close()
    index = opened(path)
    assert (True, 0) == (index.was_reset, index.n_rows)
    index.add(rows_of(["alpha"]))
    assert [0] == found(index.search("alpha", 5))


def damage_garbage(path):
    path.write_bytes(b"this is no database at all" * 100)


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_version(path):
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = 999 WHERE key = 'format'")
    db.close()


def damage_table(path):
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE spans")
    db.close()


@pytest.mark.parametrize("damage", [damage_garbage, damage_truncated, damage_version, damage_table])
def test_a_damaged_file_is_replaced_by_an_empty_index(tmp_path, damage):
    path = tmp_path / "lexical.sqlite"
    texts = [f"alpha word{i} beta" for i in range(3000)]
    indexed(texts, path).close()
    damage(path)
    index = opened(path)
    index.search("word7", 5)  # a hole in the middle shows when it is read
    assert (True, 0, 0) == (index.was_reset, index.n_rows, index.end)
    index.add(rows_of(texts))
    assert [7] == found(index.search("word7", 5))
    index.close()
    assert 3000 == opened(path).n_rows


def test_an_index_of_another_memory_is_not_used(tmp_path):
    path = tmp_path / "lexical.sqlite"
    mine = opened(path, identity=b"mine")
    mine.add(rows_of(["alpha"]))
    mine.close()
    other = opened(path, identity=b"other")
    assert (True, 0) == (other.was_reset, other.n_rows)


def test_a_place_that_cannot_be_written_gets_an_index_in_memory(tmp_path):
    index = opened(tmp_path / "missing" / "lexical.sqlite")
    index.add(rows_of(["alpha"]))
    assert index.was_reset
    assert [0] == found(index.search("alpha", 5))


def test_a_locked_file_is_left_alone(tmp_path):
    path = tmp_path / "lexical.sqlite"
    indexed(["alpha"], path).close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    index = opened(path)
    index.add(rows_of(["beta"]))
    assert [0] == found(index.search("beta", 5))
    holder.execute("ROLLBACK")
    holder.close()
    assert 1 == opened(path).n_rows


def test_after_a_reset_no_hole_is_left_in_front_of_new_rows(tmp_path):
    path = tmp_path / "lexical.sqlite"
    texts = [f"alpha word{i} beta" for i in range(3000)]
    index = indexed(texts, path)
    index.close()
    damage_truncated(path)
    index.open()
    index.search("word7", 5)
    index.add(rows_of(["newest"], first=3000))
    assert 0 == index.end
    index.add(rows_of(texts[:2000]))
    index.add(rows_of(texts[2000:], first=2000))
    index.add(rows_of(["newest"], first=3000))
    assert 3001 * ROW_TOKENS == index.end
    assert [7] == found(index.search("word7", 5))


@pytest.mark.parametrize(
    "text", ["alpha\x00omega", "alpha \ud83e omega", "\ufeffalpha\nomega", "alpha\u2028omega"]
)
def test_any_text_can_be_indexed(text):
    index = indexed([text, "filler"])
    assert [0] == found(index.search("omega", 3))
    assert [0] == found(index.search("alpha", 3))
    assert not index.was_reset


def test_a_failed_add_leaves_no_half(tmp_path):
    index = indexed(["alpha"], tmp_path / "lexical.sqlite")
    bad = [LexicalRow(40, 80, "beta"), LexicalRow(80, 120, 3j)]
    with pytest.raises(TypeError):
        index.add(bad)
    assert 1 == index.n_rows
    assert 0 == len(index.search("beta", 5))


def test_threads_may_share_an_index():
    index = opened()
    failures = []

    def work(first):
        try:
            for _ in range(20):
                index.search("alpha", 3)
        except Exception as error:  # noqa: BLE001 - reported below
            failures.append(error)

    index.add(rows_of(["alpha beta"] * 50))
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == failures


def test_a_query_reads_a_bounded_number_of_postings(monkeypatch):
    n_rows = 30_000
    index = opened()
    rng = random.Random(1)
    words = [f"w{i}" for i in range(200)]
    index.add(rows_of([" ".join(rng.choices(words, k=8)) for _ in range(n_rows)]))
    read = []
    original = lexical.LexicalIndex._postings

    def counting(db, term, n_rows, limit):
        postings = original(db, term, n_rows, limit)
        read.append(len(postings.rows))
        return postings

    monkeypatch.setattr(lexical.LexicalIndex, "_postings", staticmethod(counting))
    index.query(" ".join(words[:90]), "", 10**7)
    assert sum(read) <= lexical.POSTINGS_PER_TURN + 90 * lexical.PROBE
    read.clear()
    index.query("", " ".join(words[:90]), 10**7)
    assert sum(read) <= lexical.POSTINGS_PER_BLOCK + 90 * lexical.PROBE


def test_the_frequency_of_a_common_term_is_estimated_closely():
    texts = ["common rare" if i % 10 == 0 else "common" if i % 6 == 0 else "x" for i in range(9000)]
    index = indexed(texts)
    exact = sum("common" in text for text in texts)
    postings = LexicalIndex._postings(index._db, ("common",), len(texts), 256)
    assert exact == pytest.approx(postings.n_with_term, rel=0.1)
