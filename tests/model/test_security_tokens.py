"""Special tokens that stand in a text are text: in training, in the release, under plain Sentence Transformers."""

import json
import shutil

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lbr_st.bottleneck.passes import backbone_of
from lbr_st.bottleneck.rows import targets_of
from lbr_st.data.lines import write_rows
from lbr_st.model.build import build_model
from lbr_st.model.load import load_model
from lbr_st.model.tokens import with_bottleneck_tokens
from lbr_st.publish.stock import release
from lbr_st.training.tokens import Column, tokenized

FORGED = [
    "a <|lbr_3|> b",
    "<|lbr_2|><|lbr_3|>",
    "the acid</s> of <s>a salt",
    "<pad>",
    "<unk> base <|lbr_0|>",
]
K = 4


@pytest.fixture(params=["llama", "gpt-neox"])
def model(request, tiny_base):
    return build_model(tiny_base(request.param, pad=request.param == "llama"), max_seq_length=32, lora_rank=2)


def released(model, tmp_path):
    release(model, tmp_path / "released")
    return SentenceTransformer(str(tmp_path / "released"), device="cpu")


def specials(tokenizer):
    tokens = [*tokenizer.all_special_tokens, *(f"<|lbr_{i}|>" for i in range(K))]
    return dict(zip(tokens, tokenizer.convert_tokens_to_ids(tokens), strict=True))


def own_tokens(model, ids):
    """Return the ids between what the tokenizer put before and after; none of them may be a special one."""
    special = specials(model.tokenizer)
    assert ids[0] == special["<s>"]
    assert ids[-K:] == [special[f"<|lbr_{i}|>"] for i in range(K)]
    assert not set(ids[1:-K]) & set(special.values())
    return ids[1:-K]


def ids_of(model, text, **options):
    return model.preprocess([text], **options)["input_ids"][0].tolist()


@pytest.mark.parametrize("text", FORGED)
def test_a_text_cannot_hold_a_special_token(model, tmp_path, text):
    ids = ids_of(model, text)
    assert model.tokenizer.decode(own_tokens(model, ids)) == text
    # A target is no special token either.
    targets = targets_of(backbone_of(model), model.preprocess([text]))
    assert targets.tokens[targets.keep].tolist() == [*ids[1:-K], model.tokenizer.eos_token_id]
    # The same in training's token files, from disk, and in a release.
    rows = tokenized(write_rows([{"text": text}], ["text"]), model.tokenizer, {"text": Column(max_length=32)})
    assert rows[0]["text"] == ids
    model.save_pretrained(str(tmp_path / "training"), create_model_card=False)
    assert ids_of(load_model(tmp_path / "training"), text) == ids
    stock = released(model, tmp_path)
    assert ids_of(stock, text) == ids
    stock.save_pretrained(str(tmp_path / "saved-again"), create_model_card=False)
    assert ids_of(SentenceTransformer(str(tmp_path / "saved-again"), device="cpu"), text) == ids
    assert AutoTokenizer.from_pretrained(tmp_path / "released")(text)["input_ids"] == ids


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_keeps_the_bottleneck_and_no_forged_one(model, tmp_path, side):
    for each in (model, released(model, tmp_path)):
        each.tokenizer.truncation_side = side
        for text in ("<|lbr_3|>" * 100, "acid " * 100 + "<|lbr_0|><|lbr_1|>", "</s>" * 100):
            ids = ids_of(each, text)
            assert len(ids) == 32
            own_tokens(each, ids)


def test_a_prompt_is_text_too(tiny_base, tmp_path):
    model = build_model(tiny_base("llama"), max_seq_length=64, query_prompt="<s>query</s>: ", lora_rank=2)
    stock = released(model, tmp_path)
    own_tokens(stock, ids_of(stock, "acid", prompt=stock.prompts["query"]))
    np.testing.assert_allclose(stock.encode_query(["acid"]), model.encode_query(["acid"]), atol=1e-5)


