"""Stage 1's loss: equal to a plain reference, whatever the batch and the padding; its labels; in the plain trainer."""

import pytest
import torch
from architectures import ARCHITECTURES
from datasets import Dataset
from ib_reference import CONTEXTS, REFERENCE, TARGETS, columns, per_token
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from tiny_models import K, new_model

from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.bottleneck.passes import backbone_of
from lbr_st.bottleneck.rows import IGNORE, assemble, targets_of
from lbr_st.model.mask import Segment


@torch.no_grad()
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_terms_equal_the_reference(tiny_base, kind, bottleneck):
    model = new_model(tiny_base(kind))
    loss = IBGenerativeLoss(model, bottleneck=bottleneck, context_weight=0.3).eval()
    terms = loss(columns(model))
    found = [REFERENCE[bottleneck](model, c, t) for c, t in zip(CONTEXTS, TARGETS, strict=True)]
    target = -torch.cat([own for own, _ in found]).mean()
    context = -torch.cat([of_context for _, of_context in found]).mean()
    assert set(terms) == {"target", "context"}
    torch.testing.assert_close(terms["target"], target, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms["context"], 0.3 * context, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"projection_dim": 8}, {"lora_rank": 2}, {"token_init": "random"}])
def test_terms_equal_the_reference_for_every_way_to_build(tiny_base, bottleneck, options):
    model = new_model(tiny_base("llama", bos=False, pad=False, spare_rows=7), **options)
    loss = IBGenerativeLoss(model, bottleneck=bottleneck, context_weight=0.0).eval()
    found = [REFERENCE[bottleneck](model, c, t)[0] for c, t in zip(CONTEXTS, TARGETS, strict=True)]
    terms = loss(columns(model))
    assert set(terms) == {"target"}
    torch.testing.assert_close(terms["target"], -torch.cat(found).mean(), rtol=1e-5, atol=1e-5)


# --- labels -----------------------------------------------------------------------------------------------------------


def rows_of(model, contexts=CONTEXTS, targets=TARGETS, **options):
    backbone = backbone_of(model)
    context, target = columns(model, contexts, targets)
    return assemble(backbone, context, targets_of(backbone, target, **options), packed=False)


def test_bottleneck_tokens_are_never_labels(llama):
    rows = rows_of(llama)
    bottleneck = backbone_of(llama).bottleneck_ids
    assert not torch.isin(rows.labels, torch.tensor(bottleneck)).any()
    # And a bottleneck position predicts nothing, but for the last, which predicts the target's first token.
    for row, target in enumerate(TARGETS):
        at = (rows.segments[row] == Segment.BOTTLENECK).nonzero().flatten()
        first = llama.tokenizer(target, add_special_tokens=False)["input_ids"][0]
        assert rows.labels[row, at].tolist() == [IGNORE] * (K - 1) + [first]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_max_target_tokens_in_the_loss(llama, bottleneck, limit):
    loss = IBGenerativeLoss(llama, bottleneck=bottleneck, max_target_tokens=limit).eval()
    nll, _ = per_token(loss, columns(llama))
    reference = []
    for context, target in zip(CONTEXTS, TARGETS, strict=True):
        with torch.no_grad():
            own, _ = REFERENCE[bottleneck](llama, context, target)
        fits = len(own) - 1 <= limit  # the last of them is <eos>, which no cut target has
        reference.append(own if fits else own[:limit])
    torch.testing.assert_close(nll, -torch.cat(reference), rtol=1e-5, atol=1e-5)


def test_a_target_cut_by_the_tokenizer_has_no_eos(tiny_base):
    model = new_model(tiny_base("llama"), max_seq_length=12)
    found = targets_of(backbone_of(model), model.preprocess([" ".join(TARGETS), "salt"]))
    long, short = (ids[keep].tolist() for ids, keep in zip(found.tokens, found.keep, strict=True))
    eos = model.tokenizer.eos_token_id
    assert len(long) == 12 - K - 1
    assert eos not in long
    assert short[-1] == eos


# --- as a plain Sentence Transformers loss ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        ({}, {"target", "context"}),
        ({"bottleneck": "embedding", "rate_weight": 0.01, "target_dropout": 0.2}, {"target", "context", "rate"}),
        ({"context_weight": 0.0, "max_target_tokens": 4}, {"target"}),
        ({"bag_weight": 0.5}, {"target", "bag", "context"}),
        ({"distil_weight": 0.5}, {"target", "distil", "context"}),
    ],
)
def test_trains_in_the_plain_trainer_and_logs_each_term(llama, tmp_path, options, terms):
    loss = IBGenerativeLoss(llama, **options)
    before = backbone_of(llama).model.get_input_embeddings().weight.detach().clone()
    args = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=3,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    pairs = Dataset.from_dict({"context": CONTEXTS, "target": TARGETS})
    trainer = SentenceTransformerTrainer(model=llama, args=args, train_dataset=pairs, loss=loss)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    for entry in logged:
        assert {key for key in entry if key in ("target", "bag", "distil", "context", "rate")} == terms
        assert sum(entry[term] for term in terms) == pytest.approx(entry["loss"], rel=1e-3)
    after = backbone_of(llama).model.get_input_embeddings().weight.detach()
    assert (after[backbone_of(llama).bottleneck_ids] != before[backbone_of(llama).bottleneck_ids]).any(dim=1).all()
