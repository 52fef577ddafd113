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


@pytest.fixture
def saved(tiny_base, tmp_path):
    """Save a training model, or with ``stock`` modules a plain one, and return its folder."""

    def save(stock=(), base=None, **options):
        base = base or tiny_base("llama")
        if stock:
            model = SentenceTransformer(modules=[Transformer(base), Pooling(32), *stock])
        else:
            model = build_model(base, **options)
        model.save_pretrained(str(tmp_path / "m"), create_model_card=False)
        return tmp_path / "m"

    return save


def config_trap(folder, marker, kind="evil"):
    (folder / "modeling_evil.py").write_text(code(marker))
    auto_map = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "modeling_evil.Evil")
    edit(folder / "config.json", auto_map=auto_map, model_type=kind)


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
    "config, unknown type": config_trap,
    "config, known type": lambda folder, marker: config_trap(folder, marker, "llama"),
    "config, code on the hub": hub_trap,
    "tokenizer": tokenizer_trap,
    "processor": processor_trap,
}
WAYS = {
    "build_model": build_model,
    "untrained": lambda folder: load_by_name(f"untrained:{folder}"),
    "stock": load_by_name,
}
# transformers has a class of its own for this one and prefers it.
HARMLESS = {"config, known type"}


def test_the_traps_go_off_where_code_is_trusted(tiny_base, tmp_path, monkeypatch):
    from transformers import AutoConfig, AutoTokenizer

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules-cache"))
    folder, marker = copied(tiny_base("llama"), tmp_path / "base"), tmp_path / "marker"
    for trap, kind in ((config_trap, AutoConfig), (tokenizer_trap, AutoTokenizer)):
        trap(folder, marker)
        with pytest.raises(Exception):  # noqa: B017, PT011  # the class does nothing, but its file has run
            kind.from_pretrained(folder, trust_remote_code=True)
        assert marker.read_text() == "ran"
        marker.unlink()
    torch.save({"weight": Bomb(marker)}, tmp_path / "bomb.bin")
    torch.load(tmp_path / "bomb.bin", weights_only=False)
    assert marker.read_text() == "ran"


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("way", [*WAYS, "adapter", "adapter's base given"])
def test_code_in_a_folder_never_runs(tiny_base, tmp_path, saved, marker, trap, way):
    folder = copied(tiny_base("llama"), tmp_path / "base")
    if way.startswith("adapter"):
        adapter = saved(base=str(folder) if way == "adapter" else None, lora_rank=2)
    if way == "stock":
        folder = saved([Normalize()], base=str(folder))
    TRAPS[trap](folder, marker)
    try:
        if way.startswith("adapter"):
            load_model(adapter, base=None if way == "adapter" else str(folder))
        else:
            WAYS[way](str(folder))
    except LBRError as error:
        assert trap not in HARMLESS
        assert "cannot be loaded" in str(error)  # noqa: PT017
        assert str(folder) in str(error)  # noqa: PT017


def test_nobody_may_trust_code(tiny_base, saved):
    with pytest.raises(LBRError, match="code that comes with a model is never run"):
        build_model(tiny_base("llama"), model_kwargs={"trust_remote_code": True})
    with pytest.raises(LBRError, match="code that comes with a model is never run"):
        load_model(saved(), model_kwargs={"trust_remote_code": True})


def with_module(folder, **changes):
    """Change what ``modules.json`` says of the pooler."""
    listing = json.loads((folder / "modules.json").read_text())
    listing[1] |= changes
    (folder / "modules.json").write_text(json.dumps(listing))
    return folder


@pytest.mark.parametrize(
    "kind",
    [
        "evil.Evil",
        "lbr_st.model.backbone.CausalBackbone.load",
        "sentence_transformers.sentence_transformer.modules.Router",
        "",
    ],
)
def test_only_three_classes_make_a_training_model(saved, tmp_path, marker, monkeypatch, kind):
    (tmp_path / "evil.py").write_text(code(marker))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LBRError, match="not ours to run"):
        load_model(with_module(saved(), type=kind))


@pytest.mark.parametrize("path", ["..", "../other", "/etc", "a/../..", "C:\\x", "..\\other", "link", "."])
def test_modules_stay_inside_of_the_folder(saved, tmp_path, path):
    folder = saved(projection_dim=8)
    shutil.copytree(folder / "1_BottleneckPooler", tmp_path / "other")
    (folder / "link").symlink_to(tmp_path / "other")
    with pytest.raises(LBRError, match="leads out of the model"):
        load_model(with_module(folder, path=path))


