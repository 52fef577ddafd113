"""What the source may not do: unpickle, evaluate text, build objects from YAML, run a shell, trust a model's code."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for part in ("lbr_st", "recipes", "eval") for path in (ROOT / part).rglob("*.py"))

MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "code",
    "codeop",
    "runpy",
}
"""Never imported."""

CALLS = {
    "eval": "evaluates text",
    "exec": "runs text",
    "compile": "compiles text",
    "__import__": "imports by name",
    "torch.load": "unpickles",
    "torch.save": "pickles",
    "torch.jit.load": "loads code",
    "torch.hub.load": "runs code from the network",
    "np.save": "pickles objects unless told otherwise",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
    "subprocess.getoutput": "runs a shell",
    "subprocess.getstatusoutput": "runs a shell",
    "pd.read_pickle": "unpickles",
    "yaml.load": "may build objects",
    "yaml.load_all": "may build objects",
    "yaml.unsafe_load": "builds objects",
    "yaml.full_load": "builds objects",
    "tarfile.open": "is not how archives are unpacked here",
    "shutil.unpack_archive": "is not how archives are unpacked here",
}

ALLOWED = {
    # Embeddings, a plain array of floats, go between two processes through a file of ours.
    ("lbr_st/publish/export_worker.py", "np.save"),
    # The scheduler's state as transformers writes it; it is read with weights_only.
    ("lbr_st/training/trainer.py", "torch.save"),
}

IMPORTS_BY_NAME = {
    "lbr_st/__init__.py": "the package's own names",
    "lbr_st/evaluation/mteb_task.py": "extras, by names in the source",
    "lbr_st/publish/export.py": "modules of Python's own library, by names in the source",
    "lbr_st/publish/export_worker.py": "backends, by names in the source",
}
"""Where ``import_module`` is called; a name out of a file is never among what it is given."""

RUNS_A_FILE = {"lbr_st/publish/leaderboard.py": "runs the file for MTEB that it has itself written, to prove it"}


def name_of(node):
    """Return a dotted name as it stands in the source; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}".lstrip(".")
    return ""


def keyword(call, name):
    return next((word.value for word in call.keywords if word.arg == name), None)


def is_true(node):
    return isinstance(node, ast.Constant) and node.value is True


def faults(source, path="x.py"):
    """Return what is wrong in a module's source, each with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, f"imports {n.name}") for n in node.names if n.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append((node.lineno, f"imports {node.module}"))
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code" and is_true(value):
                    found.append((node.lineno, "trusts a model's code"))
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            if name in CALLS and (path, name) not in ALLOWED:
                found.append((node.lineno, f"{name} {CALLS[name]}"))
            if is_true(keyword(node, "shell")):
                found.append((node.lineno, "runs a shell"))
            if is_true(keyword(node, "trust_remote_code")):
                found.append((node.lineno, "trusts a model's code"))
            if is_true(keyword(node, "allow_pickle")) or (
                name.endswith(".load") and keyword(node, "allow_pickle") is not None
            ):
                found.append((node.lineno, "unpickles an array"))
            if name.endswith("import_module") and path not in IMPORTS_BY_NAME:
                found.append((node.lineno, "imports by name"))
            if name.endswith(("exec_module", "spec_from_file_location")) and path not in RUNS_A_FILE:
                found.append((node.lineno, "runs a file"))
            if name == "yaml.compose" and name_of(keyword(node, "Loader") or ast.Constant(0)) != "yaml.SafeLoader":
                found.append((node.lineno, "composes with another loader than SafeLoader"))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_source_runs_and_unpickles_nothing(path):
    assert faults(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "def f():\n    from dill import load",
        "eval('1')",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "torch.save(x, path)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=flag)",
        "np.lib.np.load(path, allow_pickle=flag)",
        "np.save(path, objects)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.compose(text)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, **{'trust_remote_code': True})",
        "importlib.import_module(name)",
        "spec.loader.exec_module(module)",
    ],
)
def test_the_scan_sees_what_it_is_for(source):
    assert faults(source)


def test_the_exceptions_are_still_needed():
    for path in {*IMPORTS_BY_NAME, *RUNS_A_FILE, *(path for path, _ in ALLOWED)}:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(r"import_module|exec_module|np\.save|torch\.save", source), path


def test_recipes_and_evaluations_at_the_top_level_are_in_the_scan():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == {"lbr_st", "recipes", "eval"}


def test_a_run_opens_no_pickle(tiny_base, tmp_path):
    """Not even a library's: with every unpickler broken, a base is built, saved, loaded, released and encoded with."""
    script = f"""
import builtins, os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
from sentence_transformers import SentenceTransformer
import torch
import lbr_st
def refuse(*args, **kwargs):
    raise SystemExit("something is unpickled")
torch.load = refuse
torch.serialization.load = refuse
for options in ({{"lora_rank": 2}}, {{}}):
    folder = {str(tmp_path)!r} + "/" + ("lora" if options else "full")
    model = lbr_st.build_model({tiny_base("llama")!r}, projection_dim=8, **options)
    model.save_pretrained(folder, create_model_card=False)
    lbr_st.release(lbr_st.load_model(folder), folder + "-released")
    print(SentenceTransformer(folder + "-released", device="cpu").encode(["an acid"]).shape)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["(1, 8)", "(1, 8)"]
