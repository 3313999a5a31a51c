"""The checker: results worked out by hand on the library rows, and every attack on the sandbox that we know.

The rows that the golden results rest on (book: id, title, genre, pages, year, author_id):
Satire are 8 Yonder 180, 18 Anchor 890, 30 Dune 760, 36 Glacier 480. From 850 pages: Pebble 880, Anchor 890, Ivory 850,
Ember 860. Author 1 Leon (Japan) wrote Copper 580 and Orchid 530; author 2 Rosa is the only Kenyan and wrote Nectar,
Pebble, Kestrel, Amber; author 9 Tara wrote nothing.
"""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_diag.tasks.sql.execute import has_outer_order, is_correct, run_query, same_result


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT COUNT(*) FROM book WHERE genre = 'Satire'", [(4,)]),
        ("SELECT SUM(pages) FROM book WHERE genre = 'Satire'", [(2310,)]),
        ("SELECT title FROM book ORDER BY pages DESC LIMIT 3", [("Anchor",), ("Pebble",), ("Ember",)]),
        ("SELECT AVG(pages) FROM book WHERE author_id = 1", [(555.0,)]),
        ("SELECT COUNT(DISTINCT country) FROM author", [(4,)]),
        ("SELECT COUNT(*) FROM book WHERE genre = 'Poetry' AND pages > 700", [(2,)]),
        ("SELECT COUNT(*) FROM book WHERE genre = 'Satire' OR pages < 150", [(6,)]),
        ("SELECT genre FROM book GROUP BY genre HAVING COUNT(*) < 5", [("Satire",)]),
        (
            "SELECT COUNT(*) FROM book JOIN author ON book.author_id = author.id WHERE author.country = 'Kenya'",
            [(4,)],
        ),
        ("SELECT COUNT(DISTINCT author.id) FROM book JOIN author ON book.author_id = author.id", [(8,)]),
        ("SELECT MIN(born), MAX(born) FROM author;", [(1900, 1982)]),
        ("WITH long AS (SELECT title FROM book WHERE pages >= 850) SELECT COUNT(*) FROM long", [(4,)]),
    ],
)
def test_results_by_hand(sql, rows):
    assert list(run_query("library", sql).rows) == rows


def test_groups_by_hand():
    result = run_query("library", "SELECT country, COUNT(*) FROM author GROUP BY country")
    assert dict(result.rows) == {"Japan": 4, "Kenya": 1, "Norway": 2, "Peru": 2}


@pytest.mark.parametrize(
    ("predicted", "gold", "right"),
    [
        # another way to say it, other names and case
        ("select Title from BOOK where not pages < 850", "SELECT title FROM book WHERE pages >= 850", True),
        ("SELECT title FROM book WHERE pages > 850", "SELECT title FROM book WHERE pages >= 850", False),
        # order counts only when the gold query orders
        ("SELECT title FROM book ORDER BY year", "SELECT title FROM book", True),
        ("SELECT title FROM book", "SELECT title FROM book ORDER BY year ASC", False),
        ("SELECT title FROM book ORDER BY year DESC", "SELECT title FROM book ORDER BY year ASC", False),
        # repeats count
        ("SELECT DISTINCT genre FROM book", "SELECT genre FROM book", False),
        ("SELECT genre FROM book GROUP BY genre", "SELECT DISTINCT genre FROM book", True),
        # column order counts, names do not
        ("SELECT pages, title FROM book", "SELECT title, pages FROM book", False),
        ("SELECT title AS x FROM book", "SELECT title FROM book", True),
        # numbers: within rounding, never as text
        ("SELECT SUM(pages) / 36.0 FROM book", "SELECT AVG(pages) FROM book", True),
        ("SELECT SUM(pages) / 36 FROM book", "SELECT AVG(pages) FROM book", False),
        ("SELECT '4'", "SELECT COUNT(*) FROM book WHERE genre = 'Satire'", False),
        ("SELECT 4.0", "SELECT COUNT(*) FROM book WHERE genre = 'Satire'", True),
        # nonsense
        ("", "SELECT title FROM book", False),
        ("SELECT nothing FROM book", "SELECT title FROM book", False),
    ],
)
def test_right_and_wrong_by_hand(predicted, gold, right):
    assert is_correct("library", predicted, gold) is right


def test_the_average_of_pages_is_no_integer():
    """Else the integer division above would be right by accident."""
    assert run_query("library", "SELECT SUM(pages) % 36 FROM book").rows[0][0] != 0


