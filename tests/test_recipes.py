"""The scripts in recipes/: each is a valid run of a domain task, in a full and a quick form that one flag chooses."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from lbr_st import pipeline
from lbr_st.commands import recipe_script
from lbr_st.domains.tasks import DOMAIN_TASKS
from lbr_st.errors import LBRError
from lbr_st.evaluation.suites import SUITES
from lbr_st.recipe import ModelConfig, Recipe, ReleaseConfig, load_recipe, quick_form, save_recipe

ROOT = Path(__file__).parent.parent
SCRIPTS = {"chem": "lbr-chem", "medical": "lbr-med", "code": "lbr-code"}


@pytest.mark.parametrize("domain", SCRIPTS)
def test_both_forms_are_valid_and_what_ships_can_be_made_again(domain, tmp_path):
    script = runpy.run_path(str(ROOT / "recipes" / f"{domain}.py"))
    full, quick = script["FULL"], script["QUICK"]
    assert (full.name, quick.name) == (SCRIPTS[domain], f"{SCRIPTS[domain]}-quick")
    for recipe in (full, quick):
        save_recipe(recipe, tmp_path / "recipe.yaml")
        assert load_recipe(tmp_path / "recipe.yaml") == recipe
        assert recipe.model.base == "smollm2-135m"
        assert {recipe.data.source, *recipe.data.also} <= {*DOMAIN_TASKS}
        assert recipe.data.source in SUITES[domain].local
        assert recipe.evaluate.split == "test"
    steps = [recipe.learn.max_steps + recipe.represent.max_steps for recipe in (quick, full)]
    assert steps[0] * 10 < steps[1]


@pytest.mark.parametrize("flags", [[], ["--quick"], ["--quick", "--output", "elsewhere", "--overwrite"]])
@pytest.mark.parametrize("domain", SCRIPTS)
def test_one_flag_chooses_the_form(domain, flags, monkeypatch):
    runs = []
    monkeypatch.setattr(pipeline, "run", lambda recipe, output, **options: runs.append((recipe.name, output, options)))
    monkeypatch.setattr(sys, "argv", [f"recipes/{domain}.py", *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "recipes" / f"{domain}.py"), run_name="__main__")
    assert ended.value.code == 0
    name = SCRIPTS[domain]
    command = " ".join(["python", f"recipes/{domain}.py", *flags])
    form = f"{name}-quick" if "--quick" in flags else name  # never over what `lbr-st build` wrote
    output = "elsewhere" if "--output" in flags else form
    assert runs == [(form, output, {"overwrite": "--overwrite" in flags, "command": command})]


def test_an_error_ends_it_with_a_line_and_a_status(monkeypatch, capsys):
    def fail(*args, **options):
        raise LBRError("is wrong.", where="there", fix="Fix it.")

    monkeypatch.setattr(pipeline, "run", fail)
    script = runpy.run_path(str(ROOT / "recipes" / "chem.py"))
    assert recipe_script("text", script["FULL"], script["QUICK"], ["--quick"]) == 1
    assert "Fix it." in capsys.readouterr().err


def test_a_quick_form_starts_from_the_same_base_and_releases_as_much():
    full = Recipe(model=ModelConfig(base="an/embedder", query_prompt=""), release=ReleaseConfig(scale=0.5))
    quick = quick_form(full, max_seq_length=64, learn_batch_size=8)
    quick.validate()
    assert (quick.model.base, quick.model.query_prompt, quick.release) == ("an/embedder", "", full.release)


def test_older_scripts_still_find_it():
    found = {}
    exec("from lbr_st.commands.recipe_script import quick_form, recipe_script", found)
    assert found["recipe_script"] is recipe_script


SECTION = """
[Previous](./m.md) | [Root of Title](./../)

## § 5. Fair use

(a)  __In General__  __.—__

The fair use of a work under [section 4][/us/s4] is <sup>[1]</sup> <sup><sup> 1 So in original. </sup></sup> no
infringement of the copyright in it, or it would be no use to say so at all here.

([Pub. L. 94][/us/pl/94], Oct. 19, 1976.)

 __Historical and Revision Notes__

What a committee said.
"""


def test_law_writes_the_text_of_sections_and_asks_for_half_of_their_headings(tmp_path, monkeypatch):
    place = tmp_path / "archive"
    place.mkdir()
    (tmp_path / "law-documents").mkdir()
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        (place / f"m__us_usc_t1_s{number}.md").write_text(SECTION, encoding="utf-8")
    (place / "m__us_usc_t1_s9.md").write_text(SECTION.replace("Fair use", r"\[Repealed\]"), encoding="utf-8")
    write = runpy.run_path(str(ROOT / "recipes" / "law.py"))["write_documents"]
    monkeypatch.setitem(write.__globals__, "archive_folder", lambda name, archive: place)
    write()
    text = "(a) In General. The fair use of a work under section 4 is no\n\n"
    text += "infringement of the copyright in it, or it would be no use to say so at all here.\n"
    files = sorted((tmp_path / "law-documents").iterdir())
    assert [file.read_text(encoding="utf-8") for file in files] == ["# Fair use\n\n" + text, text] * 2
    asked = [json.loads(line) for line in (tmp_path / "law-queries.jsonl").open(encoding="utf-8")]
    assert asked == [{"query": "Fair use", "file": files[number].name} for number in (1, 3)]


def test_the_example_in_the_readme_is_a_recipe(tmp_path):
    text = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    names = {"__name__": "mine"}
    exec(compile(code, "mine.py", "exec"), names)
    for recipe in (names["FULL"], names["QUICK"]):
        recipe.validate()
        assert recipe.data.source == "my_pairs.jsonl"
