"""Queries that a causal language model writes for passages: a local one, or one behind an OpenAI-compatible server."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lbr_st.data.texts import digest, plain, shingles
from lbr_st.errors import LBRError
from lbr_st.files import bar, import_extra, notice
from lbr_st.model.bases import resolve_base
from lbr_st.model.safe import explain_load_errors

if TYPE_CHECKING:
    from datasets import Dataset

MOST = 2000  # passages that queries are written for: an hour or more of SmolLM2-135M on two cores
NEW_TOKENS, TEMPERATURE = 32, 0.7
TIMEOUT, RETRIES, AT_ONCE = 60.0, 2, 8  # of a server: seconds for an answer, more tries, and requests at once
SHOTS = (
    ("Wipe the blade dry after mowing and rub it with a thin film of oil, or it rusts.", "how to look after a scythe"),
    ("Dough that is kept in the fridge overnight rises slowly and gains flavour.", "why let bread rest in the cold?"),
)


def questions(
    passages: Dataset,
    writer: str,
    *,
    folder: str | Path,
    examples: Sequence[str] = (),
    seed: int = 0,
    say: Callable[[str], None] = notice,
) -> list[tuple[int, str]]:
    """Return queries that ``writer`` writes, each with the row of its passage: ``written`` of ``make_pairs``.

    The writer is the address of a server (``http://localhost:8000/v1``), or a causal LM: a base, a folder or a hub id.
    ``examples`` are a person's queries, for the form. What is empty, too long, no text or copied from the passage is
    left out. Of many passages 2,000 are drawn by the seed. Each query is kept in ``folder`` once it is written, and the
    same call takes it from there.
    """
    file = Path(folder) / "questions.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = np.random.default_rng(seed).permutation(len(passages))[:MOST].tolist()
    texts = dict(zip(rows, passages.select(rows)["text"], strict=True))
    prompts = {row: _prompt(text, examples) for row, text in texts.items()}
    keys = {row: f"{digest(f'{writer} {prompt}'):016x}" for row, prompt in prompts.items()}
    kept, counts = dict[str, str](), Counter[str]()
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        with suppress(ValueError):  # half a line that a killed run left
            kept |= json.loads(line)
    wanted = [(row, prompts[row]) for row in rows if keys[row] not in kept]
    served = writer.startswith(("http://", "https://"))
    answers = _of_server(writer, wanted) if served else _of_model(writer, wanted, seed)
    with file.open("a", encoding="utf-8") as out:
        for row, answer in bar(answers if wanted else (), "Writing queries", "queries", total=len(wanted)):
            query = _query(answer)
            problem = _problem(query, texts[row])
            counts[problem or "usable"] += 1
            kept[keys[row]] = "" if problem else query
            print("", json.dumps({keys[row]: kept[keys[row]]}), sep="\n", end="", file=out, flush=True)
    found = sorted((row, kept[key]) for row, key in keys.items() if kept.get(key))
    now = ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items())) or "none"
    say(f"Queries by {writer}: {len(found):,}. Of those written now: {now}.")
    if not found:
        raise LBRError("writes no query that can be used.", where=writer, fix="Use a larger or an instructed model.")
    return found


def _prompt(text: str, examples: Sequence[str]) -> str:
    form = "".join(["Queries look like these:\n", *(f"- {one}\n" for one in examples), "\n"] if examples else [])
    shots = "".join(f"Passage: {passage}\nQuery: {query}\n\n" for passage, query in SHOTS)
    task = "Write one short search query that the last passage answers, in other words than the passage's."
    return f"{task}\n\n{form}{shots}Passage: {text}\nQuery:"


def _query(answer: str) -> str:
    """Return the first line of an answer, without what models put around a query."""
    line = answer.strip().partition("\n")[0]
    line = re.sub(r"^(?:(?:search )?query|question|q)\s*:|^[-*•]\s|^\d+[.)]\s", "", line, flags=re.I)
    return " ".join(line.split()).strip(" \"'“”`*")


def _problem(query: str, text: str) -> str | None:
    """Return what is wrong with a query; None if nothing is."""
    words = plain(query).split()
    if not words:
        return "empty"
    if sum(map(str.isalpha, query)) < len(query) / 2 or not query.isprintable() or "\ufffd" in query:
        return "no text"
    if len(words) > NEW_TOKENS or len(query) > 300:
        return "too long"
    run = max(4, math.ceil(0.8 * len(words)))
    return "copied" if shingles(plain(query), run) & shingles(plain(text), run) else None


def _of_server(url: str, wanted: Sequence[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield rows and what a server answers; "" for nonsense."""
    openai = import_extra("openai", "documents")
    key = os.environ.get("OPENAI_API_KEY") or "none"
    client = openai.OpenAI(base_url=url, api_key=key, timeout=TIMEOUT, max_retries=RETRIES)
    options = {"max_tokens": NEW_TOKENS, "temperature": TEMPERATURE}
    nonsense = (ValueError, TypeError, AttributeError, LookupError, openai.APIResponseValidationError)

    def ask(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        with suppress(*nonsense):  # no JSON, or another protocol
            said = client.chat.completions.create(model=model, messages=messages, **options)
            return str(said.choices[0].message.content or "")
        return ""

    try:
        model = client.models.list().data[0].id
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from zip([row for row, _ in wanted], pool.map(ask, [prompt for _, prompt in wanted]), strict=True)
    except (*nonsense, openai.APIError) as error:
        fix = "Check that it runs, and its address, which mostly ends with /v1. Run again to resume: answers are kept."
        raise LBRError(f"the server does not answer: {str(error).rstrip('.')}.", where=url, fix=fix) from error


def _of_model(name: str, wanted: Sequence[tuple[int, str]], seed: int) -> Iterator[tuple[int, str]]:
    """Yield rows and what a causal LM on this machine writes, from the shortest prompt to the longest."""
    import torch
    from transformers import pipeline

    with explain_load_errors(name, "the writer"):
        options: Any = {"trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}
        writer: Any = pipeline("text-generation", str(resolve_base(name)), **options)
    tokenizer = writer.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    sampling = {"do_sample": True, "temperature": TEMPERATURE, "max_new_tokens": NEW_TOKENS}
    by_length = sorted(wanted, key=lambda one: len(one[1]))
    for start in range(0, len(wanted), 16):
        rows, prompts = zip(*by_length[start : start + 16], strict=True)
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        given = chats if tokenizer.chat_template else list(prompts)
        with torch.random.fork_rng():
            torch.manual_seed(seed + start)
            written = writer(given, batch_size=16, return_full_text=False, **sampling)
        yield from zip(rows, (one[0]["generated_text"] for one in written), strict=True)
