"""Tiny embedders in the forms that stock Sentence Transformers models of causal language models have."""

import json
from pathlib import Path

import torch
from tiny_models import perturbed
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from lbr_st.model.build import build_model
from lbr_st.publish.stock import release

FORMS = ["ours", "qwen3-embedding", "f2llm"]
INSTRUCT = "Instruct: Given a web search query, retrieve relevant passages\nQuery:"
PROMPTS = {
    "ours": {"query": "query: ", "document": "document: "},
    "qwen3-embedding": {"query": INSTRUCT, "document": ""},
    "f2llm": {},
}
CLOSING = {"ours": 4, "qwen3-embedding": 1, "f2llm": 1, "two": 2}


def embedder(form, tiny_base, folder: Path, *, kind=None, dtype="float32", bos=False, **config) -> str:
    """Write an embedder with random weights and return its folder; ``config`` goes into its ``config.json``.

    - ``ours``: a release of lbr-st with four closing tokens and without a head.
    - ``qwen3-embedding``: weights without a head, yet named after the causal LM; a token that is not the tokenizer's
      end of text is appended by a template after a byte-level processor; padding on the left; a chat template.
    - ``f2llm``: named after the model without a head; the end-of-text token is appended; no prompts.
    - ``two``: as the last, but two tokens are appended.
    """
    if form == "ours":
        base = tiny_base(kind or "llama", bos=bos, spare_rows=0)
        options = {"max_seq_length": 64, "lora_rank": 4, "device": "cpu"}
        return str(release(perturbed(build_model(base, **options)), folder))
    base = tiny_base(kind or "qwen3", bos=bos, spare_rows=9, chat_template=form == "qwen3-embedding", dtype=dtype)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base, dtype=dtype), AutoTokenizer.from_pretrained(base)
    appended = {"qwen3-embedding": ["<|endoftext|>"], "two": ["<|end_0|>", "<|end_1|>"]}.get(form, ["</s>"])
    tokenizer.add_tokens([token for token in appended if token != "</s>"], special_tokens=True)
    begin = "<s> " if bos else ""
    template = processors.TemplateProcessing(
        single=f"{begin}$A {' '.join(appended)}",
        pair=f"{begin}$A {' '.join(appended)} $B:1 {' '.join(appended)}",
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in ["<s>", *appended]],
    )
    byte_level = processors.ByteLevel(trim_offsets=False)
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([byte_level, template])
    if form == "qwen3-embedding":
        tokenizer.padding_side, tokenizer.pad_token = "left", "<|endoftext|>"
    model.base_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if form == "qwen3-embedding":
        config = {"architectures": [type(model).__name__], **config}
    change(folder / "config.json", **config)
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
        for index, (name, path) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({**pooling, "include_prompt": True}))
    settings = {"prompts": PROMPTS.get(form, {}), "default_prompt_name": None, "similarity_fn_name": "cosine"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return str(folder)


def change(path, **values):
    """Change a JSON file; a value of None removes its key."""
    whole = json.loads(path.read_text()) if path.is_file() else {}
    kept = {key: value for key, value in {**whole, **values}.items() if value is not None}
    path.write_text(json.dumps(kept))


def random_texts(count=100) -> list[str]:
    """Return texts of 1 to 30 words and signs, none of which is cut."""
    words = ["acid", "base", "the", "of a salt", "ester", "é", "x", "2,4-D;", "enzyme\nprotein"]
    draw = torch.Generator().manual_seed(0)
    picks = [torch.randint(len(words), (1 + n % 8,), generator=draw).tolist() for n in range(count)]
    return [" ".join(words[pick] for pick in row) for row in picks]
