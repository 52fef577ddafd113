"""Released models: stock form, proven equal, loadable without lbr_st."""

import json
import subprocess
import sys

import numpy as np
import pytest
from architectures import ARCHITECTURES
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from tiny_models import perturbed

from lbr_st.bottleneck.passes import pooler_of
from lbr_st.bottleneck.reconstruct import reconstruct
from lbr_st.cli import main
from lbr_st.errors import LBRError
from lbr_st.model.build import build_model
from lbr_st.model.load import load_model
from lbr_st.publish import bundle
from lbr_st.publish import stock as release_module
from lbr_st.publish.card import CardInfo
from lbr_st.publish.stock import release
from lbr_st.recipe import DataConfig, ModelConfig, Recipe, load_recipe, save_recipe

TEXTS = ["an acid", "the base of a salt and an ester " * 30, "x", "β-D-glucose; 2,4-D\nline two"]


def trained(base, **options):
    return perturbed(build_model(base, max_seq_length=24, **options))


def encodings(model):
    return np.concatenate([model.encode_query(TEXTS), model.encode_document(TEXTS), model.encode(TEXTS)])


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("options", [{"lora_rank": 4}, {}], ids=["lora", "full"])
def test_training_reloaded_and_released_models_agree(tiny_base, tmp_path, kind, options):
    model = trained(tiny_base(kind), **options)
    expected = encodings(model)
    assert not np.allclose(expected, encodings(build_model(tiny_base(kind), max_seq_length=24, **options)), atol=1e-3)

    model.save_pretrained(str(tmp_path / "training"))
    reloaded = load_model(tmp_path / "training", device="cpu")
    np.testing.assert_allclose(encodings(reloaded), expected, atol=1e-6)

    release(model, tmp_path / "released")
    stock = SentenceTransformer(str(tmp_path / "released"), device="cpu")
    np.testing.assert_allclose(encodings(stock), expected, atol=1e-5)
    assert {type(module).__module__.split(".")[0] for module in stock} == {"sentence_transformers"}
    # Releasing does not touch the model in hand.
    np.testing.assert_allclose(encodings(model), expected, atol=1e-6)


def test_projection_becomes_a_stock_dense(tiny_base, tmp_path):
    model = trained(tiny_base("llama"), lora_rank=4, projection_dim=8)
    release(model, tmp_path / "released")
    stock = SentenceTransformer(str(tmp_path / "released"), device="cpu")
    assert stock.get_embedding_dimension() == 8
    assert [type(module).__name__ for module in stock] == ["Transformer", "Pooling", "Dense", "Normalize"]
    np.testing.assert_allclose(encodings(stock), encodings(model), atol=1e-5)


def test_truncation_keeps_the_bottleneck_in_the_released_tokenizer(tiny_base, tmp_path):
    release(trained(tiny_base("qwen3"), lora_rank=2), tmp_path / "released")
    stock = SentenceTransformer(str(tmp_path / "released"), device="cpu")
    ids = stock.preprocess(["the base of a salt " * 100])["input_ids"][0].tolist()
    assert len(ids) == 24
    assert stock.tokenizer.convert_ids_to_tokens(ids[-4:]) == [f"<|lbr_{i}|>" for i in range(4)]


