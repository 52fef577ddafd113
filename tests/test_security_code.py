"""What the source may not do: unpickle, evaluate text, build objects from YAML, run a shell, trust a model's code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for part in ("lbr_st", "recipes", "eval") for path in (ROOT / part).rglob("*.py"))

NEVER_IMPORTED = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"),
    *("code", "codeop", "runpy"),
}

NEVER_CALLED = {
    *("eval", "exec", "compile", "__import__"),
    *("torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "np.save", "pd.read_pickle"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.compose"),
    *("tarfile.open", "shutil.unpack_archive"),
    *("importlib.import_module", "import_module", "spec.loader.exec_module", "importlib.util.spec_from_file_location"),
}

NEVER_TRUE = {"shell", "trust_remote_code", "allow_pickle"}

ALLOWED = {
    ("lbr_st/publish/export_worker.py", "np.save"): "a plain array of floats goes from one of our processes to another",
    ("lbr_st/training/trainer.py", "torch.save"): "a scheduler's state, as transformers writes it",
    ("lbr_st/publish/export_worker.py", "importlib.import_module"): "backends, by names in the source",
    ("lbr_st/publish/export.py", "importlib.import_module"): "Python's own library, by names in the source",
    ("lbr_st/files.py", "import_module"): "extras, by names in the source",
    ("lbr_st/__init__.py", "import_module"): "the package's own names",
    ("lbr_st/domains/archives.py", "tarfile.open"): "members are read and compared with their hashes, never extracted",
    ("lbr_st/publish/leaderboard.py", "runpy"): "the file for MTEB that it has itself written",
}


def faults(source):
    """Return what is wrong in a module's source."""
    found = []
    for node in ast.walk(ast.parse(source)):
        pairs = []
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in NEVER_IMPORTED]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in NEVER_IMPORTED:
            found.append(node.module)
        elif isinstance(node, ast.Dict):
            keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
            pairs = list(zip(keys, node.values, strict=True))
        elif isinstance(node, ast.Call):
            pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
            if (name := ast.unparse(node.func)) in NEVER_CALLED:
                found.append(name)
        for name, value in pairs:
            # allow_pickle=flag may be true as well.
            harmless = isinstance(value, ast.Constant) and value.value is not True
            if name in NEVER_TRUE and not harmless:
                found.append(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_source_runs_and_unpickles_nothing(path):
    own = path.relative_to(ROOT).as_posix()
    assert {(own, fault) for fault in faults(path.read_text(encoding="utf-8"))} == {
        allowed for allowed in ALLOWED if allowed[0] == own
    }


@pytest.mark.parametrize(
    "source",
    [
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "def f():\n    from dill import load",
        "eval('1')",
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=flag)",
        "subprocess.run(command, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, **{'trust_remote_code': True})",
    ],
)
def test_the_scan_sees_what_it_is_for(source):
    assert faults(source)


@pytest.mark.slow
def test_a_run_opens_no_pickle(tiny_base, tmp_path):
    """Not even a library's: with every unpickler broken, a base is built, saved, loaded, released and encoded with."""
    script = f"""
import os
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
