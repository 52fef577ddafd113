"""Export or encode with a release, in an environment without lbr_st: ``python -I export_worker.py REQUEST.json``.

The request says what to "do" ("versions", "encode" or "export"), the "backend", the file for the "answer", and what the
function of that name reads. Where there is no answer, the traceback on standard error says why.
"""

from __future__ import annotations

import importlib
import json
import platform
import shutil
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = {
    "torch": (),
    "openvino": ("optimum", "optimum-intel", "openvino", "nncf"),
    "onnx": ("optimum", "optimum-onnx", "onnx", "onnxruntime"),
}
"""What a backend needs next to Sentence Transformers."""

IMPORTS = {"torch": (), "openvino": ("optimum.intel.openvino", "nncf"), "onnx": ("optimum.onnxruntime", "onnx")}

LOADING: dict[str, dict[str, Any]] = {
    # Without it OpenVINO computes in bfloat16 wherever the processor can.
    "openvino": {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}},
    # Sentence Transformers takes the first provider that onnxruntime lists, and that need not be the processor.
    "onnx": {"provider": "CPUExecutionProvider"},
}
"""Arguments that a finished folder is loaded with, written into it so that nobody has to give them."""

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")

LAST_PRODUCTS = ("down_proj", "dense_4h_to_h")
"""Names of the last product of a feed-forward block: in Llama, Mistral, Qwen and Gemma, and in GPT-NeoX."""

POOLING_MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
"""Ends of the keys that say how Sentence Transformers before 6, TEI, vLLM and llama.cpp pool."""


def versions(request: dict[str, Any]) -> dict[str, Any]:
    """Return package → version; fails where the backend cannot be imported."""
    for module in ("sentence_transformers", *IMPORTS[request["backend"]]):
        importlib.import_module(module)
    found = {"python": platform.python_version()}
    for package in ("torch", "sentence-transformers", "transformers", *PACKAGES[request["backend"]]):
        with suppress(PackageNotFoundError):  # a build of another name, such as onnxruntime-openvino, imports as well
            found[package] = version(package)
    return found


def encode(request: dict[str, Any]) -> dict[str, Any]:
    """Encode "texts" as queries, then as documents; write [2 × texts, dimension] in float32 to "embeddings".

    With the backend "torch", "model" is a release, and "work" gets a copy that suits these versions. Otherwise it is an
    export, loaded without further arguments.
    """
    model_folder = Path(request["model"])
    if request["backend"] == "torch":
        model_folder = copy_release(model_folder, Path(request["work"]) / "release", weights=True)
    model = load(model_folder, request["backend"])
    ways, options = (model.encode_query, model.encode_document), {"batch_size": request["batch_size"]}
    rows = [way(request["texts"], show_progress_bar=False, **options) for way in ways]
    np.save(request["embeddings"], np.concatenate(rows).astype(np.float32))
    if request["backend"] != "openvino":
        return {"computes_in": "float32"}
    model.transformers_model.compile()
    return {"computes_in": str(model.transformers_model.request.get_property("INFERENCE_PRECISION_HINT").to_string())}


def export(request: dict[str, Any]) -> dict[str, Any]:
    """Write the release "model" into the empty folder "output", in "precision"; "work" is for what is in between."""
    release, output, work = (Path(request[key]) for key in ("model", "output", "work"))
    copy_release(release, output, weights=False)
    source = copy_release(release, work / "release", weights=True)
    to_backend = {"openvino": to_openvino, "onnx": to_onnx}[request["backend"]]
    to_backend(source, output, work, int8=request["precision"] == "int8", calibration=request["calibration"])
    edit(output / "sentence_bert_config.json", lambda found: {**found, "model_kwargs": LOADING[request["backend"]]})
    return {}


def load(folder: Path, backend: str, **model_kwargs: Any) -> Any:
    """Load a folder on the processor, never asking a hub."""
    from sentence_transformers import SentenceTransformer

    options: dict[str, Any] = {"device": "cpu", "backend": backend, "local_files_only": True}
    return SentenceTransformer(str(folder), model_kwargs=model_kwargs or None, **options)


