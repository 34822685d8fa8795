"""The examples run and keep what they promise, and the notebook tells what it did."""

from __future__ import annotations

import ast
import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import nbformat
import nibabel
import numpy as np
import pytest
import yaml

from repro_callbacks.command.demo.brain import load_brain

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
NOTEBOOKS = ROOT / "notebooks"


def run(script: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def digest(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return re.findall(r"^digest of the final weights: (\w{32})$", result.stdout, re.MULTILINE)[-1]


@pytest.fixture(scope="module")
def run_all():
    specification = importlib.util.spec_from_file_location("run_all", EXAMPLES / "run_all.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOKS / "medical_imaging.ipynb", as_version=4)


class TestRunAll:
    def test_leaves_no_example_out(self, run_all):
        listed = {*run_all.GROUPS, *run_all.NOT_HERE, "run_all.py", "README.md"}
        found = {path.name for path in EXAMPLES.iterdir() if path.name not in {"__pycache__", "outputs"}}
        assert found - listed == set()

    def test_every_example_is_in_the_readme(self):
        text = (EXAMPLES / "README.md").read_text()
        scripts = [path.name for path in EXAMPLES.glob("*.py") if path.name != "run_all.py"]
        assert [name for name in scripts if f"]({name})" not in text] == []

    # `make examples` runs them all under their circumstances, and CI runs that; what it looks at is tested here.

    @pytest.mark.parametrize(
        ("digests", "code", "said"),
        [
            (["one", "one", None], 0, "the same bits"),
            (["one", "other"], 1, "DIFFERENT BITS: ['one', 'other']"),
            (["one", None], 1, "NOTHING TO COMPARE: 1 of 2 runs have printed a digest"),
        ],
    )
    def test_different_bits_are_a_failure(self, run_all, monkeypatch, capsys, digests, code, said):
        monkeypatch.setattr(run_all, "run", lambda command, folder: command[0])
        monkeypatch.setattr(run_all, "GROUPS", {"group": [[digest] for digest in digests]})
        assert run_all.main() == code
        assert said in capsys.readouterr().out

    @pytest.mark.slow
    def test_another_seed_gives_other_bits(self, run_all, tmp_path):
        """The control: a digest that never changes would keep every promise."""
        cli = run_all.GROUPS["lightning_cli"][0]
        assert run_all.run(cli, tmp_path) != run_all.run([*cli, "--seed_everything", "1"], tmp_path)

    def test_an_example_that_fails_is_an_error(self, run_all, tmp_path):
        with pytest.raises(RuntimeError, match=r"no_such_example\.py ended with exit code 2"):
            run_all.run(["no_such_example.py"], tmp_path)


class TestDecathlon:
    """The example is not run on the real task, which is a download, but on a small folder of the same layout."""

    @pytest.fixture
    def root(self, tmp_path):
        """Ten corners of the brain of the size of a hippocampus, stored as the Decathlon stores its tasks."""
        task = tmp_path / "data" / "Task04_Hippocampus"
        back, _ = load_brain()
        image, label = back["image"][0].numpy(), back["label"][0].numpy()
        entries = []
        for number in range(10):
            corner = tuple(slice(2 * number, 2 * number + size) for size in (35, 30, 36))
            for folder, values in (("imagesTr", image * 1000), ("labelsTr", label)):
                path = task / folder / f"hippocampus_{number:03d}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                kind = np.float32 if folder == "imagesTr" else np.uint8
                nibabel.save(nibabel.Nifti1Image(values[corner].astype(kind), np.eye(4)), path)
            names = [f"./{folder}/hippocampus_{number:03d}.nii.gz" for folder in ("imagesTr", "labelsTr")]
            entries.append(dict(zip(("image", "label"), names, strict=True)))
        description = {
            "name": "Hippocampus",
            "description": "a stand-in",
            "reference": "none",
            "licence": "none",
            "tensorImageSize": "3D",
            "modality": {"0": "MRI"},
            "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
            "numTraining": 10,
            "numTest": 0,
            "training": entries,
            "test": [],
        }
        (task / "dataset.json").write_text(json.dumps(description))
        return task.parent

    @pytest.mark.slow
    def test_same_bits_with_any_number_of_workers(self, root, tmp_path):
        common = ("--root", root, "--epochs", 2)
        digests = [digest(run(EXAMPLES / "decathlon.py", *common, "--num-workers", n, cwd=tmp_path)) for n in (0, 2)]
        assert digests[0] == digests[1]

    @pytest.mark.slow
    def test_says_that_the_task_is_not_there(self, tmp_path):
        result = run(EXAMPLES / "decathlon.py", "--root", tmp_path / "empty", cwd=tmp_path)
        assert result.returncode != 0
        assert "please use download=True to download it" in result.stderr


class TestLightningCLI:
    def test_configuration_names_the_callback_by_its_public_path(self):
        configuration = yaml.safe_load((EXAMPLES / "lightning_cli" / "config.yaml").read_text())
        paths = [callback["class_path"] for callback in configuration["trainer"]["callbacks"]]
        assert paths[0] == "repro_callbacks.Determinism"
        assert configuration["seed_everything"] == 3407


def pycharm_templates() -> dict[str, str]:
    """Expand every live template as PyCharm does: variables by their defaults, $END$ is the cursor."""
    templates = {}
    for template in ET.parse(EXAMPLES / "editors" / "repro_callbacks.xml").getroot().iter("template"):
        text = template.get("value").replace("$END$", "")
        for variable in template.iter("variable"):
            text = text.replace(f"${variable.get('name')}$", variable.get("defaultValue").strip('"'))
        assert template.find("context/option[@name='Python']").get("value") == "true"
        templates[template.get("name")] = text
    return templates


def vscode_snippets() -> dict[str, str]:
    """Expand every snippet as VS Code does: placeholders by their defaults, $0 is the cursor."""
    snippets = json.loads((EXAMPLES / "editors" / "repro_callbacks.code-snippets").read_text())
    assert all(snippet["scope"] == "python" for snippet in snippets.values())
    return {
        snippet["prefix"]: re.sub(r"\$\{\d+:([^}]*)\}", r"\1", "\n".join(snippet["body"])).replace("$0", "")
        for snippet in snippets.values()
    }


class TestEditors:
    @pytest.mark.parametrize("expand", [pycharm_templates, vscode_snippets])
    def test_what_is_typed_is_python_without_a_variable_left(self, expand):
        for text in expand().values():
            assert "$" not in text
            ast.parse(text)

    def test_both_editors_type_the_same(self):
        pycharm, vscode = pycharm_templates(), vscode_snippets()
        assert {name: text.strip() for name, text in pycharm.items()} == {
            name: text.strip() for name, text in vscode.items()
        }

    def test_the_two_lines_work_and_the_first_comes_before_the_model(self):
        from repro_callbacks import Determinism, get_seed
        from repro_callbacks.determinism import preserved

        text = pycharm_templates()["repro"]
        assert text.index("set_determinism(seed=") < text.index("model = ...") < text.index("Determinism(seed=")
        names: dict[str, object] = {}
        with preserved():
            exec(text, names)
            assert get_seed() == 3407
        callback = next(item for item in names["trainer"].callbacks if isinstance(item, Determinism))
        assert callback.seed == 3407

    def test_every_public_name_that_is_typed_exists(self):
        import repro_callbacks

        for text in pycharm_templates().values():
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom):
                    assert node.module == "repro_callbacks"
                    assert {alias.name for alias in node.names} <= set(repro_callbacks.__all__)


class TestNotebook:
    def outputs(self, notebook):
        return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]

    def test_is_committed_with_its_outputs(self, notebook):
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        pictures = [output for output in self.outputs(notebook) if "image/png" in output.get("data", {})]
        assert len(pictures) >= 4
        assert all(len(base64.b64decode(picture.data["image/png"])) > 2000 for picture in pictures)

    def test_outputs_hold_no_failure(self, notebook):
        assert [output for output in self.outputs(notebook) if output.output_type == "error"] == []
        assert [output.text for output in self.outputs(notebook) if "Traceback" in output.get("text", "")] == []

    def test_outputs_name_no_path_of_a_machine(self, notebook):
        text = json.dumps([{**output, "data": {}} for output in self.outputs(notebook)])
        assert re.findall(r"(?<![\w.>~])/(?:home|root|work|tmp|usr|opt|Users|var)/\S*", text) == []

    def test_committed_digests_tell_the_story(self, notebook):
        usual, ours = (
            re.findall(r"weights (\w{12})", cell.outputs[0].text)
            for cell in notebook.cells
            if cell.cell_type == "code"
            and cell.outputs
            and "validated half as often" in cell.outputs[0].get("text", "")
        )
        assert len(set(usual)) == 3
        assert len(set(ours)) == 1


class TestExecute:
    def write(self, path: Path, *sources: str) -> Path:
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path

    @pytest.mark.slow
    def test_a_failing_cell_fails_the_run_and_writes_nothing(self, tmp_path):
        path = self.write(tmp_path / "broken.ipynb", "print(1)", "raise ValueError('wrong')")
        before = path.read_bytes()
        result = run(NOTEBOOKS / "execute.py", "--write", path, cwd=tmp_path)
        assert result.returncode == 1
        assert "ValueError: wrong" in result.stdout
        assert path.read_bytes() == before

    @pytest.mark.slow
    def test_writes_only_when_asked_and_scrubs_paths_and_times(self, tmp_path):
        source = "import sys, tempfile; print(sys.prefix + '/lib', tempfile.gettempdir() + '/abc/d', 'took 12.5 s')"
        path = self.write(tmp_path / "good.ipynb", source)
        before = path.read_bytes()
        assert run(NOTEBOOKS / "execute.py", path, cwd=tmp_path).returncode == 0
        assert path.read_bytes() == before
        assert run(NOTEBOOKS / "execute.py", "--write", path, cwd=tmp_path).returncode == 0
        [cell] = nbformat.read(path, as_version=4).cells
        assert cell.outputs[0].text == "<environment>/lib <temporary> took … s\n"
