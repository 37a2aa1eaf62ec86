"The code of the package itself: nothing that could run what a file says"

import ast
from pathlib import Path

import pytest

import ddrobust_nb

MODULES = sorted(Path(ddrobust_nb.__file__).parent.rglob("*.py"))
RUNS_CODE = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
}
LOADERS_WITH_A_SWITCH = {
    "torch.load": "weights_only",
    "np.load": "allow_pickle",
    "numpy.load": "allow_pickle",
}
OWN_CODE = {
    "results/methods.py": ": exec"
}  # `-p methods FILE` runs a file that the caller wrote, and says so
SAFE = {"weights_only": True, "allow_pickle": False}


def calls(source):
    "Each call with the name of its function as it is written"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def imported(source):
    "The top-level modules that a source imports"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0]


def faults(source):
    "What in a source could run a file of others"
    found = [f"import of {name}" for name in imported(source) if name in RUNS_CODE]
    for call, name in calls(source):
        switch = LOADERS_WITH_A_SWITCH.get(name)
        given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
        if switch and given.get(switch) is not SAFE[switch]:
            found.append(f"line {call.lineno}: {name} without {switch}={SAFE[switch]}")
        if name.split(".")[-1] in ("read_pickle", "Unpickler", "loads") and name.split(".")[0] in (
            "pd",
            "pickle",
        ):
            found.append(f"line {call.lineno}: {name}")
        if name in ("eval", "exec", "__import__", "os.system", "os.popen"):
            found.append(f"line {call.lineno}: {name}")
        if name.startswith("yaml.") and name != "yaml.safe_load":
            found.append(f"line {call.lineno}: {name}")
        if any(keyword.arg == "shell" and getattr(keyword.value, "value", True) for keyword in call.keywords):
            found.append(f"line {call.lineno}: {name} with a shell")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_module_can_run_what_a_file_says(path):
    allowed = OWN_CODE.get(f"{path.parent.name}/{path.name}", "nothing")
    assert not [fault for fault in faults(path.read_text(encoding="utf-8")) if not fault.endswith(allowed)]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "eval(text)",
        "exec(text)",
        "yaml.load(text)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    assert faults(source)
    assert not faults(
        "import pickletools\ntorch.load(p, weights_only=True)\nnp.load(p, allow_pickle=False)\nnet.eval()"
    )


def test_json_is_parsed_in_one_place():
    "Other pages ask `read_json` and `parse_json`, so that all limits hold everywhere"
    allowed = {
        "foundations/outside.py",
        "training/protocols.py",
    }  # The latter reads the presets of the package
    found = set()
    for path in MODULES:
        names = {name for _, name in calls(path.read_text(encoding="utf-8"))}
        if names & {"json.load", "json.loads", "pd.read_json"}:
            found.add(f"{path.parent.name}/{path.name}")
    assert found <= allowed
