"""The Hugging Face Hub: exported folders go there, what they hold beside is left."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from partikel.app.export import CARD, CONFIG, PICTURE, read_config
from partikel.errors import CheckpointError, ConfigError, optional
from partikel.files import fingerprint, plain_file, reading


def to_push(folder: Path) -> dict[str, int]:
    """The files that 'partikel export' wrote into a folder, with their sizes in bytes.

    Raises:
        CheckpointError: if the folder is no export, was changed, or lacks one of them.
    """
    written = read_config(folder).get("files", {"generator.safetensors": None})  # that of 0.1
    found: dict[str, int] = {}
    again = "is missing from the export, or was changed: export it again."
    with reading(folder / CONFIG, again):
        named = {CARD: None, CONFIG: None, PICTURE: None, **written}
    for name, seal in named.items():
        path = folder / name
        with reading(path, again):
            if not path.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{name} lies outside")
            found[name] = plain_file(path).st_size
            if seal not in (None, fingerprint(path.read_bytes(), 32)):
                raise ValueError(f"{name} was changed")
    return found


def push_folder(
    folder: Path, repo: str, files: Iterable[str], *, private: bool = False, message: str = ""
) -> str:
    """Upload files of a folder to a repository of models, which is made where there is none.

    Args:
        folder: an exported one.
        repo: USER/NAME.
        files: names of those to upload.
        private: whether a new repository is private; one that is there stays as it is.
        message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        ConfigError: if huggingface_hub is not installed, nobody is logged in, the repository's name is
            none, or the Hub refuses.
        CheckpointError: if the Hub cannot be reached.
    """
    need = "the Hub needs the package huggingface_hub"
    hub = optional("huggingface_hub", "hub", need)
    errors = optional("huggingface_hub.errors", "hub", need)
    if hub.get_token() is None:
        raise ConfigError(
            "nobody is logged in to the Hub: run 'hf auth login', or put a token that may write into "
            "HF_TOKEN."
        )
    api = hub.HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True, repo_type="model")
        api.upload_folder(
            repo_id=repo,
            folder_path=str(folder),
            allow_patterns=list(files),
            commit_message=message or "Export from Partikel",
        )
    except errors.HFValidationError as error:
        raise ConfigError(f"'{repo}' names no repository of the Hub: write USER/NAME.") from error
    except errors.HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        if code in (401, 403):
            raise ConfigError(
                f"the Hub does not let you write to '{repo}' ({code}): log in as its owner, with a token "
                "that may write."
            ) from error
        reason = " ".join(str(error.server_message or error).split())
        raise ConfigError(f"the Hub refused '{repo}' ({code}: {reason[:200]}).") from error
    except Exception as error:
        carried = type(error).__module__.startswith(("httpx", "httpcore", "requests"))
        if not carried and not isinstance(error, OSError):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"the Hub cannot be reached ({reason}): nothing was published; try again when it can."
        ) from error
    return str(address)