def test_a_gold_query_that_does_not_run_is_the_callers_mistake():
    with pytest.raises(ValueError, match="gold query does not run"):
        is_correct("library", "SELECT 1", "SELECT nothing FROM book")
    with pytest.raises(KeyError):
        run_query("no such database", "SELECT 1")


@pytest.mark.parametrize(
    ("sql", "ordered"),
    [
        ("SELECT a FROM t ORDER BY b", True),
        ("SELECT a FROM t order\n by b LIMIT 1", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY b)", False),
        ("SELECT a FROM t WHERE b = ' ORDER BY '", False),
        ("SELECT a FROM (SELECT a FROM (SELECT 1 ORDER BY 1) ORDER BY b) ORDER BY a", True),
        ("SELECT a FROM t WHERE b = 'it''s (' ORDER BY c", True),
        ("SELECT a FROM t", False),
    ],
)
def test_outer_order(sql, ordered):
    assert has_outer_order(sql) is ordered


CTE_CHAIN = "WITH c0 AS (SELECT 1 x), " + ", ".join(
    f"c{i} AS (SELECT y.x FROM c{i - 1} y, c{i - 1} z)" for i in range(1, 31)
)
ATTACKS = {
    "attach": ("ATTACH DATABASE 'owned.db' AS x", "rejected"),
    "pragma": ("PRAGMA query_only = OFF", "rejected"),
    "pragma function": ("SELECT * FROM pragma_database_list", "rejected"),
    "pragma function, no column": ("SELECT 1 FROM pragma_database_list", "rejected"),
    "vacuum into": ("VACUUM INTO 'owned.db'", "rejected"),
    "second statement": ("SELECT 1; DROP TABLE book", "rejected"),
    "second select": ("SELECT 1; SELECT 2", "rejected"),
    "insert": ("INSERT INTO book VALUES (99, 'a', 'b', 1, 1, 1)", "rejected"),
    "insert behind with": ("WITH a AS (SELECT 1) INSERT INTO book SELECT 99, 'a', 'b', 1, 1, 1", "rejected"),
    "delete behind with": ("WITH a AS (SELECT 1) DELETE FROM book", "rejected"),
    "update returning": ("WITH a AS (SELECT 1) UPDATE book SET title = 'x' RETURNING title", "rejected"),
    "explain": ("EXPLAIN SELECT 1", "rejected"),
    "schema": ("SELECT sql FROM sqlite_master", "rejected"),
    "schema, no column": ("SELECT COUNT(*) FROM sqlite_master", "rejected"),
    "temp schema": ("SELECT * FROM temp.sqlite_master", "rejected"),
    "load_extension": ("SELECT load_extension('evil')", "rejected"),
    "readfile": ("SELECT readfile('/etc/passwd')", "error"),
    "writefile": ("SELECT writefile('owned', 'x')", "error"),
    "random": ("SELECT random()", "rejected"),
    "clock": ("SELECT current_timestamp", "rejected"),
    "zeroblob": ("SELECT zeroblob(1000000000)", "rejected"),
    "randomblob": ("SELECT hex(randomblob(1000000000))", "rejected"),
    "printf": ("SELECT printf('%1000000000d', 1)", "rejected"),
    "recursion": ("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT * FROM c", "rejected"),
    "cte doubling while preparing": (CTE_CHAIN + " SELECT COUNT(*) FROM c30", "rejected"),
    "cte doubling, inner": (f"SELECT * FROM ({CTE_CHAIN} SELECT 1 FROM c30)", "rejected"),
    "cte names hidden in comments": ("WITH a AS/**/(SELECT 1), b AS/**/(SELECT 1) SELECT 1", "rejected"),
    "cte names hidden in quotes": ('WITH "a""AS (" AS (SELECT 1) SELECT 1', "rejected"),
    "cross join": ("SELECT COUNT(*) FROM book a, book b, book c, book d, book e, book f", "timeout"),
    "cross join, sorted": ("SELECT a.title FROM book a, book b, book c, book d, book e ORDER BY b.title", "timeout"),
    "sort of wide rows": (
        f"SELECT z.s || a.title, z.s || b.title FROM book a, book b, book c, (SELECT s||s||s||s||s s FROM "
        f"(SELECT '{'a' * 900}' s)) z ORDER BY c.title || b.title DESC",
        "too_large",
    ),
    "cte fan-out": (
        "WITH b AS (SELECT 1 x FROM book), c AS (SELECT 1 x FROM b z, b y, b w, b v) SELECT COUNT(*) FROM c z, c y",
        "timeout",
    ),
    "many rows": ("SELECT a.title FROM book a, book b", "too_large"),
    "many columns": ("SELECT " + ", ".join("1" * 17), "too_large"),
    "very many columns": ("SELECT " + ", ".join("1" * 200), "error"),
    "long string": ("SELECT " + " || ".join(["'" + "x" * 400 + "'"] * 4) + " || 'x'", "ok"),
    "doubling string": (
        f"WITH a AS (SELECT '{'x' * 400}' s), b AS (SELECT s||s||s||s||s s FROM a), "
        "c AS (SELECT s||s||s||s||s||s s FROM b) SELECT s FROM c",
        "error",
    ),
    "deep parentheses": ("SELECT " + "(" * 500 + "1" + ")" * 500, "error"),
    "deep expression": ("SELECT " + "1+" * 400 + "1", "error"),
    "deep subqueries": ("SELECT * FROM " + "(SELECT * FROM " * 90 + "book" + ")" * 90, "error"),
    "many unions": (" UNION ALL ".join(["SELECT 1"] * 60), "error"),
    "long text": ("SELECT 1" + " " * 10 + "+1" * 5000, "rejected"),
    "bound variable": ("SELECT ?", "error"),
    "nul": ("SELECT 'a\x00b'", "rejected"),
    "lone surrogate": ("SELECT '\ud800'", "rejected"),
    "text that is no UTF-8": ("SELECT CAST(x'ff' AS TEXT)", "error"),
    "integer overflow": ("SELECT SUM(9223372036854775807) FROM book", "error"),
    "no text": (None, "rejected"),
    "bytes": (b"SELECT 1", "rejected"),
    "empty": ("", "rejected"),
    "prose": ("I cannot answer that.", "rejected"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_stopped_soon_and_leaves_the_database_as_it_was(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sql, status = ATTACKS[name]
    started = time.process_time()
    result = run_query("library", sql)
    assert time.process_time() - started < 1.0
    assert result.status == status, result
    assert result.ok or (result.rows == () and result.message and "\n" not in result.message)
    assert run_query("library", "SELECT COUNT(*), MAX(title) FROM book").rows == ((36, "Zephyr"),)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux says how much memory a process has")
def test_memory_is_limited_and_given_back():
    """46,656 rows of 9 kB took 300 MB and more; stopped beyond 64 MiB, and the next query runs."""
    result = run_query("library", ATTACKS["sort of wide rows"][0])
    assert result.message == "more than 64 MiB of memory"
    assert run_query("library", "SELECT COUNT(*) FROM book").rows == ((36,),)


def test_step_budget_is_the_same_on_every_machine():
    """36**3 = 46,656 rows at fewer than 20 steps each stay within 1,000,000; 36**4 do not."""
    assert run_query("library", "SELECT COUNT(*) FROM book a, book b, book c WHERE a.id <> b.id + c.id").ok
    over = run_query("library", "SELECT COUNT(*) FROM book a, book b, book c, book d WHERE a.id <> b.id + c.id + d.id")
    assert over.status == "timeout"


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_no_text_raises(text):
    for sql in (text, "SELECT " + text, "WITH " + text, f"SELECT title FROM book WHERE title = '{text}'"):
        assert run_query("library", sql).status in {"ok", "rejected", "error", "timeout", "too_large"}


CELLS = st.one_of(st.none(), st.integers(-5, 5), st.sampled_from(["a", "b", "1"]), st.sampled_from([0.5, 1.0, 2.25]))


@given(st.lists(st.tuples(CELLS, CELLS), max_size=8), st.randoms(use_true_random=False))
def test_a_permutation_is_equal_unless_order_counts(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert same_result(tuple(shuffled), tuple(rows), ordered=False)
    assert same_result(tuple(rows), tuple(rows), ordered=True)
    assert not same_result((*rows, (1, 1)), tuple(rows), ordered=False)


def test_comparison_by_hand():
    third = 1 / 3
    assert same_result(((third,), (1.0,)), ((1.0000000001,), (third + 1e-12,)), ordered=False)
    assert not same_result(((0.334,),), ((third,),), ordered=False)
    assert not same_result((("a",), ("a",), ("b",)), (("a",), ("b",), ("b",)), ordered=False)
    assert not same_result(((1, 2),), ((1,),), ordered=False)
    assert not same_result(((2**53 + 1,),), ((2**53,),), ordered=False)
    assert same_result((), (), ordered=True)
    assert same_result(((None,),), ((None,),), ordered=True) and not same_result(((None,),), ((0,),), ordered=True)
