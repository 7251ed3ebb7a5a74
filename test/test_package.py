"""The description of the package: setup.py, package.xml and the installed files agree."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

import pytest

import raymap3r_ros

# The key of package.xml that provides an import of another name; None: from pip only.
KEYS = {
    "tf2_ros": "tf2_ros_py",  # the key tf2_ros is the C++ library
    "numpy": "python3-numpy",
    "cv2": "python3-opencv",
    "PIL": "python3-pil",
    "tqdm": "python3-tqdm",
    "scipy": "python3-scipy",
    "matplotlib": "python3-matplotlib",
    "yaml": "python3-yaml",
    "pytest": "python3-pytest",
    "evo": None,
    "torch": None,
    "safetensors": None,
    "rosbags": None,
    "lz4": None,  # a dependency of rosbags
    "rerun": None,
    "gdown": None,
    "huggingface_hub": None,
    "onnxruntime": None,
    "av": None,
    "pyarrow": None,
    "pandas": None,  # a dependency of evo
    "pycolmap": None,
    "trimesh": None,
    "mcap": None,
    "ray": None,
    "fsspec": None,
    "moto": None,
    "s3fs": None,
    "raymap3r_pip_ros": None,  # of pip_ros/, in environments without a ROS distribution
}
NOT_IMPORTED = {"ros2launch"}  # keys of what is needed without an import: the command `ros2 launch`
IMPORTERS = ("optional_module", "batch_module", "importorskip")  # functions that import the module that they are given
# Names on PyPI that differ from the import.
DISTRIBUTIONS = {
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "yaml": "pyyaml",
}


@pytest.fixture(scope="module")
def description(root):
    return ElementTree.parse(root / "package.xml").getroot()


def imports(files):
    """The top-level names of all absolute imports, without the standard library and the package itself."""
    names = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(), file)):
            if isinstance(node, ast.Import):
                names.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in IMPORTERS:
                names.add(ast.literal_eval(node.args[0]).partition(".")[0])
    return names - sys.stdlib_module_names - {"raymap3r_ros"}


def test_one_version(description):
    assert raymap3r_ros.__version__ == description.findtext("version") == importlib.metadata.version("raymap3r_ros")


def test_package_xml_is_of_an_ament_python_package(description, root):
    assert description.get("format") == "3" and description.findtext("name") == "raymap3r_ros"
    assert description.findtext("export/build_type") == "ament_python"
    license_tag = description.find("license")
    assert license_tag.text == "Apache-2.0" and (root / license_tag.get("file")).is_file()


def keys_of(names):
    return {KEYS.get(name, name) for name in names} - {None}


def test_keys_of_package_xml_are_what_is_imported(description, root):
    used = imports([*(root / "raymap3r_ros").rglob("*.py"), *(root / "launch").glob("*.launch.py")])
    keys = {tag: [item.text for item in description.iter(tag)] for tag in ("exec_depend", "test_depend")}
    assert set(keys["exec_depend"]) == keys_of(used) | NOT_IMPORTED
    assert {tag.tag for tag in description if "depend" in tag.tag} == keys.keys()

    tests = [*(root / "test").rglob("*.py"), *(root / "examples").glob("*.py"), *(root / "benchmarks").glob("*.py")]
    ours = {file.stem for file in tests}
    assert set(keys["test_depend"]) == keys_of(imports(tests) - ours) - set(keys["exec_depend"])
    assert all(len(names) == len(set(names)) for names in keys.values()), "a key is declared twice"


def test_imports_from_pip_are_in_setup_py(root):
    used = imports([*(root / "raymap3r_ros").rglob("*.py"), *(root / "launch").glob("*.launch.py")])
    from_pip = {name for name in used if (KEYS.get(name, name) or "python3-").startswith("python3-")}
    requirements = {re.match(r"[\w.-]+", item)[0] for item in importlib.metadata.requires("raymap3r_ros")}
    missing = {DISTRIBUTIONS.get(name, name) for name in from_pip} - requirements
    assert not missing, f"imported, but not in setup.py: {sorted(missing)}"


def test_commands_are_installed():
    scripts = importlib.metadata.entry_points(group="console_scripts")
    values = {script.name: script.value for script in scripts if script.value.startswith("raymap3r_ros")}
    assert values == {"raymap3r": "raymap3r_ros.cli:main", "stream": "raymap3r_ros.node.__main__:main"}


def test_modules_of_the_tests_have_unique_names(root):
    """The pytest plugin of launch_testing, part of a ROS installation, imports test files by name, without folders."""
    ours = [file for file in (root / "test").rglob("*.py") if file.stem not in ("conftest", "__init__")]
    folders = defaultdict(list)
    for file in ours:
        folders[file.name].append(str(file.parent.relative_to(root)))
    assert not {name: found for name, found in folders.items() if len(found) > 1}, "give each file a name of its own"
    assert not {file.stem for file in ours} & sys.stdlib_module_names


def test_warnings_are_seen_beside_the_plugins_of_launch(root, tmp_path):
    """launch, imported by its pytest plugins, creates loggers that do not propagate."""
    (tmp_path / "quiet_plugin.py").write_text(
        "import logging\n"
        "class Quiet(logging.Logger):\n"
        "    def __init__(self, *args):\n"
        "        super().__init__(*args)\n"
        "        self.propagate = False\n"
        "logging.setLoggerClass(Quiet)\n"
    )
    test = "test/geometry/test_calibration.py::test_unknown_model_is_reported_and_not_corrected"
    command = [sys.executable, "-m", "pytest", "-p", "quiet_plugin", "-p", "no:cacheprovider", test]
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    # Without the options of colcon, which may name this file and would start it again and again.
    environment = {**os.environ, "PYTHONPATH": path, "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout


def test_share_is_installed(root):
    packages = pytest.importorskip("ament_index_python.packages", reason="this environment has no ROS")
    share = Path(packages.get_package_share_directory("raymap3r_ros"))
    files = [root / "package.xml", *(root / "launch").glob("*.launch.py"), *(root / "config").glob("*")]
    for file in files:
        assert (share / file.relative_to(root)).read_bytes() == file.read_bytes()


def test_the_clip_of_the_demo_is_installed(root):
    """Compared with the checkout: images, depth maps, lists and the notice of their licence."""
    place = Path("clients", "office_clip")
    files = {path.relative_to(root / "raymap3r_ros") for path in (root / "raymap3r_ros" / place).rglob("*.*")}
    assert len(files) == 2 * 79 + 6 and place / "NOTICE.md" in files
    installed = Path(raymap3r_ros.__file__).parent
    for file in files:
        assert (installed / file).read_bytes() == (root / "raymap3r_ros" / file).read_bytes()
