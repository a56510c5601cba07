"""Package metadata of mmjax. pyproject.toml holds the build system and the settings of tools only."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
readme = HERE / "README.md"

# Python 3.11 ends at jax 0.10 and flax 0.12.8. From jax 0.11.1 on, `flax.nnx` needs flax 0.12.9 or later,
# and the packages' own metadata would let an older flax resolve beside it, hence a floor for each Python.
CORE = [
    'jax>=0.10.2,<0.11; python_version < "3.12"',
    'jax>=0.11.1,<0.13; python_version >= "3.12"',
    'flax>=0.12.8,<0.12.9; python_version < "3.12"',
    'flax>=0.12.9,<0.13; python_version >= "3.12"',
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.11.36,<0.13",
    "grain>=0.2.18,<0.3",
    "absl-py>=2.1,<3",
    "array-record>=0.8.3,<0.9",
    "etils[epath]>=1.9,<2",
    "numpy>=2.2,<3",
    "ml_dtypes>=0.5,<1",
    "ml-collections>=1.1,<2",
    "safetensors>=0.5,<1",
    "tokenizers>=0.22,<0.24",
    "protobuf>=5,<8",
    "sentencepiece>=0.2,<0.3",
    "jinja2>=3.1.6,<4",
    "gguf>=0.17,<1",
    "huggingface_hub>=0.34,<3",
    "pillow>=11,<14",
    "rich>=13,<16",
    "tensorboardX>=2.6.2,<3",
]

EXTRAS = {
    # Accelerators. Each takes the plugin of the jax version that the core range resolves to.
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda12]"],
    # Data and media beyond text and images.
    "tfds": ["tensorflow-datasets>=4.9.9,<5"],
    "audio": ["soundfile>=0.13,<1"],
    "video": ["av>=14,<19"],
    "3d": ["trimesh>=4.5,<6"],
    "eval": ["sacrebleu>=2.5,<3", "rouge-score>=0.1.2,<0.2"],
    "serve": ["fastapi>=0.115,<1", "uvicorn>=0.34,<1", "python-multipart>=0.0.20,<0.1"],
    # Each of these two goes into an environment of its own: tensorflow is large and pins protobuf, and
    # jax2onnx pins orbax-checkpoint below 0.11.37, which is why the core range reaches down to 0.11.36.
    "tf": ["tensorflow>=2.21,<2.22"],
    "onnx": ["jax2onnx==0.17.1", "onnxruntime>=1.22,<2"],
    # Tests compare with these exact versions. Install torch first, with pip: see the Makefile.
    "test": [
        "torch==2.13.0",
        "transformers==5.23.0",
        "peft==0.21.2",
        "diffusers==0.42.1",
        "av>=14,<19",
        "soundfile>=0.13,<1",
        "pytest>=8.4,<10",
        "pytest-xdist>=3.6,<4",
        "tensorflow-datasets>=4.9.9,<5",
    ],
    "dev": ["ruff>=0.12,<0.18", "import-linter>=2.3,<3", "build>=1.2,<2"],
}

setup(
    name="mmjax",
    version="0.1.0",
    description="Multimodal large language models in JAX: train on TPU pods, run jitted, export.",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    install_requires=CORE,
    extras_require=EXTRAS,
    packages=find_packages(include=["mmjax", "mmjax.*", "configs", "pallas_kernels", "pallas_kernels.*"]),
    package_data={"mmjax.recipes.demo": ["assets/*"]},
    entry_points={"console_scripts": ["mmjax=mmjax.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