def test_released_folder_loads_where_lbr_st_cannot_be_imported(tiny_base, tmp_path):
    model = trained(tiny_base("llama"), lora_rank=4)
    release(model, tmp_path / "released")
    script = f"""
import sys, json
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "lbr_st":
            raise ImportError("not here: " + name)
sys.meta_path.insert(0, Refuse())
from sentence_transformers import SentenceTransformer
model = SentenceTransformer({str(tmp_path / "released")!r}, device="cpu")
print(json.dumps(model.encode_query(["an acid"]).tolist()))
assert not any(name.split(".")[0] == "lbr_st" for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), model.encode_query(["an acid"]), atol=1e-5)


def test_a_release_that_differs_is_refused_and_leaves_nothing(tiny_base, tmp_path, monkeypatch):
    write_stock = release_module.write_stock

    def with_another_pooling(model, folder):
        write_stock(model, folder)
        config = folder / "1_Pooling" / "config.json"
        config.write_text(config.read_text().replace("lasttoken", "mean_tokens"))

    monkeypatch.setattr(release_module, "write_stock", with_another_pooling)
    with pytest.raises(LBRError, match="differs from the training model"):
        release(trained(tiny_base("llama"), lora_rank=4), tmp_path / "released")
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_is_in_4_bits_on_disk_is_refused(tiny_base, tmp_path, monkeypatch):
    model = trained(tiny_base("llama"), lora_rank=2)
    monkeypatch.setattr(bundle, "is_quantized", lambda model: True)
    with pytest.raises(LBRError, match="the base itself is in 4 bits"):
        release(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_path_of_this_machine_is_released(tiny_base, tmp_path):
    base = tiny_base("llama")
    release(trained(base, lora_rank=4), tmp_path / "released")
    for file in (tmp_path / "released").rglob("*"):
        if file.suffix in (".json", ".md", ".yaml"):
            assert base not in file.read_text(encoding="utf-8"), file
            assert str(tmp_path) not in file.read_text(encoding="utf-8"), file


def test_the_card_has_a_head_that_the_hub_reads_and_a_recipe(tiny_base, tmp_path):
    info = CardInfo("lbr-toy", recipe=Recipe(name="lbr-toy"), licence="apache-2.0", data=["toy text, CC0"])
    release(trained(tiny_base("llama"), lora_rank=4), tmp_path / "released", info=info)
    card = (tmp_path / "released" / "README.md").read_text(encoding="utf-8")
    head = ModelCard(card).data
    assert (head.license, head.library_name) == ("apache-2.0", "sentence-transformers")
    assert head.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    said = "# lbr-toy", "toy text, CC0", "num_bottleneck_tokens: 4", f"[{head.base_model}]", "): Apache-2.0."
    for part in said:
        assert part in card
    assert "trust_remote_code" not in card


def test_the_card_names_what_comes_from_the_hub_and_the_licence_that_is_given(tiny_base, tmp_path, monkeypatch):
    (card := tmp_path / "base.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(card))
    recipe = Recipe(model=ModelConfig(base="org/base"), data=DataConfig(source="org/pairs", texts="notes/a.pdf"))
    save_recipe(recipe, tmp_path / "training" / "recipe.yaml")
    trained(tiny_base("llama"), lora_rank=4).save_pretrained(str(tmp_path / "training"), create_model_card=False)
    command = ["release", str(tmp_path / "training"), "--output", str(tmp_path / "mine"), "--license", "cc0-1.0"]
    assert main(command) == 0
    text = (tmp_path / "mine" / "README.md").read_text(encoding="utf-8")
    head = ModelCard(text).data
    assert (head.base_model, head.datasets, head.license) == ("org/base", ["org/pairs"], "cc0-1.0")
    assert "- Its base, [org/base](https://huggingface.co/org/base): mit." in text
    assert load_recipe(tmp_path / "mine" / "recipe.yaml").release.license == "cc0-1.0"


@pytest.mark.parametrize("file", ["modeling.py", "1_BottleneckPooler/evil.py"])
def test_loading_runs_no_code_and_refuses_foreign_modules(tiny_base, tmp_path, file):
    trained(tiny_base("llama"), lora_rank=4).save_pretrained(str(tmp_path / "m"), create_model_card=False)
    (tmp_path / "m" / file).parent.mkdir(exist_ok=True)
    (tmp_path / "m" / file).write_text("raise SystemExit")
    load_model(tmp_path / "m")  # nothing looks at the file
    listing = tmp_path / "m" / "modules.json"
    listing.write_text(listing.read_text().replace("lbr_st.model.pooler", "evil"))
    with pytest.raises(LBRError, match="not ours to run"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("bottleneck", ["attention", "embedding"])
def test_reconstruct_sees_the_bottleneck_only(tiny_base, bottleneck):
    model = trained(tiny_base("llama"), lora_rank=4)
    if bottleneck == "embedding":
        pooler_of(model).add_bridge(2)
    texts = ["an acid", "the base of a salt"]
    together = reconstruct(model, texts, max_new_tokens=6)
    alone = [reconstruct(model, [text], max_new_tokens=6)[0] for text in texts]
    assert together == alone
    assert reconstruct(model, texts, max_new_tokens=2) != together
    assert reconstruct(model, []) == []
    with pytest.raises(LBRError, match="text 2"):
        reconstruct(model, ["fine", "  "])
    with pytest.raises(LBRError, match="text 1: it holds half a character"):
        reconstruct(model, ["\udcff"])


def test_a_release_cannot_be_decoded(tiny_base, tmp_path):
    release(trained(tiny_base("llama"), lora_rank=4), tmp_path / "released")
    with pytest.raises(LBRError, match="CausalBackbone"):
        reconstruct(SentenceTransformer(str(tmp_path / "released"), device="cpu"), ["an acid"])
