import pytest

from lbr_st.data.texts import normalise
from lbr_st.domains.python_docs import Function, documentation, functions_in, later_passages, make_pydoc_task, opened

pytest.importorskip("datasets")

LONG = "It goes on to say what no sentence before it has said at all."


@pytest.mark.parametrize(
    ("docstring", "wanted"),
    [
        (f"Do it. {LONG}", (LONG,)),
        (f"Do it\n\n    {LONG[:20]}\n    {LONG[20:]}\n", (f"{LONG[:20]} {LONG[20:]}",)),
        (f"Do it. {LONG}\n\n{LONG}\n", (LONG, LONG)),
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


def test_functions_carry_their_passages():
    body = "    return [weight / sum(weights) for weight in weights]\n"
    raw = f'def f(weights):\n    """Make numbers add up.\n\n    {LONG}\n    """\n{body}'
    (function,) = functions_in(raw.encode())
    assert (function.sentence, function.passages) == ("Make numbers add up.", (LONG,))
    assert LONG not in function.source


def crafted():
    def function(number, passages):
        body = f"    return add({number}, e)"
        return Function(f"f{number}", f"Add {number} to e soon.", f"def f{number}():\n{body}", body, passages)

    passages = [(f"{LONG} {n}", f"{n} {LONG}", f"{LONG} {n}+", "fourth") for n in range(9)]
    functions = {f"e/m.py:f{n}": function(n, passages[n]) for n in range(9)}
    training = {
        f"t/m.py:g{n}": Function(f"g{n}", f"Take {n} from t.", f"def g{n}():\n    t - {n}", f"    t - {n}")
        for n in range(3)
    }
    return functions, training


def build(functions, training, seed=0, num_documents=None):
    task = make_pydoc_task(functions, training, seed=seed, num_documents=num_documents, num_dev=2, num_test=3)
    return opened(task, functions)


def test_records_say_of_each_function_searched_what_its_docstring_goes_on_to_say():
    functions, training = crafted()
    task = build(functions, training, num_documents=7)
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
    functions, training = crafted()
    sentence = functions["e/m.py:f0"].sentence
    of_another = functions["e/m.py:f1"]
    functions["e/m.py:f1"] = Function(
        "f1", of_another.sentence, of_another.source, of_another.body, (f"{LONG} ADD 0  to e, soon! {LONG}", LONG)
    )
    for seed in range(6):
        task = build(functions, training, seed)
        asked = [normalise(query) for part in (task.test, task.dev) for query in part.queries.values()]
        texts = [normalise(text) for column in ("name", "text") for text in task.records[column]]
        assert not any(query in text for query in asked for text in texts)
        kept = [text for text in texts if normalise(sentence) in text]
        assert bool(kept) == (normalise(sentence) not in asked)  # left out for that reason alone
    assert not len(documentation([functions["e/m.py:f1"]], [LONG]))
