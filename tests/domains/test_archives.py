"""Public archives: the same pairs whatever form their bytes come in, and none where the bytes are others."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path
from urllib.error import URLError

import pytest
from run_sources import definition, recipe_for, training_data, write_lines

from lbr_st import pipeline
from lbr_st.domains import archives
from lbr_st.domains.archives import ARCHIVES, LOCAL, Archive, archive_tables
from lbr_st.domains.forms import abstracts, commands, snippets, terms
from lbr_st.domains.textbooks import book, passages
from lbr_st.errors import LBRError
from lbr_st.recipe import EvaluateConfig, LearnConfig, ModelConfig, Recipe, RepresentConfig, load_recipe
from lbr_st.training.data import evaluation_set, prepare

NAMED = os.environ.get(LOCAL)
"""A folder with the archives themselves, given by whoever runs these tests."""

OBO = r"""format-version: 1.2

[Term]
id: TOY:1
name: cold distillation
def: "The separation of \"volatile\" liquids that has_part a slow evaporation below zero. [ISBN:12]" [doi:1]
synonym: "cold-distillation" EXACT []
synonym: "CDX-1" EXACT []
synonym: "slow evaporation" EXACT []
synonym: "freezing out" RELATED []
synonym: "frost parting" EXACT []
synonym: "another name" EXACT []

[Term]
id: TOY:2
name: old method
def: "A method that chemists used for many things before they had a better one." []
is_obsolete: true

[Term]
id: TOY:3
name: acid bath
def: "A bath that is used with the acid for which it is an acid." []

[Term]
id: OTHER:4
name: process
def: "Anything that begins at one time and that ends at some other, later time." []

[Typedef]
id: part_of
name: part of
"""
GLOSSARY = 'The separation of "volatile" liquids that has part a slow evaporation below zero.'

CNXML = """<document xmlns="http://cnx.rice.edu/cnxml"><title>Heat</title><content>
<section class="learning-objectives"><title>Goals</title><para>{words}</para></section>
<section><title>Flow</title>
<para>Heat flows from the warm body to the cold one (see <link target-id="f1"/>). <link target-id="f2"/> shows it.
 {words}</para><figure><caption>No prose at all.</caption></figure>
