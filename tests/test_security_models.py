"""Models from strangers: their code never runs and their pickles are never opened, whatever their files say.

Each trap writes a marker file when it goes off; that the traps work at all is tested first.
"""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from lbr_st.errors import LBRError
from lbr_st.evaluation.run import evaluate_retrieval
from lbr_st.model.build import build_model
from lbr_st.model.load import load_by_name, load_model, load_stock
from lbr_st.publish.stock import release


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """The file that appears when a trap goes off; it must not, or the test fails even where it forgot to look."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules-cache"))
    path = tmp_path / "the-trap-went-off"
    yield path
    assert not path.exists(), "code from a model's folder ran"


def code(marker):
    return f"import pathlib\npathlib.Path({str(marker)!r}).write_text('ran')\nclass Evil: pass\n"


class Bomb:
    """Pickles to a call that writes the marker."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.write_text, (self.marker, "ran"))


def edit(path, **changes):
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **changes}))


def copied(folder, target):
    return Path(shutil.copytree(folder, target))


def config_trap(folder, marker, *, known):
    (folder / "modeling_evil.py").write_text(code(marker))
    names = {"AutoConfig": "modeling_evil.Evil", "AutoModel": "modeling_evil.Evil"}
    edit(folder / "config.json", auto_map={**names, "AutoModelForCausalLM": "modeling_evil.Evil"})
    if not known:
        edit(folder / "config.json", model_type="evil")


def hub_trap(folder, marker):
    edit(folder / "config.json", auto_map={"AutoConfig": "evil/repo--modeling_evil.Evil"}, model_type="evil")


def tokenizer_trap(folder, marker):
    (folder / "tokenization_evil.py").write_text(code(marker))
    auto_map = {"AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"]}
    edit(folder / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="Evil")
    edit(folder / "config.json", auto_map=auto_map)


def processor_trap(folder, marker):
    (folder / "processing_evil.py").write_text(code(marker))
    for name in ("processor_config.json", "preprocessor_config.json"):
        edit(folder / name, auto_map={"AutoProcessor": "processing_evil.Evil"}, processor_class="Evil")


TRAPS = {
    "config, unknown type": lambda folder, marker: config_trap(folder, marker, known=False),
    "config, known type": lambda folder, marker: config_trap(folder, marker, known=True),
    "config, code on the hub": hub_trap,
    "tokenizer": tokenizer_trap,
    "processor": processor_trap,
}
# transformers has classes of its own for these and takes them in the place of the folder's.
HARMLESS = {"config, known type"}


def test_the_traps_go_off_where_code_is_trusted(tiny_base, tmp_path, monkeypatch):
    from transformers import AutoConfig, AutoTokenizer

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules-cache"))
    folder, marker = copied(tiny_base("llama"), tmp_path / "base"), tmp_path / "marker"
    config_trap(folder, marker, known=False)
    with pytest.raises(Exception):  # noqa: B017, PT011  # the class does nothing, but its file has run
        AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert marker.read_text() == "ran"
    marker.unlink()
    tokenizer_trap(folder, marker)
    with pytest.raises(Exception):  # noqa: B017, PT011
        AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert marker.read_text() == "ran"
    marker.unlink()
    torch.save({"weight": Bomb(marker)}, tmp_path / "bomb.bin")
    torch.load(tmp_path / "bomb.bin", weights_only=False)
    assert marker.read_text() == "ran"


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("way", ["build_model", "untrained", "stock", "adapter", "adapter's base named anew"])
def test_code_in_a_folder_never_runs(tiny_base, tmp_path, marker, trap, way):
    folder = copied(tiny_base("llama"), tmp_path / "base")
    adapter = tmp_path / "adapter"
    if way.startswith("adapter"):
        named = str(folder) if way == "adapter" else tiny_base("llama")
        build_model(named, lora_rank=2).save_pretrained(str(adapter), create_model_card=False)
    if way == "stock":
        modules = [Transformer(str(folder)), Pooling(32)]
        SentenceTransformer(modules=modules).save_pretrained(str(folder), create_model_card=False)
    TRAPS[trap](folder, marker)
    load = {
        "build_model": lambda: build_model(str(folder)),
        "untrained": lambda: load_by_name(f"untrained:{folder}"),
        "stock": lambda: load_by_name(str(folder)),
        "adapter": lambda: load_model(adapter),
        "adapter's base named anew": lambda: load_model(adapter, base=str(folder)),
    }[way]
    try:
        load()
    except LBRError as error:
        assert trap not in HARMLESS
        assert "cannot be loaded" in str(error)  # noqa: PT017
        assert str(folder) in str(error)  # noqa: PT017


