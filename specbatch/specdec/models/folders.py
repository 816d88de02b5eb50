"""Model folders before anything is loaded: where they are, whether they are safe, whether two make a pair.

Nothing here imports torch: planning and validation run on machines that could not hold the models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from specbatch.schemas.canonical import canonical_json, sha256_file, sha256_hex
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.specdec.models.arithmetic import DTYPE_BYTES
from specbatch.specdec.models.families import check_supported, max_context
from specbatch.specdec.models.files import count_parameters, read_json
from specbatch.specdec.models.quantization import Quantization, find_quantization

BUNDLED_PREFIX = "code-pair/"
_ASSETS = Path(__file__).resolve().parents[2] / "assets"
_DEFAULT_DRAFTS = {"code-pair/target": "code-pair/draft-taught"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model on disk.

    Attributes:
        name: as the user wrote it.
        revision: commit hash of a hub model, None for a folder.
        files: (file name, hex SHA-256) of config, weights and tokenizer, sorted by name.
        parameters: number of weights, read from the safetensors headers.
        quantization: how its weights are quantized, by its files or on loading; None where they are not.
    """

    name: str
    revision: str | None
    path: Path
    files: tuple[tuple[str, str], ...]
    parameters: int
    quantization: Quantization | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The parsed ``config.json``."""
        return read_json(self.path / "config.json")

    @property
    def is_bundled(self) -> bool:
        """Whether it comes with this package."""
        return self.path.is_relative_to(_ASSETS)

    @property
    def place(self) -> str:
        """Where to find it from any machine that sees it: the folder, or the name of a bundled one."""
        return self.path.relative_to(_ASSETS).as_posix() if self.is_bundled else str(self.path)


def default_draft(target_name: str) -> str | None:
    """The draft that ships for a bundled target; None for any other."""
    return _DEFAULT_DRAFTS.get(target_name)


def locate_model(name: str, quantization: str | None = None) -> ModelFolder:
    """Find a model and check that it is safe to load and of a supported family.

    Args:
        name: a bundled name (``code-pair/target``), a folder, or a hub id (``org/model`` or ``org/model@revision``).
        quantization: name of ``quantization.ON_LOAD``, how its dense weights are quantized on loading.

    Raises:
        SpecbatchError: JOB_MODEL_MISSING, JOB_MODEL_ACCESS, JOB_UNSAFE_WEIGHTS, JOB_REMOTE_CODE, JOB_MODEL_UNSUPPORTED;
            JOB_CONFIG for a quantization that does not go with it.
    """
    path, revision = _find_folder(name)
    return _inspect(name, path, revision, quantization)


def check_pair(target: ModelFolder, draft: ModelFolder) -> None:
    """Target and draft must share one token map: a draft of another vocabulary gives wrong text without any error.

    Rows of padding behind the real vocabulary may differ; token ids may not.

    Raises:
        SpecbatchError: JOB_VOCAB_MISMATCH with the first difference.
    """
    target_vocab, draft_vocab = token_map(target.path), token_map(draft.path)
    if target_vocab != draft_vocab:
        raise SpecbatchError(
            ErrorCode.JOB_VOCAB_MISMATCH,
            f"target {target.name} and draft {draft.name} have different tokenizers "
            f"({_first_difference(target_vocab, draft_vocab)}); use a draft that was trained "
            "with the target's tokenizer, or --draft none",
        )
    vocab_size = max(target_vocab.values(), default=-1) + 1
    for folder in (target, draft):
        if _vocab_rows(folder) < vocab_size:
            raise SpecbatchError(
                ErrorCode.JOB_VOCAB_MISMATCH,
                f"{folder.name} has {_vocab_rows(folder)} embedding rows for a tokenizer of {vocab_size} tokens; "
                "the folder mixes two models",
            )


def context_length(folder: ModelFolder) -> int:
    """Most positions (prompt and completion together) that the model was made for; see ``families.max_context``.

    Raises:
        SpecbatchError: JOB_MODEL_UNSUPPORTED if ``config.json`` names none.
    """
    length = max_context(folder.config)
    if length is None:
        raise SpecbatchError(ErrorCode.JOB_MODEL_UNSUPPORTED, f"config.json of {folder.name} names no context length")
    return length


def resolve_dtype(dtype: str, device: str, folder: ModelFolder) -> str:
    """``auto`` becomes float32 on CPU, whatever the checkpoint's, and the checkpoint's own on a GPU.

    Raises:
        SpecbatchError: JOB_CONFIG for a type that models are not computed in; JOB_MODEL_UNSUPPORTED where it is the
            checkpoint's own.
    """
    known = ", ".join(DTYPE_BYTES)
    if dtype != "auto":
        if dtype not in DTYPE_BYTES:
            raise SpecbatchError(ErrorCode.JOB_CONFIG, f"dtype is {dtype!r}; it must be auto or one of {known}")
        return dtype
    if device == "cpu":
        return "float32"
    stored = folder.config.get("dtype") or folder.config.get("torch_dtype") or "float32"
    if stored not in DTYPE_BYTES:
        raise SpecbatchError(
            ErrorCode.JOB_MODEL_UNSUPPORTED,
            f"config.json of {folder.name} names the dtype {stored!r}, in which models are not computed; choose one of "
            f"{known} with --dtype",
        )
    return str(stored)


def tokenizer_sha256(folder: ModelFolder) -> str:
    """Digest of all that decides how text becomes ids and back."""
    return sha256_hex(canonical_json({name: digest for name, digest in folder.files if name in TOKENIZER_FILES}))


def token_map(path: Path) -> dict[str, int]:
    """Token string to id, added tokens included, read from ``tokenizer.json``."""
    from tokenizers import Tokenizer

    vocab: dict[str, int] = Tokenizer.from_file(str(path / "tokenizer.json")).get_vocab(with_added_tokens=True)
    return vocab


def eos_token_ids(path: Path) -> tuple[int, ...]:
    """End-of-sequence ids: of ``generation_config.json`` where it names any, else of ``config.json``."""
    for name in ("generation_config.json", "config.json"):
        if (path / name).is_file():
            value = read_json(path / name).get("eos_token_id")
            if value is not None:
                return tuple(value) if isinstance(value, list) else (int(value),)
    return ()


def _find_folder(name: str) -> tuple[Path, str | None]:
    if name.startswith(BUNDLED_PREFIX) and (_ASSETS / name).is_dir():
        return _ASSETS / name, None
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve(), None
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise SpecbatchError(
            ErrorCode.JOB_MODEL_MISSING,
            f"no model at {name}; give a folder with config.json and model.safetensors, a hub id, "
            f"or one of the bundled {_bundled_names()}",
        )
    return _download(name)


def _bundled_names() -> str:
    return ", ".join(sorted(f"{BUNDLED_PREFIX}{p.name}" for p in (_ASSETS / BUNDLED_PREFIX).iterdir() if p.is_dir()))


def _download(name: str) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    repo, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=["*.json", "*.safetensors", "*.jinja"],
            etag_timeout=10,
        )
    except GatedRepoError as error:
        raise SpecbatchError(
            ErrorCode.JOB_MODEL_ACCESS, f"{name} is gated; accept its terms on the hub and set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise SpecbatchError(
            ErrorCode.JOB_MODEL_MISSING,
            f"no folder and no hub model is called {name}; check the spelling, or set HF_TOKEN if it is private",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise SpecbatchError(
            ErrorCode.JOB_MODEL_MISSING,
            f"no folder is called {name}, and the model hub could not be reached to look for it there "
            f"({type(error).__name__}); give a local folder",
        ) from error
    return Path(folder), Path(folder).name


def _inspect(name: str, path: Path, revision: str | None, on_load: str | None) -> ModelFolder:
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        pickles = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLE_SUFFIXES)
        if pickles:
            raise SpecbatchError(
                ErrorCode.JOB_UNSAFE_WEIGHTS,
                f"{name} has only pickle weights ({pickles[0]}), which can run code when loaded; "
                "convert it to safetensors first",
            )
        raise SpecbatchError(ErrorCode.JOB_MODEL_MISSING, f"{name} holds no *.safetensors file; is it a model folder?")
    for required in ("config.json", "tokenizer.json"):
        if not (path / required).is_file():
            raise SpecbatchError(ErrorCode.JOB_MODEL_MISSING, f"{name} has no {required}; is it a whole model folder?")
    config = read_json(path / "config.json")
    _refuse_remote_code(name, config)
    check_supported(name, config)
    quantization = find_quantization(name, config, on_load)
    kept = [p for p in path.iterdir() if p.is_file() and p.suffix in (".json", ".safetensors", ".jinja")]
    files = tuple(sorted((p.name, _sha256_cached(p, p.stat().st_size, p.stat().st_mtime_ns)) for p in kept))
    return ModelFolder(name, revision, path, files, sum(count_parameters(p) for p in weights), quantization)


def _refuse_remote_code(name: str, config: object) -> None:
    """Look through nested sections too: a nested config has turned remote code on before (CVE-2026-5241)."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key == "auto_map" or (key == "trust_remote_code" and value):
                raise SpecbatchError(
                    ErrorCode.JOB_REMOTE_CODE,
                    f"config.json of {name} asks for code of its own ({key}); specbatch runs no code from models",
                )
            _refuse_remote_code(name, value)
    elif isinstance(config, list):
        for value in config:
            _refuse_remote_code(name, value)


def _first_difference(left: dict[str, int], right: dict[str, int]) -> str:
    for token, index in sorted(left.items(), key=lambda item: item[1]):
        if right.get(token) != index:
            return f"token {token!r} has id {index} in the target and {right.get(token, 'none')} in the draft"
    extra = min((index, token) for token, index in right.items() if token not in left)
    return f"token {extra[1]!r} with id {extra[0]} is in the draft only"


def _vocab_rows(folder: ModelFolder) -> int:
    return int(folder.config.get("vocab_size", 0))


@lru_cache(maxsize=256)
def _sha256_cached(path: Path, size_bytes: int, mtime_ns: int) -> str:
    """Hash a file once per process; size and time in the key tell a file that changed."""
    return sha256_file(path)
