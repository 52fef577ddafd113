"""README's trainer section runs as printed, and a training without the model's prompts is noticed, once."""

import copy
import logging
import pickle
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from tiny_models import new_model, run_stage

from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.model.build import build_model
from lbr_st.model.load import load_model
from lbr_st.model.prompts import open_with_prompt

README = Path(__file__).parents[2] / "README.md"
TEXTS = ["an acid", "the base of a salt"]


@pytest.fixture
def model(tiny_base):
    return new_model(tiny_base("llama")).train()


@pytest.fixture
def warned(caplog):
    """Return the warnings about prompts since the last call."""

    def warnings():
        found = [record.getMessage() for record in caplog.records if "without its prompts" in record.getMessage()]
        caplog.clear()
        return found

    caplog.set_level(logging.WARNING)
    logging.Logger.warning_once.cache_clear()
    return warnings


def columns(model, first="", second=""):
    return [model.preprocess([prompt + text for text in TEXTS]) for prompt in (first, second)]


def rank(model, *prompts, kind=MultipleNegativesRankingLoss):
    kind(model)(columns(model, *prompts), None).backward()


def test_readmes_trainer_section_runs_as_printed(tiny_base, tmp_path, monkeypatch, warned):
    section = README.read_text(encoding="utf-8").partition("## With the trainer you know")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    ran = []
    real = SentenceTransformer.forward

    def spy(self, features, **options):
        ran.extend(self.tokenizer.batch_decode(features["input_ids"], skip_special_tokens=True))
        return real(self, features, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SentenceTransformer, "forward", spy)
        pairs = Dataset.from_dict({"query": TEXTS, "document": ["a protein", "an enzyme"]})
        before_release, release = code.split("lbr_st.release")
        names = {"pairs": pairs}
        exec(before_release.replace("Qwen/Qwen3-0.6B", tiny_base("llama")), names)
    assert ran
    assert all(text.startswith(("query: ", "document: ")) for text in ran)
    assert any(text.startswith("query: ") for text in ran)
    assert any(text.startswith("document: ") for text in ran)
    assert not warned()
    exec("lbr_st.release" + release, names)
    assert SentenceTransformer("my-model", device="cpu").prompts == names["model"].prompts


@pytest.mark.parametrize("kind", [MultipleNegativesRankingLoss, CachedMultipleNegativesRankingLoss])
def test_stage_2_without_prompts_warns_once(model, warned, kind):
    rank(model, "query: ", "document: ", kind=kind)
    assert not warned()
    model.eval()  # as an evaluation does, after which the batches are looked at again
    model.encode(TEXTS)
    model.train()
    rank(model, kind=kind)
    (warning,) = warned()
    assert "prompts=model.prompts" in warning
    model.encode(TEXTS)
    model.train()
    rank(model, kind=kind)
    assert not warned()


@pytest.mark.parametrize("prompts", [(), ("query: ",)])
def test_stage_1_without_prompts_warns_and_stage_2_is_looked_at_after_it(model, warned, prompts):
    sum(IBGenerativeLoss(model)(columns(model, *prompts)).values()).backward()
    assert len(warned()) == (not prompts)
    rank(model)
    assert len(warned()) == bool(prompts)


def test_what_is_encoded_or_measured_needs_no_prompt(model, warned):
    with torch.no_grad():
        model(columns(model)[0])
    loss = IBGenerativeLoss(model).eval()
    loss(columns(model))
    loss.target_nll(columns(model))
    model.encode(TEXTS)
    assert not warned()


@pytest.mark.parametrize("prompts", [{}, {"query": "", "document": ""}, {"query": None, "document": "passage: "}])
def test_texts_without_a_prompt_may_be_right(model, warned, prompts):
    model.prompts = prompts
    sum(IBGenerativeLoss(model)(columns(model)).values()).backward()
    rank(model)
    assert not warned()


def test_prompts_of_queries_alone_are_missed_too(model, warned):
    model.prompts = {"query": "find: ", "document": ""}  # set later, not those it was built with
    rank(model, "query: ", "document: ")
    assert len(warned()) == 1


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_both_stages_of_lbr_st_pass(tiny_base, tmp_path, warned, lora_rank):
    model = new_model(tiny_base("llama"), lora_rank=lora_rank)
    for stage in ("learn", "represent"):
        run_stage(stage, model, tmp_path / stage, max_steps=1)
    assert not warned()


def test_copies_and_loaded_models_look_too(model, tmp_path, warned):
    model.save_pretrained(str(tmp_path), create_model_card=False)
    for other in (pickle.loads(pickle.dumps(copy.deepcopy(model))), load_model(tmp_path)):
        logging.Logger.warning_once.cache_clear()
        rank(other.train())
        assert len(warned()) == 1


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("prompt", ["query: ", "Instruct: find it\nQuery:", "q", "日本 ", "<|lbr_0|></s> "])
def test_prompts_are_found_where_tokens_merge(tiny_base, prompt, side):
    model = build_model(tiny_base("llama"), num_bottleneck_tokens=2, query_prompt=prompt, device="cpu")
    model.tokenizer.padding_side = side
    texts = [prompt + "uery: the acid", "the acid", prompt.strip() + "a salt", "an ester and a base of an enzyme"]
    assert open_with_prompt(model, model.preprocess(texts)) == [True, False, True, False]


def test_prompts_are_found_among_unknown_words(tiny_base):
    base = tiny_base("llama", words=("find", "acid"))
    prompts = {"query_prompt": "please find: find ", "document_prompt": ""}
    model = build_model(base, num_bottleneck_tokens=2, device="cpu", **prompts)
    assert open_with_prompt(model, model.preprocess(["please find: find acid", "acid find"])) == [True, False]