<para>A gas such as steam loses:</para><list><item>its <term>latent heat</term></item><item>its speed</item></list>
<para>{other}</para></section>
<section><title>Why is ice so cold?</title><para>{third}</para></section>
<section><title>Summary</title><para>{words}</para></section></content>
<glossary><definition><term>latent heat (L)</term><meaning>what a body takes up as it melts</meaning></definition>
<definition><term>heat</term><meaning>too short here</meaning></definition></glossary></document>"""
COLLECTION = """<col:collection xmlns:col="http://cnx.rice.edu/collxml" xmlns:md="http://cnx.rice.edu/mdml"><col:content>
<col:module document="m0"/><col:subcollection><md:title>Warm things</md:title><col:content>
<col:module document="m1"/></col:content></col:subcollection><col:subcollection><md:title>Cold</md:title>
<col:content><col:module document="m0"/></col:content></col:subcollection></col:content></col:collection>"""


def said(word, count):
    return f"The {' '.join([word] * (count - 2))} ends."


def write(folder: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


# --- formats ----------------------------------------------------------------------------------------------------------


def test_terms_give_their_definition_and_one_other_name(tmp_path):
    write(tmp_path, {"a.obo": OBO, "b/again.obo": OBO})
    rows = [*terms(tmp_path, {"TOY": 6})]
    assert rows == [("glossary", "cold distillation", GLOSSARY), ("glossary", "frost parting", GLOSSARY)]
    assert [*terms(tmp_path, {"TOY": 14})] == []
    assert [*terms(tmp_path, {"TOY": 6}, left_out="volatile")] == []
    assert [row[1] for row in terms(tmp_path, {"OTHER": 6})] == ["process"]


def test_a_book_gives_headings_questions_glossary_and_what_uses_its_terms(tmp_path):
    text = CNXML.format(words=said("warmth", 60), other=said("vapour", 70), third=said("frost", 50))
    other = f'<document xmlns="http://cnx.rice.edu/cnxml"><title>Ice</title><content><para>{said("ice", 45)}</para>'
    other += "</content></document>"
    files = {
        "collections/x.collection.xml": COLLECTION,
        "modules/m1/index.cnxml": text,
        "modules/m0/index.cnxml": other,
    }
    write(tmp_path, files)
    first = f"Heat flows from the warm body to the cold one. {said('warmth', 60)} "
    first += "A gas such as steam loses: its latent heat; its speed."
    whole = f"{first} {said('vapour', 70)}"
    rows = [*book(tmp_path)]
    assert rows == [
        ("heading", "Heat: Flow", whole),
        ("question", "Why is ice so cold?", said("frost", 50)),
        ("glossary", "latent heat (L)", "what a body takes up as it melts"),
        ("intent", "what a body takes up as it melts", whole),
        ("heading", "Ice", said("ice", 45)),
    ]
    assert [*book(tmp_path, chapters="warm")] == rows[:4]
    write(tmp_path, {"modules/m1/index.cnxml": text.replace("ends.</para></section>", "is shown in.</para></section>")})
    assert [row[2] for row in book(tmp_path, "warm") if row[0] == "heading"] == [first]


def test_passages_are_grouped_cut_and_never_short():
    assert passages([said("a", 50), said("b", 50), said("c", 45)]) == [
        f"{said('a', 50)} {said('b', 50)}",
        said("c", 45),
    ]
    assert passages([said("a", 100), said("b", 20)]) == [f"{said('a', 100)} {said('b', 20)}"]
    assert passages([said("a", 20)]) == []
    long = " ".join(said(letter, 70) for letter in "abc")
    assert passages([said("d", 45), long]) == [said("d", 45), f"{said('a', 70)} {said('b', 70)}", said("c", 70)]
    assert passages([said("a", 201)]) == []


def test_commands_come_once_and_two_of_three(tmp_path):
    asked = [f"show all files of kind {n}" for n in range(4)] + [
        "Show all files of kind-0",
        "too short",
        "list  the files here now",
    ]
    done = ["ls a", "ls b", "ls c", "ls d", "ls e", "ls f", "ls a"]
    write(tmp_path, {"data/bash/all.nl": "\n".join(asked), "data/bash/all.cm": "\n".join(done)})
    assert [*commands(tmp_path)] == [("intent", asked[n], done[n]) for n in (0, 1, 3)]


def test_snippets_give_what_they_do_and_how(tmp_path):
    bullets = (
        "- Use `max()` to find the [largest](https://x.y) of all numbers in the list.\n- Then return what is found."
    )
    code = "def f(x):\n  return max(x)"
    page = "---\ntitle: x\n---\n\nFinds the *largest* number.\n\n{}\n\n"
    page += f"```py\n{code}\n```\n\n```py\nf([1])\n```\n"
    write(
        tmp_path,
        {
            "snippets/a.md": page.format(bullets),
            "snippets/b.md": page.format("- Short."),
            "snippets/c.md": "---\n---\nNo code.",
        },
    )
    how = "Use max() to find the largest of all numbers in the list. Then return what is found."
    one = ("intent", "Finds the largest number", code)
    assert [*snippets(tmp_path)] == [one, ("keywords", how, code), one]
    long = "\n".join(["- " + said("word", 25)] * 4)
    write(tmp_path, {"snippets/a.md": page.format(long)})
    assert [*snippets(tmp_path)][1][1] == " ".join([said("word", 25)] * 2)


def test_abstracts_give_question_title_and_keywords(tmp_path):
    paper = {
        "QUESTION": "Does it help?",
        "LONG_ANSWER": said("yes", 20),
        "CONTEXTS": [said("aim", 95), said("result", 60)],
        "MESHES": ["Adult", "Aspirin", "Fever", "Humans", "Infant, Newborn", "Pain"],
    }
    few = {**paper, "LONG_ANSWER": "Yes.", "MESHES": ["Adult", "Pain"], "CONTEXTS": ["Short."]}
    write(tmp_path, {"data/x.json": json.dumps({"1": paper, "2": few})})
    assert [*abstracts(tmp_path)] == [
        ("question", "Does it help?", said("yes", 20)),
        ("title", "Does it help?", said("aim", 95)),
        ("keywords", "Aspirin, Fever, Infant, Newborn, Pain", said("result", 60)),
        ("title", "Does it help?", "Short."),
    ]


# --- bytes ------------------------------------------------------------------------------------------------------------

FILES = {"one/toy.obo": OBO, "two/a.obo": OBO.replace("TOY:", "TWO:"), "two/b.obo": OBO.replace("TOY:", "BEE:")}


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def as_folder(place):
    write(place / "toy", FILES)


def as_tar(place):
    write(place / "made", FILES)
    with tarfile.open(place / "toy.tar", "w") as packed:
        packed.add(place / "made", arcname=".")


def as_github_packs_it(place):
    write(place / "made", {**FILES, "more/toy-1/one/toy.obo": "another file"})
    with tarfile.open(place / "toy-1.tar.gz", "w:gz") as packed:
        packed.add(place / "made", arcname="toy-1234")


def as_zip(place):
    with zipfile.ZipFile(place / "toy-main.zip", "w") as packed:
        packed.mkdir("toy-main/one")
        for path, text in FILES.items():
            packed.writestr(f"toy-main/{path}", text)


def git(place, *arguments):
    name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", "-C", str(place), *name, *arguments], check=True, capture_output=True, text=True
    ).stdout


def as_clone(place):
    """A clone in which a later commit is checked out; return the earlier one."""
    write(place / "toy", FILES)
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        git(place / "toy", *command)
    commit = git(place / "toy", "rev-parse", "HEAD").strip()
    write(place / "toy", {"one/toy.obo": "changed"})
    git(place / "toy", "commit", "-qam", "two")
    return commit


def as_bare_clone(place):
    commit = as_clone(place)
    git(place, "clone", "-q", "--bare", "toy", "toy.git")
    shutil.rmtree(place / "toy")
    return commit


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Return a function that makes known the archive ``toy`` of FILES, of which local copies are in ``copies``."""
    monkeypatch.setenv("LBR_ST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "copies").mkdir()
    monkeypatch.setenv(LOCAL, str(tmp_path / "copies"))

    def known(commit="0" * 40, **files):
        listed = "".join(f"{digest(FILES[path])}  {path}\n" for path in ("two/a.obo", "two/b.obo"))
        pinned = {"one/toy.obo": digest(FILES["one/toy.obo"]), "two/*.obo": digest(listed)} | files
        archive = Archive("me/toy", commit, "free", "terms", pinned, {"fewest_words": {"TOY": 6, "BEE": 6}})
        monkeypatch.setitem(ARCHIVES, "toy", archive)
        return tmp_path / "copies"

    return known


@pytest.mark.parametrize("form", [as_folder, as_tar, as_github_packs_it, as_zip, as_clone, as_bare_clone])
def test_every_form_of_the_same_bytes_serves(toy, form):
    copies = toy()
    (copies / "toys").mkdir()  # another repository
    toy(commit=form(copies) or "0" * 40)
    pairs, texts = archive_tables("toy")
    assert list(pairs) == ["glossary"]
    assert pairs["glossary"]["query"][:] == ["cold distillation", "frost parting"] * 2
    assert texts["text"][:] == [GLOSSARY]
    shutil.rmtree(copies)
    assert archive_tables("toy")[1]["text"][:] == [GLOSSARY]  # kept in the cache


@pytest.mark.parametrize(
    ("pinned", "named"), [({"one/toy.obo": "0" * 64}, "one/toy.obo"), ({"two/*.obo": "1" * 64}, "two/*.obo")]
)
def test_other_bytes_are_refused_by_name_and_nothing_is_kept(toy, tmp_path, pinned, named):
    as_folder(toy(**pinned))
    with pytest.raises(LBRError) as caught:
        archive_tables("toy")
    assert all(part in str(caught.value) for part in (named, pinned[named], "SHA-256"))
    assert not [path for path in (tmp_path / "cache" / "archives").iterdir() if path.is_dir()]


def test_a_file_that_changed_or_is_missing_is_named(toy):
    copies = toy()
    as_folder(copies)
    (copies / "toy" / "two" / "b.obo").unlink()
    with pytest.raises(LBRError, match=r"two/\*\.obo: 1 files"):
        archive_tables("toy")
    write(copies / "toy", {**FILES, "one/toy.obo": OBO + " "})
    with pytest.raises(LBRError, match=r"one/toy\.obo"):
        archive_tables("toy")


def test_it_is_downloaded_where_no_copy_is_given(toy, tmp_path, monkeypatch):
    as_github_packs_it(toy())
    packed = (tmp_path / "copies" / "toy-1.tar.gz").read_bytes()
    monkeypatch.delenv(LOCAL)
    asked = []

    def opened(url, timeout):
        asked.append(url)
        return io.BytesIO(packed)

    monkeypatch.setattr(archives, "urlopen", opened)
    assert len(archive_tables("toy")[0]["glossary"]) == 4
    assert asked == [f"https://codeload.github.com/me/toy/tar.gz/{'0' * 40}"]


def test_without_a_network_it_says_what_to_do(toy, monkeypatch):
    toy()

    def failing(url, timeout):
        raise URLError("no route")

    monkeypatch.setattr(archives, "urlopen", failing)
    with pytest.raises(LBRError, match=rf"no route.*{LOCAL}"):
        archive_tables("toy")
    (toy() / "toy.zip").write_bytes(b"no archive")
    with pytest.raises(LBRError, match=r"toy\.zip"):
        archive_tables("toy")


def test_unknown_names_are_answered_with_the_known_ones(tmp_path):
    with pytest.raises(LBRError, match=r"data\.archives: unknown archive 'nothing'.*chemical_methods"):
        archive_tables("nothing")
    recipe = recipe_for(write_lines(tmp_path / "pairs.jsonl", [{"query": "a", "document": "b"}]), archives=["nothing"])
    with pytest.raises(LBRError, match="unknown archive"):
        prepare(recipe, tmp_path / "data")


def test_what_is_pinned_is_whole():
    for name, archive in ARCHIVES.items():
        assert archive.read in archives.READERS, name
        assert len(archive.commit) == 40
        assert all(len(sha256) == 64 for sha256 in archive.files.values())
        assert not any(part in archive.licence for part in ("NC", "NonCommercial"))


# --- a recipe ---------------------------------------------------------------------------------------------------------


def test_a_task_is_trained_with_archives_beside_it(toy, toy_task, tmp_path, monkeypatch):
    as_folder(toy())
    monkeypatch.setattr("lbr_st.training.data.pinned_wheels", lambda name: [])
    recipe = recipe_for("toy", archives=["toy"])
    found, alone = training_data(recipe), training_data(recipe_for("toy"))
    assert len(found.pairs) == len(alone.pairs) + 4
    assert found.pairs["query"][-2:] == ["cold distillation", "frost parting"]
    assert found.texts["text"][:] == [*alone.texts["text"][:], GLOSSARY]
    assert found.licences == ["toy: free", f"me/toy (free), https://github.com/me/toy/tree/{'0' * 40}"]
    kept = prepare(recipe, tmp_path / "data")
    assert kept.notes == ["Pairs by form: the source's own 8, glossary 4."]
    assert set(kept.sources) == {"source", "archive toy"}
    assert kept.sources["archive toy"]["content"] == dict(ARCHIVES["toy"].files)


def test_what_an_archive_repeats_of_the_evaluation_is_left_out(toy, toy_task, monkeypatch):
    copies = toy()
    write(copies / "toy", FILES | {"one/toy.obo": OBO.replace(GLOSSARY[:5], definition(0) + " The ")})
    changed = (copies / "toy" / "one" / "toy.obo").read_text(encoding="utf-8")
    toy(**{"one/toy.obo": digest(changed)})
    report = next(
        one for one in training_data(recipe_for("toy", archives=["toy"])).contamination if "glossary" in one.training
    )
    assert len(report.rows) == 2


def test_pairs_that_are_made_to_train_on_are_not_made_to_evaluate(toy, toy_task, monkeypatch):
    as_folder(toy())
    recipe = recipe_for("toy", archives=["toy"], make_pairs=["terms"])
    calls = []
    monkeypatch.setattr("lbr_st.training.sources.made_of", lambda *given: calls.append(given) or [])
    assert evaluation_set(recipe) is not None
    assert not calls
    training_data(recipe)
    assert [kinds for _, kinds, *_ in calls] == [["terms"]]


def test_pairs_of_ones_own_are_trained_with_archives(toy, tmp_path):
    as_folder(toy())
    rows = [{"query": f"thing {n}", "document": definition(n)} for n in range(60)]
    found = training_data(recipe_for(write_lines(tmp_path / "pairs.jsonl", rows), archives=["toy"]))
    assert found.texts["text"][:].count(GLOSSARY) == 1
    assert sorted(found.pairs["document"][:].count(text) for text in set(found.pairs["document"][:]))[-1] == 4


def test_a_run_with_archives(toy, tiny_base, tmp_path):
    as_folder(toy())
    rows = [{"query": f"thing {n}", "document": definition(n)} for n in range(60)]
    recipe = Recipe(
        name="lbr-toy",
        precision="float32",
        model=ModelConfig(base=tiny_base("llama"), max_seq_length=48, lora_rank=4, lora_alpha=8),
        data=recipe_for(write_lines(tmp_path / "pairs.jsonl", rows), archives=["toy"]).data,
        learn=LearnConfig(max_steps=2, batch_size=4, warmup_steps=1, eval_steps=2, num_eval_pairs=4),
        represent=RepresentConfig(max_steps=2, batch_size=4, warmup_steps=1),
        evaluate=EvaluateConfig(enabled=False),
    )
    output = tmp_path / "model"
    pipeline.run(recipe, output)
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "glossary 4" in card
    assert "me/toy (free)" in card
    assert load_recipe(output / "recipe.yaml").data.archives == ["toy"]


# --- the archives themselves ------------------------------------------------------------------------------------------

# Archive → pairs by form. Without passages that are documents of no pair.
COUNTS = {
    "chemical_methods": {"glossary": 4748},
    "reaction_names": {"glossary": 806},
    "molecular_processes": {"glossary": 252},
    "openstax_physics_of_matter": {"glossary": 105, "heading": 63, "intent": 86},
    "disease_ontology": {"glossary": 7172},
    "symptom_ontology": {"glossary": 525},
    "openstax_nursing": {"glossary": 1889, "heading": 2729, "intent": 1700, "question": 6},
    "pubmedqa": {"title": 1000, "question": 904, "keywords": 990},
    "bash_commands": {"intent": 6242},
    "snippets_javascript": {"intent": 536, "keywords": 510},
    "openstax_python": {"heading": 142},
}
# Pairs of the reference extraction, with those that it dropped for repeating held-out texts.
REFERENCE = {
    "chemical_methods": 4728 + 20,
    "reaction_names": 778 + 28,
    "molecular_processes": 242 + 10,
    "openstax_physics_of_matter": 220 + 34,
    "disease_ontology": 6713 + 459,
    "symptom_ontology": 517 + 8,
    "openstax_nursing": 6249 + 78,
    "pubmedqa": 2894,
    "bash_commands": 6241 + 1,
    "snippets_javascript": 1046,
    "openstax_python": 142,
}

# The reference's rules for figures in books are not all written down. Of the last two it also leaves out passages with
# two questions or instructions and what another book has; what it dropped of each is not known.
MORE = {"openstax_nursing": -3}


@pytest.mark.skipif(not NAMED, reason=f"{LOCAL} names no folder with the archives")
@pytest.mark.parametrize("name", ARCHIVES)
def test_real_archive(name, tmp_path, monkeypatch):
    monkeypatch.setenv("LBR_ST_CACHE", str(tmp_path))
    pairs, texts = archive_tables(name)
    assert {form: len(rows) for form, rows in pairs.items()} == COUNTS[name]
    assert sum(COUNTS[name].values()) - REFERENCE[name] == MORE.get(name, 0)
    assert len(set(texts["text"])) == len(texts)