def test_nobody_is_let_to_trust_code(tiny_base, tmp_path):
    with pytest.raises(LBRError, match="code that comes with a model is never run"):
        build_model(tiny_base("llama"), model_kwargs={"trust_remote_code": True})
    build_model(tiny_base("llama")).save_pretrained(str(tmp_path / "m"), create_model_card=False)
    with pytest.raises(LBRError, match="code that comes with a model is never run"):
        load_model(tmp_path / "m", model_kwargs={"trust_remote_code": True})


@pytest.mark.parametrize(
    "kind",
    [
        "os.system",
        "evil.Evil",
        "lbr_st.cli.main",
        "lbr_st.model.evil.Evil",
        "lbr_st.model.backbone.CausalBackbone.load",
        "sentence_transformers.sentence_transformer.modules.Router",
        "sentence_transformers.util.misc.import_from_string",
        "",
    ],
)
def test_only_three_classes_make_a_training_model(tiny_base, tmp_path, marker, monkeypatch, kind):
    folder = tmp_path / "m"
    build_model(tiny_base("llama")).save_pretrained(str(folder), create_model_card=False)
    (tmp_path / "evil.py").write_text(code(marker))
    monkeypatch.syspath_prepend(tmp_path)
    listing = json.loads((folder / "modules.json").read_text())
    listing[1]["type"] = kind
    (folder / "modules.json").write_text(json.dumps(listing))
    with pytest.raises(LBRError, match="not ours to run"):
        load_model(folder)


@pytest.mark.parametrize("path", ["..", "../other", "/etc", "a/../..", "C:\\x", "..\\other", "link", "."])
def test_modules_stay_inside_of_the_folder(tiny_base, tmp_path, path):
    folder = tmp_path / "m"
    build_model(tiny_base("llama"), projection_dim=8).save_pretrained(str(folder), create_model_card=False)
    shutil.copytree(folder / "1_BottleneckPooler", tmp_path / "other")
    (folder / "link").symlink_to(tmp_path / "other")
    listing = json.loads((folder / "modules.json").read_text())
    listing[1]["path"] = path
    (folder / "modules.json").write_text(json.dumps(listing))
    with pytest.raises(LBRError, match="leads out of the model"):
        load_model(folder)


@pytest.mark.parametrize("content", ["", "{", "[" * 5000, '{"a": 1}', '[{"type": 1}]', '["x"]', "[null]"])
def test_a_damaged_list_of_modules_is_named(tiny_base, tmp_path, content):
    folder = tmp_path / "m"
    build_model(tiny_base("llama")).save_pretrained(str(folder), create_model_card=False)
    (folder / "modules.json").write_text(content)
    with pytest.raises(LBRError, match=r"modules\.json"):
        load_model(folder)


def test_a_saved_model_does_not_say_how_transformers_loads_it(tiny_base, tmp_path, marker):
    folder, evil = tmp_path / "m", copied(tiny_base("llama"), tmp_path / "evil")
    build_model(tiny_base("llama")).save_pretrained(str(folder), create_model_card=False)
    expected = load_model(folder, device="cpu").encode(["an acid"])
    tokenizer_trap(evil, marker)
    options = {"trust_remote_code": True, "gguf_file": "x.gguf"}
    names = ("model_kwargs", "model_args", "processor_kwargs", "tokenizer_args", "config_kwargs", "config_args")
    edit(folder / "sentence_bert_config.json", **dict.fromkeys(names, options), tokenizer_name_or_path=str(evil))
    assert (load_model(folder, device="cpu").encode(["an acid"]) == expected).all()


def test_attention_code_from_the_hub_is_refused(tiny_base, tmp_path):
    folder = copied(tiny_base("llama"), tmp_path / "base")
    edit(folder / "config.json", attn_implementation="evil/kernel")
    with pytest.raises(LBRError, match="evil/kernel"):
        build_model(str(folder))


def test_an_adapter_imports_nothing_by_name(tiny_base, tmp_path, marker, monkeypatch):
    folder = tmp_path / "m"
    build_model(tiny_base("llama"), lora_rank=2).save_pretrained(str(folder), create_model_card=False)
    (tmp_path / "evil_core.py").write_text(code(marker))
    monkeypatch.syspath_prepend(tmp_path)
    edit(
        folder / "adapter_config.json",
        megatron_config={"x": 1},
        megatron_core="evil_core",
        auto_mapping={"base_model_class": "Evil", "parent_library": "evil_core"},
    )
    load_model(folder)


@pytest.mark.parametrize("changes", [{"peft_type": "IA3"}, {"base_model_name_or_path": None}, {"r": "x"}, {"r": 0}])
def test_another_kind_of_adapter_is_refused(tiny_base, tmp_path, changes):
    folder = tmp_path / "m"
    build_model(tiny_base("llama"), lora_rank=2).save_pretrained(str(folder), create_model_card=False)
    edit(folder / "adapter_config.json", **changes)
    with pytest.raises(LBRError, match=r"adapter_config\.json"):
        load_model(folder)