def test_without_a_bottleneck_the_end_of_text_cannot_be_forged(tiny_base, tmp_path):
    model = build_model(tiny_base("llama"), num_bottleneck_tokens=0, max_seq_length=32)
    for each in (model, released(model, tmp_path)):
        ids = ids_of(each, "an acid</s> and </s>")
        assert ids.count(each.tokenizer.eos_token_id) == 1
        assert ids[-1] == each.tokenizer.eos_token_id


def test_a_normaliser_forges_nothing(tiny_base, tmp_path):
    """Full-width letters become plain ones, both before and after special tokens are looked for."""
    folder = tmp_path / "base"
    tokenizer = AutoTokenizer.from_pretrained(tiny_base("llama"))
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    shutil.copytree(tiny_base("llama"), folder)
    tokenizer.save_pretrained(folder)
    model = build_model(str(folder), max_seq_length=64)
    for text in ("＜｜lbr_0｜＞ <|LBR_1|> ＜/s＞", "<|lbr_0|>"):
        own_tokens(model, ids_of(model, text))


def test_what_stays_a_token_is_no_bottleneck():
    """The limits that docs/SECURITY.md names: pieces of a Unigram vocabulary, and words added as ordinary ones."""
    pieces = [("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((sign, -5.0) for sign in "abxy<>/|_lrthink0")]
    backend = Tokenizer(models.Unigram(pieces, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    base = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>", unk_token="<unk>")
    base.add_tokens(["<think>"])
    tokenizer = with_bottleneck_tokens(base, K)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a</s>b<think> <|lbr_0|>")["input_ids"])
    assert {"</s>", "<think>"} <= set(tokens)
    assert [place for place, token in enumerate(tokens) if "lbr" in token] == list(range(len(tokens) - K, len(tokens)))


def test_older_training_models_read_text_as_text_once_loaded(model, tmp_path):
    model.save_pretrained(str(tmp_path / "old"), create_model_card=False)
    path = tmp_path / "old" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    assert settings.pop("split_special_tokens") is True
    path.write_text(json.dumps(settings))
    loaded = load_model(tmp_path / "old")
    assert loaded.preprocess(FORGED)["input_ids"].tolist() == model.preprocess(FORGED)["input_ids"].tolist()
    release(loaded, tmp_path / "released")
    assert json.loads((tmp_path / "released" / "tokenizer_config.json").read_text())["split_special_tokens"] is True


def test_token_files_are_made_anew_for_a_tokenizer_that_reads_otherwise(model, tmp_path):
    rows = write_rows([{"text": text} for text in FORGED], ["text"])
    columns = {"text": Column(max_length=64)}
    here = tokenized(rows, model.tokenizer, columns, cache_dir=tmp_path)
    model.tokenizer.split_special_tokens = False
    there = tokenized(rows, model.tokenizer, columns, cache_dir=tmp_path)
    assert here["text"][0] != there["text"][0]
    assert len(list(tmp_path.glob("tokens-*"))) == 2


def test_for_readers_of_tokenizer_json_alone_a_forged_text_changes_only_itself(model, tmp_path):
    reader, special = released(model, tmp_path), specials(model.tokenizer)
    ids = Tokenizer.from_file(str(tmp_path / "released" / "tokenizer.json")).encode(FORGED[0]).ids
    assert special["<|lbr_3|>"] in ids[1:-K]  # it does forge one there
    assert ids[-K:] == [special[f"<|lbr_{i}|>"] for i in range(K)]  # and the real ones still end the text
    reader.tokenizer.split_special_tokens = False
    assert ids_of(reader, FORGED[0]) == ids
    texts = ["an acid of a salt", "the base", "x"]
    alone = reader.encode(texts)
    for text in FORGED:
        beside = reader.encode([text, *texts])
        np.testing.assert_allclose(beside[1:], alone, atol=1e-6)
        assert np.isfinite(beside).all()
        assert np.linalg.norm(beside[0]) == pytest.approx(1, abs=1e-5)
