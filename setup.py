"""Package description for colcon (ament_python) and for pip."""

import re
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

NAME = "raymap3r_ros"
EVALUATION = ["evo", "scipy", "matplotlib"]  # only `raymap3r evaluate` needs these
EXPORT = ["av>=15", "pyarrow>=14"]  # only `raymap3r export RESULTS lerobot` needs these
READERS = ["mcap>=1.1", "pycolmap>=4.0", "trimesh>=4.0"]  # of exports, independent ones
ONNX = ["onnx>=1.16", "onnxruntime>=1.18"]
OBJECT_STORAGE = ["moto[s3,server]", "s3fs"]  # a server for tests, and its client
BATCH = ["ray>=2.53", "fsspec", "pyarrow"]  # only `raymap3r batch` and `evaluate --ray` need these

version = re.search(r'^__version__ = "(.+)"$', Path(NAME, "__init__.py").read_text(), re.MULTILINE)[1]

setup(
    name=NAME,
    version=version,
    description="Live 3D perception for robots in dynamic environments with CUT3R networks, for ROS 2",
    long_description=Path("README.md").read_text() if Path("README.md").is_file() else "",
    long_description_content_type="text/markdown",
    author="raymap3r_ros maintainers",
    maintainer="raymap3r_ros maintainers",
    maintainer_email="maintainers@raymap3r-ros.invalid",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={
        NAME: ["weights/*.safetensors", "doctor/*.npz", "clients/office_clip/*.*", "clients/office_clip/*/*.*"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", sorted(glob("launch/*.launch.py"))),
        (f"share/{NAME}/config", sorted(path for path in glob("config/*") if Path(path).is_file())),
    ],
    install_requires=[
        "numpy>=1.26",
        "torch>=2.4",
        "safetensors",
        "pillow",
        "opencv-python-headless>=4.7",
        "rosbags",
        "rosbags-image",
        "tqdm",
        "pyyaml",
    ],
    extras_require={
        "evaluation": EVALUATION,
        "weights": ["gdown>=6.3", "huggingface_hub>=0.36.2"],  # only `raymap3r weights fetch` needs them
        "export": EXPORT,
        "onnx": ONNX,  # only `execution: onnx` needs these
        "batch": BATCH,  # for s3:// also s3fs, for gs:// gcsfs
        "view": ["rerun-sdk>=0.24"],  # only `raymap3r run --view` needs it
        # Without pytest here `colcon test` runs nothing.
        "test": [
            "pytest>=7.4",
            "pytest-xdist>=3.8",
            "ruff",
            *EVALUATION,
            *EXPORT,
            *ONNX,
            *READERS,
            *BATCH,
            *OBJECT_STORAGE,
        ],
    },
    zip_safe=False,  # weights, launch files and configuration are read as files
    entry_points={
        "console_scripts": [
            "raymap3r = raymap3r_ros.cli:main",
            "stream = raymap3r_ros.node.__main__:main",
        ],
    },
)