@pytest.mark.parametrize("content", ["", "{", "[" * 5000, '{"a": 1}', '[{"type": 1}]', '["x"]', "[null]"])
def test_a_damaged_list_of_modules_is_named(saved, content):
    folder = saved()
    (folder / "modules.json").write_text(content)
    with pytest.raises(LBRError, match=r"modules\.json"):
        load_model(folder)


def test_a_saved_model_does_not_say_how_transformers_loads_it(tiny_base, saved, tmp_path, marker):
    folder, evil = saved(), copied(tiny_base("llama"), tmp_path / "evil")
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


def test_an_adapter_imports_nothing_by_name(saved, tmp_path, marker, monkeypatch):
    (tmp_path / "evil_core.py").write_text(code(marker))
    monkeypatch.syspath_prepend(tmp_path)
    folder, mapping = saved(lora_rank=2), {"base_model_class": "Evil", "parent_library": "evil_core"}
    edit(folder / "adapter_config.json", megatron_config={"x": 1}, megatron_core="evil_core", auto_mapping=mapping)
    load_model(folder)


@pytest.mark.parametrize("changes", [{"peft_type": "IA3"}, {"base_model_name_or_path": None}, {"r": "x"}, {"r": 0}])
def test_another_kind_of_adapter_is_refused(saved, changes):
    folder = saved(lora_rank=2)
    edit(folder / "adapter_config.json", **changes)
    with pytest.raises(LBRError, match=r"adapter_config\.json"):
        load_model(folder)


@pytest.mark.parametrize("name", ["evil.Evil", "os.system"])
def test_a_dense_of_a_strangers_names_no_code(saved, tmp_path, marker, monkeypatch, name):
    (tmp_path / "evil.py").write_text(code(marker))
    monkeypatch.syspath_prepend(tmp_path)
    folder = saved([Dense(32, 8), Normalize()])
    edit(folder / "2_Dense" / "config.json", activation_function=name)
    assert load_stock(str(folder)).encode(["an acid"]).shape == (1, 8)


def pickled_weights(folder, marker, name="pytorch_model.bin"):
    """Replace a folder's safetensors by a bomb."""
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with (folder / name).open("wb") as file:
        pickle.dump({"weight": Bomb(marker)}, file)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "tf_model.h5", "weights.pkl"])
@pytest.mark.parametrize("way", WAYS)
def test_pickled_weights_are_refused(tiny_base, tmp_path, saved, marker, name, way):
    folder = saved([Normalize()]) if way == "stock" else copied(tiny_base("llama"), tmp_path / "base")
    pickled_weights(folder, marker, name)
    with pytest.raises(LBRError) as caught:
        WAYS[way](str(folder))
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("", "pytorch_model.bin"),
        ("", "adapter_model.bin"),
        ("1_BottleneckPooler", "pytorch_model.bin"),
        ("2_Dense", "pytorch_model.bin"),
    ],
)
def test_pickled_weights_of_a_part_are_refused(saved, marker, part, name):
    options = {"projection_dim": 8, "lora_rank": 2 if name.startswith("adapter") else None}
    folder = saved([Dense(32, 8)]) if part == "2_Dense" else saved(**options)
    pickled_weights(folder / part, marker, name)
    with pytest.raises(LBRError, match=part or "safetensors"):
        load_by_name(str(folder))


def test_pickles_next_to_safetensors_are_left_alone(saved, tmp_path, marker):
    folder = saved(projection_dim=8)
    for name in ("pytorch_model.bin", "optimizer.pt", "1_BottleneckPooler/pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    load_model(folder)
    release(folder, tmp_path / "released")
    released = {file.suffix for file in (tmp_path / "released").rglob("*") if file.is_file()}
    assert released == {".json", ".md", ".safetensors"}


@pytest.mark.parametrize(
    "part", ["model.safetensors", "adapter_model.safetensors", "1_BottleneckPooler/model.safetensors"]
)
def test_a_model_with_damaged_weights_is_named(saved, part):
    folder = saved(projection_dim=8, lora_rank=2 if part.startswith("adapter") else None)
    (folder / part).write_bytes((folder / part).read_bytes()[:100])
    with pytest.raises(LBRError, match=f"{folder}: the model cannot be loaded"):
        load_model(folder)
