from setuptools import find_packages
from setuptools import setup

setup(
  name="siglax",
  version="0.1.0",
  description="Contrastive image-text training (SigLIP, CLIP) in JAX, from a laptop to a TPU pod",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["siglax", "siglax.*"]),
  package_data={
    "siglax": ["py.typed"],
    "siglax.data": ["shapes.model"],
    "siglax.evals": ["templates/*.txt"],
  },
  install_requires=[  # what siglax imports, with the lowest versions that its tests have run with
    "jax>=0.10.2",
    "flax>=0.12.8",
    "optax>=0.2.8",
    # Checkpoint handlers and the files they write change between its minor versions.
    "orbax-checkpoint>=0.12.8,<0.13",
    "tensorflow-datasets>=4.9.10",  # the source tfds, and records of tf.train.Example
    # It permutes the examples: where another version permutes them otherwise, a run cannot go on
    # (its checkpoints tell, see config.loader.allow_new_order).
    "grain>=0.2.18,<0.3",
    "array_record>=0.8.6",
    "sentencepiece>=0.2.3",
    # Not imported: what sentencepiece reads its models with, and does not ask for.
    "protobuf>=7.36.1",
    "tokenizers>=0.23.3",
    "fsspec>=2026.9.0",
    "ml-collections>=1.1.0",
    "ml_dtypes>=0.6.0",
    "safetensors>=0.8.0",
    # Not imported: jax.export, which writes the stablehlo format, needs it and does not ask for it.
    "flatbuffers>=25.12.19",
    "numpy>=2.4",
    "scipy>=1.17",
    "opencv-python-headless>=5.0.0.93",
    "pillow>=13.0",
    "pyarrow>=26.0",
    "tensorboardX>=2.6.5",
    "rich>=15.0",
    "matplotlib>=3.11",
  ],
  extras_require={
    "gpu": ["jax[cuda13]>=0.10.2"],
    "tpu": ["jax[tpu]>=0.10.2"],
    "wandb": ["wandb>=0.19"],
    "s3": ["s3fs>=2026.9.0"],
    "gcs": ["gcsfs>=2026.10.1"],
    "onnx": ["onnx>=1.23.2", "onnxruntime>=1.32.0"],  # of siglax export --format onnx
    "test": [
      "pytest>=9.2",
      "pytest-xdist>=3.8",
      "hypothesis>=6.170",
      "pyyaml>=6.0",
      "import-linter>=2.17",
      "chex>=0.1.92",  # comparisons of trees
      "scikit-learn>=1.9",  # without it the test that knn is its classifier is skipped
      # Of --format onnx, about 110 MB; without them its tests are skipped.
      "onnx>=1.23.2",
      "onnxruntime>=1.32.0",
      # A server of S3 on this machine, about 130 MB; without it the tests of s3:// are skipped.
      "s3fs>=2026.9.0",
      "moto[s3]>=5.2.5",
      "flask>=3.1.3",
      "flask-cors>=6.0.5",
      # The same of Google's storage, for a slow test.
      "gcsfs>=2026.10.1",
      "gcp-storage-emulator>=2026.7.19",
    ],
    "dev": [
      "ruff>=0.17.6",
      "pyright[nodejs]>=1.1.414",
      "pre-commit>=4.7.0",
      "mkdocs>=1.6.1",
      "mkdocs-material>=9.8.2",
      "mkdocstrings[python]>=1.0.8",
    ],
  },
  entry_points={"console_scripts": ["siglax=siglax.commands.cli:entry"]},
)
