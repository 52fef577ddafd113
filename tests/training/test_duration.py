"""How long a training lasts: fewer steps where the hours are few, and the best of the checkpoints measured."""

import pytest
import torch
from datasets import Dataset
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from tiny_models import WORDS

from lbr_st.model.build import build_model
from lbr_st.model.load import load_model
from lbr_st.recipe import RepresentConfig
from lbr_st.training.represent import represent

PAIRS = {"query": WORDS, "document": [f"the {word}" for word in WORDS]}


class Scripted(SentenceEvaluator):
    """Gives the next of some scores each time."""

    name, primary_metric = "held-out", "held-out_cosine_ndcg@10"

    def __init__(self, *scores):
        self.scores = iter(scores)

    def __call__(self, *_, **__):
        return {self.primary_metric: next(self.scores)}


@pytest.fixture
def train(tiny_base, tmp_path):
    def run(folder="run", *, model=None, evaluator=None, max_hours=None, resume=False, **config):
        model = model or build_model(tiny_base("llama"), max_seq_length=32, lora_rank=4, device="cpu")
        config = {"max_steps": 12, "batch_size": 2, "warmup_steps": 1, "eval_steps": 3, **config}
        options = {"output_dir": tmp_path / folder, "precision": "float32", "disable_tqdm": True, "logging_steps": 1}
        options |= {"evaluator": evaluator, "max_hours": max_hours, "resume": resume}
        return model, represent(model, Dataset.from_dict(PAIRS), RepresentConfig(**config), **options)

    return run


def test_it_is_shorter_where_all_steps_take_too_long_and_the_rate_falls_to_zero(train, capsys):
    _, log = train(max_hours=1e-9)
    rates = {entry["step"]: entry["learning_rate"] for entry in log if "learning_rate" in entry}
    assert max(rates) == 4  # one more than are timed
    assert rates[4] < rates[3] < rates[2]
    said = capsys.readouterr().err
    assert "seconds a step: another" in said
    assert "the 4 of 12 that 1e-09 hours allow" in said


def test_a_shortened_training_is_done_when_it_is_started_again(train):
    model, log = train(max_hours=1e-9)
    again, kept = train(max_hours=1.0, resume=True)
    assert kept == log[:-1]  # but the summary
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_the_best_checkpoint_is_kept_once_scores_no_longer_rise(train, tmp_path):
    model, log = train(evaluator=Scripted(0.1, 0.5, 0.4, 0.3), stop=2)
    assert max(entry["step"] for entry in log) == 12
    best = load_model(tmp_path / "run" / "checkpoint-6", device="cpu").state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, best[name])
    again, _ = train(evaluator=Scripted(), stop=2, resume=True)  # after its end it takes the best one, too
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, best[name])


def test_without_a_better_score_it_ends_early(train):
    _, log = train(evaluator=Scripted(0.5, 0.4, 0.3), stop=2)
    assert max(entry["step"] for entry in log) == 9


def test_without_an_evaluator_there_is_nothing_to_stop_by(train):
    _, log = train(stop=1)
    assert max(entry["step"] for entry in log) == 12
