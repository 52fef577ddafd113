"""Encoding: the released model against its bare backbone."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rows import Row, seconds

TOKENS = 128
"""Of a document, without what a tokenizer appends."""


def documents(tokenizer: Any, count: int) -> list[str]:
    """Return texts of 128 tokens each, made of ChEBI's definitions."""
    from lbr_st.domains.tasks import domain_task

    made: list[str] = []
    stream: list[int] = []
    for text in domain_task("chebi").train_texts.shuffle(seed=0)["text"]:
        stream += tokenizer(text + " ", add_special_tokens=False)["input_ids"]
        while len(stream) >= TOKENS and len(made) < count:
            document = tokenizer.decode(stream[:TOKENS])
            stream = stream[TOKENS:]
            # Decoded and tokenized again, a text may have a token more or less. Those do not count.
            if len(tokenizer(document, add_special_tokens=False)["input_ids"]) == TOKENS:
                made.append(document)
        if len(made) == count:
            break
    return made


class Worker:
    """A process that has one model and encodes the documents whenever it is told to.

    Two models of different shapes in one process disturb each other: freed memory of one does not fit the other, and
    fresh pages cost as much as the tokens that are compared.
    """

    def __init__(self, model: str, texts: list[str]) -> None:
        command = [sys.executable, __file__, model]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.count = len(texts)
        self._ask(json.dumps(texts))

    def __call__(self) -> float:
        """Encode once; return documents a second."""
        return self.count / float(self._ask("encode"))

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        for answer in self.process.stdout:
            if answer.startswith("> "):
                return answer[2:]
        raise RuntimeError("a worker ended early")


def serve(model: str) -> None:
    """Be a worker: read the documents, then encode them for each further line."""
    from sentence_transformers import SentenceTransformer

    from lbr_st.model.load import mean_pooling

    loaded = mean_pooling("smollm2-135m", 256) if model == "bare" else SentenceTransformer(model)
    texts = json.loads(sys.stdin.readline())
    print("> ready", flush=True)
    for _ in sys.stdin:
        spent = seconds(lambda: loaded.encode(texts, batch_size=16, show_progress_bar=False))
        print(f"> {spent}", flush=True)


def against_backbone(command: str, *, pairs: int, count: int) -> Row:
    """Measure a release against ``Transformer + Pooling("mean")`` on the same backbone."""
    import lbr_st
    from lbr_st.bottleneck.passes import backbone_of

    model = lbr_st.build_model("smollm2-135m", max_seq_length=256)
    texts = documents(backbone_of(model).tokenizer, count)
    row = Row(
        f"encode throughput of the released model, {TOKENS}-token documents",
        'the same backbone in Transformer + Pooling("mean")',
        command,
        0.96,
    )
    row.note = (
        f"SmolLM2-135M, float32, {count} documents, batches of 16, no prompt on either side; each model in a process "
        f"of its own, in turns. The k = 4 tokens alone make {TOKENS}/{TOKENS + 4} = {TOKENS / (TOKENS + 4):.3f}. "
        "Weights do not matter to the speed, so the release is of the untrained base."
    )
    with tempfile.TemporaryDirectory() as folder:
        released = Worker(str(lbr_st.release(model, Path(folder) / "release")), texts)
        return row.of_turns(released, Worker("bare", texts), pairs, warmups=2)


if __name__ == "__main__":
    serve(sys.argv[1])