def test_a_dense_of_a_strangers_names_no_code(tiny_base, tmp_path, marker, monkeypatch):
    modules = [Transformer(tiny_base("llama")), Pooling(32), Dense(32, 8), Normalize()]
    SentenceTransformer(modules=modules).save_pretrained(str(tmp_path / "m"), create_model_card=False)
    (tmp_path / "evil.py").write_text(code(marker))
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("evil.Evil", "os.system"):
        edit(tmp_path / "m" / "2_Dense" / "config.json", activation_function=name)
        assert load_stock(str(tmp_path / "m")).encode(["an acid"]).shape == (1, 8)


def pickled_weights(folder, marker, name="pytorch_model.bin"):
    """Put a bomb in the place of a folder's safetensors."""
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with (folder / name).open("wb") as file:
        pickle.dump({"weight": Bomb(marker)}, file)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "tf_model.h5", "weights.pkl"])
@pytest.mark.parametrize("way", ["build_model", "untrained", "stock", "evaluate"])
def test_pickled_weights_are_refused(tiny_base, tmp_path, marker, name, way):
    folder = copied(tiny_base("llama"), tmp_path / "base")
    if way in ("stock", "evaluate"):
        modules = [Transformer(str(folder)), Pooling(32)]
        SentenceTransformer(modules=modules).save_pretrained(str(folder), create_model_card=False)
    pickled_weights(folder, marker, name)
    load = {
        "build_model": lambda: build_model(str(folder)),
        "untrained": lambda: load_by_name(f"untrained:{folder}"),
        "stock": lambda: load_by_name(str(folder)),
        "evaluate": lambda: evaluate_retrieval(str(folder), _toy_set(), name="a/b", output_folder=tmp_path / "scores"),
    }[way]
    with pytest.raises(LBRError) as caught:
        load()
    assert str(folder) in str(caught.value)


def _toy_set():
    from lbr_st.data import RetrievalSet

    return RetrievalSet("toy", {"d": "an acid"}, {"q": "acid"}, {"q": {"d": 1}})


@pytest.mark.parametrize("part", ["backbone", "pooler", "adapter"])
def test_pickled_weights_of_a_training_model_are_refused(tiny_base, tmp_path, marker, part):
    folder = tmp_path / "m"
    model = build_model(tiny_base("llama"), projection_dim=8, lora_rank=2 if part == "adapter" else None)
    model.save_pretrained(str(folder), create_model_card=False)
    where = folder / "1_BottleneckPooler" if part == "pooler" else folder
    pickled_weights(where, marker, "adapter_model.bin" if part == "adapter" else "pytorch_model.bin")
    with pytest.raises(LBRError, match="safetensors"):
        load_model(folder)


def test_a_pickled_dense_is_refused(tiny_base, tmp_path, marker):
    modules = [Transformer(tiny_base("llama")), Pooling(32), Dense(32, 8)]
    SentenceTransformer(modules=modules).save_pretrained(str(tmp_path / "m"), create_model_card=False)
    pickled_weights(tmp_path / "m" / "2_Dense", marker)
    with pytest.raises(LBRError, match="2_Dense"):
        load_by_name(str(tmp_path / "m"))


def test_pickles_beside_safetensors_are_left_alone(tiny_base, tmp_path, marker):
    folder = tmp_path / "m"
    build_model(tiny_base("llama"), projection_dim=8).save_pretrained(str(folder), create_model_card=False)
    for name in ("pytorch_model.bin", "optimizer.pt", "1_BottleneckPooler/pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    load_model(folder)
    release(folder, tmp_path / "released")
    assert {file.suffix for file in (tmp_path / "released").rglob("*") if file.is_file()} == {
        ".json",
        ".md",
        ".safetensors",
    }


@pytest.mark.parametrize(
    "part", ["model.safetensors", "adapter_model.safetensors", "1_BottleneckPooler/model.safetensors"]
)
def test_a_model_with_damaged_weights_is_named(tiny_base, tmp_path, part):
    folder = tmp_path / "m"
    rank = 2 if part.startswith("adapter") else None
    build_model(tiny_base("llama"), projection_dim=8, lora_rank=rank).save_pretrained(str(folder))
    (folder / part).write_bytes((folder / part).read_bytes()[:100])
    with pytest.raises(LBRError, match=f"{folder}: the model cannot be loaded"):
        load_model(folder)


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json"])
def test_a_base_with_a_part_missing_is_named(tiny_base, tmp_path, file):
    folder = copied(tiny_base("llama"), tmp_path / "base")
    (folder / file).unlink()
    with pytest.raises(LBRError, match=r"tokenizer|config\.json") as caught:
        build_model(str(folder))
    assert caught.value.where == str(folder)
