"""Models by timm's names of a folder, ``local-dir:PATH``, and of the Hugging Face Hub, ``hf-hub:OWNER/NAME``.

Imports nothing heavy. Only safetensors are taken from either: other files of weights are pickled.
"""

from __future__ import annotations

import functools
from pathlib import Path

from vitutor_core.errors import CheckpointError, ConfigError, ResourceError, first_line

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_WAIT_S = 5.0


def is_named(name: str) -> bool:
    """Tell whether a name is one of a folder or of the Hub."""
    return name.partition(":")[0] in ("local-dir", "hf-hub")


def named_folder(name: str) -> Path | None:
    """Return the folder with config.json and model.safetensors that ``name`` is of; None for any other name.

    Raises `CheckpointError` where one of the two is missing or cannot be fetched.
    """
    config, weights = (named_file(name, wanted) for wanted in (CONFIG, WEIGHTS))
    return weights.parent if config is not None and weights is not None else None


def named_file(name: str, wanted: str) -> Path | None:
    """Return the file ``wanted`` of a folder or a repository; raises as `named_folder` does."""
    kind, _, where = name.partition(":")
    if not is_named(name):
        return None
    if kind == "local-dir":
        found = Path(where).absolute() / wanted
        if not found.is_file():
            raise CheckpointError(f"{found}: no such file; `export` writes such a folder")
        return found
    fetched = fetch(where, wanted)
    if fetched is None:
        raise CheckpointError(f"hf-hub:{where}: has no {wanted}; only models that timm saved as safetensors are taken")
    return fetched


@functools.cache
def fetch(repository: str, wanted: str) -> Path | None:
    """Return a file of ``OWNER/NAME`` or ``OWNER/NAME@REVISION`` on the Hub, fetched if need be; None if it has none.

    Where the Hub does not answer one request, what was fetched before is taken; there is no second request. Raises
    `CheckpointError` where nothing was.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RemoteEntryNotFoundError

    model, _, revision = repository.partition("@")
    reason = ""
    try:
        get_hf_file_metadata(hf_hub_url(model, wanted, revision=revision or None), timeout=_WAIT_S)
    except RemoteEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ConfigError(f"hf-hub:{repository}: not the name of a repository ({error}); write OWNER/NAME") from None
    except Exception as error:  # whatever the network does
        reason = first_line(error)
    try:
        return Path(hf_hub_download(model, wanted, revision=revision or None, local_files_only=bool(reason)))
    except LocalEntryNotFoundError:
        at = f" --revision {revision}" if revision else ""
        raise CheckpointError(
            f"hf-hub:{repository}: {wanted} was not fetched before, and the Hub does not give it ({reason}); run "
            f"'hf download {model} {wanted}{at}' where it does, or give a file on this machine as weights"
        ) from None
    except Exception as error:  # it stopped answering in the middle
        raise CheckpointError(f"hf-hub:{repository}: {wanted} cannot be fetched ({error}); try it again") from None


def push(folder: Path, repository: str, *, message: str) -> str:
    """Upload a folder to ``OWNER/NAME`` on the Hub, made as a private one unless it is there; return its address.

    Raises `ConfigError` where the Hub refuses it, and `ResourceError` where it does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except (HFValidationError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--push {repository}: {reason}; log in with 'hf auth login', or set HF_TOKEN") from None
    except Exception as error:  # whatever the network does
        reason = first_line(error)
        raise ResourceError(f"--push {repository}: the Hub does not answer ({reason}); {folder} is written") from None
    return str(made)