def copy_release(release: Path, target: Path, *, weights: bool) -> Path:
    """Copy a release into ``target`` in float32, as all versions read it, weights linked or left out; no card."""
    target.mkdir(parents=True, exist_ok=True)
    for item in release.iterdir():
        if item.name in ("openvino", "onnx") or item.name.startswith("."):  # earlier exports, version control
            continue
        heavy = any(item.match(pattern) for pattern in WEIGHTS)
        if item.is_dir():
            shutil.copytree(item, target / item.name)
        elif heavy and weights:
            (target / item.name).symlink_to(item.resolve())
        elif not heavy and item.name != "README.md":
            shutil.copyfile(item, target / item.name)
    edit(target / "config.json", lambda config: {**config, "dtype": "float32"})
    write_for_all_versions(target)
    return target


def edit(path: Path, change: Any) -> None:
    """Change a JSON file's content."""
    content = change(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_for_all_versions(folder: Path) -> None:
    """Rewrite a release's JSON so that Sentence Transformers from 3.4 and transformers from 4.57 read it, too.

    Newer versions read their predecessors' names, not the other way round. A rotary base that is not found is silently
    taken to be 10,000. Servers, such as TEI and vLLM, read the older names as well.
    """
    edit(folder / "config.json", with_older_rope)
    # The class only reads tokenizer.json; version 5 knows it under this name as well.
    edit(folder / "tokenizer_config.json", lambda found: {**found, "tokenizer_class": "PreTrainedTokenizerFast"})
    keys = (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length"))
    sizes = [json.loads((folder / file).read_text(encoding="utf-8")).get(key) for file, key in keys]
    longest = min((size for size in sizes if size), default=None)
    edit(folder / "sentence_bert_config.json", lambda _: {"max_seq_length": longest, "do_lower_case": False})
    named = "sentence_transformers.models."
    edit(folder / "modules.json", lambda found: [{**m, "type": named + m["type"].rpartition(".")[2]} for m in found])
    for kind, older in (("Pooling", older_pooling), ("Dense", older_dense)):
        for path in folder.glob(f"*_{kind}/config.json"):
            edit(path, older)


def older_pooling(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of last-token pooling with one key a mode."""
    size = config.get("embedding_dimension") or config["word_embedding_dimension"]
    modes = {f"pooling_mode_{mode}": mode == "lasttoken" for mode in POOLING_MODES}
    return {"word_embedding_dimension": size, **modes, "include_prompt": True}


def older_dense(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a layer without the names of what it reads and writes, which were fixed."""
    return {key: value for key, value in config.items() if not key.startswith("module_")}


def with_older_rope(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config that also names the rotary base as transformers 4 does, which ignores rope_parameters."""
    rope = config.get("rope_parameters")
    if not rope:
        return config
    config = dict(config)
    if "full_attention" in rope:  # Gemma 3: one for each kind of layer
        local = rope.get("sliding_attention", {})
        config["rope_local_base_freq"] = local.get("rope_theta", rope["full_attention"]["rope_theta"])
        rope = rope["full_attention"]
    config["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if config["model_type"] == "gpt_neox":
        config["rotary_emb_base"] = rope["rope_theta"]
        config["rotary_pct"] = rope.get("partial_rotary_factor", 1.0)
    return config


def to_openvino(source: Path, output: Path, work: Path, *, int8: bool, calibration: list[str]) -> None:
    """Export to the file that is loaded by default."""
    import openvino

    # optimum compresses weights to int8 unasked from a billion parameters on.
    model = load(source, "openvino", export=True, compile=False, load_in_8bit=False)
    inner = model.transformers_model
    count_positions_openvino(inner.model)
    if int8:
        quantize_openvino(model, calibration, work / "int8")
        (work / "int8" / "openvino").rename(output / "openvino")
        return
    (output / "openvino").mkdir()
    openvino.save_model(inner.model, output / "openvino" / "openvino_model.xml", compress_to_fp16=False)


def count_positions_openvino(graph: Any) -> None:
    """Compute positions inside the graph: 0, 1, 2, … as in torch.

    optimum exports decoders with an input ``position_ids`` that its own encoder never feeds.
    """
    from openvino import opset13 as ops

    inputs = {name: node for node in graph.get_parameters() for name in node.output(0).get_names()}
    given = inputs.get("position_ids")
    if given is None:
        return
    zero, one = (ops.constant(number, dtype=np.int64) for number in (0, 1))
    shape = ops.shape_of(inputs["input_ids"])
    counted = ops.range(zero, ops.gather(shape, one, zero), one, output_type="i64")
    given.output(0).replace(ops.broadcast(counted, shape).output(0))
    graph.remove_parameter(given)
    graph.validate_nodes_and_infer_types()


def quantize_openvino(model: Any, calibration: list[str], target: Path) -> None:
    """Write ``target/openvino`` in int8, weights and activations, whose scales come from running the calibration.

    Fixed scales do not suit the last product of each block, where single tokens are a thousand times the rest. It gets
    int8 weights alone, and its input is scaled as it comes.
    """
    import nncf
    import optimum.intel.openvino as ov

    prompts = [model.prompts.get(name) or "" for name in ("query", "document")]
    preprocess = getattr(model, "preprocess", None) or model.tokenize  # the name before Sentence Transformers 6
    names = {name for node in model.transformers_model.model.inputs for name in node.get_names()}
    texts = (preprocess([prompts[number % 2] + text]) for number, text in enumerate(calibration))
    samples = [{name: features[name].numpy() for name in names if name in features} for features in texts]
    last = f".*({'|'.join(LAST_PRODUCTS)}).*"
    but_last, only_last = ({"patterns": [pattern], "validate": False} for pattern in (f"^(?!{last}).*$", last))
    config = ov.OVMixedQuantizationConfig(
        weight_quantization_config=ov.OVWeightQuantizationConfig(bits=8, ignored_scope=but_last),
        full_quantization_config=ov.OVQuantizationConfig(num_samples=len(samples), ignored_scope=only_last),
        num_samples=len(samples),
    )
    quantizer = ov.OVQuantizer.from_pretrained(model.transformers_model)
    quantizer.quantize(nncf.Dataset(samples), save_directory=target, ov_config=ov.OVConfig(quantization_config=config))


def to_onnx(source: Path, output: Path, work: Path, *, int8: bool, calibration: list[str]) -> None:
    """Export to the file that is loaded by default; int8 needs no calibration here."""
    import onnx
    from optimum.onnxruntime.configuration import AutoQuantizationConfig
    from sentence_transformers.backend import export_dynamic_quantized_onnx_model

    exported = load(source, "onnx", export=True, **LOADING["onnx"])
    exported.transformers_model.save_pretrained(work / "exported")  # Sentence Transformers puts it below onnx/
    plain = copy_release(source, work / "float32", weights=False) if int8 else output
    (work / "exported" / "onnx").rename(plain / "onnx")
    count_positions_onnx(plain / "onnx" / "model.onnx")
    if not int8:
        return
    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    # As with OpenVINO, the last products are what int8 spoils; here they stay as they are.
    products = onnx.load(plain / "onnx" / "model.onnx", load_external_data=False).graph.node
    config.nodes_to_exclude = [node.name for node in products if any(name in node.name for name in LAST_PRODUCTS)]
    model = load(plain, "onnx", **LOADING["onnx"])
    export_dynamic_quantized_onnx_model(model, config, str(output), file_suffix="int8")
    (output / "onnx" / "model_int8.onnx").rename(output / "onnx" / "model.onnx")


def count_positions_onnx(path: Path) -> None:
    """Compute positions inside the graph, as for OpenVINO."""
    import onnx
    from onnx import helper

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    given = next((item for item in graph.input if item.name == "position_ids"), None)
    if given is None:
        return
    graph.input.remove(given)
    for number, name in enumerate(("lbr_zero", "lbr_one")):
        graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.INT64, [], [number]))
    nodes = (
        ("Shape", ["input_ids"], "lbr_shape"),
        ("Gather", ["lbr_shape", "lbr_one"], "lbr_length"),
        ("Range", ["lbr_zero", "lbr_length", "lbr_one"], "lbr_counted"),
        ("Expand", ["lbr_counted", "lbr_shape"], "position_ids"),
    )
    for index, (kind, inputs, output) in enumerate(nodes):
        graph.node.insert(index, helper.make_node(kind, inputs, [output]))
    onnx.save(model, path)


def main() -> None:
    """Do what the request says and write the answer."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answer = {"versions": versions, "encode": encode, "export": export}[request["do"]](request)
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
