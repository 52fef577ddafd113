"""Tiny bases with random weights, written once a session; nothing here or in any test asks a hub."""

import gc
import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from functools import cache

import pytest
from architectures import WINDOW

pytest_plugins = ["ib_reference", "no_bottleneck", "proof_harness", "run_sources"]

CHAT_TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"

# Enough text for a byte-level BPE with a few merges, so that tokens and characters differ.
TRAINING_TEXT = ["query: document: the acid of a salt and the base of an ester, an enzyme, a protein"] * 4


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_bars_of_datasets():
    """As in a run."""
    from datasets import disable_progress_bars

    disable_progress_bars()


@pytest.fixture(scope="session", autouse=True)
def _what_is_imported_is_not_searched_for_garbage():
    """Each training begins with a full garbage collection (accelerate), which takes longer than the training."""
    import torch  # noqa: F401
    import transformers  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Return ``tiny_base(kind, **options) -> folder``: a base of two layers with random weights and a tokenizer.

    ``words`` makes a word-level vocabulary of these; ``spare_rows`` are vocabulary rows beyond the tokenizer's (with
    0 the model must grow). Equal calls share a folder: treat it as read-only.
    """
    import torch

    @cache
    def make(kind, *, bos=True, pad=True, chat_template=False, words=None, spare_rows=0, seed=0, dtype="float32"):
        folder = tmp_path_factory.mktemp(f"base-{kind}")
        tokenizer = _tokenizer(bos=bos, pad=pad, words=words)
        if chat_template:
            tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.save_pretrained(folder)
        model = _model(kind, tokenizer, len(tokenizer) + spare_rows, seed)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        return str(folder)

    return make


def _tokenizer(*, bos, pad, words):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", *(["<pad>"] if pad else [])]
    if words is None:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        options = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
        backend.train_from_iterator(TRAINING_TEXT, trainers.BpeTrainer(vocab_size=300, **options))
    else:
        vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*special, *words, "a"]))}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=512,
        **({"pad_token": "<pad>"} if pad else {}),
    )


def _model(kind, tokenizer, vocab_size, seed):
    import torch
    import transformers as t

    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    # Weights large enough that what a position may see matters to its logits.
    common = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        **ids,
    }
    grouped = {**common, "num_key_value_heads": 1, "head_dim": 16}
    layers = ["sliding_attention", "full_attention"]
    mixed = {**grouped, "sliding_window": WINDOW, "layer_types": layers, "query_pre_attn_scalar": 16}
    t5 = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    config = {
        "llama": lambda: t.LlamaConfig(**grouped, tie_word_embeddings=True),
        "llama-untied": lambda: t.LlamaConfig(**grouped, tie_word_embeddings=False),
        "mistral": lambda: t.MistralConfig(**grouped, sliding_window=WINDOW, tie_word_embeddings=False),
        "qwen2": lambda: t.Qwen2Config(**common, num_key_value_heads=1, tie_word_embeddings=True),
        "qwen3": lambda: t.Qwen3Config(**grouped, tie_word_embeddings=True),
        "gpt-neox": lambda: t.GPTNeoXConfig(**common, tie_word_embeddings=False),
        "gemma2": lambda: t.Gemma2Config(**mixed, final_logit_softcapping=2.0, attn_logit_softcapping=20.0),
        "gemma3": lambda: t.Gemma3TextConfig(**mixed),
        "bert": lambda: t.BertConfig(**common),
        "t5": lambda: t.T5Config(vocab_size=vocab_size, **t5, **ids),
    }[kind]()
    torch.manual_seed(seed)
    auto = {"bert": t.AutoModel, "t5": t.AutoModelForSeq2SeqLM}.get(kind, t.AutoModelForCausalLM)
    return auto.from_config(config)


@pytest.fixture
def toy_recipe(tiny_base, tmp_path):
    """A recipe file of a run of a second: both stages, checkpoints every two steps, each kind of dropout."""
    from lbr_st.recipe import DataConfig, EvaluateConfig, LearnConfig, ModelConfig, Recipe, RepresentConfig, save_recipe

    rows = [
        {"query": f"{kind} number {i}", "document": f"the {kind} of the class {i} that is a salt of {i * 7}."}
        for i in range(6)
        for kind in ("acid", "base", "salt", "ester")
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    recipe = Recipe(
        name="lbr-toy",
        precision="float32",
        model=ModelConfig(base=tiny_base("llama"), max_seq_length=24, lora_rank=2, lora_alpha=4, lora_dropout=0.1),
        data=DataConfig(source=str(tmp_path / "pairs.jsonl")),
        learn=LearnConfig(
            max_steps=4, batch_size=4, warmup_steps=1, eval_steps=2, num_eval_pairs=4, target_dropout=0.2
        ),
        represent=RepresentConfig(max_steps=4, batch_size=4, warmup_steps=1, eval_steps=2),
        evaluate=EvaluateConfig(enabled=False),
    )
    save_recipe(recipe, tmp_path / "recipe.yaml")
    return tmp_path / "recipe.yaml"


@pytest.fixture
def bert(tmp_path):
    """Make tiny random BERT models: seed in, SentenceTransformer out."""

    def make(seed=0):
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
        from transformers import BertConfig, BertModel, BertTokenizerFast

        torch.manual_seed(seed)
        folder = tmp_path / f"bert{seed}"
        folder.mkdir(exist_ok=True)
        letters = "abcdefghijklmnopqrstuvwxyz"
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *".:?,", *("##" + c for c in letters)]
        (folder / "vocab.txt").write_text("\n".join(vocabulary))
        BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=256,
        )
        BertModel(config).save_pretrained(folder)
        modules = [Transformer(str(folder)), Pooling(32)]
        return SentenceTransformer(modules=modules, device="cpu", prompts={"query": "query: ", "document": "passage: "})

    return make


@pytest.fixture
def datasets_cache(tmp_path, monkeypatch):
    """A cache for ``datasets`` of the test's own: it tells folders of one name apart by too little."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
